"""Perceptual hashes that know an image's eight orientations.

The hash of C. Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010): the signs of the
lowest frequencies against their median. A flip changes the sign of the odd frequencies and a transposition swaps the
axes, so one cosine transform serves all eight orientations, and the set of eight is the same for all of them.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from data_curation.features import ORIENTATIONS

_SIDE, _KEPT = 32, 8  # pixels of the thumbnail's side, frequencies an axis
_SIGNS = np.where(np.arange(_KEPT) % 2, -1.0, 1.0)  # what a flip does to a cosine of that frequency


def phash8(rgb: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The 64-bit hashes of `image_data.geometry.orient(rgb, 0)`, ..., `orient(rgb, 7)`.

    Args:
        rgb: uint8 `h w 3`, of any size.

    Returns:
        uint64 `8`. Bit 63 belongs to the mean, which says nothing of the content, and is always 0.
    """
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    thumbnail = cv2.resize(luma, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    low = cv2.dct(thumbnail.astype(np.float64))[:_KEPT, :_KEPT]
    return np.array([_bits(_orient_spectrum(low, orientation)) for orientation in range(ORIENTATIONS)], np.uint64)


def distance(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """How many bits differ, element by element (the arrays broadcast).

    Args:
        one, other: uint64; for near-duplicates in any orientation, compare the eight of one image with the first of
            the other, and take the least.
    """
    return np.bitwise_count(one ^ other)


def _orient_spectrum(low: NDArray[np.float64], orientation: int) -> NDArray[np.float64]:
    """The spectrum of the image after `image_data.geometry.orient`: transposed first, then flipped."""
    oriented = low.T.copy() if orientation & 4 else low.copy()
    if orientation & 2:
        oriented *= _SIGNS[:, None]
    if orientation & 1:
        oriented *= _SIGNS
    return oriented


def _bits(low: NDArray[np.float64]) -> int:
    """`8 8` -> 64 bits, the first the most significant."""
    values = low.ravel().copy()
    above = values > np.median(values[1:])
    above[0] = False
    return int.from_bytes(np.packbits(above).tobytes(), "big")
