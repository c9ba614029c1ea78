"""How near every image of a pool lies to the queries: exact, in blocks, in memory that the pool's size does not set.

Products of float16 numbers are multiples of 2^-48, and sums of them for vectors of length one stay below 2: float64
holds them without any rounding. So a score is the same number however the sum is shared out among blocks, threads and
libraries, equal embeddings have equal scores, and ties can be broken by name.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

Rule = Literal["max", "mean", "top"]
_ROWS, _SCORES = 1024, 1_000_000  # rows, and scores, of a block at most
_AHEAD = 32  # blocks computed before the first of them is used


@dataclass
class Nearest:
    """The nearest rows of every query, found block by block.

    Attributes:
        each: how many a query.
        eligible: `n`, which rows count.
        place: `n`, the row's place by name: what breaks ties.
        scores, rows: a query's nearest so far, each sorted by descending score, then by name.
    """

    each: int
    eligible: NDArray[np.bool_]
    place: NDArray[np.int64]
    scores: list[NDArray[np.float64]] = field(default_factory=list)
    rows: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, scores: NDArray[np.float64], start: int) -> None:
        """Take a block of scores, `n_queries n`, of the rows from `start` on."""
        if not self.scores:
            self.scores = [np.empty(0) for _ in scores]
            self.rows = [np.empty(0, np.int64) for _ in scores]
        allowed = self.eligible[start : start + scores.shape[1]]
        for query, of_query in enumerate(scores):
            last = self.scores[query][-1] if len(self.scores[query]) == self.each else -np.inf
            better = np.flatnonzero((of_query >= last) & allowed)
            if len(better):
                self._merge(query, of_query[better], better + start)

    def _merge(self, query: int, scores: NDArray[np.float64], rows: NDArray[np.int64]) -> None:
        scores = np.concatenate([self.scores[query], scores])
        rows = np.concatenate([self.rows[query], rows])
        first = np.lexsort((self.place[rows], -scores))[: self.each]
        self.scores[query], self.rows[query] = scores[first], rows[first]


def score_pool(
    shards: Iterable[NDArray[np.float16]],
    count: int,
    queries: NDArray[np.floating[Any]],
    rule: Rule = "max",
    top: int = 1,
    nearest: Nearest | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Score every row of a pool.

    Args:
        shards: float16 `n d`, rows of length one; taken one at a time.
        count: rows of all shards.
        queries: `n_queries d`, float16 values of any type.
        rule: the score is the largest inner product with a query (`max`), the mean over the queries (`mean`), or over
            the `top` nearest queries (`top`).
        nearest: filled with every query's nearest rows, if given.

    Returns:
        `count` scores, and the number of each row's nearest query (the first of equals).
    """
    scores, which = np.empty(count), np.empty(count, np.int64)
    wide = torch.from_numpy(np.ascontiguousarray(queries, np.float64))
    step = max(1, min(_ROWS, _SCORES // len(wide)))
    start = 0
    with ThreadPoolExecutor(os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)) as threads:
        for shard in shards:
            for block in _multiplied(threads, shard, wide, step):
                end = start + block.shape[1]
                which[start:end] = block.argmax(axis=0)
                scores[start:end] = _combined(block, which[start:end], rule, top)
                if nearest:
                    nearest.add(block, start)
                start = end
            del shard  # before the next is mapped: its pages count as this process's memory
    return scores, which


def places(names: pa.ChunkedArray) -> NDArray[np.int64]:
    """Every name's place among all, sorted by their bytes."""
    order = np.asarray(pc.sort_indices(names), np.int64)
    found = np.empty_like(order)
    found[order] = np.arange(len(order))
    return found


def ranked(scores: NDArray[np.float64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows by descending score, equals by their place."""
    return np.lexsort((place, -scores))


def _multiplied(
    threads: ThreadPoolExecutor, shard: NDArray[np.float16], wide: Tensor, step: int
) -> Iterator[NDArray[np.float64]]:
    """The products `n_queries n` of a shard's blocks, in order, a few at a time.

    A thread to a block, each computing alone: threads that share a small product wait for one another at every block,
    which on busy cores takes ten times as long as the product.
    """
    blocks = [shard[first : first + step] for first in range(0, len(shard), step)]
    for first in range(0, len(blocks), _AHEAD):
        yield from threads.map(lambda block: _product(wide, block), blocks[first : first + _AHEAD])


def _product(wide: Tensor, block: NDArray[np.float16]) -> NDArray[np.float64]:
    return (wide @ torch.from_numpy(block.astype(np.float64)).T).numpy()


def _combined(products: NDArray[np.float64], which: NDArray[np.int64], rule: Rule, top: int) -> NDArray[np.float64]:
    """The rows' scores from `n_queries n`."""
    if rule == "mean":
        return products.mean(axis=0)
    if rule == "top" and top < len(products):
        largest = np.partition(products, len(products) - top, axis=0)[-top:]
        return np.sort(largest, axis=0).mean(axis=0)  # sorted: a sum's last bit depends on the order
    if rule == "top":
        return products.mean(axis=0)
    return products[which, np.arange(products.shape[1])]
