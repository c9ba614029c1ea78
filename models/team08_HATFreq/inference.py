"""A folder of images in, a folder of restored PNG files out.

`main` keeps the organisers' contract; `restore_folder` is the engine under it, which any restorer can use.
"""

import os
import time
from pathlib import Path
from typing import Any

import torch

from .image_io import TEMPORARY, list_images
from .memory import peak_memory
from .network import PRESETS, HATFreq, override
from .pipeline import Outcome, Pipeline, Restorer, pixels_of
from .record import RECORD, Record, RestorationError, open_record
from .restorer import NetworkRestorer, Precision
from .system import crew, own_device, share_out
from .weights import WeightsError, describe, load_weights, preset_of, read_state_dict, verify_checksum

__all__ = ["NetworkRestorer", "RestorationError", "Restorer", "build_for", "main", "output_names", "restore_folder"]


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
    device = own_device(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
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


def restore_folder(
    restorer: Restorer, source: Path, target: Path, overwrite: bool = False, device: torch.device | None = None
) -> Record:
    """Restore every image of `source` into `target`, keeping what is finished and going on after a bad file.

    While an image is restored, the next one is read and the last one written. Under torchrun the processes share the
    images out by pixels, and the first of them speaks for all.

    Args:
        restorer: the method; its settings decide whether results that stand in `target` are of the same kind.
        source: folder of images, with distinct stems.
        target: folder for PNG files of the same stems and for the record; made if missing.
        overwrite: restore everything anew.
        device: where the restorer computes, for the record.

    Raises:
        RestorationError: at once, if nothing can begin; at the end, naming the images that failed.
    """
    team, names, started = crew(), output_names(source), time.monotonic()
    content = team.from_main(lambda: _begin(target, restorer.settings, list(names), overwrite).content)
    record = Record(target / RECORD, content)
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    pixels = {name: pixels_of(path) for name, path in names.items()}
    mine = {name: names[name] for name in share_out(pixels, team.size)[team.rank]}
    own = record.part(team.rank) if team.size > 1 else record
    outcome = Pipeline(restorer, own).run(mine, pixels, quiet=not team.main)
    outcome.peak = peak_memory(device)[0]
    outcomes = team.gather(outcome)
    if team.main:
        if team.size > 1:
            record.join({name: entry for one in outcomes for name, entry in one.images.items()})
        print(f"{_finish(record, device, outcomes, time.monotonic() - started)} -> {target}")
        _raise_failures(outcomes, names)
    return record


def _begin(target: Path, settings: dict[str, Any], names: list[str], overwrite: bool) -> Record:
    """Make the folder ready; the record says what stands there."""
    target.mkdir(parents=True, exist_ok=True)
    for leftover in target.glob(f"{TEMPORARY}*"):  # of a run that was killed while writing
        leftover.unlink()
    return open_record(target, settings, names, overwrite)


def _raise_failures(outcomes: list[Outcome], names: dict[str, Path]) -> None:
    """Name the images that failed, in the order of the folder."""
    failures = {name: text for outcome in outcomes for name, text in outcome.failures.items()}
    if failures:
        listed = "\n".join(f"  {failures[path.name]}" for path in names.values() if path.name in failures)
        raise RestorationError(f"{len(failures)} of {len(names)} images could not be restored:\n{listed}")


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


def _finish(record: Record, device: torch.device | None, outcomes: list[Outcome], seconds: float) -> str:
    """Complete the record; returns the summary's line."""
    restored, kept = (sum(getattr(one, key) for one in outcomes) for key in ("restored", "kept"))
    peaks = [one.peak for one in outcomes if one.peak is not None]
    peak, kind = max(peaks, default=None), peak_memory(device)[1]
    run = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "restored": restored,
        "kept": kept,
        "seconds": round(seconds, 3),
        "processes": len(outcomes),
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
