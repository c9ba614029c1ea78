"""Window attention and overlapping cross-attention of the Hybrid Attention Transformer (HAT).

Papers: X. Chen et al., "Activating More Pixels in Image Super-Resolution Transformer", CVPR 2023
(https://arxiv.org/abs/2205.04437); the shifted windows are Swin's (Z. Liu et al., ICCV 2021,
https://arxiv.org/abs/2103.14030).

Changed against the reference code, with parameters and results kept (tests/test_network.py holds the parity):

* PyTorch's scaled_dot_product_attention with the position bias as its additive mask, or (`set_fused_attention`) the
  plain product, softmax and product. The fused kernels need a head width that is a multiple of eight, so every head's
  weights are padded with zeros (30 -> 32 in HAT) and the scale is given explicitly: the scores are unchanged;
* on the CPU only the windows that wrap around the image see the shift mask, and only they are copied together from
  opposite sides; on a GPU and without gradients all windows of a block are attended by one call;
* the overlapping keys and values are strided views of the padded image, or slices of it when compiled or exported;
  there is no im2col;
* on the CPU and without gradients, windows are attended a few at a time (see layers.py);
* tensors stay `b h w c` from block to block.

Vocabulary: b batch, h w height and width, c channels, gh gw the grid of windows, n query tokens of a window, m key
tokens, d the width of a head.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .layers import PIECE, SWITCHES, Linear, in_pieces, linear

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


def position_bias(table: Tensor, index: Tensor) -> Tensor:
    """The bias of every (query, key) pair: table `rows heads`, index `n m` -> `heads n m`.

    The two ways are equal. On the CPU indexing's backward pass is 18 times as long as gather's; on CUDA gather's would
    add in no fixed order.
    """
    if table.device.type != "cpu" or SWITCHES.exportable:
        # Contiguous: CUDA's efficient kernel refuses a mask whose keys are not one after the other in memory.
        return table[index].permute(2, 0, 1).contiguous()
    return table.t().gather(1, index.view(1, -1).expand(table.shape[1], -1)).view(-1, *index.shape)


def shift_masks(window: int, shift: int) -> Tensor:
    """Additive masks of a shifted grid: float32 `2 2 n n`, indexed by (on the last row, on the last column).

    After the cyclic shift, the last row and column of windows hold pixels from opposite sides of the image; tokens of
    different sides must not see each other.
    """
    y, x = _grid(window)
    below, right = y >= window - shift, x >= window - shift
    rows, columns = below[:, None] ^ below[None], right[:, None] ^ right[None]
    none = torch.zeros_like(rows)
    table = torch.stack([none, columns, rows, rows | columns]).view(2, 2, window**2, window**2)
    return table.float() * MASKED


def shifted(x: Tensor, shift: int) -> Tensor:
    """`b h w c` rolled along h and w by `shift`, which is less than either: `torch.roll` in steps that export."""
    for axis in (1, 2) if shift else ():
        size = x.shape[axis]
        cut = size - shift if shift > 0 else -shift
        x = torch.cat([x.narrow(axis, cut, size - cut), x.narrow(axis, 0, cut)], dim=axis)
    return x


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


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(q kᵀ * scale + bias) v, by one fused kernel or by three plain steps.

    On the CPU no fused kernel gives the bias a gradient, and PyTorch would compose slower steps of its own: a bias in
    training takes the plain ones.

    Args:
        q: `... heads n d`. k, v: `... heads m d`.
        bias: `heads n m` or `... heads n m`, additive, of any float dtype (it is cast to q's).
        scale: 1 / sqrt(d), of the d before any padding.

    Returns:
        `... heads n d`.
    """
    bias = bias.to(q.dtype)
    trained = q.device.type == "cpu" and bias.requires_grad and torch.is_grad_enabled()
    if not is_fused() or trained:
        return (q * scale @ k.transpose(-2, -1) + bias).softmax(dim=-1) @ v
    with _fused_kernels(q.device):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(*q.shape[:-1], -1), scale=scale)


def is_fused() -> bool:
    """Whether the fused kernels are asked for; their heads are padded."""
    return SWITCHES.fused_attention and not SWITCHES.exportable


