"""Window attention and overlapping cross-attention of the Hybrid Attention Transformer (HAT).

Papers: X. Chen et al., "Activating More Pixels in Image Super-Resolution Transformer", CVPR 2023
(https://arxiv.org/abs/2205.04437); the shifted windows are Swin's (Z. Liu et al., ICCV 2021,
https://arxiv.org/abs/2103.14030).

Changed against the reference code, with parameters and results kept (tests/test_network.py holds the parity):

* one switch, `fused`: PyTorch's scaled_dot_product_attention with the position bias as its additive mask, or the plain
  product, softmax and product. The fused kernels want a head width that is a multiple of eight, so q, k and v are
  padded with zeros (30 -> 32 in HAT) and the scale is given explicitly: the scores are unchanged;
* only the windows on the last row and column of a shifted grid see the shift mask, so no mask of the whole image
  exists;
* the overlapping keys and values are strided views of the padded image; there is no im2col;
* tensors stay `b h w c` from block to block.

Vocabulary: b batch, h w height and width, c channels, gh gw the grid of windows, n query tokens of a window, m key
tokens, d the width of a head.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

MASKED = -100.0  # the reference's value: small enough to vanish in the softmax, finite in every dtype


def self_attention_index(window: int) -> Tensor:
    """Row of the bias table for each (query, key) pair of a window: int64 `window² window²`."""
    y, x = _grid(window)
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


def overlapping_index(window: int, overlapping: int) -> Tensor:
    """Row of the bias table for each (query, key) pair of an overlapping window: int64 `window² overlapping²`.

    Some rows are negative and count from the table's end, as in the reference, whose checkpoints hold this buffer.
    """
    (qy, qx), (ky, kx) = _grid(window), _grid(overlapping)
    offset = window - overlapping + 1
    dy, dx = ky[None] - qy[:, None] + offset, kx[None] - qx[:, None] + offset
    return dy * (window + overlapping - 1) + dx


def _grid(side: int) -> tuple[Tensor, Tensor]:
    """Row and column of every token of a square, each int64 `side²`."""
    token = torch.arange(side * side)
    return token // side, token % side


def shift_masks(window: int, shift: int, device: torch.device) -> Tensor:
    """Additive masks of a shifted grid: float32 `2 2 n n`, indexed by (on the last row, on the last column).

    After the cyclic shift, the last row and column of windows hold pixels from opposite sides of the image; tokens of
    different sides must not see each other.
    """
    y, x = (axis.to(device) for axis in _grid(window))
    below, right = y >= window - shift, x >= window - shift
    rows, columns = below[:, None] != below[None], right[:, None] != right[None]
    none = torch.zeros_like(rows)
    table = torch.stack([none, columns, rows, rows | columns]).view(2, 2, window**2, window**2)
    return table.float() * MASKED


def partition(x: Tensor, window: int) -> Tensor:
    """`b h w c` -> `b gh gw n c`; h and w are multiples of the window."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c)
    return x.transpose(2, 3).reshape(b, h // window, w // window, window * window, c)


def merge(x: Tensor, window: int) -> Tensor:
    """`b gh gw n c` -> `b h w c`: the inverse of `partition`."""
    b, gh, gw, _, c = x.shape
    x = x.view(b, gh, gw, window, window, c)
    return x.transpose(2, 3).reshape(b, gh * window, gw * window, c)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, fused: bool) -> Tensor:
    """softmax(q kᵀ / sqrt(d) + bias) v.

    Args:
        q: `... heads n d`. k, v: `... heads m d`.
        bias: `heads n m`, additive, of any float dtype (it is cast to q's).
        fused: one fused kernel, or three plain steps. On the CPU, where no fused kernel gives the bias a gradient and
            PyTorch would compose slower steps of its own, a bias in training takes the plain ones.

    Returns:
        `... heads n d`.
    """
    d, bias = q.shape[-1], bias.to(q.dtype)
    if not fused or (q.device.type == "cpu" and bias.requires_grad and torch.is_grad_enabled()):
        return (q * d**-0.5 @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v
    pad = -d % 8
    if pad:
        q, k, v = (F.pad(t, (0, pad)) for t in (q, k, v))
    with _fused_kernels(q.device):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=d**-0.5)
    return out[..., :d]


