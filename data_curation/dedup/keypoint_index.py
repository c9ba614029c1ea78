"""Images of the pool that share keypoints with evaluation images, found by their hashes.

An inverted file of all their hashes (faiss' IndexBinaryIVF), in which every
hash of the pool is looked up as it is, mirrored and negative. Of the keypoints that two images share those count that
agree on one similarity transform (registration.consensus).
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
POOL_RADIUS, POOL_SHARED = 18, 10  # the same for two images of the pool

_EXHAUSTIVE = 20_000  # hashes up to which all are compared
_HASHES_A_LIST, _PROBES = 224, 32  # of the inverted file
_TOLERANCE = 0.03  # of the longer side: how far agreeing keypoints may lie apart
_TRIED = 400  # pairs of like keypoints of two images looked at, evenly: more than an image of the pool has keypoints
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
            own = np.repeat(np.arange(len(keypoints)), np.diff(limits.astype(np.int64)))
            for one, other, mine, partners in _by_pair(images, self._images, own, labels, MIN_SHARED_BY_FEW):
                shared = _count(keypoints[mine], self._keypoints[partners], variant)
                if shared >= (MIN_SHARED_BY_FEW if self._few[other] else MIN_SHARED):
                    found[one, other] = max(shared, found.get((one, other), 0))
        return found


def shared_keypoints(own: NDArray[np.void], partners: NDArray[np.void], variants: Sequence[Variant] = VARIANTS) -> int:
    """How many keypoints of two images, `n` of HASHED, are alike and lie alike, in one of the variants."""
    if not (len(own) and len(partners)):
        return 0
    best = 0
    codes = np.ascontiguousarray(partners["code"]).view("<u8")
    for variant in variants:
        changed = np.ascontiguousarray(own["code"] ^ variant.mask).view("<u8")
        mine, other = np.nonzero(np.bitwise_count(changed[:, None] ^ codes).sum(2) <= POOL_RADIUS)
        best = max(best, _count(own[mine], partners[other], variant))
    return best


def _flat(images: list[NDArray[np.void]]) -> tuple[NDArray[np.int32], NDArray[np.void]]:
    """The image of every keypoint, and all keypoints."""
    numbers = np.repeat(np.arange(len(images), dtype=np.int32), [len(image) for image in images])
    return numbers, np.concatenate([*images, np.empty(0, HASHED)])


def _by_pair(
    images: NDArray[np.int32],
    others: NDArray[np.int32],
    own: NDArray[np.int64],
    partners: NDArray[np.int64],
    least: int,
) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.int64]]]:
    """Hits by pair of images: both images, and the rows of their keypoints; pairs of fewer hits are left out."""
    order = np.lexsort((partners, own, others[partners], images[own]))
    own, partners = own[order], partners[order]
    pair = np.stack([images[own], others[partners]], axis=1)
    cuts = [*np.flatnonzero(np.r_[True, (pair[1:] != pair[:-1]).any(1)]).tolist(), len(pair)] if len(pair) else []
    for begin, end in pairwise(cuts):
        if end - begin >= least:
            rows = slice(begin, end, 1 + (end - begin) // _TRIED)
            yield int(pair[begin, 0]), int(pair[begin, 1]), own[rows], partners[rows]


def _count(own: NDArray[np.void], partners: NDArray[np.void], variant: Variant) -> int:
    """Of matching keypoints, how many agree on one similarity transform; a keypoint counts once."""
    places = [one["place"].astype(np.float64) for one in (own, partners)]
    for place in places:
        place[:, 2] = 2 ** place[:, 2]
    agreeing, _ = consensus(places[0], places[1], variant, _TOLERANCE)
    return min(len(np.unique(place[agreeing, :2], axis=0)) for place in places)
