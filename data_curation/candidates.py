"""Pairs of images that may be near-duplicates, from four kinds of evidence; verify.py judges them.

    sha1        the same bytes
    phash       the same whole frame, in any of the eight orientations
    embedding   near to each other for the encoder
    local       keypoints in common: crops, borders, parts; knows nothing of the encoder

A pair names a row of the pool and a partner: a row of the evaluation images, or a larger image of the pool.
"""

from collections import defaultdict
from dataclasses import dataclass, field

import faiss
import numpy as np
from numpy.typing import NDArray

from data_curation.features import Features
from data_curation.localhash import LocalHashes
from data_curation.phash import ORIENTATIONS, distance
from data_curation.retrieval import (
    MIN_AGREEING,
    POOL_AGREEING,
    POOL_VOTES,
    VOTES,
    Hashes,
    Index,
    agreeing,
    resembling,
)

KINDS = ("sha1", "phash", "embedding", "local")
BITS = 64  # of a perceptual hash
_TABLES, _TABLE_BITS, _FLIPS = 4, 16, 2  # a hash within 11 bits has two flips at most in one of its four quarters
MAX_PHASH = _TABLES * (_FLIPS + 1) - 1
_ROWS = 2048  # of a block of similarities
_SLACK = 1e-3  # of a similarity in float32: what is nearer to the threshold is computed again in float64
_MORE = 16  # similar images looked at beyond the number asked for, so that rounding cannot change which are nearest

Pair = tuple[int, int]  # row of the pool, row of the partner


@dataclass(frozen=True)
class Limits:
    """When a pair is a candidate.

    Attributes:
        phash: bits that the perceptual hashes may differ by, at most MAX_PHASH.
        cosine: least cosine of the embeddings.
        nearest: of an image's partners by embedding, how many are looked at.
    """

    phash: int = 10
    cosine: float = 0.95
    nearest: int = 5


@dataclass
class Candidate:
    """A pair's evidence.

    Attributes:
        kinds: see KINDS, in that order.
        agreeing: local hashes that lie alike in both images.
    """

    kinds: list[str] = field(default_factory=list)
    agreeing: int = 0


def against_evaluation(
    pool: Features, evaluation: Features, ours: list[LocalHashes], theirs: list[LocalHashes], limits: Limits
) -> dict[Pair, Candidate]:
    """Candidates between the pool and the evaluation images, in the order of their rows."""
    found: dict[Pair, Candidate] = defaultdict(Candidate)
    _note(found, "sha1", _same_bytes(pool, evaluation))
    _note(found, "phash", _near_hashes(evaluation.phashes()[:, 0], pool.phashes(), limits.phash))
    _note(found, "embedding", _near_embeddings(pool, evaluation, limits))
    shared = Index(Hashes.of(theirs)).sharing(Hashes.of(ours), VOTES)
    _note_local(found, [(int(a), int(b)) for a, b, _ in shared], ours, theirs, MIN_AGREEING)
    return dict(sorted(found.items()))


def within_pool(pool: Features, hashes: list[LocalHashes], limits: Limits) -> tuple[dict[Pair, Candidate], int]:
    """Candidates within the pool, the smaller image first, and how many others were plainly no duplicates.

    Whole frames that look alike by hash or embedding are many in a large pool; those are passed over whose thumbnails
    do not resemble each other and whose keypoints do not lie alike. To read their images and find the same takes a
    hundred times as long.
    """
    found: dict[Pair, Candidate] = defaultdict(Candidate)
    _note(found, "sha1", _ordered(_same_bytes(pool, None)))
    phashes = pool.phashes()
    _note(found, "phash", _ordered(_near_hashes(phashes[:, 0], phashes, limits.phash)))
    _note(found, "embedding", _ordered(_near_embeddings(pool, None, limits)))
    codes = Hashes.of(hashes)
    shared = Index(codes).sharing(codes, POOL_VOTES, within=True)
    _note_local(found, _ordered([(int(a), int(b)) for a, b, _ in shared]), hashes, hashes, POOL_AGREEING)
    kept = {}
    for (a, b), candidate in found.items():
        candidate.agreeing = candidate.agreeing or agreeing(hashes[a], hashes[b])
        sure = "sha1" in candidate.kinds or candidate.agreeing >= POOL_AGREEING
        if sure or resembling(hashes[a], hashes[b]):
            kept[a, b] = candidate
    rank = by_size(pool)
    turned = {((a, b) if rank[a] > rank[b] else (b, a)): candidate for (a, b), candidate in kept.items()}
    return dict(sorted(turned.items())), len(found) - len(kept)


def by_size(pool: Features) -> NDArray[np.int64]:
    """The rank of every row: the largest image first, ties by name."""
    table = pool.columns("name", "height", "width")
    pixels = np.asarray(table["height"], np.int64) * np.asarray(table["width"], np.int64)
    names = table["name"].to_pylist()
    order = sorted(range(len(names)), key=lambda row: (-pixels[row], names[row].encode()))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _note(found: dict[Pair, Candidate], kind: str, pairs: list[Pair]) -> None:
    for pair in pairs:
        found[pair].kinds.append(kind)


