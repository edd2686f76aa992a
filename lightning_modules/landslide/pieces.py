"""Many points worked on piece by piece, and on a CPU some pieces at a time."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

PIECE = {"cpu": 1 << 16}  # on a CPU a piece's temporaries stay in the cache
PIECE_ON_DEVICE = 1 << 22
MOST_THREADS = 8  # each may hold sums of its own
T = TypeVar("T")


def pieces(n: int, device: torch.device) -> list[slice]:
    """Parts of n points that are taken one at a time.

    >>> pieces(100_000, torch.device("cpu"))
    [slice(0, 65536, None), slice(65536, 100000, None)]
    """
    size = PIECE.get(device.type, PIECE_ON_DEVICE)
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


@contextmanager
def own_threads(device: torch.device) -> Iterator[int]:
    """Takes torch's threads over: yields their number for :func:`side_by_side`, and torch works with one meanwhile.

    torch divides each small operation among its threads, waits for all of them after it, and leaves ``scatter_add_``
    to one. With other work on the machine that waiting was most of the time. Ours have whole pieces to do.

    >>> before = torch.get_num_threads()
    >>> with own_threads(torch.device("cpu")) as threads:
    ...     during = torch.get_num_threads()
    >>> during, torch.get_num_threads() == before, threads == min(before, MOST_THREADS)
    (1, True, True)
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        yield 1
        return
    try:
        torch.set_num_threads(1)  # of threads to come, too
        yield min(threads, MOST_THREADS)
    finally:
        torch.set_num_threads(threads)


def side_by_side(work: Callable[[list[slice]], T], parts: list[slice], threads: int) -> list[T]:
    """Shares parts out to threads.

    Args:
        work: what a thread does with its parts; no two may write to the same memory.
        parts: of :func:`pieces`.
        threads: of :func:`own_threads`.

    Returns:
        What each thread returned, in the order of the parts.

    >>> side_by_side(lambda share: [part.stop for part in share], [slice(0, 3), slice(3, 6), slice(6, 8)], threads=2)
    [[3], [6, 8]]
    """
    n = min(len(parts), threads)
    if n <= 1:
        return [work(parts)]
    shares = [parts[len(parts) * i // n : len(parts) * (i + 1) // n] for i in range(n)]
    inference = torch.is_inference_mode_enabled()

    def in_thread(share: list[slice]) -> T:
        with torch.inference_mode(inference), torch.no_grad():  # modes are a thread's own
            return work(share)

    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(in_thread, shares))
