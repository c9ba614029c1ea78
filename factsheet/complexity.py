"""What a preset costs: parameters, multiply-accumulates and activations, counted without computing anything."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models.team08_HATFreq import PRESETS, HATFreq, override

SIDE = 64  # LR pixels
# What convolutions and linear layers come down to; all linear ones have a bias. A plain product, `mm`, is the radial
# gains' interpolation, which is no layer.
_LAYERS = ("convolution", "addmm")


@dataclass(frozen=True)
class Cost:
    """Of one forward pass over SIDE x SIDE LR pixels.

    Attributes:
        parameters: of the network.
        macs: multiply-accumulates of convolutions, linear layers and attention. Heads are counted as HAT has them,
            without the padding to 32 channels; Fourier transforms and elementwise steps are not counted.
        activations: values that convolutions and linear layers put out.
    """

    parameters: int
    macs: int
    activations: int


@cache
def cost(preset: str, frequency: str) -> Cost:
    """Count a preset with or without frequency blocks; the Fourier transforms themselves are not counted."""
    config = override(PRESETS[preset], {"frequency": frequency, "fused_attention": False})
    with torch.device("meta"):
        model = HATFreq(config).eval()
        lq = torch.empty(1, 3, SIDE, SIDE)
    counter, outputs = FlopCounterMode(display=False), _Outputs()
    with torch.no_grad(), _no_autocast(), counter, outputs:
        model(lq)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, outputs.values)


class _Outputs(TorchDispatchMode):
    """Sums up what layers put out."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in _LAYERS:
            self.values += out.numel()
        return out


def _no_autocast() -> AbstractContextManager[Any]:
    """Tensors without memory know no autocast, which the frequency block turns off."""
    return patch.object(torch, "autocast", lambda **_: nullcontext())
