"""Ways to tape a part of a block that are worth having: all are tried, or as many as a bound allows."""

from collections.abc import Callable, Iterable

import numpy as np

from cllm.planner.pairs import ROUNDING, unbeaten
from cllm.planner.parts import Part, kept_values
from cllm.planner.region_costs import Decisions, TapeCost
from cllm.plans.tree import Compress
from cllm.program.dims import elements
from cllm.program.program import Program

# All ways are tried of a part between neighbouring cuts in which at most so many steps may be dropped, and of any part that
# has at most so many ways. Others are searched: for all of them that a kind of block has, schedules of about so many steps in
# all are made (2^15 take a few seconds; most searches end long before). A search goes over the steps so many times, takes
# them in at most so many groups, and carries on at least so many ways.
MOST_DROPS = 12
MOST_TRIED = 256
MOST_SCHEDULED = 1 << 15
SWEEPS = 2
MOST_GROUPS = 48
LEAST_WIDTH = 4

Price = Callable[[list[Decisions]], list[TapeCost]]


def ways_to_drop(part: Part, price: Price, share: int = 1) -> list[TapeCost]:
    """Ways that differ in what they drop, none beaten; `price` says what they cost.

    A search begins with what drops nothing and what drops all, and takes step after step: each way that no other has beaten
    so far is tried with that step dropped where it was kept, kept where it was dropped.

    Parameters
    ----------
    share : int
        How many parts share what a search may try.
    """
    count = len(part.drops)
    if 1 << count <= MOST_TRIED or count <= MOST_DROPS and part.stop - part.start == 1:
        return best_tapes(price(list(part.every())))
    groups = [frozenset(g.tolist()) for g in np.array_split(np.arange(count), min(count, MOST_GROUPS))]
    width = max(LEAST_WIDTH, MOST_SCHEDULED // (len(part.steps) * share * SWEEPS * len(groups)))
    tried: dict[Decisions, frozenset[int]] = {}

    def priced(drops: list[frozenset[int]]) -> list[TapeCost]:
        new = {part.dropping(tuple(n in drop for n in range(count))): drop for drop in drops}
        new = {decisions: drop for decisions, drop in new.items() if decisions not in tried}
        tried.update(new)
        return price(list(new))

    ways = priced([frozenset(), frozenset(range(count))])
    for _ in range(SWEEPS):
        for group in groups:
            ways = thinned(best_tapes(ways + priced([tried[w.decisions] ^ group for w in ways])), width)
    return ways


def ways_to_narrow(program: Program, part: Part, ways: list[TapeCost], price: Price, dtype: str,
                   letters: dict[str, int]) -> list[TapeCost]:
    """The ways and, for each, those in which the largest value that it keeps is compressed, the two largest, and so on;
    never what the block is rebuilt from, nor statistics. A part's input is a value of its block like others."""
    given = program.values[part.given]
    values = [("input", given)] if part.start else []
    values += [(v.key, v) for step in part.steps for v in kept_values(program, step) if v.name != part.left]
    sizes = sorted(((elements(v.shape, letters), key) for key, v in values if v.dtype is None and v.role != "statistics"),
                   key=lambda pair: -pair[0])

    def narrower(decisions: Decisions) -> Iterable[Decisions]:
        decided = {key for key, _ in decisions}
        kept = [key for _, key in sizes if key not in decided]
        return ((*decisions, *((key, Compress(dtype)) for key in kept[:count])) for count in range(1, len(kept) + 1))

    return best_tapes(ways + price([d for way in ways for d in narrower(way.decisions)]))


def best_tapes(tapes: list[TapeCost]) -> list[TapeCost]:
    """Those that no other equals or betters in everything."""
    return [tapes[n] for n in best_rows(np.array([t.costs for t in tapes], float))]


def best_rows(costs: np.ndarray) -> np.ndarray:
    """Numbers of the rows of `TapeCost.costs` that no other equals or betters in everything."""
    rounded = costs.copy()
    for column in (3, 5):  # sums of the same seconds in another order are equal
        unit = costs[:, column].max() * ROUNDING or 1.0
        rounded[:, column] = np.round(costs[:, column] / unit)
    return unbeaten(rounded)


def thinned(tapes: list[TapeCost], most: int) -> list[TapeCost]:
    """At most so many, evenly by the bytes that they keep, the best of each cost among them."""
    if len(tapes) <= most:
        return tapes
    costs = np.array([t.costs for t in tapes])
    order = np.argsort(costs[:, 0], kind="stable")
    evenly = order[np.linspace(0, len(tapes) - 1, most).astype(int)]
    number = dict.fromkeys([*costs.argmin(axis=0).tolist(), *evenly.tolist()])
    return [tapes[n] for n in sorted(list(number)[:most])]
