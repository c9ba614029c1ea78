"""The spectrum of an error by radial frequency: where in the spectrum two networks differ."""

import numpy as np
from numpy.typing import NDArray

from utils.metrics import rgb_to_y

BANDS = 10
HIGHEST = 0.5  # cycles/pixel: the corners beyond it hold few coefficients and little of a photograph


def band_edges() -> NDArray[np.float64]:
    """Ends of the bands in cycles per pixel of the HR image: float64 `BANDS + 1`, evenly from 0 to HIGHEST."""
    return np.linspace(0, HIGHEST, BANDS + 1)


def error_bands(sr: NDArray[np.uint8], gt: NDArray[np.uint8], border: int = 4) -> NDArray[np.float64]:
    """Energy of the error of Y in each band, as the share that it has in the mean squared error: float64 `BANDS`.

    A Hann window keeps the image's edges from leaking into every band; its energy is taken out again.

    Args:
        sr, gt: uint8 `h w 3` of one size.
        border: pixels left out on each side.
    """
    error = rgb_to_y(sr) - rgb_to_y(gt)
    error = error[border:-border, border:-border]
    h, w = error.shape
    window = np.hanning(h)[:, None] * np.hanning(w)[None]
    power = np.abs(np.fft.fft2(error * window)) ** 2 / (h * w * np.sum(window**2))
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None])
    energy, _ = np.histogram(radius, bins=band_edges(), weights=power)
    return energy
