"""Which of the eligible images are chosen: the most similar, a quota for every query, not too many that are alike."""

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from data_curation.features import Features
from data_curation.neighbours import Nearest
from image_data.sources import DataError

OVERSAMPLING = 4  # with --diversity, so many times --top_k are looked at for images of cells that are not full
_ITERATIONS, _SEED = 10, 0  # of k-means

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Choice:
    """What is chosen of a pool.

    Attributes:
        chosen: of every row.
        query: the query that a row was chosen for by its quota; -1 for all other rows.
        full: rows passed over because their cell was full.
        why: why the other eligible rows are not chosen.
        lacking: queries that got less than their quota.
    """

    chosen: NDArray[np.bool_]
    query: Rows
    full: NDArray[np.bool_]
    why: str
    lacking: int = 0


def wanted(args: argparse.Namespace, queries: int) -> int:
    """How many nearest rows of each query the choice needs; 0 for none.

    When quotas are dealt, a query's nearest may be taken by others: so it has as many as all quotas together.

    Raises:
        DataError: the quotas exceed the total.
    """
    if not args.top_k or not args.per_query:
        return int(args.per_query or 0)
    if queries * args.per_query > args.top_k:
        raise DataError(
            f"--per_query {args.per_query} of {queries} queries are {queries * args.per_query} images, --top_k is "
            f"{args.top_k}: raise it, or give at most --per_query {args.top_k // queries}"
        )
    return int(queries * args.per_query * (OVERSAMPLING if args.diversity else 1))


def choose(
    args: argparse.Namespace, pool: Features, scores: NDArray[np.float64], order: Rows, nearest: Nearest | None
) -> Choice:
    """Choose.

    Args:
        order: the eligible rows by rank.
        nearest: of each query, if its nearest are chosen; see `wanted`.

    Raises:
        DataError: fewer can be chosen than asked for, or none.
    """
    near = nearest.rows if nearest else []
    chosen, full, query, lacking = np.zeros(len(scores), bool), np.zeros(len(scores), bool), np.full(len(scores), -1), 0
    if args.top_k:
        dealt, over = _deal_total(args, pool, order, near)
        rows, why = np.array(list(dealt)), f"not among the {args.top_k} most similar"
        query[rows], full[over] = list(dealt.values()), True
        counts = np.bincount(query[rows] + 1, minlength=len(near) + 1)[1:]
        lacking = int((counts < (args.per_query or 0)).sum())
    else:
        rows, why = np.concatenate(near), f"not among the {args.per_query} nearest of any query"
    if not len(rows):
        raise DataError("no image is chosen, as none passes the gates: loosen them")
    chosen[rows] = True
    return Choice(chosen, query, full & ~chosen, why, lacking)


def deal(
    order: Rows, near: Sequence[Rows], total: int, quota: int, cells: dict[int, int] | None = None, most: int = 0
) -> tuple[dict[int, int], list[int]]:
    """Deal rows to the queries in turn, then take the best of the rest.

    In each of `quota` rounds every query takes the nearest of its rows that nobody has taken, so that a row counts for
    one query. What is left of the total goes by rank.

    Args:
        order: rows by rank.
        near: rows of each query, the nearest first.
        cells: of each row; of a cell `most` rows are taken.

    Returns:
        Row -> query, -1 if taken by rank, in the order taken; and the rows passed over because their cell was full.
    """
    taken: dict[int, int] = {}
    filled: Counter[int] = Counter()
    full: dict[int, None] = {}

    def take(row: int, query: int) -> bool:
        if row in taken:
            return False
        if cells is not None:
            if filled[cells[row]] >= most:
                full[row] = None
                return False
            filled[cells[row]] += 1
        taken[row] = query
        return True

    queues = [iter(rows.tolist()) for rows in near]
    for _ in range(quota):
        for query, queue in enumerate(queues):
            any(take(row, query) for row in queue)  # up to the first that is free
    for row in order.tolist():
        if len(taken) == total:
            break
        take(row, -1)
    return taken, list(full)


def _deal_total(
    args: argparse.Namespace, pool: Features, order: Rows, near: Sequence[Rows]
) -> tuple[dict[int, int], list[int]]:
    """`deal`, of just --top_k rows."""
    if args.top_k > len(order):
        raise DataError(f"--top_k {args.top_k} of {len(order)} images that pass: ask for fewer, or loosen the gates")
    cells = cells_of(args, pool, order, near) if args.diversity else None
    reach = order[: (OVERSAMPLING if args.diversity else 2) * args.top_k]  # twice: quotas may take the first half
    dealt, full = deal(reach, near, args.top_k, args.per_query or 0, cells, args.diversity or 0)
    if len(dealt) < args.top_k:
        raise DataError(
            f"--diversity {args.diversity} leaves {len(dealt)} images of {len(reach)} for --top_k {args.top_k}: "
            "raise the one, or lower the other"
        )
    return dealt, full


def cells_of(args: argparse.Namespace, pool: Features, order: Rows, near: Sequence[Rows]) -> dict[int, int]:
    """The cell of each row that may be chosen, by spherical k-means of their embeddings.

    The idea is of A. Abbas et al., "SemDeDup: Data-efficient learning at web-scale through semantic deduplication"
    (2023), with a limit a cell in place of a threshold. There are twice as many cells as the total would fill.
    """
    rows = np.unique(np.concatenate([order[: OVERSAMPLING * args.top_k], *near]))
    count = min(len(rows), -(-2 * args.top_k // args.diversity))
    vectors = pool.vectors(rows)
    means = faiss.Kmeans(vectors.shape[1], count, niter=_ITERATIONS, seed=_SEED, spherical=True,
                         min_points_per_centroid=1)  # fmt: skip
    means.train(vectors)
    labels = means.index.search(vectors, 1)[1][:, 0]
    return dict(zip(rows.tolist(), labels.tolist(), strict=True))


def images_per_query(query: Rows, queries: int) -> dict[str, float]:
    """Of the chosen rows' queries: how many images a query has, and how many queries have none."""
    counts = np.bincount(query, minlength=queries)
    return {"min": int(counts.min()), "median": float(np.median(counts)), "max": int(counts.max()),
            "without": int((counts == 0).sum())}  # fmt: skip
