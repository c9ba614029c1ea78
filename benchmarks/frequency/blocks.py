"""Blocks that put a candidate's core into a group of the network, and the list of candidates."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.team08_HATFreq.fourier import irfft2, rfft2
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
from .spectra import EPS, band_power, power, ring_bands, weigh

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
CANDIDATES = (*CORES, "band_gate")
PRESENT = "present"  # the module that is shipped
PLACES = ("tail", "before", "last")


def places_of(name: str) -> tuple[str, ...]:
    """Where a candidate can stand: `band_gate` joins the convolution at a group's end, and cannot precede a group."""
    return ("tail", "last") if name == "band_gate" else PLACES


class Block(nn.Module):
    """A core between 1x1 convolutions: `b h w c` -> `b h w c`, zero for a fresh block.

    The halved features also go past the core, so that no candidate has to carry them itself: what a second path through
    the group is worth, the control has too.
    """

    def __init__(self, dim: int, core: Callable[[int, bool], nn.Module], transform: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(dim, dim // 2, 1), nn.GELU())
        self.core = core(dim // 2, transform)
        self.fuse = nn.Conv2d(2 * (dim // 2), dim, 1)
        nn.init.zeros_(self.fuse.weight)
        nn.init.zeros_(self.fuse.bias)

    def forward(self, x: Tensor) -> Tensor:
        u = self.reduce(x.permute(0, 3, 1, 2))  # b c/2 h w
        with torch.autocast(device_type=x.device.type, enabled=False):
            y = self.core(u.float())
        return self.fuse(torch.cat([u, y.to(u.dtype)], dim=1)).permute(0, 2, 3, 1)


class BandGate(nn.Module):
    """A second path beside the group's convolution; in every band a gate between -1 and 1 moves from one to the other.

    `tail + gate * (path - tail)`, the gates from both paths' powers in all bands; they are 0 at first. Stands in place
    of the convolution: `b c h w` -> `b c h w`.
    """

    def __init__(self, conv: nn.Conv2d, transform: bool, rings: int = 8) -> None:
        super().__init__()
        dim = conv.out_channels
        self.conv, self.transform, self.rings = conv, transform, rings
        self.path = nn.Sequential(nn.Conv2d(dim, dim // 2, 1), nn.GELU(), nn.Conv2d(dim // 2, dim, 1))
        self.mix = nn.Linear(2 * dim * rings, max(8, dim // 4))
        self.gates = nn.Linear(max(8, dim // 4), dim * rings)
        nn.init.zeros_(self.gates.weight)
        nn.init.zeros_(self.gates.bias)

    def forward(self, x: Tensor) -> Tensor:
        tail, path = self.conv(x), self.path(x)
        with torch.autocast(device_type=x.device.type, enabled=False):
            moved = self._moved(tail.float(), path.float())
        return tail + moved.to(tail.dtype)

    def _moved(self, tail: Tensor, path: Tensor) -> Tensor:
        both = torch.cat([tail, path], dim=1)
        if not self.transform:
            powers = both.square().mean(dim=(2, 3))[..., None].expand(-1, -1, self.rings)
            return (path - tail) * self._gates(powers).mean(dim=-1)[..., None, None]
        spectrum, rings = rfft2(both), ring_bands(self.rings, tail)
        gates = self._gates(band_power(power(spectrum), rings))
        tail_spectrum, path_spectrum = spectrum.chunk(2, dim=1)
        return irfft2(weigh(path_spectrum - tail_spectrum, gates, rings), tail.shape[-1])

    def _gates(self, powers: Tensor) -> Tensor:
        """`b 2c rings` -> `b c rings`."""
        logarithms = 0.25 * (powers + EPS).log().flatten(1)
        hidden = F.gelu(F.linear(logarithms, self.mix.weight.float(), self.mix.bias.float()))
        gates = F.linear(hidden, self.gates.weight.float(), self.gates.bias.float()).tanh()
        return gates.unflatten(1, (-1, self.rings))


class Before(nn.Module):
    """A block before a group's attention."""

    def __init__(self, block: nn.Module, group: nn.Module) -> None:
        super().__init__()
        self.block, self.group = block, group

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return self.group(x + self.block(x), *others)


def attach(model: HATFreq, name: str, control: bool = False, place: str = "tail") -> HATFreq:
    """Give a network without frequency blocks those of a candidate or of its control; its results stay as they are.

    Args:
        model: built with `frequency="none"`.
        name: a candidate, `present` for the shipped module, or `none`.
        control: the control instead.
        place: `tail`, beside the convolution that ends each group; `before` each group's attention; or `last`, beside
            the last group's convolution alone.

    Raises:
        ValueError: an unknown name or place.
    """
    if name not in (*CANDIDATES, PRESENT, "none") or place not in PLACES:
        known = f"candidates: {', '.join((*CANDIDATES, PRESENT, 'none'))}; places: {', '.join(PLACES)}"
        raise ValueError(f"{known}; got {name!r}, {place!r}")
    if place not in places_of(name):
        raise ValueError(f"{name} can stand at {', '.join(places_of(name))}; got {place!r}")
    dim, window = model.config.embed_dim, model.config.window_size
    layers = list(enumerate(model.layers))
    for i, layer in layers[-1:] if place == "last" else layers:
        if name == "none":
            continue
        if name == "band_gate":
            layer.conv = BandGate(layer.conv, not control)
            continue
        if name == PRESENT:
            block: nn.Module = FrequencyFusion(dim, window, "identity" if control else "both", i % 2 == 1)
        else:
            block = Block(dim, CORES[name], not control)
        if place == "before":
            layer.residual_group = Before(block, layer.residual_group)
        else:
            layer.freq = block
    return model
