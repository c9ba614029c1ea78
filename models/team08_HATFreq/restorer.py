"""HATFreq on one device, from integer samples to integer samples: precision, tiles, ensemble, and lack of memory."""

import gc
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .memory import Work, available_memory, choose_tile
from .network import HATFreq
from .record import RestorationError
from .tiling import restore_samples, self_ensemble

SMALLEST_TILE = 32
IN_FLIGHT = 2  # images, with their results, that are in memory at one time: one is restored, others read and written
Precision = Literal["fp32", "bf16"]


class NetworkRestorer:
    """HATFreq on one device: precision, tiles, ensemble, and smaller tiles where memory runs out."""

    def __init__(
        self,
        model: HATFreq,
        device: torch.device,
        precision: Precision,
        tile: int | None,
        overlap: int,
        ensemble: int,
        settings: dict[str, Any],
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise RestorationError(
                f"precision must be fp32 or bf16, got {precision!r}: fp16 overflows in HAT (NaN images)"
            )
        if ensemble not in (1, 8):
            raise RestorationError(f"ensemble must be 1 or 8, got {ensemble}")
        if tile is not None and (tile < 0 or (tile and not 0 <= overlap < tile)):
            raise RestorationError(f"tile must be 0 or larger than its overlap of {overlap} >= 0, got {tile}")
        self.model, self.device, self.precision = model, device, precision
        self.tile, self.overlap, self.ensemble, self.settings = tile, overlap, ensemble, settings
        self.scale = model.config.scale
        self.free: int | None = None  # bytes that may be taken
        self.limit: int | None = None  # the tile that memory was found to allow

    def __call__(self, rgb: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """See `Restorer`; the record holds the tile, 0 for the whole image."""
        tile = self._first_tile(rgb)
        while True:
            try:
                overlap = min(self.overlap, tile // 2)
                return restore_samples(self._restore, rgb, self.scale, tile, overlap), {"tile": tile}
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                used = tile
                message = str(error).splitlines()[0] if str(error) else type(error).__name__
            # Outside the except block, so that the failed pass's tensors are gone before the next begins.
            tile = self.limit = smaller_tile(used, max(rgb.shape[:2]), message)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            tqdm.write(f"out of memory with {_tile_name(used)}: retrying with {_tile_name(tile)}")

    def _first_tile(self, rgb: NDArray[Any]) -> int:
        tile = self.tile
        if tile is None:
            if self.free is None:  # asked once: what a run has freed is not always given back to the system
                self.free = available_memory(self.device)
            images = 0 if self.device.type == "cuda" else IN_FLIGHT * rgb.nbytes * (1 + self.scale**2)
            work = Work(self.model.config, self.device.type, self.precision, self.ensemble)
            tile = choose_tile(work, rgb.shape[0], rgb.shape[1], self.overlap, self.free - images)
        if self.limit is not None and (tile == 0 or tile > self.limit):
            tile = self.limit
        return 0 if tile >= max(rgb.shape[:2]) else tile

    def _restore(self, lq: Tensor) -> Tensor:
        return self_ensemble(self._forward, lq) if self.ensemble == 8 else self._forward(lq)

    @torch.inference_mode()
    def _forward(self, lq: Tensor) -> Tensor:
        """One pass; fp32 means fp32, without the TF32 that cuDNN would use on its own."""
        bf16 = self.precision == "bf16"
        cudnn = torch.backends.cudnn.flags(enabled=True, allow_tf32=bf16)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16), cudnn:
            return self.model(lq.to(self.device)).float()


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


def _tile_name(tile: int) -> str:
    return f"tiles of {tile}x{tile}" if tile else "the whole image"
