"""HATFreq on integer samples: precision, tiles, ensemble, lack of memory; and `main`, the organisers' contract."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .compiling import compile_blocks
from .folder import Inputs, Progress, RestorationError, restore_inputs
from .network import PRESETS, HATFreq
from .system import available_memory, choose_device, slow_bf16, world
from .tiling import restore_samples, self_ensemble, tile_starts
from .weights import LoadedWeights, build, describe_config, load, preset_name

Precision = Literal["fp32", "bf16"]

# Bytes that a pass takes at most for each LR pixel of tiles from 64x64 on, on the CPU: `light` measured with AVX2 and
# AVX-512 on one thread and two, the others with AVX-512 and raised by a fifth. A GPU is given half as much again,
# unmeasured.
BYTES_PER_PIXEL: dict[str, dict[str, int]] = {
    "light": {"fp32": 5_000, "bf16": 5_000},
    "small": {"fp32": 31_000, "bf16": 24_000},
    "base": {"fp32": 36_000, "bf16": 28_000},
    "large": {"fp32": 36_000, "bf16": 28_000},
}
USABLE = 0.8  # of the free memory: the rest is for fragmentation and other programs
SMALLEST_TILE = 32
OVERLAP = 32  # of tiles, where none is asked for
MOST_TILES = 8  # at once, on a GPU
STARTING = 80_000_000  # bytes on a CPU for the stacks of threads and what libraries keep of their first passes
LARGEST_TILE = 512  # on the CPU: larger ones are no faster there, and the memory is everybody's
IN_FLIGHT = 2  # images, with their results, in memory at one time: one is restored, others are read and written


class HATFreqRestorer:
    """HATFreq on one device.

    Args:
        model: the network, on the device and in eval mode.
        device: where it computes.
        precision: `fp32`, or `bf16` for its matrix products.
        tile: side of a tile in LR pixels, 0 for the whole image, None for what fits into memory.
        overlap: LR pixels that neighbouring tiles share, at least; 32 if None, or half a tile where that is less.
        ensemble: 8 for the self-ensemble, 1 for a single pass.
        settings: for the record.
        progress: called after every tile (of the ensemble: after every pass over one).

    Raises:
        RestorationError: a setting out of range.
    """

    def __init__(
        self,
        model: HATFreq,
        device: torch.device,
        precision: Precision = "fp32",
        tile: int | None = None,
        overlap: int | None = None,
        ensemble: int = 8,
        settings: dict[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise RestorationError(f"precision must be fp32 or bf16, got {precision!r}: fp16 overflows in HAT")
        if ensemble not in (1, 8):
            raise RestorationError(f"ensemble must be 1 or 8, got {ensemble}")
        if tile is not None and (tile < 0 or 0 < tile < SMALLEST_TILE):
            raise RestorationError(f"tile must be 0 (the whole image) or at least {SMALLEST_TILE}, got {tile}")
        if overlap is None:
            overlap = min(OVERLAP, tile // 2) if tile else OVERLAP
        if overlap < 0:
            raise RestorationError(f"tile_overlap must be 0 or more, got {overlap}")
        if tile and overlap > tile // 2:
            raise RestorationError(f"tile_overlap must be at most half the tile, {tile // 2} of {tile}, got {overlap}")
        self.model, self.device, self.precision = model, device, precision
        self.tile, self.overlap, self.ensemble, self.settings = tile, overlap, ensemble, settings or {}
        self.progress = progress
        self.scale = model.config.scale
        self.free: int | None = None  # bytes that may be taken
        self.limit: int | None = None  # the tile that memory was found to allow

    def __call__(self, rgb: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """See `Restorer`; recorded is the tile, 0 for the whole image.

        Raises:
            RestorationError: out of memory with the smallest tile.
            FloatingPointError: a value of the result is not finite.
        """
        tile = self._first_tile(rgb)
        while True:
            try:
                overlap = min(self.overlap, tile // 2)  # of a tile that memory has made small
                upscale = self._counted(rgb.shape[0], rgb.shape[1], tile, overlap)
                samples = restore_samples(upscale, rgb, self.scale, tile, overlap, self.device, self._batch(tile))
                return samples, {"tile": tile}
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                failed = tile
                message = str(error).splitlines()[0] if str(error) else type(error).__name__
            # Outside the except block, so that the failed pass's tensors are gone before the next begins.
            tile = self.limit = smaller_tile(failed, max(rgb.shape[:2]), message)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            was = f"tiles of {failed}x{failed}" if failed else "the whole image"
            tqdm.write(f"out of memory with {was}: retrying with tiles of {tile}x{tile}")

    def _first_tile(self, rgb: NDArray[Any]) -> int:
        tile = self.tile
        if tile is None:
            if self.free is None:  # asked once: what a run has freed is not always given back to the system
                self.free = available_memory(self.device)
            images = 0 if self.device.type == "cuda" else IN_FLIGHT * rgb.nbytes * (1 + self.scale**2) + STARTING
            most = LARGEST_TILE if self.device.type == "cpu" else max(rgb.shape[:2])
            tile = choose_tile(
                rgb.shape[0], rgb.shape[1], self.overlap, self.free - images, self._bytes_a_pixel(), most
            )
        if self.limit is not None and (tile == 0 or tile > self.limit):
            tile = self.limit
        return 0 if tile >= max(rgb.shape[:2]) else tile

    def _batch(self, tile: int) -> int:
        """Tiles of a row that are restored at once: on a GPU, small ones do not fill it."""
        if self.device.type != "cuda" or not tile or self.free is None:
            return 1
        return int(min(MOST_TILES, max(1, USABLE * self.free / (self._bytes_a_pixel() * tile**2))))

    def _bytes_a_pixel(self) -> float:
        name = preset_name(self.model.config)
        # A shape of its own takes for each channel at most what `light` does, the narrowest.
        known = BYTES_PER_PIXEL[name or "light"][self.precision]
        width = 1.0 if name else self.model.config.embed_dim / PRESETS["light"].embed_dim
        sums = 2 * 4 * 3 * self.scale**2 if self.ensemble == 8 else 0  # one of each orientation, float32
        return known * width * (1.5 if self.device.type == "cuda" else 1.0) + sums

    def _counted(self, height: int, width: int, tile: int, overlap: int) -> Callable[[Tensor], Tensor]:
        """`_restore` that reports its progress: passes done and passes in all."""
        if self.progress is None:
            return self._restore
        tiles = 1
        for length in (height, width):
            tiles *= len(tile_starts(length, tile, overlap)) if tile else 1
        done, total, report = 0, tiles * self.ensemble, self.progress

        def restore(lq: Tensor) -> Tensor:
            def forward(part: Tensor) -> Tensor:
                nonlocal done
                sr = self._forward(part)
                done += len(part)
                report(done, total)
                return sr

            return self_ensemble(forward, lq) if self.ensemble == 8 else forward(lq)

        return restore

    def _restore(self, lq: Tensor) -> Tensor:
        return self_ensemble(self._forward, lq) if self.ensemble == 8 else self._forward(lq)

    @torch.inference_mode()
    def _forward(self, lq: Tensor) -> Tensor:
        """One pass; fp32 means fp32, without the TF32 that cuDNN would use on its own."""
        bf16 = self.precision == "bf16"
        cudnn = torch.backends.cudnn.flags(enabled=True, allow_tf32=bf16)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16), cudnn:
            return self.model(lq.to(self.device)).float()


def choose_tile(height: int, width: int, overlap: int, free: int, bytes_a_pixel: float, most: int) -> int:
    """The largest tile that fits into memory, evened out: as few tiles as possible, none larger than they need be.

    Args:
        height, width: of the LR image.
        overlap: LR pixels that tiles share.
        free: bytes that may be taken.
        bytes_a_pixel: that a pass takes.
        most: the largest side.

    Returns:
        Side in LR pixels, a multiple of 16; 0 to leave the image whole.
    """
    pixels = USABLE * free / bytes_a_pixel
    if height * width <= min(pixels, most**2):
        return 0
    side = int(min(max(pixels, 0) ** 0.5, most)) // 16 * 16
    side = max(SMALLEST_TILE, side)
    overlap = min(overlap, side // 2)
    counts = [-(-max(length - overlap, 1) // (side - overlap)) for length in (height, width)]
    even = max(-(-(n + (count - 1) * overlap) // count) for n, count in zip((height, width), counts, strict=True))
    return max(SMALLEST_TILE, min(side, even + -even % 16))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # The last is all that oneDNN, which computes the CPU's convolutions, says when it gets no memory.
    texts = ("not enough memory", "out of memory", "can't allocate memory", "could not create a primitive")
    return any(text in str(error) for text in texts)


def smaller_tile(tile: int, longest: int, message: str) -> int:
    """Half the tile (or half the image's longer side), a multiple of 16.

    Raises:
        RestorationError: the tile is the smallest already.
    """
    if tile and tile <= SMALLEST_TILE:
        raise RestorationError(
            f"out of memory even with tiles of {tile} pixels ({message}): free memory or use --device cpu"
        )
    half = (tile or longest) // 2
    return max(SMALLEST_TILE, half - half % 16)


# ---------------------------------------------------------------------------------------------------------------------
# The submission
# ---------------------------------------------------------------------------------------------------------------------


def main(
    model_dir: str | os.PathLike[str],
    input_path: Inputs,
    output_path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    *,
    preset: str | None = None,
    precision: Precision = "fp32",
    tile: int | None = None,
    tile_overlap: int | None = None,
    ensemble: int = 8,
    compiled: bool = False,
    overwrite: bool = False,
) -> None:
    """Restore every image of a folder with HATFreq, x4; the first four parameters are the organisers' contract.

    Args:
        model_dir: a weights file, or the folder `model_zoo/team08_HATFreq`, which holds one for each preset.
        input_path: folder of low-resolution images, an image, or several.
        output_path: folder for the restored ones, each a PNG under its input's stem; made if missing.
        device: where to compute; CUDA if there is one by default.
        preset: which weights of the folder, `light` by default; a file says its shape itself.
        precision: `fp32`, or `bf16` for the network's matrix products.
        tile: side of a tile in LR pixels, 0 for the whole image, None for the largest that fits.
        tile_overlap: LR pixels that neighbouring tiles share, at most half of one; None for 32, or that half.
        ensemble: 8 for the self-ensemble (the submission's), 1 for a single pass.
        compiled: compile the network's blocks first (`compiling.compile_blocks`).
        overwrite: begin anew: the results that the folder's record names are removed.

    Raises:
        RestorationError: after the other images were restored, naming those that could not be; or before, naming why
            nothing could begin.
        ImageError, WeightsError: the folder or the weights cannot be used.
    """
    device = choose_device(str(device or "auto"))
    restorer = load_restorer(model_dir, device, preset, precision, tile, tile_overlap, ensemble)
    if compiled:
        compile_blocks(restorer.model, device, sizes_vary=True)
        restorer.settings["compiled"] = True  # equal to rounding only
    restore_inputs(restorer, input_path, Path(output_path), overwrite, device)


def load_restorer(
    model_dir: str | os.PathLike[str],
    device: torch.device,
    preset: str | None = None,
    precision: Precision = "fp32",
    tile: int | None = None,
    tile_overlap: int | None = None,
    ensemble: int = 8,
    progress: Progress | None = None,
) -> HATFreqRestorer:
    """The weights of `main`'s arguments as a restorer; says what it has loaded.

    Raises:
        RestorationError: weights of another scale than x4, or a setting out of range.
        WeightsError: the file cannot be used.
    """
    result = load(weights_file(Path(model_dir), preset))
    model, message = build(result, preset)
    if model.config.scale != 4:
        raise RestorationError(f"{result.path} is for x{model.config.scale}, and results here are x4: use x4 weights")
    torch.backends.cuda.matmul.allow_tf32 = False  # which some containers switch on
    if world().is_main:
        print(message)
        if precision == "bf16" and slow_bf16(device):
            print("this processor has no bf16 units (AVX-512): --precision fp32 is several times as fast")
    restorer = HATFreqRestorer(model.to(device).eval(), device, precision, tile, tile_overlap, ensemble, None, progress)
    restorer.settings |= settings_of(result, model, precision, tile, restorer.overlap, ensemble)
    return restorer


def settings_of(
    result: LoadedWeights, model: HATFreq, precision: str, tile: int | None, tile_overlap: int, ensemble: int
) -> dict[str, Any]:
    """All that a result depends on, for the record."""
    return {
        "model": describe_config(model.config),
        "weights": result.path.name,
        "weights_sha256": result.sha256,
        "precision": precision,
        "tile": "auto" if tile is None else tile,
        "tile_overlap": tile_overlap,
        "ensemble": ensemble,
    }


def weights_file(model_dir: Path, preset: str | None) -> Path:
    """The weights that `model_dir` and a preset name; a file that is missing is explained when it is read."""
    if model_dir.is_dir():
        return model_dir / f"hatfreq_{preset or 'light'}_x4.safetensors"
    return model_dir
