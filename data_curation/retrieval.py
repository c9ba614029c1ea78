"""Images that share local hashes, found without comparing every image with every other.

The 128 bits are dealt into six keys of 21 bits. Two hashes of the same keypoint differ in about a tenth of their bits,
so that one key or another is likely to be equal; hashes with an equal key are compared in full. An index is an order of
the hashes by each key, and a look-up reads a few neighbours in it: the cost grows with the number of images, not with
its square, as long as keys are not crowded. Of the hashes that two images share, those count that agree on how the one
image was turned and scaled (H. Jegou, M. Douze and C. Schmid, "Hamming Embedding and Weak Geometric Consistency for
Large Scale Image Search", ECCV 2008).
"""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from data_curation.localhash import LocalHashes, mirrored
from image_data.geometry import orient

RADIUS = 18  # bits of 128 that hashes of the same keypoint may differ by
VOTES = 4  # keypoints that an image must share with an evaluation image to be a candidate
POOL_VOTES = 8  # and with another of the pool, where pairs are so many that chance finds some with fewer
CROWD = 256  # hashes under one key beyond which it is a pattern that many images share, and says nothing
MIN_AGREEING = 6  # shared keypoints that must lie alike in both images
POOL_AGREEING = 10  # the same of two images of the pool
_TURN, _OCTAVE = 45.0, 1.0  # degrees and octaves: how finely turning and scaling are told apart
_OCTAVES = 3  # of scaling, each way; more counts as so many
_MORE_RADIUS = 6  # bits beyond RADIUS where the nearest hash of an image is asked for
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
        shapes: float32 `n 2`: log2 of the size, and the angle in degrees.
        starts: int64 `images + 1`: the image `i` has the codes from `starts[i]` to `starts[i + 1]`.
    """

    codes: NDArray[np.uint64]
    shapes: NDArray[np.float32]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, images: list[LocalHashes]) -> "Hashes":
        """Of a list of images."""
        starts = np.concatenate([[0], np.cumsum([len(one.codes) for one in images])]).astype(np.int64)
        codes = np.concatenate([*(one.codes for one in images), np.empty((0, 2), np.uint64)])
        shapes = np.concatenate([*(one.places[:, 2:].astype(np.float32) for one in images), np.empty((0, 2))])
        return cls(codes, shapes.astype(np.float32), starts)

    def images(self, first: int, last: int) -> NDArray[np.int64]:
        """The image of every code of the images from `first` to `last`, the last not included."""
        return np.repeat(np.arange(first, last), np.diff(self.starts[first : last + 1]))


class Index:
    """Hashes in the order of each of their keys."""

    def __init__(self, hashes: Hashes, crowd: int = CROWD) -> None:
        self.hashes, self.crowd = hashes, crowd
        self._image = hashes.images(0, len(hashes.starts) - 1).astype(np.uint32)
        self._orders: list[NDArray[np.uint32]] = []
        self._offsets: list[NDArray[np.int64]] = []
        for bits in _DEAL:
            keys = _keys(hashes.codes, bits)
            self._orders.append(np.argsort(keys, kind="stable").astype(np.uint32))
            counts = np.bincount(keys, minlength=1 << _KEY_BITS)
            self._offsets.append(np.concatenate([[0], np.cumsum(counts)]))

    def sharing(self, others: Hashes, votes: int, within: bool = False) -> NDArray[np.int64]:
        """Pairs of images that share keypoints, plain or mirrored, turned and scaled alike.

        Args:
            others: the images to look up.
            votes: the least number of keypoints.
            within: whether `others` are the index's own images; each pair is then found once, the later image first.

        Returns:
            `pairs 3`: image of `others`, image of the index, keypoints; sorted.
        """
        found = [np.empty((0, 3), np.int64)]
        for first, last in pairwise(_cuts(others.starts)):
            part = slice(others.starts[first], others.starts[last])
            block = others.images(first, last), others.codes[part], others.shapes[part]
            found += [self._look_up(*block, reflect, votes, within) for reflect in (False, True)]
        pairs = np.concatenate(found)
        pairs = pairs[np.lexsort((-pairs[:, 2], pairs[:, 1], pairs[:, 0]))]
        fresh = np.ones(len(pairs), bool)
        fresh[1:] = (pairs[1:, :2] != pairs[:-1, :2]).any(1)  # of several motions, the one with most keypoints
        return pairs[fresh]

    def _look_up(
        self,
        images: NDArray[np.int64],
        codes: NDArray[np.uint64],
        shapes: NDArray[np.float32],
        reflect: bool,
        votes: int,
        within: bool,
    ) -> NDArray[np.int64]:
        """As `sharing`, of the hashes of some images, as they are or mirrored."""
        codes = mirrored(codes) if reflect else codes
        hits = []
        for bits, order, offsets in zip(_DEAL, self._orders, self._offsets, strict=True):
            keys = _keys(codes, bits)
            counts = offsets[keys + 1] - offsets[keys]
            counts[counts > self.crowd] = 0
            ours = np.repeat(np.arange(len(codes)), counts)
            ahead = np.arange(len(ours)) - np.repeat(np.cumsum(counts) - counts, counts)
            theirs = order[offsets[keys][ours] + ahead]
            keep = self._image[theirs] < images[ours] if within else np.ones(len(ours), bool)
            ours, theirs = ours[keep], theirs[keep]
            near = np.bitwise_count(codes[ours] ^ self.hashes.codes[theirs]).sum(1) <= RADIUS
            hits.append(np.stack([ours[near], theirs[near].astype(np.int64)], axis=1))
        ours, theirs = np.unique(np.concatenate(hits), axis=0).T
        motion = _motion(shapes[ours], self.hashes.shapes[theirs], reflect)
        shared = np.stack([images[ours], self._image[theirs].astype(np.int64), motion, ours], axis=1)
        shared = np.unique(shared, axis=0)  # a keypoint counts once for an image and a motion
        pairs, found = np.unique(shared[:, :3], axis=0, return_counts=True)
        return np.concatenate([pairs[:, :2], found[:, None]], axis=1)[found >= votes]


def _motion(ours: NDArray[np.float32], theirs: NDArray[np.float32], reflect: bool) -> NDArray[np.int64]:
    """How keypoints were turned and scaled, each as a number; a mirroring turns angles about the vertical."""
    turn = theirs[:, 1] + ours[:, 1] - 180 if reflect else theirs[:, 1] - ours[:, 1]
    octaves = np.clip(np.rint((theirs[:, 0] - ours[:, 0]) / _OCTAVE), -_OCTAVES, _OCTAVES) + _OCTAVES
    return (np.rint(turn / _TURN).astype(np.int64) % round(360 / _TURN)) * (2 * _OCTAVES + 1) + octaves.astype(np.int64)


def agreeing(ours: LocalHashes, theirs: LocalHashes) -> int:
    """How many keypoints of two images are alike and lie alike: agree on one affine map, plain or mirrored."""
    best = 0
    for codes in (theirs.codes, mirrored(theirs.codes)):
        if min(len(ours.codes), len(codes)) < MIN_AGREEING:
            continue
        distance = np.bitwise_count(ours.codes[:, None] ^ codes[None]).sum(2)  # n m
        nearest = distance.argmin(1)
        mutual = distance.argmin(0)[nearest] == np.arange(len(nearest))
        kept = np.flatnonzero(mutual & (distance.min(1) <= RADIUS + _MORE_RADIUS))
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