def pad_heads(parameter: Tensor, heads: int) -> Tensor:
    """The output rows of a layer, with zero rows added to every head: `heads*d ...` -> `heads*D ...`.

    D is d rounded up to a multiple of eight, which the fused kernels want (30 -> 32 in HAT). Scores and results stay
    the same, and padding a weight costs less than padding queries, keys and values.
    """
    by_head = parameter.unflatten(0, (heads, -1))  # heads d ...
    extra = by_head.new_zeros(heads, -by_head.shape[1] % 8, *by_head.shape[2:])
    return torch.cat([by_head, extra], dim=1).flatten(0, 1)


def pad_inputs(weight: Tensor, heads: int) -> Tensor:
    """The same for the inputs of the layer that follows: `k heads*d` -> `k heads*D`."""
    return pad_heads(weight.t(), heads).t()


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
    """

    def __init__(self, dim: int, window: int, num_heads: int, shift: int = 0) -> None:
        super().__init__()
        self.window, self.num_heads, self.shift = window, num_heads, shift
        self.scale = (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, index: Tensor, masks: Tensor) -> Tensor:
        """`b h w c` -> `b h w c`.

        Args:
            x: h and w are multiples of the window.
            index: `self_attention_index(window)`.
            masks: `shift_masks(window, window // 2)`; not looked at without a shift.
        """
        bias = position_bias(self.relative_position_bias_table, index)  # heads n n
        weights = self._padded_weights()
        if not self.shift:
            return self._attend(x, bias, weights)
        if self._keeps_parts(x):
            return self._attend_in_parts(x, bias, masks, weights)
        bias = self._bias_of_windows(bias, masks, x)
        return shifted(self._attend(shifted(x, -self.shift), bias, weights), self.shift)

    def _keeps_parts(self, x: Tensor) -> bool:
        """Whether the windows of a kind are attended by a call of their own, with one bias for all of them.

        One call needs a bias for every window. On a GPU that is faster, and it is given up in training, where every
        block would keep them for its backward pass: 15 GB for `large` in stage 1, in bf16.
        """
        if SWITCHES.exportable or torch.compiler.is_compiling():
            return False
        return x.device.type == "cpu" or torch.is_grad_enabled()

    def _bias_of_windows(self, bias: Tensor, masks: Tensor, x: Tensor) -> Tensor:
        """Bias and mask of every window of a shifted grid: `b*gh*gw heads n n`."""
        rows, columns = x.shape[1] // self.window, x.shape[2] // self.window
        last_row = (torch.arange(rows, device=x.device) == rows - 1).long()
        last_column = (torch.arange(columns, device=x.device) == columns - 1).long()
        mask = masks[last_row[:, None], last_column[None]]  # gh gw n n
        both = bias.to(x.dtype) + mask.to(x.dtype)[None, :, :, None]  # 1 gh gw heads n n
        return both.expand(x.shape[0], *both.shape[1:]).flatten(0, 2)

    def _attend_in_parts(self, x: Tensor, bias: Tensor, masks: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """The inner windows of a shifted grid where they lie, and those that wrap around copied together."""
        rows = [
            [self._attend(part, bias + masks[i, j], weights) for j, part in enumerate(self._unwrap(band, 2))]
            for i, band in enumerate(self._unwrap(x, 1))
        ]
        return self._wrap([self._wrap(columns, 2) for columns in rows], 1)

    def _unwrap(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """The shifted windows of an axis that lie inside the image (maybe none), and the one that wraps around."""
        rest = self.window - self.shift
        inner = x.narrow(axis, self.shift, x.shape[axis] - self.window)
        return inner, torch.cat([x.narrow(axis, -rest, rest), x.narrow(axis, 0, self.shift)], dim=axis)

    def _wrap(self, parts: list[Tensor], axis: int) -> Tensor:
        """The inverse of `_unwrap`."""
        inner, last = parts
        end, start = last.split([self.window - self.shift, self.shift], dim=axis)
        return torch.cat([start, inner, end], dim=axis)

    def _padded_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """The weight and bias before the attention and the weight after it, with every head padded."""
        if not is_fused():
            return self.qkv.weight, self.qkv.bias, self.proj.weight
        heads = self.num_heads
        return (
            pad_heads(self.qkv.weight, 3 * heads),
            pad_heads(self.qkv.bias, 3 * heads),
            pad_inputs(self.proj.weight, heads),
        )

    def _attend(self, x: Tensor, bias: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """`b h w c` -> `b h w c`: every window attends to itself; bias `heads n n`, or of each window."""
        traced = SWITCHES.exportable or torch.compiler.is_compiling()
        if not traced and not x.numel():  # a grid of one row or column has no inner windows
            return x
        qkv_weight, qkv_bias, proj_weight = weights

        def attend_windows(windows: Tensor) -> Tensor:  # nw n c
            qkv = linear(windows, qkv_weight, qkv_bias).unflatten(-1, (3, self.num_heads, -1))  # nw n 3 heads d
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            out = attend(q, k, v, bias, self.scale).transpose(1, 2).flatten(2)
            return linear(out, proj_weight, self.proj.bias)

        windows = partition(x, self.window)
        return merge(in_pieces(attend_windows, windows.flatten(0, 2)).view(windows.shape), self.window)


class OverlappingAttention(nn.Module):
    """Attention of each window's queries to the keys of a larger window around it: the core of HAT's OCAB.

    Args:
        window: side of a query window in tokens.
        overlapping: side of a key window, `window` plus an even number; zeros lie outside the image.
        num_heads: attention heads.
        scale: of the scores.

    It holds no parameters: HAT keeps them one level higher (`OCAB`), and so do its checkpoints.
    """

    def __init__(self, window: int, overlapping: int, num_heads: int, scale: float) -> None:
        super().__init__()
        self.window, self.overlapping, self.margin = window, overlapping, (overlapping - window) // 2
        self.num_heads, self.scale = num_heads, scale

    def forward(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """qkv `b h w 3c`, bias `heads n m` -> `b h w c`."""
        dim = qkv.shape[-1] // 3
        q, kv = qkv[..., :dim], qkv[..., dim:]
        height, margin = q.shape[1], self.margin
        rows = self._rows_at_once(q)
        if rows is None:
            return self._attend(q, F.pad(kv, (0, 0, margin, margin, margin, margin)), bias)
        bands = []
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            around = kv[:, max(0, top - margin) : bottom + margin]
            beyond = (max(0, margin - top), max(0, bottom + margin - height))
            around = F.pad(around, (0, 0, margin, margin, *beyond))
            bands.append(self._attend(q[:, top:bottom], around, bias))
        return torch.cat(bands, dim=1)

    def _rows_at_once(self, q: Tensor) -> int | None:
        """Rows of pixels that are attended together: few on the CPU without gradients, else all (see `in_pieces`).

        None for all: a loop over a height that an exporter does not know would fix it.
        """
        if q.device.type != "cpu" or torch.is_grad_enabled() or SWITCHES.exportable or torch.compiler.is_compiling():
            return None
        return self.window * max(1, PIECE * torch.get_num_threads() // (self.window * q.shape[2]))

    def _attend(self, q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
        """q `b h w c`, kv `b h+2*margin w+2*margin 2c` -> `b h w c`."""
        q = partition(q, self.window)
        windows = self._key_windows(kv, q.shape[1], q.shape[2]).flatten(0, 2)  # nw m 2c
        k, v = windows.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each nw heads m d
        heads = q.flatten(0, 2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # nw heads n d
        out = attend(heads, k, v, bias, self.scale)
        return merge(out.transpose(1, 2).reshape(q.shape), self.window)

    def _key_windows(self, kv: Tensor, rows: int, columns: int) -> Tensor:
        """The window around every window of a grid of `rows columns`: `b gh gw m 2c`."""
        if not (SWITCHES.exportable or torch.compiler.is_compiling()):
            windows = kv.unfold(1, self.overlapping, self.window).unfold(2, self.overlapping, self.window)
            return windows.permute(0, 1, 2, 4, 5, 3).flatten(3, 4)
        # Shifted grids of windows, side by side: few exporters know unfold, and its compiled gradient writes beyond its
        # tensor on the CPU (https://github.com/pytorch/pytorch/issues/191837).
        grids = -(-self.overlapping // self.window)
        beyond = grids * self.window - self.overlapping
        kv = F.pad(kv, (0, 0, 0, beyond, 0, beyond))
        for axis, count in ((1, rows), (3, columns)):  # the second time axis 2 has become 3
            shifted = [kv.narrow(axis, grid * self.window, count * self.window) for grid in range(grids)]
            windows = torch.cat([one.unflatten(axis, (count, self.window)) for one in shifted], axis + 1)
            kv = windows.narrow(axis + 1, 0, self.overlapping)
        return kv.transpose(2, 3).flatten(3, 4)
