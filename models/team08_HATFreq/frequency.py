"""The frequency-domain fusion block: joins a second path with the convolution that ends a group, band by band.

`tail + g * (path - tail)`, where `tail` is the group's 3x3 convolution, `path` two 1x1 convolutions beside it, and `g`
a gate between -1 and 1 for every channel and band of frequency. The gates come from the powers of both paths in all
bands: what an image holds at which frequency decides what each path gives to the result there, as in a Wiener filter.
No convolution can do that, whose response is the same for every image. The bands are rings around frequency 0, counted
in cycles/pixel: a network trained on patches treats a photograph in the same way. Neither phases nor positions enter
the gates, so that a shift of the image (around its border) shifts the result.

The last layer of the gates is zero at first: a network with fresh blocks is exactly the network without. Chosen among
nine candidates by docs/frequency.md.

The transforms (fourier.py) are an fp32 island: a bf16 FFT does not exist, an fp16 one only for powers of two on CUDA,
and CUDA's autocast does not guard it.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fourier import irfft2, rfft2

FrequencyMode = Literal["bands", "none"]
FREQUENCY_MODES: tuple[str, ...] = get_args(FrequencyMode)
RINGS = 8
HIGHEST = math.sqrt(0.5)  # cycles/pixel at the corner of the plane of frequencies
EPS = 1e-4  # of a power: features have a variance near one


class FrequencyFusion(nn.Module):
    """The input of a group's convolution and its output, `b c h w` each -> `b c h w`; that output for a fresh block.

    Args:
        dim: channels c.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = max(8, dim // 4)
        self.path = nn.Sequential(nn.Conv2d(dim, dim // 2, 1), nn.GELU(), nn.Conv2d(dim // 2, dim, 1))
        self.mix = nn.Linear(2 * dim * RINGS, hidden)
        self.gates = nn.Linear(hidden, dim * RINGS)
        for parameter in self.gates.parameters():
            nn.init.zeros_(parameter)

    def forward(self, r: Tensor, tail: Tensor) -> Tensor:
        path = self.path(r)
        with torch.autocast(device_type=r.device.type, enabled=False):
            moved = self._moved(tail.float(), path.float())
        return tail + moved.to(tail.dtype)

    def _moved(self, tail: Tensor, path: Tensor) -> Tensor:
        """What the gates take from the convolution and give from the path."""
        bands, spectra = ring_bands(tail), [rfft2(tail), rfft2(path)]  # of each b c h w/2+1 2
        gates = self._gates(torch.cat([band_power(power(one), bands) for one in spectra], dim=1))
        return irfft2(weigh(spectra[1] - spectra[0], gates, bands), tail.shape[-1])

    def _gates(self, powers: Tensor) -> Tensor:
        """`b 2c rings` -> `b c rings`, between -1 and 1."""
        logarithms = 0.25 * (powers + EPS).log().flatten(1)
        hidden = F.gelu(F.linear(logarithms, self.mix.weight.float(), self.mix.bias.float()))
        gates = F.linear(hidden, self.gates.weight.float(), self.gates.bias.float()).tanh()
        return gates.unflatten(1, (-1, RINGS))


def frequencies(u: Tensor) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal frequency of the coefficients of rfft2(u), in cycles/pixel: `h 1`, `1 w/2+1`.

    Args:
        u: any image `... h w` of the spectrum's size.
    """
    height, width = u.shape[-2:]
    row = torch.arange(height, device=u.device)
    fy = torch.where(row * 2 < height, row, row - height).float() / height
    fx = torch.arange(width // 2 + 1, device=u.device).float() / width
    return fy[:, None], fx[None]


def ring_bands(u: Tensor, rings: int = RINGS) -> Tensor:
    """How much of each coefficient is in each ring: float32 `rings h*(w/2+1)`; the rings add up to one everywhere.

    Triangles over the radial frequency, with peaks evenly from 0 to sqrt(1/2) cycles/pixel.

    Args:
        u: any image `... h w` of the spectrum's size.
        rings: their number.
    """
    fy, fx = frequencies(u)
    position = (fy.square() + fx.square()).sqrt().flatten() / HIGHEST * (rings - 1)
    return (1 - (position - torch.arange(rings, device=u.device)[:, None]).abs()).clamp(min=0)


def power(spectrum: Tensor) -> Tensor:
    """Squared amplitude: `... 2` -> `...`."""
    real, imag = spectrum.unbind(-1)
    return torch.addcmul(real.square(), imag, imag)


def band_power(powers: Tensor, bands: Tensor) -> Tensor:
    """Mean power in each band: `... c h w/2+1`, `bands h*(w/2+1)` -> `... c bands`."""
    return powers.flatten(-2) @ (bands / bands.sum(dim=1, keepdim=True).clamp(min=EPS)).t()


def weigh(spectrum: Tensor, gains: Tensor, bands: Tensor) -> Tensor:
    """A spectrum times gains for its bands: `... c h w/2+1 2`, `... c bands`, `bands h*(w/2+1)`."""
    return spectrum * (gains @ bands).view(spectrum.shape[:-1])[..., None]
