"""A folder of images in, a folder of restored PNG files out.

`main` keeps the organisers' contract; `restore_folder` is the engine under it, which any restorer can use.
"""

import gc
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .images import TEMPORARY, ImageError, Picture, list_images, read_picture, size_of, write_bytes, write_png
from .memory import choose_tile, peak_memory
from .network import PRESETS, HATFreq, override
from .restore import restore_tiled, self_ensemble, to_samples, to_tensor
from .weights import WeightsError, describe, load_weights, preset_of, read_state_dict, verify_checksum

RECORD = "record.json"
SMALLEST_TILE = 32
Precision = Literal["fp32", "bf16"]


class RestorationError(RuntimeError):
    """A run that could not begin, or in which some images could not be restored; the message names them."""


class Restorer(Protocol):
    """What `restore_folder` needs of a method."""

    scale: int
    settings: dict[str, Any]  # all that its results depend on, in JSON's types

    def __call__(self, rgb: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """uint8 or uint16 `h w 3` -> the restored `h*scale w*scale 3` of the same type, and what to record of it."""
        ...


def main(
    model_dir: str | os.PathLike[str],
    input_path: str | os.PathLike[str],
    output_path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    *,
    preset: str | None = None,
    precision: Precision = "fp32",
    tile: int | None = None,
    tile_overlap: int = 32,
    ensemble: int = 8,
    overwrite: bool = False,
) -> None:
    """Restore every image of a folder with HATFreq, x4; the first four parameters are the organisers' contract.

    Args:
        model_dir: a weights file, or the folder `model_zoo/team08_HATFreq`, which holds one for each preset.
        input_path: folder of low-resolution images.
        output_path: folder for the restored ones, each a PNG under its input's stem; made if missing.
        device: where to compute; CUDA if there is one by default.
        preset: which weights of the folder, `light` by default; for a file, the shape is read off its tensors.
        precision: `fp32`, or `bf16` for the network's matrix products.
        tile: side of a tile in LR pixels, 0 for the whole image, None for the largest that fits.
        tile_overlap: LR pixels that neighbouring tiles share.
        ensemble: 8 for the self-ensemble (the submission's), 1 for a single pass.
        overwrite: restore images anew that have been restored already.

    Raises:
        RestorationError: after the other images were restored, naming those that could not be; or before, naming why
            nothing could begin.
        ImageError, WeightsError: the folder or the weights cannot be used.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    weights = weights_file(Path(model_dir), preset)
    model = build_for(weights, preset).to(device).eval()
    print(load_weights(model, weights))
    settings = {
        "model": preset_of(model.config),
        "weights": weights.name,
        "weights_sha256": verify_checksum(weights),
        "precision": precision,
        "tile": "auto" if tile is None else tile,
        "tile_overlap": tile_overlap,
        "ensemble": ensemble,
    }
    restorer = NetworkRestorer(model, device, precision, tile, tile_overlap, ensemble, settings)
    restore_folder(restorer, Path(input_path), Path(output_path), overwrite, device)


def weights_file(model_dir: Path, preset: str | None) -> Path:
    """The weights that `model_dir` and a preset name; a file that is missing is explained when it is read."""
    if model_dir.is_dir():
        return model_dir / f"hatfreq_{preset or 'light'}_x4.safetensors"
    return model_dir


def build_for(weights: Path, preset: str | None) -> HATFreq:
    """A network of the shape that a preset or else the weights' tensors give."""
    state = read_state_dict(weights)
    try:
        described = describe(state)
    except WeightsError as error:
        raise WeightsError(f"{weights}: {error}") from error
    if preset is None:
        return HATFreq(described)
    if preset not in PRESETS:
        raise RestorationError(f"unknown preset {preset!r}: choose from {', '.join(PRESETS)}")
    # A plain HAT file runs without fusion blocks: fresh ones would change nothing but the time.
    return HATFreq(override(PRESETS[preset], {"frequency": described.frequency}))


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
        self.limit: int | None = None  # the tile that memory was found to allow

    def __call__(self, rgb: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """See `Restorer`; the record holds the tile, 0 for the whole image."""
        lq = to_tensor(rgb)
        tile = self._first_tile(*lq.shape[-2:])
        while True:
            try:
                sr = restore_tiled(self._restore, lq, self.scale, tile, min(self.overlap, tile // 2))
                return to_samples(sr, rgb.dtype), {"tile": tile}
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                used = tile
                message = str(error).splitlines()[0] if str(error) else type(error).__name__
            # Outside the except block, so that the failed pass's tensors are gone before the next begins.
            tile = self.limit = smaller_tile(used, max(lq.shape[-2:]), message)
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            tqdm.write(f"out of memory with {_tile_name(used)}: retrying with {_tile_name(tile)}")

    def _first_tile(self, height: int, width: int) -> int:
        tile = self.tile
        if tile is None:
            tile = choose_tile(self.model.config, height, width, self.device, self.precision)
        if self.limit is not None and (tile == 0 or tile > self.limit):
            tile = self.limit
        return 0 if tile >= max(height, width) else tile

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
    return any(text in str(error) for text in ("not enough memory", "out of memory", "can't allocate memory"))


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


@dataclass
class Record:
    """What a results folder holds and how it was made; a JSON file in it, rewritten after every image."""

    path: Path
    content: dict[str, Any]

    def finished(self, name: str, source_sha256: str) -> bool:
        """Whether an output stands there that was made from the very same input."""
        entry = self.content["images"].get(name, {})
        return entry.get("source_sha256") == source_sha256 and (self.path.parent / name).exists()

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """Note an image that has been written."""
        self.content["images"][name] = entry
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        write_bytes(self.path, (json.dumps(self.content, indent=2) + "\n").encode())


def restore_folder(
    restorer: Restorer, source: Path, target: Path, overwrite: bool = False, device: torch.device | None = None
) -> Record:
    """Restore every image of `source` into `target`, keeping what is finished and going on after a bad file.

    Args:
        restorer: the method; its settings decide whether results that stand in `target` are of the same kind.
        source: folder of images, with distinct stems.
        target: folder for PNG files of the same stems and for the record; made if missing.
        overwrite: restore everything anew.
        device: where the restorer computes, for the record.

    Raises:
        RestorationError: at once, if nothing can begin; at the end, naming the images that failed.
    """
    names = output_names(source)
    target.mkdir(parents=True, exist_ok=True)
    for leftover in target.glob(f"{TEMPORARY}*"):  # of a run that was killed while writing
        leftover.unlink()
    record = open_record(target, restorer.settings, list(names), overwrite)
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started, kept, failures = time.monotonic(), 0, []
    pixels = {name: _pixels(path) for name, path in names.items()}
    with tqdm(
        total=sum(pixels.values()), unit="px", unit_scale=True, dynamic_ncols=True, disable=not sys.stderr.isatty()
    ) as bar:
        for name, path in names.items():
            bar.set_description(path.name)
            try:
                kept += not _restore_file(restorer, path, target / name, record)
            except (ImageError, RestorationError, FloatingPointError, OSError) as error:
                failures.append(str(error) if path.name in str(error) else f"{path}: {error}")
            bar.update(pixels[name])
    restored = len(names) - kept - len(failures)
    summary = _finish(record, device, restored, kept, time.monotonic() - started)
    print(f"{summary} -> {target}")
    if failures:
        listed = "\n".join(f"  {failure}" for failure in failures)
        raise RestorationError(f"{len(failures)} of {len(names)} images could not be restored:\n{listed}")
    return record


def output_names(source: Path) -> dict[str, Path]:
    """Output name -> input file.

    Raises:
        RestorationError: no images, or two that would get one name.
    """
    paths = list_images(source)
    if not paths:
        raise RestorationError(f"{source} holds no images (PNG, JPEG, BMP, TIFF or WebP)")
    names: dict[str, Path] = {}
    for path in paths:
        if (first := names.setdefault(f"{path.stem}.png", path)) is not path:
            raise RestorationError(
                f"{first.name} and {path.name} in {source} would both become {path.stem}.png: rename one"
            )
    return names


def open_record(target: Path, settings: dict[str, Any], names: list[str], overwrite: bool) -> Record:
    """The record of a results folder, new or to be continued.

    Raises:
        RestorationError: results of other settings or of unknown origin would be mixed or overwritten.
    """
    path = target / RECORD
    fresh = Record(path, {"settings": settings, "images": {}})
    if overwrite:
        return fresh
    remedy = "use --overwrite to replace them, or another folder"
    if not path.exists():
        if existing := [name for name in names if (target / name).exists()]:
            raise RestorationError(f"{target} holds {existing[0]} and no {RECORD} that tells how it was made: {remedy}")
        fresh.save()
        return fresh
    try:
        content = json.loads(path.read_text())
        before, images = content["settings"], content["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise RestorationError(f"{path} is not a record of restored images ({error}): {remedy}") from error
    if changed := [key for key in {**before, **settings} if before.get(key) != settings.get(key)]:
        was = ", ".join(f"{key} was {before.get(key)!r} and is now {settings.get(key)!r}" for key in changed)
        raise RestorationError(f"{target} holds results of other settings ({was}): {remedy}")
    return Record(path, {"settings": settings, "images": images})


def _restore_file(restorer: Restorer, path: Path, target: Path, record: Record) -> bool:
    """Restore one file; False if its result stands there already."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    if record.finished(target.name, digest):
        return False
    started = time.monotonic()
    picture = read_picture(path)
    rgb, noted = restorer(picture.rgb)
    alpha = None if picture.alpha is None else _enlarge_alpha(picture.alpha, rgb.shape[:2])
    write_png(target, Picture(rgb, alpha, picture.grey).samples)
    entry = {
        "source": path.name,
        "source_sha256": digest,
        "input_size": list(picture.rgb.shape[1::-1]),
        "output_size": list(rgb.shape[1::-1]),
        "bits": rgb.dtype.itemsize * 8,
        "seconds": round(time.monotonic() - started, 3),
        **noted,
    }
    record.add(target.name, entry)
    return True


def _enlarge_alpha(alpha: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Transparency is no photograph: it is enlarged bicubically, `h w` -> `H W` of the same type."""
    tensor = torch.from_numpy(alpha.astype(np.float32))[None, None]
    enlarged = torch.nn.functional.interpolate(tensor, size=tuple(shape), mode="bicubic", align_corners=False)
    return enlarged[0, 0].round().clamp(0, np.iinfo(alpha.dtype).max).numpy().astype(alpha.dtype)


def _pixels(path: Path) -> int:
    """An image's weight in the progress bar; a bad file, named when its turn comes, has none."""
    try:
        height, width = size_of(path)
    except ImageError:
        return 0
    return height * width


def _finish(record: Record, device: torch.device | None, restored: int, kept: int, seconds: float) -> str:
    """Complete the record; returns the summary's line."""
    peak, kind = peak_memory(device)
    run = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "restored": restored,
        "kept": kept,
        "seconds": round(seconds, 3),
        "peak_memory_bytes": peak,
        "peak_memory_kind": kind,
        "device": torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    record.content["run"] = run
    record.save()
    rate = f", {seconds / restored:.2f} s an image" if restored else ""
    old = f", {kept} finished before" if kept else ""
    size = "not available" if peak is None else f"{peak / 2**30:.2f} GiB"
    return f"{restored} images restored{rate}{old}, peak {kind} {size}"
