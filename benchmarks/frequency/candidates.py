"""The candidates of docs/frequency.md: frequency modules that a convolution cannot imitate, each with its control.

A core takes fp32 features `b c h w` at half the block's width and returns the same shape; h and w are multiples of 8.
With `transform=False` it is its own control: the same layers with the same parameters, the Fourier transform replaced
by the identity, or, where the transform finds places, by places that do not depend on the content. `blocks.py` puts
cores into a network.

Sources: FFTformer (L. Kong et al., CVPR 2023) for `SpectralAttention`; adaptive frequency filters (Z. Huang et al.,
ICCV 2023) for `ImageGains`; FECNet (J. Huang et al., ECCV 2022) for a path of its own for the amplitudes in
`ImageShrinkage`; Autoformer (H. Wu et al., NeurIPS 2021) for attention over lags in `LagAttention` and for the periods
of `PeriodicAttention`. Changed against them: phases are kept wherever amplitudes are weighed, and statistics are powers
at physical frequencies.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.team08_HATFreq.fourier import irfft2, rfft2
from models.team08_HATFreq.frequency import EPS, band_power, power, ring_bands, weigh

from .spectra import BandGains, Frames, correlate, polar_bands

RINGS, SECTORS = 5, 4  # of the gains
FINE_RINGS = 8  # over which the shrinkage compares a coefficient


def conv1x1(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """A 1x1 convolution in fp32 whatever the dtype of its weights."""
    return F.conv2d(x, layer.weight.float(), None if layer.bias is None else layer.bias.float())


class WindowGains(nn.Module):
    """Gains for the bands of each frame, from the powers of the frame's bands in all channels; the phase is kept."""

    def __init__(self, channels: int, transform: bool = True, side: int = 16) -> None:
        super().__init__()
        self.frames, self.transform = Frames(side), transform
        self.gains = BandGains(channels, RINGS * SECTORS)

    def forward(self, u: Tensor) -> Tensor:
        frames = self.frames.cut(u)  # b gh gw c side side
        side = self.frames.side
        if not self.transform:
            powers = frames.square().mean(dim=(-2, -1))[..., None].expand(*frames.shape[:4], RINGS * SECTORS)
            return self.frames.join(frames * self.gains(powers).mean(dim=-1)[..., None, None])
        bands, spectrum = polar_bands(RINGS, SECTORS, frames), rfft2(frames)
        gains = self.gains(band_power(power(spectrum), bands))
        return self.frames.join(irfft2(weigh(spectrum, gains, bands), side))


class ImageGains(nn.Module):
    """A filter for each channel of the whole image, from the powers of the image's bands in all channels."""

    def __init__(self, channels: int, transform: bool = True) -> None:
        super().__init__()
        self.transform = transform
        self.gains = BandGains(channels, RINGS * SECTORS)

    def forward(self, u: Tensor) -> Tensor:
        mean = u.mean(dim=(2, 3), keepdim=True)
        u = u - mean
        if not self.transform:
            powers = u.square().mean(dim=(2, 3))[..., None].expand(*u.shape[:2], RINGS * SECTORS)
            return mean + u * self.gains(powers).mean(dim=-1)[..., None, None]
        bands, spectrum = polar_bands(RINGS, SECTORS, u), rfft2(u)
        gains = self.gains(band_power(power(spectrum), bands))
        return mean + irfft2(weigh(spectrum, gains, bands), u.shape[-1])


class Shrinkage(nn.Module):
    """A gain in 0 .. 2 for every coefficient, from the log powers of all channels at it: `b c h w` twice -> `b c h w`.

    The second input is the same power smoothed over its ring, so that a peak of the spectrum is known from a slope.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 1)
        self.gains = nn.Conv2d(channels, channels, 1)
        nn.init.normal_(self.gains.weight, std=0.02)
        nn.init.zeros_(self.gains.bias)  # type: ignore[arg-type]

    def forward(self, powers: Tensor, smoothed: Tensor) -> Tensor:
        level = 0.25 * (smoothed + EPS).log()
        peak = 0.25 * (powers + EPS).log() - level
        return 2 * torch.sigmoid(conv1x1(F.gelu(conv1x1(torch.cat([peak, level], dim=1), self.mix)), self.gains))

    def weigh(self, u: Tensor, transform: bool) -> Tensor:
        """`b c h w` -> `b c h w` with its coefficients weighed, or for the control its pixels."""
        if not transform:
            powers = u.square()
            return u * self(powers, powers.mean(dim=(2, 3), keepdim=True).expand_as(powers))
        spectrum = rfft2(u)
        powers, rings = power(spectrum), ring_bands(u, FINE_RINGS)
        gains = self(powers, (band_power(powers, rings) @ rings).view(powers.shape))
        return irfft2(spectrum * gains[..., None], u.shape[-1])


class ImageShrinkage(nn.Module):
    """Wiener-like shrinkage of the whole image's coefficients by their amplitudes; the phase is kept."""

    def __init__(self, channels: int, transform: bool = True) -> None:
        super().__init__()
        self.transform, self.shrinkage = transform, Shrinkage(channels)

    def forward(self, u: Tensor) -> Tensor:
        mean = u.mean(dim=(2, 3), keepdim=True)
        return mean + self.shrinkage.weigh(u - mean, self.transform)


class WindowShrinkage(nn.Module):
    """The same in tapered frames, where one resolution of the spectrum serves patches and photographs."""

    def __init__(self, channels: int, transform: bool = True, side: int = 16) -> None:
        super().__init__()
        self.frames, self.transform, self.shrinkage = Frames(side), transform, Shrinkage(channels)

    def forward(self, u: Tensor) -> Tensor:
        frames = self.frames.cut(u)
        return self.frames.join(self.shrinkage.weigh(frames.flatten(0, 2), self.transform).view(frames.shape))


