"""The radial power spectrum: how much detail an image holds at each fineness."""

import numpy as np
from numpy.typing import NDArray

BINS = 64


def radial_power(y: NDArray[np.float64], bins: int = BINS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean power of an image at each radial frequency, its mean taken out.

    The image is weighed by a Hann window of unit mean square, so that its borders leave no cross in the spectrum, and
    the transform is orthonormal: the mean over all coefficients is the mean square of the weighed image, whatever its
    size.

    Args:
        y: float `h w`.
        bins: rings between 0 and 0.5 cycles/pixel.

    Returns:
        Frequencies of the rings' centres in cycles/pixel and their mean power, each `bins`; nan for a ring without any
        coefficient, which happens with images smaller than 2 * bins.
    """
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in y.shape))
    window /= np.sqrt(np.mean(window**2))
    power = np.abs(np.fft.fft2((y - y.mean()) * window, norm="ortho")) ** 2
    radius = np.hypot(np.fft.fftfreq(y.shape[0])[:, None], np.fft.fftfreq(y.shape[1])[None])
    ring = np.minimum((radius * 2 * bins).astype(int), bins)  # the corners beyond 0.5 fall into a ring that is left out
    count = np.bincount(ring.ravel(), minlength=bins + 1)[:bins]
    total = np.bincount(ring.ravel(), power.ravel(), minlength=bins + 1)[:bins]
    frequency = (np.arange(bins) + 0.5) / (2 * bins)
    return frequency, np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)


def mean_radial_power(
    images: list[NDArray[np.float64]], bins: int = BINS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`radial_power` averaged over images of any sizes; every image counts the same."""
    spectra = np.array([radial_power(y, bins)[1] for y in images])
    known = np.isfinite(spectra)
    total, count = np.where(known, spectra, 0).sum(axis=0), known.sum(axis=0)
    frequency = (np.arange(bins) + 0.5) / (2 * bins)
    return frequency, np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)
