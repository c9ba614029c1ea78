"""Images that share local hashes, found without comparing every image with every other.

The 128 bits are dealt into six keys of 21 bits. Two hashes of the same keypoint differ in about a tenth of their bits,
so that one key or another is likely to be equal; hashes with an equal key are compared in full. An index is an order of
the hashes by each key, and a look-up reads a few neighbours in it: the cost grows with the number of images, not with
its square, as long as keys are not crowded.
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from data_curation.localhash import LocalHashes, mirrored
from training.data import orient

RADIUS = 22  # bits of 128 that hashes of the same keypoint may differ by
VOTES = 4  # keypoints that two images must share to be a candidate
CROWD = 256  # hashes under one key beyond which it is a pattern that many images share, and says nothing
MIN_AGREEING = 6  # shared keypoints that must lie alike in both images
RESEMBLANCE = 0.8  # correlation of thumbnails from which on two whole frames resemble each other

_KEYS, _KEY_BITS = 6, 21
_BLOCK = 1 << 15  # hashes looked up at a time
_TOLERANCE = 0.012  # of the longer side: how far agreeing keypoints may lie apart
_DEAL = np.random.RandomState(7).permutation(128)[: _KEYS * _KEY_BITS].reshape(_KEYS, _KEY_BITS)


@dataclass(frozen=True)
class Hashes:
    """The local hashes of many images, one after the other.

    Attributes:
        codes: uint64 `n 2`.
        starts: int64 `images + 1`: the image `i` has the codes from `starts[i]` to `starts[i + 1]`.
    """

    codes: NDArray[np.uint64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, parts: list[NDArray[np.uint64]]) -> "Hashes":
        """Of a list with the codes of each image."""
        starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        return cls(np.concatenate([*parts, np.empty((0, 2), np.uint64)]), starts)

    def images(self, first: int, last: int) -> NDArray[np.int64]:
        """The image of every code of the images from `first` to `last`, the last not included."""
        return np.repeat(np.arange(first, last), np.diff(self.starts[first : last + 1]))


class Index:
    """Hashes in the order of each of their keys."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = hashes
        self._image = hashes.images(0, len(hashes.starts) - 1).astype(np.uint32)
        self._orders: list[NDArray[np.uint32]] = []
        self._offsets: list[NDArray[np.int64]] = []
        for bits in _DEAL:
            keys = _keys(hashes.codes, bits)
            self._orders.append(np.argsort(keys, kind="stable").astype(np.uint32))
            counts = np.bincount(keys, minlength=1 << _KEY_BITS)
            self._offsets.append(np.concatenate([[0], np.cumsum(counts)]))

    def sharing(self, others: Hashes, within: bool = False) -> NDArray[np.int64]:
        """Pairs of images that share at least VOTES keypoints, plain or mirrored.

        Args:
            others: the images to look up.
            within: whether `others` are the index's own images; each pair is then found once, the later image first.

        Returns:
            `pairs 3`: image of `others`, image of the index, keypoints; sorted.
        """
        found = [np.empty((0, 3), np.int64)]
        for first, last in pairwise(_cuts(others.starts)):
            images = others.images(first, last)
            codes = others.codes[others.starts[first] : others.starts[last]]
            for reflect in (False, True):
                found.append(self._look_up(mirrored(codes) if reflect else codes, images, within))
        pairs = np.concatenate(found)
        pairs = pairs[np.lexsort((-pairs[:, 2], pairs[:, 1], pairs[:, 0]))]
        fresh = np.ones(len(pairs), bool)
        fresh[1:] = (pairs[1:, :2] != pairs[:-1, :2]).any(1)  # plain and mirrored: the one with more keypoints
        return pairs[fresh]

    def _look_up(self, codes: NDArray[np.uint64], images: NDArray[np.int64], within: bool) -> NDArray[np.int64]:
        """As `sharing`, of the codes of some images."""
        hits = []
        for bits, order, offsets in zip(_DEAL, self._orders, self._offsets, strict=True):
            keys = _keys(codes, bits)
            counts = offsets[keys + 1] - offsets[keys]
            counts[counts > CROWD] = 0
            ours = np.repeat(np.arange(len(codes)), counts)
            ahead = np.arange(len(ours)) - np.repeat(np.cumsum(counts) - counts, counts)
            theirs = order[offsets[keys][ours] + ahead]
            keep = self._image[theirs] < images[ours] if within else np.ones(len(ours), bool)
            ours, theirs = ours[keep], theirs[keep]
            near = np.bitwise_count(codes[ours] ^ self.hashes.codes[theirs]).sum(1) <= RADIUS
            hits.append(np.stack([ours[near], self._image[theirs[near]].astype(np.int64)], axis=1))
        shared = _unique(np.concatenate(hits))  # a keypoint counts once for an image
        pairs = np.stack([images[shared[:, 0]], shared[:, 1]], axis=1)
        pairs, votes = _counted(pairs)
        return np.concatenate([pairs, votes[:, None]], axis=1)[votes >= VOTES]


def agreeing(ours: LocalHashes, theirs: LocalHashes) -> int:
    """How many keypoints of two images are alike and lie alike: agree on one affine map, plain or mirrored."""
    best = 0
    for codes in (theirs.codes, mirrored(theirs.codes)):
        if min(len(ours.codes), len(codes)) < MIN_AGREEING:
            continue
        distance = np.bitwise_count(ours.codes[:, None] ^ codes[None]).sum(2)  # n m
        nearest = distance.argmin(1)
        mutual = distance.argmin(0)[nearest] == np.arange(len(nearest))
        kept = np.flatnonzero(mutual & (distance.min(1) <= RADIUS + 4))
        if len(kept) < MIN_AGREEING:
            continue
        places = ours.places[kept, :2].astype(np.float32), theirs.places[nearest[kept], :2].astype(np.float32)
        matrix, inliers = cv2.estimateAffine2D(*places, ransacReprojThreshold=_TOLERANCE, maxIters=1000)
        if matrix is not None:
            best = max(best, int(inliers.sum()))
    return best


def resembling(ours: LocalHashes, theirs: LocalHashes) -> bool:
    """Whether the whole frames resemble each other in one of the eight orientations."""
    one = theirs.thumbnail.astype(np.float32)
    return any(_likeness(orient(ours.thumbnail, k).astype(np.float32), one) >= RESEMBLANCE for k in range(8))


def _likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    a, b = one - one.mean((0, 1)), other - other.mean((0, 1))
    return float((a * b).sum() / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-6))


def _keys(codes: NDArray[np.uint64], bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """The bits of each code `n 2` that make up a key."""
    keys = np.zeros(len(codes), np.uint64)
    for bit in bits.tolist():
        keys = (keys << np.uint64(1)) | ((codes[:, bit // 64] >> np.uint64(bit % 64)) & np.uint64(1))
    return keys.astype(np.int64)


def _cuts(starts: NDArray[np.int64]) -> list[int]:
    """Cut images into blocks of about _BLOCK codes."""
    cuts = [0]
    while cuts[-1] < len(starts) - 1:
        after = int(np.searchsorted(starts, starts[cuts[-1]] + _BLOCK, side="right")) - 1
        cuts.append(max(after, cuts[-1] + 1))
    return cuts


def _unique(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The distinct rows `n 2`, sorted."""
    return _counted(rows)[0]


def _counted(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct rows `n 2`, sorted, and how often each occurs."""
    packed, counts = np.unique((rows[:, 0] << 32) | rows[:, 1], return_counts=True)
    return np.stack([packed >> 32, packed & 0xFFFFFFFF], axis=1), counts
