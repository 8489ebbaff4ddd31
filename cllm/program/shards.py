"""Parts of an array for processes: whole chunks, as evenly as they go, the last chunk being what is left of the array."""

CHUNK = 8192  # elements: SPAN of kernels/wide.pxi, by which kernels sum squares, so that no sum crosses a part


def cuts(size: int, processes: int) -> list[int]:
    """Where the parts of an array of `size` elements begin, and the last one ends."""
    chunks = -(-size // CHUNK)
    return [min(size, chunks * number // processes * CHUNK) for number in range(processes + 1)]


def largest(size: int, processes: int) -> int:
    """Elements of the largest part: every process has room for so many, and plans of all are the same."""
    bounds = cuts(size, processes)
    return max(stop - start for start, stop in zip(bounds, bounds[1:], strict=False))


def part_of(rank: int, processes: int) -> int:
    """Number of the part that a process owns: its rank with the bits reversed. Neighbours swap halves first, and keep a half
    each; then pairs of neighbours swap halves of these, so the first bit of the rank decides the largest halves."""
    number = 0
    while processes > 1:
        rank, processes, number = rank >> 1, processes >> 1, number << 1 | rank & 1
    return number
