"""Blocks that put a candidate's core into a group of the network, and the list of candidates."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.team08_HATFreq.frequency import FrequencyFusion
from models.team08_HATFreq.network import HATFreq

from .candidates import (
    BandAttention,
    ImageGains,
    ImageShrinkage,
    LagAttention,
    SpectralAttention,
    WindowGains,
    WindowShrinkage,
)
from .periods import PeriodicAttention

CORES: dict[str, Callable[[int, bool], nn.Module]] = {
    "window_gains": WindowGains,
    "image_gains": ImageGains,
    "window_shrinkage": WindowShrinkage,
    "image_shrinkage": ImageShrinkage,
    "fsas": SpectralAttention,
    "lag_attention": LagAttention,
    "band_attention": BandAttention,
    "periodic": PeriodicAttention,
}
CANDIDATES = (*CORES, "band_gate")  # the latter is the block of models/team08_HATFreq/frequency.py
PLACES = ("tail", "before", "last")


def places_of(name: str) -> tuple[str, ...]:
    """Where a candidate can stand: `band_gate` joins the convolution at a group's end, and cannot precede a group."""
    return ("tail", "last") if name == "band_gate" else PLACES


class Block(nn.Module):
    """Adds a core between 1x1 convolutions: `b c h w`, `b c h w` -> `b c h w`; the latter for a fresh block.

    The halved features also go past the core, so that no candidate has to carry them itself: what a second path through
    the group is worth, the control has too.
    """

    def __init__(self, dim: int, core: Callable[[int, bool], nn.Module], transform: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(dim, dim // 2, 1), nn.GELU())
        self.core = core(dim // 2, transform)
        self.fuse = nn.Conv2d(2 * (dim // 2), dim, 1)
        for parameter in self.fuse.parameters():
            nn.init.zeros_(parameter)

    def forward(self, r: Tensor, tail: Tensor) -> Tensor:
        u = self.reduce(r)  # b c/2 h w
        with torch.autocast(device_type=r.device.type, enabled=False):
            y = self.core(u.float())
        return tail + self.fuse(torch.cat([u, y.to(u.dtype)], dim=1))


class Before(nn.Module):
    """A block before a group's attention: `b h w c` -> `b h w c`."""

    def __init__(self, block: nn.Module, group: nn.Module) -> None:
        super().__init__()
        self.block, self.group = block, group

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        u = x.permute(0, 3, 1, 2)
        return self.group(self.block(u, u).permute(0, 2, 3, 1), *others)


def attach(model: HATFreq, name: str, control: bool = False, place: str = "tail") -> HATFreq:
    """Give a network without frequency blocks those of a candidate or of its control; its results stay as they are.

    Args:
        model: built with `frequency="none"`.
        name: a candidate or `none`.
        control: the control instead.
        place: `tail`, beside the convolution that ends each group; `before` each group's attention; or `last`, beside
            the last group's convolution alone.

    Raises:
        ValueError: an unknown name or place.
    """
    if name not in (*CANDIDATES, "none") or place not in PLACES:
        known = f"candidates: {', '.join((*CANDIDATES, 'none'))}; places: {', '.join(PLACES)}"
        raise ValueError(f"{known}; got {name!r}, {place!r}")
    if place not in places_of(name):
        raise ValueError(f"{name} can stand at {', '.join(places_of(name))}; got {place!r}")
    dim, layers = model.config.embed_dim, list(model.layers)
    for layer in layers[-1:] if place == "last" else layers:
        if name == "none":
            continue
        if name == "band_gate":
            layer.freq = FrequencyFusion(dim, "channels" if control else "bands")
            continue
        block = Block(dim, CORES[name], not control)
        if place == "before":
            layer.residual_group = Before(block, layer.residual_group)  # type: ignore[arg-type]
        else:
            layer.freq = block
    return model
