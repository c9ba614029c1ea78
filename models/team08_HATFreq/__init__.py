"""HATFreq, team 08 of the NTIRE 2025 Image Super-Resolution (x4) challenge.

    from models.team08_HATFreq import build_model
    model = build_model("light")

The folder stands alone: with `model_zoo/team08_HATFreq` it runs inside the organisers' repository.
"""

from importlib.metadata import PackageNotFoundError, version

import torch

if tuple(int(number) for number in torch.__version__.split(".")[:2]) < (2, 5):
    raise ImportError(f"HATFreq needs PyTorch 2.5 or later, and this is {torch.__version__}: pip install 'torch>=2.5'")

from .inference import main
from .layers import set_exportable, set_fused_attention
from .network import PRESETS, HATConfig, HATFreq, override

try:
    __version__ = version("hatfreq")
except PackageNotFoundError:  # a folder in another tree
    __version__ = "0"

__all__ = [
    "PRESETS",
    "HATConfig",
    "HATFreq",
    "build_model",
    "main",
    "override",
    "set_exportable",
    "set_fused_attention",
]


def build_model(preset: str, frequency: str = "bands", scale: int = 4) -> HATFreq:
    """A HATFreq with fresh weights, ready for `load_state_dict`.

    Args:
        preset: `light`, `small`, `base` or `large`; without fusion the last three are HAT-S, HAT and HAT-L.
        frequency: `bands` or `none` (plain HAT).
        scale: 2, 3 or 4.

    Raises:
        ValueError: an unknown preset, frequency or scale.
    """
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose from {', '.join(PRESETS)}")
    return HATFreq(override(PRESETS[preset], {"frequency": frequency, "scale": scale}))
