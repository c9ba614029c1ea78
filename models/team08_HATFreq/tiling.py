"""From one low-resolution tensor to the restored one: tiles, the x8 self-ensemble, quantisation.

Pure functions of a callable `fn`, float `b 3 h w` -> `b 3 h*scale w*scale`: nothing here knows the network.
"""

from collections.abc import Callable, Iterator
from functools import reduce
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Upscale = Callable[[Tensor], Tensor]
Pixels = TypeVar("Pixels", Tensor, NDArray[Any])
BAND = 256  # rows that are turned into samples at once
CPU = torch.device("cpu")
NOT_FINITE = "the network's result is not finite: try --precision fp32, and check the weights file"


def self_ensemble(fn: Upscale, lq: Tensor) -> Tensor:
    """The mean of `fn` over the eight flips and transposes of `b c h w`, each undone; float32.

    Source: R. Timofte et al., "Seven ways to improve example-based single image super resolution", CVPR 2016.
    """
    # The sum is transposed once between the halves, not after every pass: adding across rows and columns is slow.
    upright = reduce(torch.add, _flipped_passes(fn, lq)).mT.contiguous()
    return reduce(torch.add, _flipped_passes(fn, lq.mT), upright).mT / 8


def _flipped_passes(fn: Upscale, lq: Tensor) -> Iterator[Tensor]:
    """`fn` applied to the four flips of `b c h w`, each undone on the result; float32."""
    for axes in ((), (-1,), (-2,), (-2, -1)):
        yield fn(lq.flip(axes).contiguous()).float().flip(axes)


def restore_tiled(fn: Upscale, lq: Tensor, scale: int, tile: int, overlap: int) -> Tensor:
    """Restore tile by tile and blend the overlaps; seamless, and equal to `fn(lq)` for a purely local `fn`.

    Args, errors: as `restore_blocks`.

    Returns:
        float32 `b c h*scale w*scale`, on the CPU.
    """
    check_tile(tile, overlap)
    h, w = lq.shape[-2:]
    if tile == 0 or (h <= tile and w <= tile):
        return fn(lq).float().cpu()
    sr = torch.empty(*lq.shape[:2], h * scale, w * scale)
    for top, left, block in restore_blocks(fn, lq, scale, tile, overlap):
        sr[..., top : top + block.shape[-2], left : left + block.shape[-1]] = block
    return sr


def restore_samples(
    fn: Upscale,
    rgb: NDArray[Any],
    scale: int,
    tile: int,
    overlap: int,
    device: torch.device = CPU,
    batch: int = 1,
) -> NDArray[Any]:
    """Restore an image of integer samples in little more memory than the image and its result take.

    Only the tiles that are worked on and the strips that they share with their neighbours are ever held as floats. They
    are quantised where they were computed; from a GPU the integers come back while the next tiles are restored.

    Args:
        fn, scale, tile, overlap, batch: as `restore_blocks`; `fn` is given float32 in [0, 1] on the device.
        rgb: uint8 or uint16 `h w 3`.
        device: where `fn` computes.

    Returns:
        `h*scale w*scale 3` of the same type.

    Raises:
        ValueError: tile or overlap out of range.
        FloatingPointError: a value is not finite.
    """
    h, w = rgb.shape[:2]
    samples = np.empty((h * scale, w * scale, 3), rgb.dtype)
    lq = rgb.transpose(2, 0, 1)[None]  # a view: its parts turn into floats as their turn comes
    writer = _SampleWriter(samples, device)
    blocks = restore_blocks(lambda part: fn(_to_float(part, device)), lq, scale, tile, overlap, device, batch)
    for top, left, block in blocks:
        writer.put(top, left, block)
    writer.finish()
    return samples


