"""A HATFreq that can be written as an ONNX graph for images of any size: the same weights, the same result to rounding.

ONNX has no complex numbers, and its runtimes no dependable inverse real FFT, so that the transforms are products with
matrices of sines and cosines. Those of the whole image are made inside the graph, from its sizes: products of integers
are reduced modulo the length before they become angles, so that they keep their precision for any length.

What is replaced: padding (indices instead of a pad, whose kind the size decides), the two branches of the frequency
block, oneDNN's detour of the linear layers, the shifted windows (a roll with one mask) and the sliding windows of the
overlapping attention (indices instead of strides).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.team08_HATFreq import HATFreq, attention, layers, network, override
from models.team08_HATFreq.attention import merge, partition
from models.team08_HATFreq.frequency import KNOTS, GlobalSpectrum, WindowSpectrum


def cosines(length: int) -> tuple[Tensor, Tensor]:
    """The orthonormal Fourier matrix of a length, real and imaginary part: float32 `length length`, symmetric."""
    index = torch.arange(length)
    size = index[-1] + 1  # a tensor: the exporter knows no remainder by a size
    angle = (index[:, None] * index[None] % size).float() * (2 * math.pi) / size
    return angle.cos() / size.sqrt(), -angle.sin() / size.sqrt()


def columns_of_rfft(length: int) -> Tensor:
    """How often each coefficient of an rfft stands in the full spectrum: float32 `length//2 + 1`, 1 or 2."""
    index = torch.arange(length // 2 + 1)
    alone = (index == 0) | (index * 2 == length)
    return torch.where(alone, 1.0, 2.0)


def rfft2(u: Tensor) -> tuple[Tensor, Tensor]:
    """`torch.fft.rfft2(u, norm="ortho")` of float32 `... h w`: real and imaginary part, `... h w//2+1`."""
    h, w = u.shape[-2:]
    (ch, sh), (cw, sw) = cosines(h), cosines(w)
    half = w // 2 + 1
    real, imag = u @ cw[:, :half], u @ sw[:, :half]
    return ch @ real - sh @ imag, ch @ imag + sh @ real


def irfft2(real: Tensor, imag: Tensor, width: int) -> Tensor:
    """`inverse_rfft2` of the network, of real and imaginary parts `... h width//2+1`: `... h width`."""
    (ch, sh), (cw, sw) = cosines(real.shape[-2]), cosines(width)
    half, weight = width // 2 + 1, columns_of_rfft(width)
    # Along h the conjugate of the forward matrix; along the width the real part of it, each pair of columns at once.
    rows_real, rows_imag = ch @ real + sh @ imag, ch @ imag - sh @ real
    return (rows_real * weight) @ cw[:half] + (rows_imag * weight) @ sw[:half]


def radial_gain(gain: Tensor, height: int, width: int) -> Tensor:
    """The gain `c KNOTS` at every coefficient of an rfft2: `c height width//2+1`."""
    row = torch.arange(height)
    fy = torch.where(row * 2 < height, row, row - height).float() / height
    fx = torch.arange(width // 2 + 1).float() / width
    radius = (fy[:, None].square() + fx[None].square()).sqrt()
    position = radius / 0.5**0.5 * (KNOTS - 1)
    weights = (1 - (position[..., None] - torch.arange(KNOTS)).abs()).clamp(min=0)  # h w/2+1 knots
    return (weights @ gain.t()).permute(2, 0, 1)


class RealGlobalSpectrum(nn.Module):
    """`GlobalSpectrum` without complex numbers."""

    def __init__(self, branch: GlobalSpectrum) -> None:
        super().__init__()
        self.mix, self.gain = branch.mix, branch.gain

    def forward(self, u: Tensor) -> Tensor:
        u = u - u.mean(dim=(2, 3), keepdim=True)
        mixed = F.leaky_relu(F.conv2d(torch.cat(rfft2(u), dim=1), self.mix.weight), 0.2)
        real, imag = mixed.chunk(2, dim=1)
        gain = radial_gain(self.gain, u.shape[-2], u.shape[-1])
        return irfft2(real * gain, imag * gain, u.shape[-1])


class RealWindowSpectrum(nn.Module):
    """`WindowSpectrum` without complex numbers."""

    def __init__(self, branch: WindowSpectrum) -> None:
        super().__init__()
        self.window, self.shift, self.gain = branch.window, branch.shift, branch.gain

    def forward(self, u: Tensor) -> Tensor:
        u = rolled(u.permute(0, 2, 3, 1), -self.shift)  # b h w c
        windows = partition(u, self.window)  # b gh gw n c
        tiles = windows.transpose(-2, -1).unflatten(-1, (self.window, self.window))
        real, imag = rfft2(tiles)
        tiles = irfft2(real * self.gain, imag * self.gain, self.window)
        u = merge(tiles.flatten(-2).transpose(-2, -1), self.window)
        return rolled(u, self.shift).permute(0, 3, 1, 2)


def rolled(x: Tensor, shift: int) -> Tensor:
    """`b h w c`, rolled along h and w by less than either, `torch.roll`'s way."""
    if not shift:
        return x
    for axis in (1, 2):
        size = x.shape[axis]
        cut = size - shift if shift > 0 else -shift
        x = torch.cat([x.narrow(axis, cut, size - cut), x.narrow(axis, 0, cut)], dim=axis)
    return x


