"""The shapes inside a frequency block, as a forward pass reports them."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from models.team08_HATFreq import frequency
from models.team08_HATFreq.frequency import FrequencyFusion, GlobalSpectrum, WindowSpectrum

Shapes = dict[str, tuple[int, ...]]


def block_shapes(dim: int, window: int, height: int, width: int) -> Shapes:
    """Name of each step of a FrequencyFusion -> the shape of what it puts out.

    Args:
        dim: channels of the features.
        window: side of the transform windows.
        height, width: of the features, multiples of the window.
    """
    block = FrequencyFusion(dim, window).eval()
    assert block.global_branch is not None and block.window_branch is not None  # its mode is `both`
    found: Shapes = {}
    hooked = {
        "reduce": block.reduce,
        "global": block.global_branch,
        "window": block.window_branch,
        "fuse": block.fuse,
    }
    handles = [module.register_forward_hook(_noting(found, name)) for name, module in hooked.items()]
    handles.append(block.fuse.register_forward_pre_hook(lambda _, args: found.update(joined=tuple(args[0].shape))))
    inverse = frequency.inverse_rfft2
    current: list[str] = []

    def spied(spectrum: Tensor, width: int) -> Tensor:
        found[f"{current[-1]} spectrum"] = tuple(spectrum.shape)
        return inverse(spectrum, width)

    for name, module in (("global", block.global_branch), ("window", block.window_branch)):
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: current.append(name)))
    with torch.inference_mode(), patch.object(frequency, "inverse_rfft2", spied):
        lq = torch.zeros(1, height, width, dim)
        found["input"] = tuple(lq.shape)
        found["output"] = tuple(block(lq).shape)
    for handle in handles:
        handle.remove()
    return found


def gains(dim: int, window: int) -> Shapes:
    """The shapes of the learned gains and of the mixing weight."""
    half = dim // 2
    spectrum, windows = GlobalSpectrum(half), WindowSpectrum(half, window, shifted=False)
    return {
        "mix": tuple(spectrum.mix.weight.shape[:2]),
        "global gain": tuple(spectrum.gain.shape),
        "window gain": tuple(windows.gain.shape),
    }


def _noting(found: Shapes, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _, __, out: found.__setitem__(name, tuple(out.shape))
