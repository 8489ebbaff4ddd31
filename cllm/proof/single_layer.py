"""One layer alone, on arrays of its own: what a proof calls its methods on."""

from dataclasses import dataclass, field

import numpy as np

from cllm import _kernels as kernels
from cllm.program.declare import HANDED
from cllm.program.dims import batch_letters, resolve
from cllm.program.layer import Layer

GUARD = 8  # elements around each array that nothing may touch
MOST_TOKENS = 7  # below which ids are drawn where a feed has no bound

Arrays = dict[str, np.ndarray | None]


@dataclass
class SingleLayer:
    """A layer with drawn inputs, parameters and feeds.

    Parameters
    ----------
    layer : Layer
    batch, time : int
        B and T.
    shapes : dict of str
        Shapes in letters of inputs that the layer does not declare; those that stand nowhere are shaped like its output.
    dtype : str
    threads : int
        For which scratch is sized.
    shift : int
        Elements by which every array is moved off its alignment.
    """

    layer: Layer
    batch: int
    time: int
    shapes: dict[str, str]
    dtype: str = "float64"
    threads: int = 1
    shift: int = 0
    given: Arrays = field(default_factory=dict)
    _held: list[tuple[str, np.ndarray, np.ndarray]] = field(default_factory=list)

    def __post_init__(self):
        layer, rng = self.layer, np.random.default_rng(7)
        self.letters = {**batch_letters(self.batch, self.time), **layer.letters}
        self.letters["R"] = self.letters["N"]
        for name in layer.inputs:
            self.given[name] = rng.normal(0, 1, resolve(self.shape_of(name), self.letters)).astype(self.dtype)
        for param in layer.params:
            drawn = rng.normal(0, 0.7, resolve(param.shape, self.letters)).astype(self.dtype)
            self.given[param.name] = drawn if layer.has(param) else None
        for table in layer.tables:
            has = layer.has(table)
            self.given[table.name] = np.asarray(table.make(layer)).astype(table.dtype or self.dtype) if has else None
        for name, feed in layer.fed.items():
            self.given[name] = self._drawn_feed(feed, rng) if layer.has(feed) else None
        self.given["key"] = np.array([3, 0, 0], np.uint64)
        self.given["scale"] = np.array([0.5])

    def shape_of(self, name: str) -> str:
        """Shape in letters of an input."""
        return self.layer.reads.get(name) or self.shapes.get(name) or self.layer.sites[0].shape

    def run(self, method: str, reads: Arrays, writes: dict[str, np.ndarray | None], fill: float = np.nan) -> Arrays:
        """Call a method and return what it wrote.

        Parameters
        ----------
        reads : arrays by name
            Beside those that are given; handed over read-only.
        writes : arrays by name
            What they hold before; None for an optional site that is left out. What is not named starts as `fill`.
        """
        flow = getattr(self.layer, f"{method}_flow")
        known = {**self.given, **reads}
        self._held.clear()
        arguments = [self.letters["N"] // self.batch if name == "sequence_rows" else
                     self._placed(name, known[name], writeable=False) for name in flow.reads]
        made = {}
        for name in flow.writes:
            start = writes[name] if name in writes else self._blank(name, fill)
            made[name] = self._placed(name, start, writeable=True)
        with kernels.Threads(self.threads):
            getattr(self.layer, method)(*arguments, **made)
        self._check_guards(method)
        return made

    def _placed(self, name: str, array: np.ndarray | None, writeable: bool) -> np.ndarray | None:
        """A copy between guards, so that what is written beside it shows."""
        if array is None:
            return None
        array = np.asarray(array)
        room = np.full(array.size + 2 * GUARD + self.shift, 77, array.dtype)
        inside = room[GUARD + self.shift:GUARD + self.shift + array.size]
        inside[...] = array.reshape(-1)
        self._held.append((name, room, inside))
        view = inside.reshape(array.shape)
        view.flags.writeable = writeable
        return view

    def _blank(self, name: str, fill: float) -> np.ndarray:
        layer = self.layer
        for site in layer.sites:
            if site.name == name:
                return np.full(resolve(site.shape, self.letters), fill, site.dtype or self.dtype)
        for scratch in layer.scratch:
            if scratch.name == name:
                dtype = np.dtype(scratch.dtype or self.dtype)
                return np.full(scratch.elements(layer, self.letters, self.threads, dtype.itemsize), fill, dtype)
        if name in HANDED:
            return np.zeros(1)
        like = self.given[name[1:]] if name[1:] in self.given else None
        return None if like is None else np.full(like.shape, fill, self.dtype)

    def _check_guards(self, method: str) -> None:
        for name, room, inside in self._held:
            edge = GUARD + self.shift
            if (room[:edge] != 77).any() or (room[edge + inside.size:] != 77).any():
                raise AssertionError(f"{method} writes beyond the ends of {name}: write within its shape only.")

    def _drawn_feed(self, feed, rng: np.random.Generator) -> np.ndarray:
        shape, dtype = resolve(feed.shape, self.letters), np.dtype(feed.dtype or self.dtype)
        high = self.layer.letters[feed.high] if isinstance(feed.high, str) and feed.high in self.layer.letters else feed.high
        if dtype.kind in "iu":
            most = MOST_TOKENS if high is None or isinstance(high, str) else high
            return rng.integers(max(0, feed.low or 0), most, shape).astype(dtype)
        low, high = 0.0 if feed.low is None else feed.low, 1.0 if high is None or isinstance(high, str) else high
        return rng.uniform(low, high, shape).astype(dtype)
