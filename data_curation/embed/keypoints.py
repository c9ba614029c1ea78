"""Keypoints and their hashes: how an image is recognised after crops, borders, turns, flips and changes of tone.

SIFT keypoints (D. Lowe, IJCV 2004), each descriptor shortened to 128 bits by the signs of random projections (M.
Charikar, "Similarity estimation techniques from rounding algorithms", 2002). Mirroring an image, or turning it into its
negative, permutes the entries of its descriptors. A projection that is even under such a permutation keeps its sign, an
odd one changes it, so the hash of the mirrored or negative image follows from the hash by flipping known bits.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

POOL_SIDE, POOL_COUNT = 512, 256  # pixels of the longer side, and keypoints, of a pool image
BYTES = 16  # of a hash
HASHED = np.dtype([("code", "u1", BYTES), ("place", "<f2", 4)])  # place: see `hashed`

_CONTRAST = 0.013  # SIFT's threshold; a third of its usual value, for skies and portraits
_EDGE = 12
_CELLS, _OCTAVES = 4, 5  # keypoints are drawn evenly from a grid of cells and from octaves
_SEED = 4

# Mean of the root of a normalised descriptor: rows and columns outer or inner, then the angle from the keypoint's own,
# 0, 45, ..., 180 degrees. Measured on photographs; a bit that thresholds here is set as often as not.
_MEAN = np.array(
    [
        [[0.072, 0.054, 0.045, 0.045, 0.057], [0.125, 0.080, 0.052, 0.048, 0.055]],
        [[0.089, 0.060, 0.050, 0.056, 0.072], [0.163, 0.097, 0.058, 0.060, 0.072]],
    ]
)

# Entries of a descriptor lie by row, column, angle. Mirroring along the keypoint's axis reverses rows and the sense of
# the angles. A negative turns every gradient by half a turn, the keypoint's own too: seen from it, the cells turn.
_ENTRIES = np.arange(128).reshape(4, 4, 8)
_MIRROR = _ENTRIES[::-1][:, :, (-np.arange(8)) % 8].ravel()
_NEGATIVE = _ENTRIES[::-1, ::-1].ravel()


@dataclass(frozen=True)
class Variant:
    """One of the four ways in which a copy's descriptors can differ from the original's.

    Attributes:
        mirrored, negative: what the copy is.
        permutation: of the 128 entries of a descriptor.
        mask: uint8 `16`, the bits of a hash that change.
    """

    mirrored: bool
    negative: bool
    permutation: NDArray[np.intp]
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class Keypoints:
    """Keypoints of an image.

    Attributes:
        places: float64 `n 4`: x, y and size in pixels of the image, angle in degrees.
        descriptors: float32 `n 128`, roots of SIFT's, of length one.
    """

    places: NDArray[np.float64]
    descriptors: NDArray[np.float32]


def find_keypoints(rgb: NDArray[np.uint8], side: int = POOL_SIDE, count: int = POOL_COUNT) -> Keypoints:
    """The strongest keypoints of every part and every scale of an image.

    A logo or a frame would take all of them if strength alone counted; fine detail would, and a small copy lacks it.

    Args:
        rgb: uint8 `h w 3`.
        side: the image is shrunk to this many pixels of the longer side first.
        count: keypoints at most.
    """
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    h, w = luma.shape
    if side < max(h, w):
        scale = side / max(h, w)
        size = max(1, round(w * scale)), max(1, round(h * scale))
        luma = cv2.resize(luma, size, interpolation=cv2.INTER_AREA)
    sift = cv2.SIFT_create(nfeatures=0, contrastThreshold=_CONTRAST, edgeThreshold=_EDGE)
    result = sift.detect(luma, None)
    chosen = [result[number] for number in _spread(result, luma.shape, count)]
    if not chosen:
        return Keypoints(np.empty((0, 4)), np.empty((0, 128), np.float32))
    chosen, descriptors = sift.compute(luma, chosen)
    across, down = w / luma.shape[1], h / luma.shape[0]
    places = np.array(
        [((k.pt[0] + 0.5) * across - 0.5, (k.pt[1] + 0.5) * down - 0.5, k.size * across, k.angle) for k in chosen]
    )
    return Keypoints(places, np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-6)))


def hashed(keypoints: Keypoints, h: int, w: int) -> NDArray[np.void]:
    """Keypoints of an image of `h w` pixels, as a features folder holds them: `n` of HASHED.

    A code is the hash of the descriptor; a place is x, y and log2 of the size, all in units of the longer side, and the
    angle in degrees.
    """
    result = np.empty(len(keypoints.places), HASHED)
    bits = (keypoints.descriptors.astype(np.float64) - _MEAN_DESCRIPTOR) @ _PROJECTIONS > 0  # n 128
    result["code"] = np.packbits(bits, axis=1)
    x, y, size, angle = keypoints.places.T
    unit = max(h, w)
    result["place"] = np.stack([x / unit, y / unit, np.log2(size / unit), angle], axis=1)
    return result


def _spread(result: list[cv2.KeyPoint], shape: tuple[int, ...], count: int) -> NDArray[np.int64]:
    """Numbers of the keypoints to keep: the strongest of each cell and octave in turn."""
    points = np.array([k.pt for k in result]).reshape(-1, 2)
    strength = np.array([k.response for k in result])
    octave = np.clip(np.log2([k.size / 2 for k in result]), 0, _OCTAVES - 1).astype(int)
    across, down = np.minimum(points / shape[1::-1] * _CELLS, _CELLS - 1).astype(int).T
    bucket = (down * _CELLS + across) * _OCTAVES + octave
    order = np.lexsort((-strength, bucket))
    rank = np.empty(len(result), np.int64)
    rank[order] = np.arange(len(result)) - np.searchsorted(bucket[order], bucket[order])
    return np.lexsort((-strength, rank))[:count]


def _projections() -> NDArray[np.float64]:
    """`128 128`: 32 columns each even or odd under mirroring, times even or odd under the negative."""
    random = np.random.RandomState(_SEED).standard_normal((128, 128))  # its stream is frozen, unlike default_rng's
    groups = []
    for mirror_sign in (1, -1):
        half = random + mirror_sign * random[_MIRROR]
        groups += [(half + sign * half[_NEGATIVE])[:, :32] for sign in (1, -1)]
    return np.concatenate(groups, axis=1)


def _variant(mirrored: bool, negative: bool) -> Variant:
    permutation = np.arange(128)
    permutation = permutation[_MIRROR] if mirrored else permutation
    permutation = permutation[_NEGATIVE] if negative else permutation
    changed = [(mirrored and odd_mirror) != (negative and odd_negative)
               for odd_mirror in (False, True) for odd_negative in (False, True)]  # fmt: skip
    return Variant(mirrored, negative, permutation, np.repeat(np.array(changed, np.uint8) * 255, BYTES // 4))


_PROJECTIONS = _projections()
_MEAN_DESCRIPTOR = _MEAN[np.ix_([0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 2, 3, 4, 3, 2, 1])].ravel()
VARIANTS = tuple(_variant(mirrored, negative) for negative in (False, True) for mirrored in (False, True))
