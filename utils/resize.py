"""MATLAB's bicubic `imresize`, bit for bit on uint8 images.

The bicubic challenges (NTIRE, Set5, Set14, BSD100) make their low-resolution images with MATLAB's `imresize(image,
1/4)`. OpenCV's and PIL's bicubic differ from it by up to several decibels after restoration, so the degradation is
written anew here from its definition: Keys' cubic kernel (a = -0.5), stretched by 1/scale when shrinking
(antialiasing), the height before the width, and the result of each pass rounded half up to uint8.

Source of the kernel: R. Keys, "Cubic convolution interpolation for digital image processing", IEEE TASSP 29 (1981).
"""

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Border = Literal["mirror", "clamp"]
SCALE = 4  # of the challenge: training pairs, weights and scores are all at x4


def imresize(image: NDArray[np.uint8], scale: float, border: Border = "mirror") -> NDArray[np.uint8]:
    """Resize an image as MATLAB's `imresize(image, scale)` does.

    Args:
        image: uint8 in [0, 255], `h w c` or `h w`.
        scale: factor for both axes, > 0; the output is `ceil(h * scale)` by `ceil(w * scale)`.
        border: what lies outside the image: `mirror` (symmetric, the rule of newer MATLAB and of DIV2K's LR images) or
            `clamp` (the edge sample repeated, the rule of older MATLAB and of the classic Set5, Set14 and BSD100 LR
            images). At x1/4 the two differ in the outer two pixels only.

    Returns:
        uint8 of the same number of axes.

    Raises:
        TypeError: the image is not uint8.
        ValueError: the image is empty or has neither two nor three axes, or scale or border is out of range.
    """
    if image.dtype != np.uint8:
        raise TypeError(f"imresize takes uint8 images, got {image.dtype}: MATLAB's rounding is defined on uint8")
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"imresize takes a non-empty `h w` or `h w c` image, got shape {image.shape}")
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
    if border not in ("mirror", "clamp"):
        raise ValueError(f"border must be 'mirror' or 'clamp', got {border!r}")
    resized = _resize_rows(image, scale, border)
    return np.ascontiguousarray(_resize_rows(resized.swapaxes(0, 1), scale, border).swapaxes(0, 1))


def imresize_weights(scale: float) -> NDArray[np.float64]:
    """The weights of one output sample where all have the same, inside an image: x1/2, x1/4, x1/8.

    Args:
        scale: one over an even number.

    Returns:
        float64 `n_taps`, without the zeros at its ends.
    """
    _, weight = _taps(round(16 / scale), float(scale), "clamp")
    middle = weight[len(weight) // 2]
    return middle[middle != 0]


def _resize_rows(image: NDArray[np.uint8], scale: float, border: Border) -> NDArray[np.uint8]:
    """Resize the first axis and round half up to uint8."""
    index, weight = _taps(image.shape[0], float(scale), border)
    rows = np.ascontiguousarray(image).reshape(image.shape[0], -1)
    total = np.full((len(index), rows.shape[1]), 0.5)  # the half that turns floor into "round half up"
    for tap in range(index.shape[1]):
        total += weight[:, tap, None] * rows[index[:, tap]]
    return np.clip(np.floor(total), 0, 255).astype(np.uint8).reshape(len(index), *image.shape[1:])


@lru_cache(maxsize=64)
def _taps(length: int, scale: float, border: Border) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Source indices and weights of every output sample, each `n_out n_taps`; a row of weights sums to one."""
    stretch = min(scale, 1.0)
    width = 4.0 / stretch
    n_out = int(np.ceil(length * scale))
    centre = (np.arange(n_out) + 0.5) / scale - 0.5
    first = np.floor(centre - width / 2).astype(np.intp)
    index = first[:, None] + np.arange(int(np.ceil(width)) + 2)
    weight = _keys_cubic(stretch * (centre[:, None] - index))
    weight /= weight.sum(axis=1, keepdims=True)
    used = weight.any(axis=0)
    index, weight = index[:, used], weight[:, used]
    if border == "clamp":
        return np.clip(index, 0, length - 1), weight
    period = index % (2 * length)
    return np.where(period < length, period, 2 * length - 1 - period), weight


def _keys_cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -0.5, non-zero on (-2, 2)."""
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x**2 + 1
    outer = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, inner, np.where(x <= 2, outer, 0.0))
