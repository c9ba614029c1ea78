"""The frequency-domain fusion block: a residual branch of every attention group that works on Fourier coefficients.

Two views of the same features, each blind where the other sees:

* global: the spectrum of the whole image, mixed across channels and weighed by a gain that depends on the radial
  frequency in cycles/pixel, hence on no size: a network trained on patches treats a photograph in the same way;
* window: the spectra of windows of the attention's size, weighed by one real gain for each coefficient and channel.

Related work: fast Fourier convolution (L. Chi et al., NeurIPS 2020), SwinFIR (D. Zhang et al., arXiv 2208.11247) and
the window gains of FFTformer (L. Kong et al., CVPR 2023). Changed against them: the last 1x1 is zero at first, so that
a network with fresh blocks is exactly the network without; the gains are tied to physical frequencies; the spatial mean
is taken out before the global transform, since under the orthonormal FFT the constant term alone would grow with the
image.

The transforms (fourier.py) are an fp32 island: a bf16 FFT does not exist, an fp16 one only for powers of two on CUDA,
and CUDA's autocast does not guard it.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import merge, partition, shifted
from .fourier import irfft2, rfft2

FrequencyMode = Literal["both", "global", "window", "identity", "none"]
FREQUENCY_MODES: tuple[str, ...] = get_args(FrequencyMode)
KNOTS = 16


class FrequencyFusion(nn.Module):
    """`b h w c` -> `b h w c`, zero for a fresh block.

    Args:
        dim: channels c.
        window: side of the transform windows; h and w must be multiples of it.
        mode: `both` branches, `global` or `window` alone, or `identity`: the parameters of `both` with every FFT
            replaced by the identity, which is the control of an ablation.
        shifted: whether the window grid is shifted by half a window (every second group).
    """

    def __init__(self, dim: int, window: int, mode: FrequencyMode = "both", shifted: bool = False) -> None:
        super().__init__()
        if mode not in FREQUENCY_MODES or mode == "none":
            raise ValueError(f"a frequency block's mode is both, global, window or identity, not {mode!r}")
        half, transform = dim // 2, mode != "identity"
        self.reduce = nn.Sequential(nn.Conv2d(dim, half, 1), nn.GELU())
        self.global_branch = GlobalSpectrum(half, transform) if mode != "window" else None
        self.window_branch = WindowSpectrum(half, window, shifted, transform) if mode != "global" else None
        branches = [self.global_branch, self.window_branch]
        self.fuse = nn.Conv2d(half * sum(branch is not None for branch in branches), dim, 1)
        for parameter in self.fuse.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        u = self.reduce(x.permute(0, 3, 1, 2))  # b c/2 h w
        with torch.autocast(device_type=x.device.type, enabled=False):
            u32 = u.float()
            parts = [branch(u32) for branch in (self.global_branch, self.window_branch) if branch is not None]
        return self.fuse(torch.cat(parts, dim=1).to(u.dtype)).permute(0, 2, 3, 1)


class GlobalSpectrum(nn.Module):
    """Mixes the channels of the whole image's spectrum: fp32 `b c h w` -> fp32 `b c h w`.

    The mixing has no bias: one would put the same value on every frequency, which is a bright pixel in the corner.
    """

    def __init__(self, channels: int, transform: bool = True) -> None:
        super().__init__()
        self.transform = transform
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.gain = nn.Parameter(torch.ones(channels, KNOTS))

    def forward(self, u: Tensor) -> Tensor:
        u = u - u.mean(dim=(2, 3), keepdim=True)
        if self.transform:
            spectrum = rfft2(u)  # b c h w/2+1 2
            parts = torch.cat(spectrum.unbind(-1), dim=1)  # b 2c h w/2+1
        else:
            parts = torch.cat([u, u], dim=1) * 0.5**0.5
        mixed = F.leaky_relu(F.conv2d(parts, self.mix.weight.float()), 0.2)
        real, imag = mixed.chunk(2, dim=1)
        gain = self._gain(u)
        if not self.transform:
            return (real + imag) * gain * 0.5**0.5
        return irfft2(torch.stack([real * gain, imag * gain], dim=-1), u.shape[-1])

    def _gain(self, u: Tensor) -> Tensor:
        """The gain at every coefficient, `c h w/2+1`; for the identity, the mean over the knots, `c 1 1`."""
        gain = self.gain.float()
        if not self.transform:
            return gain.mean(dim=1)[:, None, None]
        height, width = u.shape[-2:]
        return (gain @ radial_interpolation(height, width, u.device)).unflatten(1, (height, width // 2 + 1))


class WindowSpectrum(nn.Module):
    """Weighs the spectrum of every window by a real gain: fp32 `b c h w` -> fp32 `b c h w`, the identity at first."""

    def __init__(self, channels: int, window: int, shifted: bool, transform: bool = True) -> None:
        super().__init__()
        self.window, self.shift, self.transform = window, window // 2 if shifted else 0, transform
        self.gain = nn.Parameter(torch.ones(channels, window, window // 2 + 1))

    def forward(self, u: Tensor) -> Tensor:
        gain = self.gain.float()
        if not self.transform:
            return u * gain.mean(dim=(1, 2))[:, None, None]
        u = shifted(u.permute(0, 2, 3, 1), -self.shift)  # b h w c
        windows = partition(u, self.window).transpose(-2, -1)  # b gh gw c n
        spectrum = rfft2(windows.unflatten(-1, (self.window, self.window)))
        windows = irfft2(spectrum * gain[..., None], self.window).flatten(-2)
        u = merge(windows.transpose(-2, -1), self.window)
        return shifted(u, self.shift).permute(0, 3, 1, 2)


def radial_interpolation(height: int, width: int, device: torch.device) -> Tensor:
    """Linear interpolation from knots to the coefficients of an rfft2: float32 `KNOTS h*(w/2+1)`.

    The knots lie evenly on the radial frequency 0 .. sqrt(1/2) cycles/pixel, from the mean to the corner of the
    spectrum.
    """
    row = torch.arange(height, device=device)
    fy = torch.where(row * 2 < height, row, row - height).float() / height
    fx = torch.arange(width // 2 + 1, device=device).float() / width
    position = (fy[:, None].square() + fx[None].square()).sqrt().flatten() / 0.5**0.5 * (KNOTS - 1)
    knots = torch.arange(KNOTS, device=device)[:, None]
    return (1 - (position - knots).abs()).clamp(min=0)
