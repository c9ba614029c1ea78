"""The nearest embeddings within a pool too large to compare every image with every other.

An inverted file (faiss' IndexIVF): each embedding lies in the cell of its nearest centre, and an image is compared with
the cells around it. Cells hold so many embeddings each, however large the pool, and their centres are found by a graph
(Y. Malkov and D. Yashunin, "Efficient and robust approximate nearest neighbor search using hierarchical navigable small
world graphs", 2018), so that the cost is that of n log n. Equal embeddings count once: a cell of them would cost the
square of their number.
"""

from hashlib import blake2b

import faiss
import numpy as np
from numpy.typing import NDArray

from data_curation.features import Features

EXACT = 100_000  # images up to which all are compared
_IN_CELL, _PROBES = 64, 64  # embeddings of a cell on average, and cells looked into
_LINKS, _BUILD = 16, 80  # of the graph of the centres
_ROWS = 8192  # embeddings handed over at a time


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
    for start in range(0, len(first), _ROWS):
        rows = first[start : start + _ROWS]
        cosines, near = index.search(pool.vectors(rows), min(count + 1, len(first)))
        others = (near >= 0) & (cosines >= least) & (near != np.arange(start, start + len(rows))[:, None])
        for row, partners, good in zip(rows.tolist(), near, others, strict=True):
            pairs += [(partner, row) for partner in first[partners[good][:count]].tolist()]
    return pairs


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
    """The inverted file of some rows, in float16 as they are kept; the same rows give the same cells."""
    dimension, cells = pool.settings.dimension, -(-len(rows) // _IN_CELL)
    centres = faiss.IndexHNSWFlat(dimension, _LINKS, faiss.METRIC_INNER_PRODUCT)
    centres.hnsw.efConstruction, centres.hnsw.efSearch = _BUILD, 4 * _PROBES
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # several would link the graph in the order of chance
    centres.add(pool.vectors(np.sort(np.random.RandomState(0).permutation(rows)[:cells])))
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexIVFScalarQuantizer(centres, dimension, cells, faiss.ScalarQuantizer.QT_fp16,
                                          faiss.METRIC_INNER_PRODUCT, False)  # fmt: skip
    index.nprobe = min(_PROBES, cells)
    index.train(pool.vectors(rows[:1]))  # nothing to learn: the centres are there, and float16 has no parameters
    for start in range(0, len(rows), _ROWS):
        index.add(pool.vectors(rows[start : start + _ROWS]))
    return index
