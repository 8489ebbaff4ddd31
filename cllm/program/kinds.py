"""Kinds of operations: what a step is made of, in one table. What more there is to do in a step is one more line here."""

from enum import StrEnum


class Kind(StrEnum):
    """What an operation does: its word, and the method of a layer that it calls, None where it moves arrays itself.

    Those of layers and those that move values read and write what their step's declaration says, once for each micro-batch.
    Those on parameters have it in the table: the buffers that they read, those that they write, and that they run once in a
    step, or in each group of it. A buffer lives from the first operation that names it to the last.

    Attributes
    ----------
    method : str or None
    reads, writes : tuple of str
        What the buffers are called: "gradient" of a parameter, "states" of its optimizer, "partial" sums of the gradients of
        groups, "sum" of all of them, "message" for what another process sends.
    once : bool
        Whether it is on parameters, and runs no more than once in a group.
    """

    FORWARD = "forward", "forward"
    REBUILD = "rebuild", "forward"  # forward again, of what was not kept
    LOGITS = "logits", "forward"  # the head's, where nobody wants a loss
    EVALUATE = "evaluate", "evaluate"  # adds to the loss, and makes no gradients
    ACCUMULATE = "accumulate", "accumulate"
    BACKWARD = "backward", "backward"
    ZERO = "zero", None  # moves of gradients
    COPY = "copy", None
    ADD = "add", None
    STASH = "stash", None  # to where it waits for the epilogue
    COMPRESS = "compress", None  # moves of values: to the nearest narrow number
    ROUND = "round", None  # to one of the two nearest, at random
    EXPAND = "expand", None
    SPILL_START = "spill_start", None
    SPILL_WAIT = "spill_wait", None
    FETCH_START = "fetch_start", None
    FETCH_WAIT = "fetch_wait", None
    # on parameters         method  reads                   writes          once
    CHECK_LOSS = "check_loss", None, (), (), True  # before anything moves
    ZERO_GRADIENT = "zero_gradient", None, (), ("gradient",), True
    REDUCE = "reduce", None, ("gradient", "partial"), ("partial", "message", "sum"), True  # adds gradients of groups
    CLIP = "clip", None, ("gradient",), ("gradient",), True  # finds its norm, refuses NaN, scales
    UPDATE = "update", None, ("gradient", "states"), ("states",), True
    GATHER = "gather", None, (), (), True  # what other processes updated
    LOAD_START = "load_start", None, (), ("states",), True  # from disk
    LOAD_WAIT = "load_wait", None, (), ("states",), True
    STORE_START = "store_start", None, ("states",), (), True
    STORE_WAIT = "store_wait", None, ("states",), (), True

    def __new__(cls, word: str, method: str | None, reads: tuple[str, ...] = (), writes: tuple[str, ...] = (),
                once: bool = False):
        made = str.__new__(cls, word)
        made._value_, made.method, made.reads, made.writes, made.once = word, method, reads, writes, once
        return made

    __hash__ = str.__hash__  # planning hashes millions of them

    @property
    def costs_as(self) -> "Kind":
        """The kind under which its seconds are known: a rebuild is a forward."""
        return Kind.FORWARD if self is Kind.REBUILD else self

    @property
    def work(self) -> str | None:
        """The method whose declared work it does: an evaluation is one of a head's forward."""
        return "forward" if self is Kind.EVALUATE else self.method


DISK = frozenset({Kind.SPILL_START, Kind.SPILL_WAIT, Kind.FETCH_START, Kind.FETCH_WAIT})
STATES = frozenset({Kind.LOAD_START, Kind.LOAD_WAIT, Kind.STORE_START, Kind.STORE_WAIT})
# Operations that only make or move values: without a reader they are left out.
DROPPABLE = frozenset({Kind.FORWARD, Kind.REBUILD, Kind.COMPRESS, Kind.ROUND, Kind.EXPAND, *DISK})
# Operations of backward, by reading which a value of forward shows that it was kept.
READS_KEPT = frozenset({Kind.ACCUMULATE, Kind.BACKWARD, Kind.REBUILD, Kind.EXPAND, Kind.FETCH_START})
