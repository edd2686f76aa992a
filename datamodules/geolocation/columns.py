"""Arrow columns of millions of rows as numpy arrays and strings, without holding them twice."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@contextmanager
def system_memory() -> Iterator[None]:
    """Arrow's own allocator keeps what it frees: half a gigabyte at 10 million rows; the system's gives it back."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


def as_numpy(column: pa.ChunkedArray, null: float) -> NDArray[Any]:
    """Copies chunk by chunk, ``null`` where there is no value, and gives the column's memory back.

    >>> as_numpy(pa.chunked_array([pa.array([1, None]), pa.array([3])]), -1).tolist()
    [1, -1, 3]
    """
    copy = np.empty(len(column), column.type.to_pandas_dtype())
    start = 0
    for chunk in column.iterchunks():
        copy[start : start + len(chunk)] = chunk.fill_null(null).to_numpy(zero_copy_only=False)
        start += len(chunk)
    del column  # the last reference, where the caller keeps none
    pa.default_memory_pool().release_unused()
    return copy


def strings(column: pa.ChunkedArray) -> Iterator[str]:
    """One after the other; only a chunk's are Python objects at a time."""
    for chunk in column.iterchunks():
        yield from chunk.to_numpy(zero_copy_only=False)
