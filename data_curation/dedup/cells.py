"""The nearest embeddings within a pool too large to compare every image with every other.

An inverted file (faiss' IndexIVF): each embedding lies in the cell of its nearest centre, and an image is compared with
the cells around it. Cells hold so many embeddings each, however large the pool, and their centres are found by a graph
(Y. Malkov and D. Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical navigable small
world graphs", 2018), so that the comparisons grow as n log n. Long embeddings lie there as random projections
on fewer dimensions (W. Johnson and J. Lindenstrauss, 1984); what comes near is compared as it is. Equal embeddings
count once: a cell of them would cost the square of their number.
"""

from collections.abc import Iterator
from hashlib import blake2b

import faiss
import numpy as np
from numpy.typing import NDArray

from data_curation.features import Features

EXACT = 100_000  # images up to which all are compared
_IN_CELL, _PROBES = 64, 64  # embeddings of a cell on average, and cells looked into
_LINKS, _BUILD = 16, 80  # of the graph of the centres
_ASSIGN, _SEARCH = 64, 512  # breadth of its search for the cell of an embedding, and for the cells around one
_SHORT = 128  # dimensions in the cells, at most
_DEVIATIONS = 3.5  # by which a projection's cosine may lie below the least and still be looked at
_MORE = 4  # times the partners wanted are looked at, as projections come in another order
_ROWS = 2048  # embeddings handed over at a time


def neighbours_by_cells(pool: Features, count: int, least: float) -> list[tuple[int, int]]:
    """Pairs of rows near to each other; nearly all that `neighbours.nearest` finds: see benchmarks/curation.py.

    Args:
        count: partners of a row, at most.
        least: cosine that they have to reach.

    Returns:
        Pairs of a partner and a row. Of equal embeddings each has the first as its partner, and only the first others.
    """
    first, pairs = _distinct(pool)
    index = _index(pool, first)
    spread = _DEVIATIONS * (1 - least**2) / _SHORT**0.5 if pool.settings.dimension > _SHORT else 0.0
    for start in range(0, len(first), _ROWS):
        rows = first[start : start + _ROWS]
        vectors = pool.vectors(rows)
        cosines, near = index.search(_shortened(vectors), min(_MORE * count + 1, len(first)))
        ours, place = np.nonzero((near >= 0) & (cosines >= least - spread))
        theirs = first[near[ours, place]]
        unlike = theirs != rows[ours]
        for one, partner in _nearest(pool, vectors, ours[unlike], theirs[unlike], count, least):
            pairs.append((partner, int(rows[one])))
    return pairs


def _nearest(
    pool: Features,
    vectors: NDArray[np.float32],
    ours: NDArray[np.int64],
    theirs: NDArray[np.int64],
    count: int,
    least: float,
) -> Iterator[tuple[int, int]]:
    """Of pairs of one of `vectors` and a row of the pool those whose cosine, exact, is high enough; `count` of each."""
    partners, place = np.unique(theirs, return_inverse=True)
    exact = np.einsum("nd,nd->n", vectors[ours], pool.vectors(partners)[place], dtype=np.float64)
    taken = np.zeros(len(vectors), np.int64)
    for pair in np.lexsort((theirs, -exact)).tolist():
        one = int(ours[pair])
        if exact[pair] >= least and taken[one] < count:
            taken[one] += 1
            yield one, int(theirs[pair])


def _shortened(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Random projections `n _SHORT` of embeddings `n d`, of length one; embeddings that are as short as they are."""
    if vectors.shape[1] <= _SHORT:
        return vectors
    short = vectors @ np.random.RandomState(0).standard_normal((vectors.shape[1], _SHORT)).astype(np.float32)
    return short / np.linalg.norm(short, axis=1, keepdims=True)


def _distinct(pool: Features) -> tuple[NDArray[np.int64], list[tuple[int, int]]]:
    """The first row of each embedding, and pairs of it with the others."""
    seen: dict[bytes, int] = {}
    first, pairs, row = [], [], 0
    for shard in pool.shards():
        for vector in shard:
            known = seen.setdefault(blake2b(vector.tobytes(), digest_size=16).digest(), row)
            if known == row:
                first.append(row)
            else:
                pairs.append((known, row))
            row += 1
    return np.array(first, np.int64), pairs


def _index(pool: Features, rows: NDArray[np.int64]) -> faiss.IndexIVF:
    """The inverted file of some rows, in float16; the same rows give the same cells."""
    dimension, cells = min(_SHORT, pool.settings.dimension), -(-len(rows) // _IN_CELL)
    centres = faiss.IndexHNSWFlat(dimension, _LINKS, faiss.METRIC_INNER_PRODUCT)
    centres.hnsw.efConstruction, centres.hnsw.efSearch = _BUILD, _ASSIGN
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # several would link the graph in the order of chance
    centres.add(_shortened(pool.vectors(np.sort(np.random.RandomState(0).permutation(rows)[:cells]))))
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexIVFScalarQuantizer(centres, dimension, cells, faiss.ScalarQuantizer.QT_fp16,
                                          faiss.METRIC_INNER_PRODUCT, False)  # fmt: skip
    index.nprobe = min(_PROBES, cells)
    # Nothing to learn: the centres are there, and float16 has no parameters.
    index.train(_shortened(pool.vectors(rows[:1])))
    for start in range(0, len(rows), _ROWS):
        index.add(_shortened(pool.vectors(rows[start : start + _ROWS])))
    centres.hnsw.efSearch = _SEARCH
    return index
