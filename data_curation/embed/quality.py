"""How good an image is for training: two measures on its luma that need no reference."""

import cv2
import numpy as np
from numpy.typing import NDArray

_BLOCK = 8  # pixels of a JPEG block's side


def quality(rgb: NDArray[np.uint8]) -> tuple[float, float]:
    """Blockiness and sharpness of `h w 3`."""
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return blockiness(luma), sharpness(luma)


def blockiness(luma: NDArray[np.uint8]) -> float:
    """How much larger the steps between neighbours are on a grid of 8 pixels than off it.

    After Z. Wang, H. R. Sheikh and A. C. Bovik, "No-reference perceptual quality assessment of JPEG compressed images"
    (ICIP 2002), but relative, and with the grid looked for, as a crop may have moved it.

    Args:
        luma: uint8 `h w`.

    Returns:
        The mean step at the strongest of the eight positions of the grid over the mean step at the others, averaged
        over both axes: about 1 without visible blocks, and 1 for an image too small or flat to tell.
    """
    if min(luma.shape) < 2:
        return 1.0
    across = cv2.reduce(cv2.absdiff(luma[:, 1:], luma[:, :-1]), 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    down = cv2.reduce(cv2.absdiff(luma[1:], luma[:-1]), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)
    return (_grid_strength(across.ravel()) + _grid_strength(down.ravel())) / 2


def sharpness(luma: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian, in squared grey levels: 0 for a flat image, some tens for a blurred photograph.

    After J. L. Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy" (ICPR 2000).
    """
    deviation = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))[1]
    return float(deviation[0, 0] ** 2)


def _grid_strength(steps: NDArray[np.int32]) -> float:
    """For one axis: the sum of the steps at each place along it."""
    whole = len(steps) // _BLOCK * _BLOCK
    if whole < 2 * _BLOCK or not steps.any():
        return 1.0
    phases = steps[:whole].reshape(-1, _BLOCK).sum(axis=0, dtype=np.int64)
    strongest = int(phases.argmax())
    others = float(np.delete(phases, strongest).mean())
    return float(phases[strongest]) / others if others > 0 else float(_BLOCK)
