"""PSNR and SSIM on the luma channel, as the challenge's organisers compute them.

The luma is BT.601's, Y = 16 + 65.481 R + 128.553 G + 24.966 B with R, G, B in [0, 1]; it is not rounded, which would
cost 0.03 dB at 35 dB. Source: utils/utils_image.py of the organisers' repository (zhengchen1999/NTIRE2025_ImageSR_x4).
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

_WEIGHTS = np.array([65.481, 128.553, 24.966]) / 255
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
_WINDOW, _SIGMA = 11, 1.5

BORDER = 4  # pixels left out on each side at x4, the field's custom


def rgb_to_y(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """BT.601 luma: uint8 `h w 3` -> float64 `h w` in [16, 235]."""
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"luma takes uint8 `h w 3`, got {rgb.dtype} of shape {rgb.shape}")
    return rgb @ _WEIGHTS + 16


def psnr_y(sr: NDArray[np.uint8], gt: NDArray[np.uint8], border: int = BORDER) -> float:
    """Peak signal-to-noise ratio on Y in dB; infinite for equal images.

    Args:
        sr, gt: uint8 `h w 3` of one size.
        border: pixels left out on each side.

    Raises:
        ValueError: the shapes differ, or nothing is left inside the border.
    """
    error = np.mean(np.subtract(*_inner_luma(sr, gt, border)) ** 2)
    return math.inf if error == 0 else float(20 * math.log10(255 / math.sqrt(error)))


def ssim_y(sr: NDArray[np.uint8], gt: NDArray[np.uint8], border: int = BORDER) -> float:
    """Structural similarity on Y: Gaussian windows of 11x11, sigma 1.5, where they lie wholly inside.

    Arguments and errors as `psnr_y`. Source: Z. Wang et al., IEEE Transactions on Image Processing 13 (2004).
    """
    x, y = _inner_luma(sr, gt, border)
    if min(x.shape) < _WINDOW:
        raise ValueError(f"SSIM needs {_WINDOW} pixels a side inside the border, got {x.shape[1]}x{x.shape[0]}")
    mean_x, mean_y = _window_mean(x), _window_mean(y)
    variance_x = _window_mean(x * x) - mean_x**2
    variance_y = _window_mean(y * y) - mean_y**2
    covariance = _window_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    structure = (2 * covariance + _C2) / (variance_x + variance_y + _C2)
    return float(np.mean(luminance * structure))


def _inner_luma(
    sr: NDArray[np.uint8], gt: NDArray[np.uint8], border: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if sr.shape != gt.shape:
        raise ValueError(f"sizes differ: {sr.shape[1]}x{sr.shape[0]} restored, {gt.shape[1]}x{gt.shape[0]} target")
    if min(sr.shape[:2]) <= 2 * border:
        raise ValueError(f"nothing is left of {sr.shape[1]}x{sr.shape[0]} pixels inside a border of {border}")
    inner = (slice(border, sr.shape[0] - border), slice(border, sr.shape[1] - border))
    return rgb_to_y(sr)[inner], rgb_to_y(gt)[inner]


def _window_mean(image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian-weighted mean of every window that lies wholly inside: `h w` -> `h-10 w-10`."""
    kernel = cv2.getGaussianKernel(_WINDOW, _SIGMA)
    margin = _WINDOW // 2
    return cv2.sepFilter2D(image, cv2.CV_64F, kernel, kernel)[margin:-margin, margin:-margin]
