"""MATLAB's bicubic x1/4 on tensors, bit for bit, on any device.

At x1/4 every output sample has the same 16 weights, and all are multiples of 1/4096: integer arithmetic is exact, in
any order of summation, so that CPU and GPU give the samples of `utils.resize.imresize` itself.
"""

import numpy as np
import torch
from torch import Tensor

from utils.resize import SCALE, imresize_weights

KERNEL_MARGIN = 6  # high-resolution pixels that the kernel reaches beyond a patch on each side
SHIFT = 12  # weights are multiples of 2**-12


def integer_weights() -> list[int]:
    """The 16 weights of an output sample times 4096, for the samples from `KERNEL_MARGIN` before its first pixel on."""
    scaled = imresize_weights(1 / SCALE) * 2**SHIFT
    weights = np.rint(scaled).astype(int)
    assert np.array_equal(weights, scaled) and weights.sum() == 2**SHIFT
    return [int(weight) for weight in weights]


WEIGHTS = integer_weights()


def bicubic_downscale(region: Tensor) -> Tensor:
    """Shrink a window of an image that carries `KERNEL_MARGIN` more pixels on each side.

    Args:
        region: uint8 `b 4h+12 4w+12 c`.

    Returns:
        uint8 `b h w c`: the window of the whole image's low-resolution version.
    """
    return _downscale_axis(_downscale_axis(region, 1), 2)


def _downscale_axis(image: Tensor, axis: int) -> Tensor:
    """Shrink one axis, rounded half up to uint8: height comes before width, and both are rounded."""
    wide = image.to(torch.int32)
    end = image.shape[axis] - len(WEIGHTS) + 1
    taps = [wide[(slice(None),) * axis + (slice(tap, end + tap, SCALE),)] for tap in range(len(WEIGHTS))]
    total = torch.full_like(taps[0], 1 << (SHIFT - 1))
    for weight, one, mirrored in zip(WEIGHTS[: len(taps) // 2], taps, reversed(taps), strict=False):  # symmetric
        total.add_(one + mirrored, alpha=weight)
    return (total >> SHIFT).clamp_(0, 255).to(torch.uint8)