class SpectralAttention(nn.Module):
    """FFTformer's attention: the correlation of queries and keys in windows of 8, normalised, weighs the values."""

    def __init__(self, channels: int, transform: bool = True, side: int = 8) -> None:
        super().__init__()
        self.side, self.transform = side, transform
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.neighbours = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, u: Tensor) -> Tensor:
        weight, bias = self.neighbours.weight.float(), self.neighbours.bias.float()  # type: ignore[union-attr]
        q, k, v = F.conv2d(conv1x1(u, self.qkv), weight, bias, padding=1, groups=len(weight)).chunk(3, dim=1)
        if self.transform:
            spectrum = correlate(rfft2(self._windows(q)), rfft2(self._windows(k)))
            correlation = irfft2(spectrum, self.side).permute(0, 1, 2, 4, 3, 5).reshape(u.shape)
        else:
            correlation = q * k
        weights = F.layer_norm(
            correlation.permute(0, 2, 3, 1), u.shape[1:2], self.norm.weight.float(), self.norm.bias.float()
        )
        return v * weights.permute(0, 3, 1, 2)

    def _windows(self, x: Tensor) -> Tensor:
        """`b c h w` -> `b c gh gw side side`."""
        return x.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side)).permute(0, 1, 2, 4, 3, 5)


class LagAttention(nn.Module):
    """Attention over lags in tapered frames: the softmax of queries' correlation with keys is a kernel for the values.

    A frame of repeated structure is averaged over its repetitions, another one hardly at all: a filter that follows
    the periods of the frame.
    """

    def __init__(self, channels: int, transform: bool = True, side: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.frames, self.transform, self.heads = Frames(side), transform, heads
        self.qkv = nn.Conv2d(channels, 2 * channels, 1)  # half as many queries and keys as values
        self.sharpness = nn.Parameter(torch.full((heads,), 2.0))  # its exponential weighs the normalised correlation

    def forward(self, u: Tensor) -> Tensor:
        side = self.frames.side
        frames = self.frames.cut(conv1x1(u, self.qkv))
        half = u.shape[1] // 2
        parts = frames.split([half, half, u.shape[1]], dim=3)
        q, k, v = (part.unflatten(3, (self.heads, -1)) for part in parts)  # b gh gw heads d side side
        energies = [part.square().sum(dim=(-3, -2, -1)) for part in (q, k)]
        sharpness = self.sharpness.float().exp() * (energies[0] * energies[1] + EPS).rsqrt()
        if self.transform:
            spectrum = correlate(rfft2(q), rfft2(k)).sum(dim=-4)  # over d
            scores = irfft2(spectrum, side) * side  # sum over x of q(x) k(x + lag)
        else:
            scores = (q * k).sum(dim=-3)
        kernel = (scores * sharpness[..., None, None]).flatten(-2).softmax(dim=-1).view(scores.shape)[..., None, :, :]
        if not self.transform:
            return self.frames.join((kernel * v * side**2).flatten(3, 4))
        mixed = irfft2(correlate(rfft2(kernel), rfft2(v)), side) * side  # sum over lags of kernel(lag) v(x + lag)
        return self.frames.join(mixed.flatten(3, 4))


class BandAttention(nn.Module):
    """Attention between the bands of the image, window by window: each band takes from the others what they hold.

    The bands are rings of the whole image's spectrum; their tokens in a window are the channels' mean amplitudes.
    """

    def __init__(self, channels: int, transform: bool = True, side: int = 8, bands: int = 4) -> None:
        super().__init__()
        self.side, self.transform, self.bands = side, transform, bands
        self.queries_keys = nn.Linear(channels, 2 * channels)
        self.place = nn.Parameter(torch.randn(bands, channels) * 0.02)
        self.values = nn.Conv2d(channels, channels, 1)
        self.fuse = nn.Conv2d(bands * channels, channels, 1)

    def forward(self, u: Tensor) -> Tensor:
        bands, channels = self._split(u), u.shape[1]
        size = F.avg_pool2d(bands.abs().flatten(0, 1), self.side).unflatten(0, (-1, self.bands))  # b bands c gh gw
        tokens = F.layer_norm((size + EPS).log().permute(0, 3, 4, 1, 2), (channels,)) + self.place.float()
        weight, bias = self.queries_keys.weight.float(), self.queries_keys.bias.float()
        q, k = F.linear(tokens, weight, bias).chunk(2, dim=-1)  # b gh gw bands c
        attention = (q @ k.transpose(-2, -1) * channels**-0.5).softmax(dim=-1)
        values = conv1x1(bands.flatten(0, 1), self.values).unflatten(0, (-1, self.bands))
        values = values.unflatten(4, (-1, self.side)).unflatten(3, (-1, self.side))  # b bands c gh side gw side
        mixed = attention @ values.permute(0, 3, 5, 1, 2, 4, 6).flatten(4)
        mixed = mixed.unflatten(4, (channels, self.side, self.side)).permute(0, 3, 4, 1, 5, 2, 6)
        return conv1x1(mixed.flatten(5).flatten(3, 4).flatten(1, 2), self.fuse)

    def _split(self, u: Tensor) -> Tensor:
        """`b c h w` -> `b bands c h w`, whose sum is u."""
        if not self.transform:
            return (u / self.bands)[:, None].expand(-1, self.bands, -1, -1, -1)
        spectrum = rfft2(u)[:, None]
        rings = ring_bands(u, self.bands).view(self.bands, 1, *spectrum.shape[3:5], 1)
        return irfft2(spectrum * rings, u.shape[-1])
