"""Parts of an array for processes: whole chunks, as evenly as they go, the last chunk being what is left of the array."""

# Elements: SPAN of kernels/wide.pxi, by which kernels sum squares, so that no sum crosses a part; and some CODE_BLOCKs, whose
# elements share a scale, so that no block does.
CHUNK = 8192


def cuts(size: int, processes: int, per: int = 1) -> list[int]:
    """Where the parts of an array of `size` elements begin, and the last one ends; each element stands for `per` of those that
    are in a chunk."""
    chunk = CHUNK // per
    chunks = -(-size // chunk)
    return [min(size, chunks * number // processes * chunk) for number in range(processes + 1)]


def largest(size: int, processes: int, per: int = 1) -> int:
    """Elements of the largest part: every process has room for so many, and plans of all are the same."""
    bounds = cuts(size, processes, per)
    return max(stop - start for start, stop in zip(bounds, bounds[1:], strict=False))


def part_of(rank: int, processes: int) -> int:
    """Number of the part that a process owns: its rank with the bits reversed. Neighbours swap halves first, and keep a half
    each; then pairs of neighbours swap halves of these, so the first bit of the rank decides the largest halves."""
    number = 0
    while processes > 1:
        rank, processes, number = rank >> 1, processes >> 1, number << 1 | rank & 1
    return number
