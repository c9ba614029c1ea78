"""How near embeddings lie to queries: exact, in blocks, in memory that the pool's size does not set.

Products of float16 numbers are multiples of 2^-48, and sums of them for vectors of length one stay below 2: float64
holds them without any rounding. So a score is the same number however the sum is shared out among blocks, threads and
libraries, equal embeddings have equal scores, and ties can be broken by name.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

_ROWS, _SCORES = 8192, 4_000_000  # rows, and scores, of a block at most

Shards = Iterable[NDArray[np.float16]]  # `n d` each, rows of length one; taken one at a time


def products(shards: Shards, queries: NDArray[np.floating[Any]]) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Cosines of queries and rows.

    Args:
        queries: `m d`, float16 values of any type.

    Yields:
        The first row of a block of `n` rows, and float64 `m n`.
    """
    wide = torch.from_numpy(np.ascontiguousarray(queries, np.float64))
    step = max(1, min(_ROWS, _SCORES // len(wide)))
    start = 0
    for shard in shards:
        for first in range(0, len(shard), step):
            block = torch.from_numpy(shard[first : first + step].astype(np.float64))
            yield start + first, (wide @ block.T).numpy()
        start += len(shard)
        del shard  # before the next is mapped: its pages count as this process's memory


def nearest(
    shards: Shards,
    queries: NDArray[np.floating[Any]],
    count: int,
    least: float = -np.inf,
    eligible: NDArray[np.bool_] | None = None,
    place: NDArray[np.int64] | None = None,
) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """The nearest rows of every query.

    Args:
        count: rows of a query, at most.
        least: cosine that they have to reach.
        eligible: which rows count; all by default.
        place: of each row among all, which breaks ties; its number by default.

    Returns:
        For each query its rows and their cosines, the nearest first.
    """
    result = Nearest(len(queries), count, least, eligible, place)
    for start, block in products(shards, queries):
        result.add(start, block)
    return list(zip(result.rows, result.scores, strict=True))


class Nearest:
    """The nearest rows so far; see `nearest`."""

    def __init__(
        self,
        queries: int,
        count: int,
        least: float = -np.inf,
        eligible: NDArray[np.bool_] | None = None,
        place: NDArray[np.int64] | None = None,
    ) -> None:
        self.count, self.eligible, self.place = count, eligible, place
        self.rows = [np.empty(0, np.int64) for _ in range(queries)]
        self.scores = [np.empty(0) for _ in range(queries)]
        self._floor = np.full(queries, float(least))  # what a row needs to be among them

    def add(self, start: int, block: NDArray[np.float64]) -> None:
        """Take the cosines `m n` of the rows from `start` on."""
        enough = block >= self._floor[:, None]
        if self.eligible is not None:
            enough &= self.eligible[start : start + block.shape[1]]
        for query in np.flatnonzero(enough.any(1)):
            new = np.flatnonzero(enough[query])
            rows = np.concatenate([self.rows[query], new + start])
            scores = np.concatenate([self.scores[query], block[query, new]])
            first = np.lexsort((rows if self.place is None else self.place[rows], -scores))[: self.count]
            self.rows[query], self.scores[query] = rows[first], scores[first]
            if len(first) == self.count:
                self._floor[query] = scores[first[-1]]


def by_name(names: pa.ChunkedArray) -> NDArray[np.int64]:
    """Every name's place among all, sorted by their bytes."""
    order = np.asarray(pc.sort_indices(names), np.int64)
    result = np.empty_like(order)
    result[order] = np.arange(len(order))
    return result
