"""Pairs of images that may be near-duplicates, from four kinds of evidence; registration and agreement judge them.

    sha1        the same bytes
    phash       the same whole frame, in any of the eight orientations, or its negative
    embedding   near to each other for the encoder
    keypoints   keypoints in common with an evaluation image: crops, borders, parts; knows nothing of the encoder

A pair names a row of the pool and a partner: a row of the evaluation images, or a larger image of the pool. Of many
images that look alike each gets a bounded number of partners.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import faiss
import numpy as np
from numpy.typing import NDArray

from data_curation.dedup.keypoint_index import POOL_SHARED, EvaluationIndex, shared_keypoints
from data_curation.embed.keypoints import HASHED
from data_curation.features import ORIENTATIONS, Features
from data_curation.neighbours import nearest
from image_data.geometry import orient

MAX_PHASH = 11  # bits: see _TABLES
PARTNERS = 16  # of a perceptual hash, the nearest
WINDOW = 4  # images after it, in the order of their brightness, that an image of one hash is compared with
RESEMBLANCE = 0.8  # correlation of thumbnails from which on two whole frames resemble each other

_BITS = 64  # of a perceptual hash
_TABLES = {  # up to so many hashes: tables, bits of each, and how many of them may be flipped when one looks there
    100_000: (4, 16, 2),  # a hash within 11 bits has two flips at most in one of its four quarters
    4_000_000: (3, 21, 3),  # and three at most in a third: more look-ups, in buckets 32 times smaller
    1 << 40: (2, 32, 4),  # four in a half: all within 9 bits, 73 % of 10; 660,000 look-ups in buckets of one
}
_NEGATIVE = np.uint64(2**63 - 1)  # the bits of a perceptual hash that turn over; the first belongs to the mean
_PROBES = 16  # cells of an inverted file that are searched
_ROWS = 2048  # queries, or images, looked up at a time

Pair = tuple[int, int]  # row of the pool, row of the partner
Keypoints = list[NDArray[np.void]]


@dataclass(frozen=True)
class Limits:
    """When a pair is a candidate.

    Attributes:
        phash: bits that the perceptual hashes may differ by, at most MAX_PHASH.
        cosine: least cosine of the embeddings.
        nearest: of an image's partners by embedding, how many are looked at.
        index: faiss' factory string of the search within the pool, such as `Flat` (exact) or `IVF1024,Flat`.
    """

    phash: int = 10
    cosine: float = 0.95
    nearest: int = 5
    index: str = "Flat"


@dataclass
class Candidate:
    """A pair's evidence.

    Attributes:
        kinds: of evidence, in the order above.
        shared: keypoints in common.
    """

    kinds: list[str] = field(default_factory=list)
    shared: int = 0


def against_evaluation(
    pool: Features, evaluation: Features, theirs: Keypoints, limits: Limits
) -> dict[Pair, Candidate]:
    """Candidates between the pool and the evaluation images, in the order of their rows.

    Args:
        theirs: keypoints of the evaluation images, `n` of HASHED each, more of them than a features folder holds.
    """
    result: dict[Pair, Candidate] = defaultdict(Candidate)
    rows: dict[str, list[int]] = defaultdict(list)
    for row, sha1 in enumerate(evaluation.column("sha1")):
        rows[sha1].append(row)
    _note(
        result, "sha1", ((row, other) for row, sha1 in enumerate(pool.column("sha1")) for other in rows.get(sha1, []))
    )
    upright = evaluation.phashes()[:, 0]
    hashes = near_hashes(np.concatenate([upright, upright ^ _NEGATIVE]), pool.phashes(), limits.phash)
    _note(result, "phash", sorted({(row, other % len(upright)) for row, other in hashes}))
    _note(result, "embedding", near_embeddings(pool, evaluation, limits))
    index, own = EvaluationIndex(theirs), keypoints_of(pool)
    for start in range(0, len(own), _ROWS):
        shared = index.sharing(own[start : start + _ROWS])
        for (row, other), count in sorted(shared.items()):
            _note(result, "keypoints", [(row + start, other)])
            result[row + start, other].shared = count
    return dict(sorted(result.items()))


def within_pool(pool: Features, rank: NDArray[np.int64], limits: Limits) -> tuple[dict[Pair, Candidate], int]:
    """Candidates within the pool, the smaller image first, and how many others were plainly no duplicates.

    Whole frames that look alike by hash or embedding are many in a large pool. Those whose thumbnails do not resemble
    each other and whose keypoints do not lie alike are passed over: to read their images takes a hundred times as long.

    Args:
        rank: of every row, the largest image first.
    """
    result: dict[Pair, Candidate] = defaultdict(Candidate)
    keypoints, thumbnails = keypoints_of(pool), pool.thumbnails()

    def ordered(pairs: Iterable[Pair]) -> list[Pair]:
        return sorted({(a, b) if rank[a] > rank[b] else (b, a) for a, b in pairs if a != b})

    first: dict[str, int] = {}
    by_rank = np.argsort(rank).tolist()
    digests = pool.column("sha1")
    _note(result, "sha1", ordered((row, first.setdefault(digests[row], row)) for row in by_rank))
    _note(result, "phash", ordered(_same_frame(pool.phashes(), thumbnails, rank, limits.phash)))
    _note(result, "embedding", ordered(near_embeddings(pool, None, limits)))
    for (a, b), candidate in result.items():
        candidate.shared = shared_keypoints(keypoints[a], keypoints[b])
    kept = {
        (a, b): one for (a, b), one in result.items()
        if "sha1" in one.kinds or one.shared >= POOL_SHARED or resembling(thumbnails[a], thumbnails[b])
    }  # fmt: skip
    return dict(sorted(kept.items())), len(result) - len(kept)


def by_size(pool: Features) -> NDArray[np.int64]:
    """The rank of every row: the largest image first, ties by name."""
    pixels = np.array(pool.column("height"), np.int64) * np.array(pool.column("width"), np.int64)
    names = pool.column("name")
    order = sorted(range(len(names)), key=lambda row: (-pixels[row], names[row].encode()))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def keypoints_of(pool: Features) -> Keypoints:
    """Every image's keypoints, `n` of HASHED."""
    return [np.frombuffer(content, HASHED) for content in pool.column("keypoints")]