class _SampleWriter:
    """Puts restored blocks into an array of samples; from a GPU each is fetched while the next one is computed."""

    def __init__(self, samples: NDArray[Any], device: torch.device) -> None:
        self.samples, self.device = samples, device
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.pending: tuple[int, int, Tensor, Any] | None = None

    def put(self, top: int, left: int, block: Tensor) -> None:
        """Take a float block `1 3 h w`."""
        if self.device.type != "cuda":
            for row in range(0, block.shape[-2], BAND):
                self._write(top + row, left, to_samples(block[..., row : row + BAND, :], self.samples.dtype))
            return
        self.finite &= torch.isfinite(block).all()  # looked at once, at the end: asking would wait for the GPU
        result = _quantised(block, self.samples.dtype)
        host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
        host.copy_(result, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._fetch()
        self.pending = (top, left, host, event)

    def finish(self) -> None:
        """Write what is still on its way; raises FloatingPointError for a value that is not finite."""
        self._fetch()
        if not bool(self.finite):
            raise FloatingPointError(NOT_FINITE)

    def _fetch(self) -> None:
        if self.pending is not None:
            top, left, host, event = self.pending
            event.synchronize()
            self._write(top, left, host.numpy())
            self.pending = None

    def _write(self, top: int, left: int, part: NDArray[Any]) -> None:
        self.samples[top : top + part.shape[0], left : left + part.shape[1]] = part


def restore_blocks(
    fn: Callable[[Pixels], Tensor],
    lq: Pixels,
    scale: int,
    tile: int,
    overlap: int,
    device: torch.device = CPU,
    batch: int = 1,
) -> Iterator[tuple[int, int, Tensor]]:
    """The restored image in blocks, each as soon as no later tile reaches into it.

    The weights of all tiles sum to one at every pixel, fall linearly towards a tile's inner edges and stay positive;
    the last tile of an axis is shifted inward, so that every tile has full size. Between tiles only two strips are
    kept: what a tile shares with the next one, and what its row shares with the row below.

    Args:
        fn: restores tiles `n*b c tile tile`; it may compute elsewhere and return its result from there.
        lq: `b c h w`, a tensor or an array: only tiles are given to `fn`.
        scale: enlargement of `fn`.
        tile: side of a tile in LR pixels; 0 restores the image whole, as does a tile that the image fits into.
        overlap: LR pixels that neighbouring tiles share, at least; 0 <= overlap < tile.
        device: where the tiles are blended.
        batch: tiles of one row that `fn` is given at once.

    Yields:
        top and left in pixels of the result, and float32 `b c height width` on the device; together the blocks cover
        the result once.

    Raises:
        ValueError: tile or overlap out of range.
    """
    check_tile(tile, overlap)
    b, c, h, w = lq.shape
    if tile == 0 or (h <= tile and w <= tile):
        yield 0, 0, fn(lq).float().to(device)
        return
    rows, columns = (
        [(at, weight.to(device, non_blocking=True)) for at, weight in tile_weights(n, tile, overlap, scale)]
        for n in (h, w)
    )
    above = torch.zeros(b, c, 0, w * scale, device=device)
    for (top, weight_y), height in _with_finished(rows, scale):
        below = _strip_like(above, len(weight_y) - height)
        shared = torch.zeros(b, c, len(weight_y), 0, device=device)
        restored = _restored_row(fn, lq[..., top : top + tile, :], [left for left, _ in columns], tile, batch)
        for (left, weight_x), width in _with_finished(columns, scale):
            blended = next(restored).to(device) * weight_y[:, None] * weight_x
            blended[..., : shared.shape[-1]] += shared
            finished, shared = blended[..., :width], blended[..., width:]
            across = slice(left * scale, left * scale + width)
            finished[..., : above.shape[-2], :] += above[..., across]
            below[..., across] = finished[..., height:, :]
            yield top * scale, left * scale, finished[..., :height, :]
        above = below


def _restored_row(
    fn: Callable[[Pixels], Tensor], row: Pixels, lefts: list[int], tile: int, batch: int
) -> Iterator[Tensor]:
    """The tiles of a row, restored some at a time: float32 `b c tile*scale tile*scale`."""
    for start in range(0, len(lefts), batch):
        parts = [row[..., left : left + tile] for left in lefts[start : start + batch]]
        if len(parts) == 1:
            yield fn(parts[0]).float()
            continue
        together: Any = torch.cat(parts) if isinstance(row, Tensor) else np.concatenate(parts)
        yield from fn(together).float().split(len(row))


def _strip_like(above: Tensor, height: int) -> Tensor:
    """`above` itself where it has the height, as each of its columns is used up before it is needed anew."""
    return above if above.shape[-2] == height else above.new_empty(*above.shape[:2], height, above.shape[-1])


def check_tile(tile: int, overlap: int) -> None:
    """Raises ValueError for a tile or an overlap out of range."""
    if tile < 0 or (tile and not 0 <= overlap < tile):
        raise ValueError(f"tile must be 0 or more and overlap lie in 0..tile-1, got tile {tile}, overlap {overlap}")


def _with_finished(tiles: list[tuple[int, Tensor]], scale: int) -> Iterator[tuple[tuple[int, Tensor], int]]:
    """Each tile of an axis with the restored pixels at its start that no later tile reaches."""
    for (start, weight), (following, _) in pairwise(tiles):
        yield (start, weight), (following - start) * scale
    yield tiles[-1], len(tiles[-1][1])


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
    return _to_float(rgb.transpose(2, 0, 1)[None])


def _to_float(samples: NDArray[Any], device: torch.device = CPU) -> Tensor:
    """uint8 or uint16 `b 3 h w` -> float32 in [0, 1] on the device, to which the integers travel."""
    full = np.iinfo(samples.dtype).max
    if device.type != "cuda":
        return torch.from_numpy(samples.astype(np.float32, order="C") / full)
    return torch.from_numpy(np.ascontiguousarray(samples)).pin_memory().to(device, non_blocking=True).float() / full


def to_samples(sr: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    """float `1 3 h w` -> uint8 or uint16 `h w 3`: clamped to [0, 1], scaled, rounded half to even.

    Raises:
        FloatingPointError: a value is not finite.
    """
    if not bool(torch.isfinite(sr).all()):
        raise FloatingPointError(NOT_FINITE)
    return _quantised(sr, dtype).cpu().numpy()


def _quantised(sr: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """float `1 3 h w` -> uint8 or uint16 `h w 3`, contiguous, on the same device."""
    samples = sr[0].clamp(0, 1).mul(float(np.iinfo(dtype).max)).round().permute(1, 2, 0)
    return samples.to(torch.uint8 if dtype == np.uint8 else torch.uint16).contiguous()
