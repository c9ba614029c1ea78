"""What the candidates share: bands of the plane of frequencies, tapered frames, and gains that follow the content.

Everything here runs in fp32 and for any size: frequencies are counted in cycles/pixel. Spectra are orthonormal, real
and imaginary part a last axis of two (`models/team08_HATFreq/fourier.py`): white noise has the same power at every
size, and neither torch.compile nor ONNX meets a complex number.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.team08_HATFreq.frequency import EPS, frequencies, ring_bands


def correlate(a: Tensor, b: Tensor) -> Tensor:
    """conj(a) b: of spectra, the spectrum of `sum over x of a(x) b(x + lag)`."""
    (ar, ai), (br, bi) = a.unbind(-1), b.unbind(-1)
    return torch.stack([ar * br + ai * bi, ar * bi - ai * br], dim=-1)


def polar_bands(rings: int, sectors: int, u: Tensor) -> Tensor:
    """What `ring_bands` gives, for rings cut into orientations: `rings*sectors h*(w/2+1)`.

    The sectors are triangles over the direction, which has a period of half a turn.
    """
    fy, fx = frequencies(u)
    angle = torch.atan2(*torch.broadcast_tensors(fy, fx)).flatten() / math.pi * sectors
    distance = (angle - torch.arange(sectors, device=u.device)[:, None]).remainder(sectors)
    sector = (1 - torch.minimum(distance, sectors - distance)).clamp(min=0)
    ring = ring_bands(u, rings)
    return (ring[:, None] * sector[None]).flatten(0, 1)


class BandGains(nn.Module):
    """Gains in 0 .. 2 from powers: `... c bands` -> `... c bands`; a small perceptron on their logarithms.

    Args:
        channels: c.
        bands: powers of each channel.
    """

    def __init__(self, channels: int, bands: int) -> None:
        super().__init__()
        hidden = max(8, channels // 4)
        self.mix = nn.Linear(channels * bands, hidden)
        self.gains = nn.Linear(hidden, channels * bands)
        nn.init.normal_(self.gains.weight, std=0.02)
        nn.init.zeros_(self.gains.bias)

    def forward(self, powers: Tensor) -> Tensor:
        logarithms = 0.25 * (powers + EPS).log().flatten(-2)
        hidden = F.gelu(F.linear(logarithms, self.mix.weight.float(), self.mix.bias.float()))
        gains = F.linear(hidden, self.gains.weight.float(), self.gains.bias.float())
        return 2 * torch.sigmoid(gains).view(powers.shape)


class Frames:
    """Tapered frames that overlap by half: their sum, tapered once more, is the image again.

    The taper is the square root of a periodic Hann window, whose copies at half its length add up to one.

    Args:
        side: of a frame, an even number; images are multiples of half of it.
    """

    def __init__(self, side: int) -> None:
        self.side, self.hop = side, side // 2

    def _taper(self, device: torch.device) -> Tensor:
        """`side side`."""
        line = torch.sin(math.pi * torch.arange(self.side, device=device).float() / self.side)
        return line[:, None] * line[None]

    def cut(self, u: Tensor) -> Tensor:
        """`b c h w` -> `b gh gw c side side`, tapered; zeros lie around the image."""
        hop = self.hop
        blocks = F.pad(u, (hop,) * 4).unflatten(3, (-1, hop)).unflatten(2, (-1, hop))  # b c gh+1 hop gw+1 hop
        rows = torch.cat([blocks[:, :, :-1], blocks[:, :, 1:]], dim=3)
        frames = torch.cat([rows[:, :, :, :, :-1], rows[:, :, :, :, 1:]], dim=5)  # b c gh side gw side
        return frames.permute(0, 2, 4, 1, 3, 5) * self._taper(u.device)

    def join(self, frames: Tensor) -> Tensor:
        """`b gh gw c side side` -> `b c h w`: the inverse of `cut`."""
        hop = self.hop
        frames = frames * self._taper(frames.device)
        rows = frames[:, 1:, :, :, :hop] + frames[:, :-1, :, :, hop:]  # b gh-1 gw c hop side
        cells = rows[:, :, 1:, :, :, :hop] + rows[:, :, :-1, :, :, hop:]  # b gh-1 gw-1 c hop hop
        return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
