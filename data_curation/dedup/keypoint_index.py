"""Images that share keypoints, found by their hashes without comparing every image with every other.

Against evaluation images, which are few: an inverted file of all their hashes (faiss' IndexBinaryIVF), in which every
hash of the pool is looked up as it is, mirrored and negative. Within a pool: hashes that agree in one of six keys of 21
bits are compared; keys that many images share are a pattern and tell nothing. Of the keypoints that two images share
those count that agree on one similarity transform (registration.consensus).
"""

from collections.abc import Iterator
from itertools import pairwise

import faiss
import numpy as np
from numpy.typing import NDArray

from data_curation.dedup.registration import consensus
from data_curation.embed.keypoints import BYTES, HASHED, VARIANTS, Variant

RADIUS = 20  # bits of 128 that hashes of the same keypoint may differ by
MIN_SHARED = 4  # keypoints that an image of the pool must share with an evaluation image to be a candidate
FEW, MIN_SHARED_BY_FEW = 300, 3  # an evaluation image of fewer keypoints, such as a small LR image, and the same for it
POOL_RADIUS, POOL_SHARED = 18, 10  # the same within the pool, where pairs are so many that chance finds some
CROWD = 256  # hashes under one key beyond which it is a pattern that many images share

_EXHAUSTIVE = 20_000  # hashes up to which all are compared
_HASHES_A_LIST, _PROBES = 224, 32  # of the inverted file
_TOLERANCE = 0.03  # of the longer side: how far agreeing keypoints may lie apart
_TRIED = 400  # pairs of like keypoints of two images looked at, evenly: more than an image of the pool has keypoints
_KEYS, _KEY_BITS = 6, 21
_DEAL = np.random.RandomState(7).permutation(8 * BYTES)[: _KEYS * _KEY_BITS].reshape(_KEYS, _KEY_BITS)

Shared = dict[tuple[int, int], int]  # (image, image) -> keypoints that they share


class EvaluationIndex:
    """The keypoints of evaluation images."""

    def __init__(self, images: list[NDArray[np.void]]) -> None:
        """Index them.

        Args:
            images: `n` of HASHED each.
        """
        self._images, self._keypoints = _flat(images)
        self._few = np.array([len(image) < FEW for image in images])
        codes = np.ascontiguousarray(self._keypoints["code"])
        self._quantizer = faiss.IndexBinaryFlat(8 * BYTES)  # the inverted file does not keep it alive
        self._index: faiss.IndexBinary = self._quantizer
        if len(codes) > _EXHAUSTIVE:  # lists around hashes picked by a fixed seed: no training, no chance
            lists = len(codes) // _HASHES_A_LIST
            self._quantizer.add(codes[np.random.RandomState(0).permutation(len(codes))[:lists]])
            self._index = faiss.IndexBinaryIVF(self._quantizer, 8 * BYTES, lists)
            self._index.nprobe = _PROBES
            self._index.train(codes)
        self._index.add(codes)

    def sharing(self, pool: list[NDArray[np.void]]) -> Shared:
        """Pairs of an image of the pool and an evaluation image that share keypoints."""
        images, keypoints = _flat(pool)
        found: Shared = {}
        for variant in VARIANTS:
            limits, _, labels = self._index.range_search(keypoints["code"] ^ variant.mask, RADIUS + 1)
            ours = np.repeat(np.arange(len(keypoints)), np.diff(limits.astype(np.int64)))
            for one, other, mine, theirs in _by_pair(images, self._images, ours, labels, MIN_SHARED_BY_FEW):
                shared = _count(keypoints[mine], self._keypoints[theirs], variant)
                if shared >= (MIN_SHARED_BY_FEW if self._few[other] else MIN_SHARED):
                    found[one, other] = max(shared, found.get((one, other), 0))
        return found


def sharing_within(pool: list[NDArray[np.void]]) -> Shared:
    """Pairs of images of the pool, the later first, that share keypoints, plain or mirrored."""
    images, keypoints = _flat(pool)
    found: Shared = {}
    for variant in VARIANTS[:2]:
        codes = np.ascontiguousarray(keypoints["code"]).view("<u8")  # n 2
        changed = np.ascontiguousarray(keypoints["code"] ^ variant.mask).view("<u8")
        hits = np.unique(np.concatenate([_near(codes, changed, images, bits) for bits in _DEAL]), axis=0)
        for one, other, mine, theirs in _by_pair(images, images, hits[:, 0], hits[:, 1], POOL_SHARED):
            shared = _count(keypoints[mine], keypoints[theirs], variant)
            if shared >= POOL_SHARED:
                found[one, other] = max(shared, found.get((one, other), 0))
    return found