def near_hashes(upright: NDArray[np.uint64], oriented: NDArray[np.uint64], limit: int) -> list[Pair]:
    """Rows of `oriented` (`n 8`) one of whose hashes lies within `limit` bits of one of `upright` (`m`).

    Of each hash the PARTNERS nearest count. In a pool of millions some pairs of 10 and 11 bits are missed (`_TABLES`).
    """
    tables, bits, flips = next(tables for most, tables in _TABLES.items() if len(upright) <= most)
    index = faiss.IndexBinaryMultiHash(_BITS, tables, bits)
    index.nflip = flips
    index.add(upright.astype("<u8").view(np.uint8).reshape(-1, _BITS // 8))
    result: set[Pair] = set()
    for start in range(0, len(oriented), _ROWS):
        block = np.ascontiguousarray(oriented[start : start + _ROWS]).astype("<u8").view(np.uint8)
        distances, labels = index.search(block.reshape(-1, _BITS // 8), min(PARTNERS, len(upright)))
        hit, column = np.nonzero((labels >= 0) & (distances <= limit))
        result.update(zip((hit // ORIENTATIONS + start).tolist(), labels[hit, column].tolist(), strict=True))
    return sorted(result)


def near_embeddings(pool: Features, evaluation: Features | None, limits: Limits) -> list[Pair]:
    """The nearest rows of the pool of every evaluation image, or of every image of the pool itself."""
    if evaluation is None:
        return _near_within(pool, limits)
    result = nearest(pool.shards(), evaluation.vectors(np.arange(len(evaluation))), limits.nearest, limits.cosine)
    return [(int(partner), row) for row, (partners, _) in enumerate(result) for partner in partners]


def _near_within(pool: Features, limits: Limits) -> list[Pair]:
    index = faiss.index_factory(pool.settings.dimension, limits.index, faiss.METRIC_INNER_PRODUCT)
    if limits.index.startswith("IVF"):
        index.nprobe = _PROBES
    if not index.is_trained:
        index.train(np.concatenate([shard.astype(np.float32) for shard in pool.shards()]))
    for shard in pool.shards():
        index.add(shard.astype(np.float32))
    pairs: list[Pair] = []
    for start in range(0, len(pool), _ROWS):
        rows = np.arange(start, min(start + _ROWS, len(pool)))
        cosines, partners = index.search(pool.vectors(rows), limits.nearest + 1)
        near = (partners >= 0) & (partners != rows[:, None]) & (cosines >= limits.cosine)
        near &= near.cumsum(1) <= limits.nearest
        row, column = np.nonzero(near)
        pairs += zip(partners[row, column].tolist(), rows[row].tolist(), strict=True)
    return pairs


def resembling(own: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> bool:
    """Whether thumbnails resemble each other in one of the eight orientations."""
    b = theirs - theirs.mean((0, 1))
    for orientation in range(ORIENTATIONS):
        a = orient(own, orientation) - own.mean((0, 1))
        if (a * b).sum() >= RESEMBLANCE * max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-6):
            return True
    return False


def _same_frame(
    hashes: NDArray[np.uint64], thumbnails: NDArray[np.uint8], rank: NDArray[np.int64], limit: int
) -> list[Pair]:
    """Pairs of the pool with near perceptual hashes.

    A white background gives thousands of images one hash, which makes millions of pairs. So of the images of one hash
    each is paired with the largest, and with its neighbours in brightness; near hashes pair their largest images.
    """
    result: list[Pair] = []
    buckets: dict[int, list[int]] = defaultdict(list)
    for row in np.argsort(rank).tolist():
        buckets[int(hashes[row].min())].append(row)  # the least of the eight is the same for all orientations
    for members in buckets.values():
        brightness = sorted(members, key=lambda row: (int(thumbnails[row].sum()), rank[row]))
        result += [(row, members[0]) for row in members[1:]]
        result += [pair for step in range(1, WINDOW + 1) for pair in zip(brightness[step:], brightness, strict=False)]
    largest = np.array([members[0] for members in buckets.values()])
    return result + [
        (int(largest[a]), int(largest[b])) for a, b in near_hashes(hashes[largest, 0], hashes[largest], limit)
    ]


def _note(result: dict[Pair, Candidate], kind: str, pairs: Iterable[Pair]) -> None:
    for pair in pairs:
        result[pair].kinds.append(kind)
