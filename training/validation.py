"""Validation in the organisers' metric, and the run's log."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.team08_HATFreq.images import read_rgb
from training.data import SCALE, DataError, Image, digest, images_in, read_cropped
from utils.metrics import psnr_y
from utils.resize import imresize

LOG_COLUMNS = ("step", "loss", "lr", "psnr", "images_per_s", "seconds")


@dataclass(frozen=True)
class ValidationPair:
    """A target and its low-resolution image, uint8 `h w 3`; the target's sides are multiples of the scale."""

    name: str
    lq: Image
    gt: Image


def load_pairs(valid_hr: str, valid_lr: str) -> list[ValidationPair]:
    """Read the validation set.

    Args:
        valid_hr: folder of targets; empty for no validation.
        valid_lr: folder of their low-resolution images, `name.png` or `namex4.png` for the target `name.png`; empty to
            make them with MATLAB's bicubic.

    Raises:
        DataError: a missing folder, a target without its pair (the first ten are named), or sizes that do not fit.
    """
    if not valid_hr:
        return []
    targets = images_in(valid_hr)
    lows = {path.stem: path for path in images_in(valid_lr)} if valid_lr else {}
    if valid_lr:
        missing = [path.name for path in targets if _low(lows, path) is None]
        if missing:
            raise DataError(
                f"{valid_lr} lacks the low-resolution images of {len(missing)} targets in {valid_hr}: "
                f"{', '.join(missing[:10])}; they are named like the target, or with x{SCALE} after its name"
            )
    return [_load_pair(path, _low(lows, path)) for path in targets]


def digests(pairs: list[ValidationPair]) -> dict[str, str]:
    """digest -> name of every target, for the audit of the training set."""
    return {digest(pair.gt): pair.name for pair in pairs}


@torch.no_grad()
def validate(model: nn.Module, pairs: list[ValidationPair], device: torch.device) -> float:
    """Mean PSNR-Y in dB over whole images, in fp32, on restorations rounded to uint8."""
    return float(np.mean([psnr_y(restore(model, pair.lq, device), pair.gt) for pair in pairs]))


@torch.no_grad()
def restore(model: nn.Module, lq: Image, device: torch.device) -> Image:
    """uint8 `h w 3` -> uint8 `4h 4w 3`, clamped and rounded."""
    sr: Tensor = model(torch.tensor(lq, device=device).permute(2, 0, 1)[None].float() / 255)
    return (sr[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


def start_log(path: Path, step: int) -> None:
    """Create the CSV log, or drop the rows after `step`, which the resumed run makes anew."""
    rows = [row for row in _read_rows(path) if int(row["step"]) <= step]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def append_log(path: Path, row: dict[str, float]) -> None:
    """Add one row of `LOG_COLUMNS`: loss since the row before, PSNR in dB, seconds of training in all."""
    with path.open("a", newline="") as file:
        csv.DictWriter(file, LOG_COLUMNS).writerow(
            {key: value if isinstance(value, int) else f"{value:.6g}" for key, value in row.items()}
        )


def _read_rows(path: Path) -> list[dict[str, str]]:
    """The log's complete rows: a kill can cut the last one short."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if all(row.get(key) for key in LOG_COLUMNS)]


def _low(lows: dict[str, Path], target: Path) -> Path | None:
    return lows.get(f"{target.stem}x{SCALE}") or lows.get(target.stem)


def _load_pair(target: Path, low: Path | None) -> ValidationPair:
    gt = read_cropped(target)
    lq = imresize(gt, 1 / SCALE) if low is None else read_rgb(low)
    if (lq.shape[0] * SCALE, lq.shape[1] * SCALE) != gt.shape[:2]:
        raise DataError(
            f"{low} is {lq.shape[1]}x{lq.shape[0]}, {target} needs {gt.shape[1] // SCALE}x{gt.shape[0] // SCALE}: "
            f"give low-resolution images made at x{SCALE}"
        )
    return ValidationPair(target.name, lq, gt)
