"""Plans that hypothesis draws, blocks of toys to draw programs from, and what must hold of every schedule."""
import collections

import toys
from hypothesis import strategies as st
from toys import Add, Mix, Scale, Square, Tanh

from cllm.plans.tree import Cache, Recompute, Segment, Tape
from cllm.schedule.finish import DROPPABLE

TOY_BLOCKS = [((Scale, 0, 0), (Mix, 1, 0), (Tanh, 2, 0), (Add, 3, 0)), ((Square, 0, 0), (Mix, 1, 0), (Add, 2, 0)),
              ((Tanh, 0, 0), (Scale, 1, 0), (Mix, 1, 0), (Add, 2, 3)), ((Mix, 0, 0), (Add, 1, 0)),
              ((Scale, 0, 0), (Tanh, 1, 0), (Square, 2, 0), (Add, 3, 1))]
GPT_KEYS = ("ln1.y", "ln1.mean", "ln1.rstd", "attn.qkv.y", "attn.y", "attn.lse", "attn.probs", "res1.y", "ln2.y", "ln2.mean",
            "ln2.rstd", "mlp.fc1.y", "mlp.act.y")


def assert_sound(schedule):
    """Every buffer is written before it is read and freed once, after its last use; what only moves values has a reader."""
    freed, written, later = set(), set(), collections.Counter()
    for op in schedule.ops:
        later.update(b for _, b in op.reads)
    for position, op in enumerate(schedule.ops):
        reads, writes = [b for _, b in op.reads], [b for _, b in op.writes]
        assert len(set(op.frees)) == len(op.frees)
        assert not freed & {*reads, *writes}, f"{op.name} uses what was freed"
        unwritten = [schedule.buffers[b].label for b in reads if b not in written]
        assert not unwritten, f"{op.name} reads {unwritten} before they are written"
        for b in (*reads, *writes):
            assert schedule.buffers[b].first <= position <= schedule.buffers[b].last
        later.subtract(reads)
        if op.kind in DROPPABLE:
            assert any(later[b] > 0 for b in writes), f"nobody reads what {op.name} makes"
        written.update(writes)
        freed.update(op.frees)
    assert freed == set(range(len(schedule.buffers)))


@st.composite
def trees(draw, blocks, decide, depth=4):
    """Nodes that cover a range of blocks: tapes, and segments of segments to any depth, those of one child included; those
    that begin with the first block may drop its input."""
    nodes, start = [], blocks.start

    def dropped(start):
        return Recompute() if start == 0 and draw(st.booleans()) else Cache()

    while start < blocks.stop:
        if depth and draw(st.booleans()):
            stop = draw(st.integers(start + 1, blocks.stop))
            children = draw(trees(range(start, stop), decide, depth - 1))
            nodes.append(Segment(children, dropped(start)))
            start = stop
        else:
            nodes.append(Tape(start, (*draw(decide(start)), ("input", dropped(start)))))
            start += 1
    return tuple(nodes)


def decisions(keys, choices):
    """Decisions for some of the keys."""
    return st.dictionaries(st.sampled_from(keys), st.sampled_from(choices)).map(lambda d: tuple(d.items()))


def poisoned(ex, calls):
    """The calls of a step, each followed by NaN over what it frees."""
    def after(call, op):
        frees = [(ex.memory.arena.offsets[b], ex.schedule.buffers[b].nbytes) for b in op.frees]

        def run():
            call()
            for start, nbytes in frees:
                ex._slab.bytes[start:start + nbytes] = toys.POISON

        return run

    return [after(call, op) for call, op in zip(calls, ex.schedule.ops, strict=True)]
