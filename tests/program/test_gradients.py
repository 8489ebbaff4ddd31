"""Wiring of backward: gradients of drawn programs equal a complex step, whoever shares a buffer with whom."""
import numpy as np
import pytest
import toys
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toys import BINARY, UNARY, Add, AddHalf, AddTriple, Mix, Scale, Square, Tanh, Times

from cllm.program.gradients import wire_gradients


@st.composite
def lines(draw, most=5, least=1):
    """Lines of a region: any layer on any two values made before, the same value twice included."""
    out = []
    for number in range(draw(st.integers(least, most))):
        kind = draw(st.sampled_from((*UNARY, *BINARY)))
        out.append((kind, draw(st.integers(0, number)), draw(st.integers(0, number))))
    return tuple(out)


def assert_gradients(program, batch=2, time=2, plan=None):
    work = toys.workload(batch, time)
    parameters, (tokens, targets) = toys.draw_parameters(program), toys.draw_batch(work)
    loss, gradients, _ = toys.run(program, work, plan or toys.cache_all(program), parameters, tokens, targets)
    expected = toys.complex_step(program, parameters, tokens, targets, 0.25)
    assert np.isclose(loss, toys.reference(program, parameters, tokens, targets), rtol=1e-12)
    for name, gradient in gradients.items():
        largest = np.abs(expected[name]).max()
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-9, atol=1e-12 * (1 + largest), err_msg=name)


@settings(max_examples=150)
@given(blocks=st.lists(lines(), min_size=1, max_size=2), after=lines(most=2, least=0), tied=st.booleans())
@example(blocks=[((Tanh, 0, 0), (Add, 1, 1))], after=(), tied=False)
@example(blocks=[((Times, 0, 0),)], after=(), tied=False)
@example(blocks=[((AddTriple, 0, 0),)], after=(), tied=False)
@example(blocks=[((AddHalf, 0, 0),)], after=(), tied=True)
def test_gradients_of_drawn_programs(blocks, after, tied):
    assert_gradients(toys.wire(blocks, tied=tied, after=after))


@pytest.mark.parametrize("block", [
    ((Add, 0, 0),),
    ((Scale, 0, 0), (Add, 1, 0), (Tanh, 2, 0), (Add, 3, 2)),  # a residual stream with two branches
    ((Tanh, 0, 0), (Tanh, 0, 0), (Times, 1, 2)),  # two readers that may work in place
    ((Square, 0, 0), (Square, 0, 0), (Add, 1, 2)),  # two that add, nothing there before them
    ((Tanh, 0, 0), (AddTriple, 1, 0)), ((Tanh, 0, 0), (AddTriple, 0, 1)),
    ((Tanh, 0, 0), (AddHalf, 1, 0)), ((Tanh, 0, 0), (AddHalf, 0, 1)),
    ((Add, 0, 0), (Tanh, 1, 0), (Add, 2, 1), (Square, 3, 0), (Add, 4, 3)),
    ((Add, 0, 0), (Add, 1, 1), (Add, 2, 0), (Tanh, 3, 0)),  # a cell that three values share
    ((Mix, 0, 0), (Tanh, 1, 0), (Add, 1, 2), (Times, 3, 1)),
], ids=lambda block: " ".join(f"{kind.__name__}{a}{b}" for kind, a, b in block))
def test_shared_buffers(block):
    assert_gradients(toys.wire([block]))
    assert_gradients(toys.wire([block, block]))


def test_a_parameter_that_several_steps_share():
    block = ((Mix, 0, 0, "shared"), (Tanh, 1, 0), (Mix, 2, 0, "shared"), (Add, 3, 0))
    assert_gradients(toys.wire([block, block]))


def test_a_residual_stream_has_one_gradient_buffer():
    """x + f(x), f beginning with a layer that adds: the gradient of the stream is one cell through all blocks."""
    block = ((Square, 0, 0), (Mix, 1, 0), (Add, 0, 2), (Square, 3, 0), (Mix, 4, 0), (Add, 3, 5))
    moves = wire_gradients(toys.wire([block] * 3))
    stream = {f"blocks.{b}.s{s}.y" for b in range(3) for s in (0, 3)}
    assert not [m for m in moves if m.kind in ("copy", "add", "zero") and m.step.block is not None
                and "dst" in m.writes and (m.writes["dst"].by or m.writes["dst"].of not in stream)]
    targets = {m.writes["dx"] for m in moves if m.kind == "backward" and isinstance(m.step.layer, Square)
               and m.step.name.endswith(".s0")}
    assert len(targets) == 1
    assert sum(m.kind == "copy" for m in moves) == 0


def test_each_gradient_is_made_by_one_writer_or_added_to():
    """Of all moves that name a cell as written, the first makes it; a backward that does not add writes each cell once."""
    moves = wire_gradients(toys.wire([((Tanh, 0, 0), (Scale, 0, 0), (Times, 1, 2), (Add, 3, 0))]))
    made = set()
    for move in moves:
        for cell in move.reads.values():
            assert cell in made, f"{move.kind} {move.step.name} reads {cell} before it is made"
        made |= set(move.writes.values())