def _fused_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Which fused kernels may run.

    cuDNN's has wrong masked gradients on Hopper when the key length mod 128 is 64, which HAT's 576 keys are (pytorch
    issue 196678), and the flash kernel takes no mask.
    """
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, shifted or not (Swin's (S)W-MSA).

    Args:
        dim: channels c, a multiple of num_heads.
        window: side of a window in tokens.
        num_heads: attention heads.
        shift: cyclic shift in tokens, 0 for none.
        fused: the fused kernel or the plain steps.
    """

    def __init__(self, dim: int, window: int, num_heads: int, shift: int = 0, fused: bool = True) -> None:
        super().__init__()
        self.window, self.num_heads, self.shift, self.fused = window, num_heads, shift, fused
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """`b h w c` -> `b h w c`; index: `self_attention_index(window)`."""
        if self.shift:
            x = x.roll((-self.shift, -self.shift), dims=(1, 2))
        windows = self.qkv(partition(x, self.window))  # b gh gw n 3c
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)  # heads n n
        x = merge(self.proj(self._attend_grid(windows, bias)), self.window)
        return x.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else x

    def _attend_grid(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """`b gh gw n 3c` -> `b gh gw n c`, the windows that share a mask at once."""
        if not self.shift:
            return self._attend_windows(qkv, bias)
        masks = shift_masks(self.window, self.shift, qkv.device)
        rows = [
            torch.cat(
                [self._attend_windows(qkv[:, r, c], bias + masks[i, j]) for j, c in _inner_and_last(qkv, 2)], dim=2
            )
            for i, r in _inner_and_last(qkv, 1)
        ]
        return torch.cat(rows, dim=1)

    def _attend_windows(self, qkv: Tensor, bias: Tensor) -> Tensor:
        b, gh, gw, n, c3 = qkv.shape
        qkv = qkv.reshape(b * gh * gw, n, 3, self.num_heads, c3 // 3 // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (b gh gw) heads n d
        out = attend(q, k, v, bias, self.fused)
        return out.transpose(1, 2).reshape(b, gh, gw, n, c3 // 3)


def _inner_and_last(grid: Tensor, axis: int) -> Iterator[tuple[int, slice]]:
    """The windows before the last one of an axis (if any) and the last one, numbered 0 and 1."""
    if grid.shape[axis] > 1:
        yield 0, slice(0, -1)
    yield 1, slice(-1, None)


class OverlappingAttention(nn.Module):
    """Attention of each window's queries to the keys of a larger window around it: the core of HAT's OCAB.

    Args:
        dim: channels c, a multiple of num_heads.
        window: side of a query window in tokens.
        overlapping: side of a key window, `window` plus an even number; zeros lie outside the image.
        num_heads: attention heads.
        fused: the fused kernel or the plain steps.

    It holds no parameters: HAT keeps them one level higher (`OCAB`), and so do its checkpoints.
    """

    def __init__(self, dim: int, window: int, overlapping: int, num_heads: int, fused: bool = True) -> None:
        super().__init__()
        self.dim, self.window, self.overlapping = dim, window, overlapping
        self.num_heads, self.fused = num_heads, fused

    def forward(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """qkv `b h w 3c`, bias `heads n m` -> `b h w c`."""
        q, kv = qkv.split([self.dim, 2 * self.dim], dim=-1)
        q = partition(q, self.window)
        b, gh, gw, n, c = q.shape
        q = q.view(b * gh * gw, n, self.num_heads, c // self.num_heads).transpose(1, 2)
        k, v = self._overlapping_windows(kv)
        out = attend(q, k, v, bias, self.fused)  # (b gh gw) heads n d
        return merge(out.transpose(1, 2).reshape(b, gh, gw, n, c), self.window)

    def _overlapping_windows(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """`b h w 2c` -> k, v, each `(b gh gw) heads m d`."""
        margin = (self.overlapping - self.window) // 2
        kv = F.pad(kv, (0, 0, margin, margin, margin, margin))
        kv = kv.unfold(1, self.overlapping, self.window).unfold(2, self.overlapping, self.window)
        b, gh, gw, c2, _, _ = kv.shape  # b gh gw 2c overlapping overlapping
        kv = kv.reshape(b * gh * gw, 2, self.num_heads, c2 // 2 // self.num_heads, self.overlapping**2)
        k, v = kv.transpose(-2, -1).contiguous().unbind(1)
        return k, v