def shared_keypoints(ours: NDArray[np.void], theirs: NDArray[np.void]) -> int:
    """How many keypoints of two images, `n` of HASHED, are alike and lie alike."""
    if not (len(ours) and len(theirs)):
        return 0
    best = 0
    codes = np.ascontiguousarray(theirs["code"]).view("<u8")
    for variant in VARIANTS:
        changed = np.ascontiguousarray(ours["code"] ^ variant.mask).view("<u8")
        mine, other = np.nonzero(np.bitwise_count(changed[:, None] ^ codes).sum(2) <= POOL_RADIUS)
        best = max(best, _count(ours[mine], theirs[other], variant))
    return best


def _flat(images: list[NDArray[np.void]]) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """The image of every keypoint, and all keypoints."""
    numbers = np.repeat(np.arange(len(images)), [len(image) for image in images])
    return numbers, np.concatenate([*images, np.empty(0, HASHED)])


def _near(
    codes: NDArray[np.uint64], changed: NDArray[np.uint64], images: NDArray[np.int64], bits: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Pairs `n 2` of near codes, of a later and an earlier image, that have one key; crowded keys are passed over."""
    keys, wanted = _keys(codes, bits), _keys(changed, bits)
    order = np.argsort(keys, kind="stable")
    first, last = (np.searchsorted(keys[order], wanted, side) for side in ("left", "right"))
    counts = np.where(last - first > CROWD, 0, last - first)
    hits = []
    for begin, end in _blocks(counts):
        part = counts[begin:end]
        ours = np.repeat(np.arange(begin, end), part)
        place = np.arange(len(ours)) - np.repeat(np.cumsum(part) - part, part)
        theirs = order[first[ours] + place]
        near = (images[theirs] < images[ours]) & (np.bitwise_count(changed[ours] ^ codes[theirs]).sum(1) <= POOL_RADIUS)
        hits.append(np.stack([ours[near], theirs[near]], axis=1))
    return np.concatenate([*hits, np.empty((0, 2), np.int64)])


def _blocks(counts: NDArray[np.int64], most: int = 1 << 20) -> Iterator[tuple[int, int]]:
    """Cut rows into blocks of about so many hits."""
    number = np.cumsum(counts) // most
    cuts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(counts)]
    return pairwise(cuts)


def _by_pair(
    images: NDArray[np.int64], others: NDArray[np.int64], ours: NDArray[np.int64], theirs: NDArray[np.int64], least: int
) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.int64]]]:
    """Hits by pair of images: both images, and the rows of their keypoints; pairs of fewer hits are left out."""
    order = np.lexsort((theirs, ours, others[theirs], images[ours]))
    ours, theirs = ours[order], theirs[order]
    pair = np.stack([images[ours], others[theirs]], axis=1)
    cuts = [*np.flatnonzero(np.r_[True, (pair[1:] != pair[:-1]).any(1)]).tolist(), len(pair)] if len(pair) else []
    for begin, end in pairwise(cuts):
        if end - begin >= least:
            rows = slice(begin, end, 1 + (end - begin) // _TRIED)
            yield int(pair[begin, 0]), int(pair[begin, 1]), ours[rows], theirs[rows]


def _count(ours: NDArray[np.void], theirs: NDArray[np.void], variant: Variant) -> int:
    """Of matching keypoints, how many agree on one similarity transform; a keypoint counts once."""
    places = [one["place"].astype(np.float64) for one in (ours, theirs)]
    for place in places:
        place[:, 2] = 2 ** place[:, 2]
    agreeing, _ = consensus(places[0], places[1], variant, _TOLERANCE)
    return min(len(np.unique(place[agreeing, :2], axis=0)) for place in places)


def _keys(codes: NDArray[np.uint64], bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bits of each code `n 2` that make up a key."""
    keys = np.zeros(len(codes), np.uint64)
    for bit in bits.tolist():
        keys = (keys << np.uint64(1)) | ((codes[:, bit // 64] >> np.uint64(bit % 64)) & np.uint64(1))
    return keys.astype(np.int64)