def _note_local(
    found: dict[Pair, Candidate], pairs: list[Pair], ours: list[LocalHashes], theirs: list[LocalHashes], least: int
) -> None:
    """Note pairs with shared keypoints if at least so many of these lie alike."""
    for a, b in pairs:
        together = agreeing(ours[a], theirs[b])
        if together >= least:
            found[a, b].kinds.append("local")
            found[a, b].agreeing = together


def _ordered(pairs: list[Pair]) -> list[Pair]:
    """The distinct pairs of two different rows, the later first."""
    return sorted({(max(pair), min(pair)) for pair in pairs if pair[0] != pair[1]})


def _same_bytes(pool: Features, evaluation: Features | None) -> list[Pair]:
    """Rows of the pool and of the evaluation images, or of the pool again, with one sha1."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, sha1 in enumerate((evaluation or pool).columns("sha1")["sha1"].to_pylist()):
        rows[sha1].append(row)
    mine = pool.columns("sha1")["sha1"].to_pylist()
    if evaluation is None:
        return [(row, rows[sha1][0]) for row, sha1 in enumerate(mine)]
    return [(row, other) for row, sha1 in enumerate(mine) for other in rows.get(sha1, [])]


def _near_hashes(upright: NDArray[np.uint64], oriented: NDArray[np.uint64], limit: int) -> list[Pair]:
    """Rows of `oriented` (`n 8`) one of whose hashes lies within `limit` bits of one of `upright` (`m`)."""
    index = faiss.IndexBinaryMultiHash(BITS, _TABLES, _TABLE_BITS)
    index.nflip = _FLIPS
    index.add(upright.astype("<u8").view(np.uint8).reshape(-1, BITS // 8))
    found: set[Pair] = set()
    for start in range(0, len(oriented), _ROWS):
        block = np.ascontiguousarray(oriented[start : start + _ROWS]).reshape(-1)
        bounds, _, labels = index.range_search(block.astype("<u8").view(np.uint8).reshape(-1, BITS // 8), limit + 1)
        rows = np.repeat(np.arange(len(block)) // ORIENTATIONS + start, np.diff(bounds.astype(np.int64)))
        found.update(zip(rows.tolist(), labels.tolist(), strict=True))
    return sorted(found)


def hash_distance(ours: NDArray[np.uint64], theirs: NDArray[np.uint64]) -> int:
    """The least distance in bits of the hash of one image from the eight of another."""
    return int(distance(ours, theirs[0]).min())


def _near_embeddings(pool: Features, evaluation: Features | None, limits: Limits) -> list[Pair]:
    """The nearest rows of the pool of every evaluation image, or of every image of the pool itself."""
    others = evaluation or pool
    found: list[Pair] = []
    for start in range(0, len(others), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(others)))
        for row, near in zip(rows, _nearest(pool, others.vectors(rows), limits), strict=True):
            vectors = pool.vectors(near).astype(np.float64)
            cosines = vectors @ others.vectors([int(row)])[0].astype(np.float64)
            same = near == row if evaluation is None else np.zeros(len(near), bool)
            order = [k for k in np.lexsort((near, -cosines)) if cosines[k] >= limits.cosine and not same[k]]
            found += [(int(near[k]), int(row)) for k in order[: limits.nearest]]
    return found


def _nearest(pool: Features, queries: NDArray[np.float32], limits: Limits) -> list[NDArray[np.int64]]:
    """For each query, rows of the pool that are certain to hold its nearest ones; a shard of the pool at a time."""
    rows: list[list[NDArray[np.int64]]] = [[] for _ in queries]
    scores: list[list[NDArray[np.float32]]] = [[] for _ in queries]
    start, most = 0, limits.nearest + 1 + _MORE
    for shard in pool.shards():
        for first in range(0, len(shard), _ROWS):
            block = np.asarray(shard[first : first + _ROWS], np.float32)
            likeness = queries @ block.T
            for query in np.flatnonzero((likeness >= limits.cosine - _SLACK).any(1)):
                near = np.flatnonzero(likeness[query] >= limits.cosine - _SLACK)
                near = near[np.argsort(-likeness[query, near], kind="stable")[:most]]
                rows[query].append(near + first + start)
                scores[query].append(likeness[query, near])
        start += len(shard)
    return [_first(parts, values, most) for parts, values in zip(rows, scores, strict=True)]


def _first(rows: list[NDArray[np.int64]], scores: list[NDArray[np.float32]], most: int) -> NDArray[np.int64]:
    if not rows:
        return np.empty(0, np.int64)
    return np.concatenate(rows)[np.argsort(-np.concatenate(scores), kind="stable")[:most]]
