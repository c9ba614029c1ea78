"""Attention to the places that lie whole periods away, which the image's power spectrum tells."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.team08_HATFreq.fourier import irfft2, rfft2
from models.team08_HATFreq.frequency import EPS, band_power, power, ring_bands

from .candidates import conv1x1

RINGS = 16
NEAREST, FARTHEST = 5, 32  # pixels: nearer ones are in every window, and patches hold no farther ones
PERIODS = 4
BLIND = ((0, 8), (8, 0), (8, 8), (8, -8))  # the control's lags, down and right
MASKED = -1e4


class PeriodicAttention(nn.Module):
    """Each pixel attends to itself and to the pixels one period away, in both directions: `b c h w` -> `b c h w`.

    The periods are the highest peaks of the features' autocorrelation, whose power spectrum is flattened first: of a
    photograph's own, low frequencies would leave one broad peak. Where the structure repeats, they hold the same edge
    sampled at another phase, farther away than a window reaches. Which pixels are taken follows the content; how much
    of each, the attention, which no gradient has to reach through the choice.

    Args:
        channels: c, a multiple of heads.
        transform: False looks at fixed places instead, the nearest that are a window away (the control).
        heads: of the attention.
    """

    def __init__(self, channels: int, transform: bool = True, heads: int = 2) -> None:
        super().__init__()
        self.transform, self.heads = transform, heads
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.own = nn.Parameter(torch.zeros(heads, 1))  # bias of the pixel itself

    def forward(self, u: Tensor) -> Tensor:
        lags, found = find_periods(u) if self.transform else blind_lags(u)
        lags, found = torch.cat([lags, -lags], dim=1), found.repeat(1, 2)  # b 2*periods (2)
        index, inside = places(lags, *u.shape[2:])
        scale = (u.shape[1] // self.heads) ** -0.5
        q, k, v = (part.flatten(2) for part in conv1x1(u, self.qkv).chunk(3, dim=1))  # b c n
        scores = self._scores(q[:, None], gather(k, index)) * scale  # b 2*periods heads n
        scores = scores.masked_fill(~(inside & found[..., None])[:, :, None], MASKED)
        own = self._scores(q[:, None], k[:, None]) * scale + self.own.float()
        weights = torch.cat([own, scores], dim=1).softmax(dim=1)[:, :, :, None]
        values = torch.cat([v[:, None], gather(v, index)], dim=1).unflatten(2, (self.heads, -1))
        return (weights * values).sum(dim=1).flatten(1, 2).view(u.shape)

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        """`b places c n` twice -> `b places heads n`."""
        return (q * k).unflatten(2, (self.heads, -1)).sum(dim=3)


def gather(x: Tensor, index: Tensor) -> Tensor:
    """`b c n`, int64 `b places n` -> `b places c n`."""
    shape = (-1, index.shape[1], x.shape[1], -1)
    return x[:, None].expand(shape).gather(3, index[:, :, None].expand(shape))


def places(lags: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The flat index of the pixel that lies a lag away from each, and whether it is in the image: `b places h*w`."""
    y = torch.arange(height, device=lags.device) + lags[..., :1]  # b places h
    x = torch.arange(width, device=lags.device) + lags[..., 1:]
    inside = ((y >= 0) & (y < height))[..., None] & ((x >= 0) & (x < width))[..., None, :]
    index = y.clamp(0, height - 1)[..., None] * width + x.clamp(0, width - 1)[..., None, :]
    return index.flatten(2), inside.flatten(2)


def blind_lags(u: Tensor) -> tuple[Tensor, Tensor]:
    """Lags that do not depend on the content, in the form of `find_periods`."""
    lags = torch.tensor(BLIND, device=u.device).expand(len(u), -1, -1)
    return lags, torch.ones(lags.shape[:2], dtype=torch.bool, device=u.device)


@torch.no_grad()
def find_periods(u: Tensor) -> tuple[Tensor, Tensor]:
    """The lags of the autocorrelation's highest peaks in the half plane to the right.

    Returns:
        Pixels down and right, int64 `b PERIODS 2`, and whether there are so many peaks, bool `b PERIODS`.
    """
    peaks = autocorrelation(u)
    h, w = peaks.shape[1:]
    around = F.max_pool2d(F.pad(peaks[:, None], (1,) * 4, mode="circular"), 3, 1)[:, 0]
    y, x = torch.arange(h, device=u.device), torch.arange(w, device=u.device)
    down, right = torch.where(y * 2 < h, y, y - h)[:, None], torch.where(x * 2 < w, x, x - w)[None]
    squared = down.square() + right.square()
    searched = (squared >= NEAREST**2) & (squared <= FARTHEST**2) & ((right > 0) | ((right == 0) & (down > 0)))
    searched = searched & (down.abs() * 2 < h) & (right * 2 < w)
    height, index = torch.where((peaks == around) & searched, peaks, -math.inf).flatten(1).topk(PERIODS)
    lags = torch.stack([down.expand(h, w).flatten()[index], right.expand(h, w).flatten()[index]], dim=-1)
    return lags, height > 0


def autocorrelation(u: Tensor) -> Tensor:
    """Of all channels together, from a flattened spectrum of the tapered image: `b c h w` -> `b h w`, 1 at lag 0."""
    h, w = u.shape[2:]
    u = u - u.mean(dim=(2, 3), keepdim=True)
    u = u * (u.square().mean(dim=(2, 3), keepdim=True) + EPS).rsqrt()
    rows, columns = (torch.sin(math.pi * (torch.arange(n, device=u.device) + 0.5) / n) for n in (h, w))
    powers = power(rfft2(u * rows[:, None] * columns)).sum(dim=1, keepdim=True)  # b 1 h w/2+1
    rings = ring_bands(u, RINGS)
    flat = powers * ((band_power(powers, rings) @ rings).view(powers.shape) + EPS).rsqrt()
    result = irfft2(torch.stack([flat, torch.zeros_like(flat)], dim=-1), w)[:, 0]
    return result / result[:, :1, :1].clamp(min=EPS)
