"""Images that share keypoints, found by their hashes without comparing every image with every other.

Against evaluation images, which are few: an inverted file of all their hashes (faiss' IndexBinaryIVF), in which every
hash of the pool is looked up as it is, mirrored and negative. Within a pool: hashes that agree in one of sixteen keys
are compared (locality-sensitive hashing by sampled bits: P. Indyk and R. Motwani, "Approximate nearest neighbors",
1998). The keys of a larger pool have more bits, so that as few hashes have one key; keys that very many share are a
pattern and tell nothing. Of the keypoints that two images share those count that agree on one similarity transform
(registration.consensus).
"""

from collections.abc import Iterator, Sequence
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
WITHIN = VARIANTS[:2]  # plain and mirrored: what is looked for within a pool
CROWD = 256  # hashes under one key beyond which it is a pattern that many images share

_EXHAUSTIVE = 20_000  # hashes up to which all are compared
_HASHES_A_LIST, _PROBES = 224, 32  # of the inverted file
_TOLERANCE = 0.03  # of the longer side: how far agreeing keypoints may lie apart
_TRIED = 400  # pairs of like keypoints of two images looked at, evenly: more than an image of the pool has keypoints
_KEYS, _KEY_BITS = 16, (21, 32)  # the second: least and most bits of a key
_UNDER_KEY = 4  # hashes under one key, on average
_DEAL = np.array([np.random.RandomState(seed).permutation(8 * BYTES) for seed in range(_KEYS)])  # bits, the first count
_MIX = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64
)  # odd factors of a key's hash: equal by chance only adds pairs to compare
_BLOCK = 1 << 20  # hashes looked up, and pairs compared, at a time

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


def sharing_within(pool: list[NDArray[np.void]], size: int = 0) -> Shared:
    """Pairs of images of the pool, the later first, that share keypoints, plain or mirrored.

    Args:
        pool: `n` of HASHED each.
        size: images of the whole pool, of which this is a part.
    """
    images, starts = _numbers(pool), np.cumsum([0, *map(len, pool)])
    codes = np.concatenate([*(image["code"] for image in pool), np.empty((0, BYTES), np.uint8)]).view("<u8")  # n 2
    hits: list[list[NDArray[np.int64]]] = [[], []]
    for mask in key_masks(len(codes) * size // len(pool) if size else len(codes)):
        keys = _keys(codes, mask)
        order = np.argsort(keys)
        keys = keys[order]
        for variant, near in zip(WITHIN, hits, strict=True):
            near += _near(codes, images, variant, mask, keys, order)
    found: Shared = {}
    for variant, near in zip(WITHIN, hits, strict=True):
        ours, theirs = np.unique(np.concatenate([*near, np.empty((0, 2), np.int64)]), axis=0).T
        for one, other, mine, others in _by_pair(images, images, ours, theirs, POOL_SHARED):
            shared = _count(pool[one][mine - starts[one]], pool[other][others - starts[other]], variant)
            if shared >= POOL_SHARED:
                found[one, other] = max(shared, found.get((one, other), 0))
    return found


def key_masks(count: int) -> NDArray[np.uint64]:
    """The bits of a hash that make up each key, uint64 `16 2`, for so many hashes."""
    least, most = _KEY_BITS
    bits = min(most, max(least, (count // _UNDER_KEY).bit_length()))
    masks = np.zeros((_KEYS, 8 * BYTES), np.uint8)
    np.put_along_axis(masks, _DEAL[:, :bits], 1, axis=1)
    return np.packbits(masks, axis=1).view("<u8")


def shared_keypoints(ours: NDArray[np.void], theirs: NDArray[np.void], variants: Sequence[Variant] = VARIANTS) -> int:
    """How many keypoints of two images, `n` of HASHED, are alike and lie alike, in one of the variants."""
    if not (len(ours) and len(theirs)):
        return 0
    best = 0
    codes = np.ascontiguousarray(theirs["code"]).view("<u8")
    for variant in variants:
        changed = np.ascontiguousarray(ours["code"] ^ variant.mask).view("<u8")
        mine, other = np.nonzero(np.bitwise_count(changed[:, None] ^ codes).sum(2) <= POOL_RADIUS)
        best = max(best, _count(ours[mine], theirs[other], variant))
    return best


def _flat(images: list[NDArray[np.void]]) -> tuple[NDArray[np.int32], NDArray[np.void]]:
    """The image of every keypoint, and all keypoints."""
    return _numbers(images), np.concatenate([*images, np.empty(0, HASHED)])


def _numbers(images: list[NDArray[np.void]]) -> NDArray[np.int32]:
    """The image of every keypoint."""
    return np.repeat(np.arange(len(images), dtype=np.int32), [len(image) for image in images])


def _near(
    codes: NDArray[np.uint64],
    images: NDArray[np.int32],
    variant: Variant,
    mask: NDArray[np.uint64],
    keys: NDArray[np.uint64],
    order: NDArray[np.int64],
) -> Iterator[NDArray[np.int64]]:
    """Pairs `n 2` of near codes, of a later and an earlier image, that have one key; crowded keys are passed over.

    Args:
        mask: of the key.
        keys, order: the codes' keys, sorted, and the code of each.
    """
    flips = variant.mask.view("<u8")
    for start in range(0, len(codes), _BLOCK):
        changed = codes[start : start + _BLOCK] ^ flips
        wanted = _keys(changed, mask)
        turn = np.argsort(wanted)  # neighbouring keys are looked up one after the other: far quicker in a long array
        first, last = (np.searchsorted(keys, wanted[turn], side) for side in ("left", "right"))
        counts = np.where(last - first > CROWD, 0, last - first)
        for begin, end in _blocks(counts):
            part = counts[begin:end]
            ours = np.repeat(turn[begin:end], part)
            place = np.arange(len(ours)) - np.repeat(np.cumsum(part) - part, part)
            theirs = order[np.repeat(first[begin:end], part) + place]
            earlier = images[theirs] < images[start + ours]
            ours, theirs = ours[earlier], theirs[earlier]
            near = np.bitwise_count(changed[ours] ^ codes[theirs]).sum(1) <= POOL_RADIUS
            yield np.stack([start + ours[near], theirs[near]], axis=1)


def _blocks(counts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut rows into blocks of about `_BLOCK` hits."""
    number = np.cumsum(counts) // _BLOCK
    cuts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist(), len(counts)]
    return pairwise(cuts)


def _by_pair(
    images: NDArray[np.int32], others: NDArray[np.int32], ours: NDArray[np.int64], theirs: NDArray[np.int64], least: int
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


def _keys(codes: NDArray[np.uint64], mask: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The key of each code `n 2`: a number that stands for its bits under the mask."""
    return ((codes & mask) * _MIX).sum(1, dtype=np.uint64)