def padded(x: Tensor, multiple: int) -> Tensor:
    """The network's `pad_to_multiple` by indices."""
    for axis in (2, 3):
        size = x.shape[axis]
        full = (size + multiple - 1) // multiple * multiple
        index = torch.arange(full)
        reflected = torch.where(index < size, index, 2 * (size - 1) - index).clamp(min=0)
        repeated = index.clamp(max=size - 1)
        enough = torch.ones(1).new_full((1,), 2 * size - full) > 0  # the pad is less than the size
        x = x.index_select(axis, torch.where(enough, reflected, repeated))
    return x


class PlainWindowAttention(nn.Module):
    """`WindowAttention` by a roll and one mask."""

    masks: Tensor

    def __init__(self, block: attention.WindowAttention) -> None:
        super().__init__()
        self.block = block
        masks = attention.shift_masks(block.window, block.shift, torch.device("cpu")) if block.shift else None
        self.register_buffer("masks", masks, persistent=False)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        block, shift = self.block, self.block.shift
        bias = block.relative_position_bias_table[index].permute(2, 0, 1)
        windows = partition(rolled(x, -shift), block.window)  # b gh gw n c
        q, k, v = block.qkv(windows).unflatten(-1, (3, block.num_heads, -1)).permute(4, 0, 1, 2, 5, 3, 6)
        scores = q * block.scale @ k.transpose(-2, -1) + bias  # b gh gw heads n n
        if shift:
            scores = scores + self._mask(x.shape[1] // block.window, x.shape[2] // block.window)
        out = (scores.softmax(dim=-1) @ v).transpose(-3, -2).flatten(-2)  # b gh gw n c
        return rolled(merge(block.proj(out), block.window), shift)

    def _mask(self, rows: int, columns: int) -> Tensor:
        """The mask of every window: `rows columns 1 n n`."""
        last_row = (torch.arange(rows) == rows - 1).long()
        last_column = (torch.arange(columns) == columns - 1).long()
        return self.masks[last_row[:, None], last_column[None]].unsqueeze(2)


class PlainOverlappingAttention(nn.Module):
    """`OverlappingAttention` with its keys by indices."""

    def __init__(self, block: attention.OverlappingAttention) -> None:
        super().__init__()
        self.window, self.overlapping, self.margin = block.window, block.overlapping, block.margin
        self.num_heads, self.scale = block.num_heads, block.scale

    def forward(self, qkv: Tensor, bias: Tensor) -> Tensor:
        dim = qkv.shape[-1] // 3
        q, kv = partition(qkv[..., :dim], self.window), qkv[..., dim:]
        kv = F.pad(kv, (0, 0, self.margin, self.margin, self.margin, self.margin))
        for axis, count in ((1, q.shape[1]), (3, q.shape[2])):  # the second time axis 2 has become 3
            starts = torch.arange(count)[:, None] * self.window + torch.arange(self.overlapping)
            kv = kv.index_select(axis, starts.flatten()).unflatten(axis, (count, self.overlapping))
        kv = kv.transpose(2, 3).flatten(3, 4)  # b gh gw m 2c
        k, v = kv.unflatten(-1, (2, self.num_heads, -1)).permute(4, 0, 1, 2, 5, 3, 6)
        heads = q.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)  # b gh gw heads n d
        out = (heads * self.scale @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v
        return merge(out.transpose(-3, -2).flatten(-2), self.window)


_REPLACEMENTS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    attention.WindowAttention: PlainWindowAttention,
    attention.OverlappingAttention: PlainOverlappingAttention,
    GlobalSpectrum: RealGlobalSpectrum,
    WindowSpectrum: RealWindowSpectrum,
}


def exportable(model: HATFreq) -> HATFreq:
    """A copy of a network in which everything above has taken its place; run it inside `plain_steps`.

    Raises:
        ValueError: the ablation's control `identity`, which nobody needs elsewhere.
    """
    if model.config.frequency == "identity":
        raise ValueError("a network with frequency='identity' is an ablation's control and is not exported")
    copy = HATFreq(override(model.config, {"fused_attention": False})).eval()
    copy.load_state_dict(model.state_dict())
    for module in list(copy.modules()):
        for name, child in list(module.named_children()):
            if (replacement := _REPLACEMENTS.get(type(child))) is not None:
                setattr(module, name, replacement(child))
    return copy


@contextmanager
def plain_steps() -> Iterator[None]:
    """Linear layers, padding and biases by the steps that ONNX knows, for all networks while it lasts."""
    indexed = patch.object(network, "position_bias", lambda table, index: table[index].permute(2, 0, 1))
    with ExitStack() as stack:
        for module in (layers, attention, network):
            stack.enter_context(patch.object(module, "linear", F.linear))
        stack.enter_context(patch.object(network, "pad_to_multiple", padded))
        stack.enter_context(indexed)
        stack.enter_context(torch.enable_grad())  # no pieces, nothing in place
        yield
