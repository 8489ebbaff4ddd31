"""Programs: wiring, regions, who reads what, and what is refused."""
import pytest
import toys
from toys import Add, Head, Mix, Scale, Source, Tanh

import cllm
from cllm.models.architecture import program_of
from cllm.program.program import Program
from cllm.program.wiring import Wiring

TINY = cllm.ModelConfig(13, 3, 16, 2, 24, 9)


def wiring(*blocks):
    w = Wiring()
    x = w.add("source", Source(V=5, C=3))
    for number in range(len(blocks)):
        with w.block(number):
            x = blocks[number](w, x)
    return w, x


def tanh(w, x):
    return w.add("t", Tanh(C=3), x=x)


def finish(w, x):
    w.add("head", Head(V=5, C=3), x=x)
    return w.program()


def test_names_and_order_of_a_small_program():
    program = finish(*wiring(tanh, tanh))
    assert [s.name for s in program.steps] == ["source", "blocks.0.t", "blocks.1.t", "head"]
    assert [s.index for s in program.steps] == [0, 1, 2, 3]
    assert program.n_blocks == 2 and list(program.values) == ["source.y", "blocks.0.t.y", "blocks.1.t.y", "head.logits"]
    assert program.block_inputs == ("source.y", "blocks.0.t.y", "blocks.1.t.y")
    value = program.values["blocks.1.t.y"]
    assert (value.key, value.block, value.step, value.group, value.shape) == ("t.y", 1, 2, "act", "N 3")
    assert list(program.parameters) == ["source.weight", "head.weight"]
    assert program.parameters["head.weight"].shape == (5, 3) and program.parameters["head.weight"].decays
    before, blocks, after = program.regions
    assert [[s.name for s in r] for r in (before, *blocks, after)] == [["source"], ["blocks.0.t"], ["blocks.1.t"], ["head"]]


def test_readers_are_the_steps_whose_backward_reads_a_value():
    program = toys.wire([((Scale, 0, 0), (Mix, 1, 0), (Tanh, 2, 0), (Add, 3, 0))])
    names = {v: [s.name for s in steps] for v, steps in program.readers.items()}
    assert names == {"source.y": [], "blocks.0.s0.y": ["blocks.0.s1"], "blocks.0.s0.twice": ["blocks.0.s0"],
                     "blocks.0.s1.y": [], "blocks.0.s1.cube": ["blocks.0.s1"], "blocks.0.s2.y": ["blocks.0.s2"],
                     "blocks.0.s3.y": ["head"], "head.logits": ["head"]}


def test_a_shared_parameter_waits_where_a_later_step_adds_to_it():
    tied = toys.wire([((Mix, 0, 0, "one"), (Mix, 1, 0, "one"))], tied=True)
    assert tied.waiting_steps == {0, 1} and tied.parameters.keys() == {"table", "one"}
    assert toys.wire([((Mix, 0, 0), (Mix, 1, 0))]).waiting_steps == frozenset()
    assert {program_of(TINY).steps[i].name for i in program_of(TINY).waiting_steps} == {"embed"}


def test_blocks_of_one_kind_cost_the_same_and_others_do_not():
    line = ((Mix, 0, 0), (Tanh, 1, 0), (Add, 2, 0))
    other = ((Mix, 0, 0), (Tanh, 1, 0), (Add, 0, 2))
    program = toys.wire([line, line, other, ((Mix, 0, 0), (Scale, 1, 0), (Add, 2, 0))])
    kinds = [program.kind_of_block(b) for b in range(4)]
    assert kinds[0] == kinds[1] and len({*kinds}) == 3
    gpt = program_of(TINY)
    assert len({gpt.kind_of_block(b) for b in range(3)}) == 1
    assert {hash(k) for k in kinds}


@pytest.mark.parametrize("block", range(3))
def test_the_program_with_one_block(block):
    gpt = program_of(TINY)
    one = gpt.with_blocks((block,))
    assert one.n_blocks == 1 and [s.index for s in one.steps] == list(range(len(one.steps)))
    assert one.kind_of_block(0) == gpt.kind_of_block(block)
    assert [s.name for s in one.regions[0] + one.regions[2]] == [s.name for s in gpt.regions[0] + gpt.regions[2]]
    assert one.block_inputs[0] == gpt.block_inputs[0] and one.block_inputs[1] == f"blocks.{block}.res2.y"
    for step in one.steps:
        assert set(step.inputs.values()) <= set(one.values)


def test_a_program_without_blocks():
    program = toys.wire([])
    assert program.n_blocks == 0 and program.regions[1] == () and program.block_inputs == ("source.y",)


def refused(build, match):
    with pytest.raises(cllm.DeclarationError, match=match):
        build()


def test_what_a_wiring_refuses():
    w, x = wiring(tanh)
    refused(lambda: w.add("a", Tanh(C=3), x="nobody.y"), "outputs of earlier steps")
    refused(lambda: w.add("a", Tanh(C=3)), "needs the inputs x")
    refused(lambda: w.add("a", Tanh(C=3), x=x, z=x), "needs the inputs x")
    refused(lambda: w.add("source", Tanh(C=3), x=x), "names of steps must differ")
    refused(lambda: w.add("a", Mix(C=4), {"weight": "source.weight"}, x=x), "has the shape")


def test_only_the_output_of_a_step_may_be_read():
    """Other sites have no gradient: a reader of one would get wrong gradients without a word."""
    w, x = wiring(lambda w, x: w.add("s", Scale(C=3), x=x))
    refused(lambda: w.add("a", Tanh(C=3), x="blocks.0.s.twice"), "outputs of earlier steps")


def test_a_region_reads_one_value_from_outside():
    def reads_two(w, x):
        return w.add("sum", Add(C=3), a=x, b="source.y")

    refused(lambda: finish(*wiring(tanh, reads_two)), "exactly one value from outside")

    def reads_none(w, x):
        return w.add("again", Source(V=5, C=3))

    refused(lambda: finish(*wiring(tanh, reads_none)), "exactly one value from outside")
    w, x = wiring(tanh)
    refused(lambda: finish(w, w.add("sum", Add(C=3), a=x, b="source.y")), "exactly one value from outside")


def test_blocks_follow_one_another():
    w, x = wiring(tanh)
    x = w.add("between", Tanh(C=3), x=x)
    with w.block(1):
        x = tanh(w, x)
    refused(lambda: finish(w, x), "without steps between")
    w = Wiring()
    x = w.add("source", Source(V=5, C=3))
    for number in (1, 0):
        with w.block(number):
            x = tanh(w, x)
    refused(lambda: finish(w, x), "without steps between")


def test_a_program_ends_with_a_loss_and_has_no_dead_end():
    w, x = wiring(tanh)
    w.add("last", Tanh(C=3), x=x)
    refused(w.program, "head with an evaluate method")

    def forgets(w, x):
        w.add("lost", Tanh(C=3), x=x)
        return tanh(w, x)

    refused(lambda: finish(*wiring(forgets)), "must be read by a later step")
    refused(lambda: Program((), {}, {}, {}, {}), "head with an evaluate method|no steps")
