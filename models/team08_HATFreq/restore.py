"""From one low-resolution tensor to the restored one: tiles, the x8 self-ensemble, quantisation.

Pure functions of a callable `fn`, float `b 3 h w` -> `b 3 h*scale w*scale`: nothing here knows the network.
"""

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Restorer = Callable[[Tensor], Tensor]


def self_ensemble(fn: Restorer, lq: Tensor) -> Tensor:
    """The mean of `fn` over the eight flips and transposes of `b c h w`, each undone; float32.

    Source: R. Timofte et al., "Seven ways to improve example-based single image super resolution", CVPR 2016.
    """
    turned = (_restore_turned(fn, lq, *turn) for turn in product((False, True), repeat=3))
    return reduce(torch.add, turned) / 8


def _restore_turned(fn: Restorer, lq: Tensor, transpose: bool, vertical: bool, horizontal: bool) -> Tensor:
    """`fn` applied to one flip and transpose, which is undone on the result; float32."""
    axes = [axis for axis, flip in ((-2, vertical), (-1, horizontal)) if flip]
    turned = (lq.mT if transpose else lq).flip(axes).contiguous()
    restored = fn(turned).float().flip(axes)
    return restored.mT if transpose else restored


def restore_tiled(fn: Restorer, lq: Tensor, scale: int, tile: int, overlap: int) -> Tensor:
    """Restore tile by tile and blend the overlaps; seamless, and equal to `fn(lq)` for a purely local `fn`.

    The weights of all tiles sum to one at every pixel, fall linearly towards a tile's inner edges and stay positive;
    the last tile of an axis is shifted inward, so that every tile has full size.

    Args:
        fn: restores a tile; it may run elsewhere and return its result from there.
        lq: float `b c h w`, on the CPU: only tiles leave it.
        scale: enlargement of `fn`.
        tile: side of a tile in LR pixels; 0 restores the image whole, as does a tile that the image fits into.
        overlap: LR pixels that neighbouring tiles share, at least; 0 <= overlap < tile.

    Returns:
        float32 `b c h*scale w*scale`, on the CPU.

    Raises:
        ValueError: tile or overlap out of range.
    """
    h, w = lq.shape[-2:]
    if tile < 0 or (tile and not 0 <= overlap < tile):
        raise ValueError(f"tile must be 0 or more and overlap lie in 0..tile-1, got tile {tile}, overlap {overlap}")
    if tile == 0 or (h <= tile and w <= tile):
        return fn(lq).float().cpu()
    sr = torch.zeros(*lq.shape[:2], h * scale, w * scale)
    columns = list(tile_weights(w, tile, overlap, scale))
    for top, weight_y in tile_weights(h, tile, overlap, scale):
        for left, weight_x in columns:
            restored = fn(lq[..., top : top + tile, left : left + tile]).float().cpu()
            height, width = restored.shape[-2:]
            region = sr[..., top * scale : top * scale + height, left * scale : left * scale + width]
            region += restored * weight_y[:, None] * weight_x
    return sr


def tile_weights(length: int, tile: int, overlap: int, scale: int) -> Iterator[tuple[int, Tensor]]:
    """Tiles of one axis: start in LR pixels and blending weights, float32 `min(tile, length)*scale`.

    Wherever tiles overlap, their weights sum to one.
    """
    starts = tile_starts(length, tile, overlap)
    size = min(tile, length) * scale
    raw = [_trapezoid(size, ramp_in, ramp_out) for ramp_in, ramp_out in _ramps(starts, tile, scale)]
    total = torch.zeros(length * scale)
    for start, weight in zip(starts, raw, strict=True):
        total[start * scale : start * scale + size] += weight
    for start, weight in zip(starts, raw, strict=True):
        yield start, weight / total[start * scale : start * scale + size]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles of an axis begin: evenly by `tile - overlap`, the last one shifted inward."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _ramps(starts: list[int], tile: int, scale: int) -> list[tuple[int, int]]:
    """Lengths of the rising and falling ramp of each tile: what its neighbours share; none at the image's edge."""
    shared = [(start + tile - following) * scale for start, following in pairwise(starts)]
    return list(zip([0, *shared], [*shared, 0], strict=True))


def _trapezoid(size: int, ramp_in: int, ramp_out: int) -> Tensor:
    """One, with linear ramps at both ends that stay above zero."""
    position = torch.arange(size) + 0.5
    rising = position / ramp_in if ramp_in else torch.ones(size)
    falling = (size - position) / ramp_out if ramp_out else torch.ones(size)
    return torch.minimum(rising, falling).clamp(max=1)


def to_tensor(rgb: NDArray[Any]) -> Tensor:
    """uint8 or uint16 `h w 3` -> float32 `1 3 h w` in [0, 1]."""
    samples = torch.from_numpy(rgb.astype(np.float32) / np.iinfo(rgb.dtype).max)
    return samples.permute(2, 0, 1)[None].contiguous()


def to_samples(sr: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """float `1 3 h w` -> uint8 or uint16 `h w 3`: clamped to [0, 1], scaled, rounded half to even.

    Raises:
        FloatingPointError: a value is not finite.
    """
    if not bool(torch.isfinite(sr).all()):
        raise FloatingPointError("the network's result is not finite: try --precision fp32, and check the weights file")
    full = float(np.iinfo(dtype).max)
    samples = sr[0].clamp(0, 1).mul(full).round()
    return np.ascontiguousarray(samples.permute(1, 2, 0).numpy().astype(dtype))
