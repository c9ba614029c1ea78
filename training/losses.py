"""Losses between the restored image and its target, and their weighted sum.

All take float `b 3 h w` in [0, 1] and give a scalar, the mean over everything.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.files import UserError

Loss = Callable[[Tensor, Tensor], Tensor]
CHARBONNIER_EPSILON = 1e-3


def charbonnier(sr: Tensor, gt: Tensor) -> Tensor:
    """sqrt(d² + ε²): L1 that is smooth at zero. Source: W.-S. Lai et al., CVPR 2017."""
    return ((sr - gt).square() + CHARBONNIER_EPSILON**2).sqrt().mean()


def frequency(sr: Tensor, gt: Tensor) -> Tensor:
    """L1 between the spectra: mean of |Re| + |Im| of the difference, orthonormal FFT.

    Source: S.-J. Cho et al., "Rethinking coarse-to-fine approach in single image deblurring", ICCV 2021.
    """
    with torch.autocast(sr.device.type, enabled=False):
        difference = torch.fft.rfft2((sr - gt).float(), norm="ortho")
    return difference.real.abs().mean() + difference.imag.abs().mean()


LOSSES: dict[str, Loss] = {"l1": F.l1_loss, "charbonnier": charbonnier, "mse": F.mse_loss, "frequency": frequency}


def parse_loss(items: tuple[str, ...]) -> dict[str, float]:
    """`("l1=1", "frequency=0.05")` -> weights by name.

    Raises:
        UserError: an unknown or doubled loss, a weight that is not a positive number, or none at all.
    """
    weights: dict[str, float] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if name not in LOSSES:
            raise UserError(f"unknown loss {name!r}: choose from {', '.join(LOSSES)}")
        if name in weights:
            raise UserError(f"loss {name} stands twice: give it one weight")
        try:
            weights[name] = float(text) if equals else 1.0
        except ValueError as error:
            raise UserError(f"loss {name} takes a weight such as {name}=0.1, got {text!r}") from error
        if not 0 < weights[name] < float("inf"):
            raise UserError(f"the weight of loss {name} must be positive, got {text}")
    if not weights:
        raise UserError(f"name at least one loss of {', '.join(LOSSES)}")
    return weights


def total_loss(weights: Mapping[str, float], sr: Tensor, gt: Tensor) -> Tensor:
    return torch.stack([weight * LOSSES[name](sr, gt) for name, weight in weights.items()]).sum()
