"""Evaluation pairs: a target and its low-resolution image, given or made by MATLAB's bicubic."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale, fits
from image_data.mixture import pair_lows
from image_data.sources import DataError, ImageFile, expand
from utils.resize import imresize

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """A target and its low-resolution image, uint8 `h w 3`; the target's sides are multiples of the scale."""

    name: str
    lq: Image
    target: Image


def load_pairs(hr: str | Path, lr: str | Path = "") -> list[Pair]:
    """Read a set of pairs, sorted by name.

    Args:
        hr: the targets, named as training images are (`image_data.sources.expand`).
        lr: their low-resolution images; empty to make them with MATLAB's bicubic.

    Raises:
        DataError: a missing folder, a target without its pair (the first ten are named), or sizes that do not fit.
        ImageError: an image that cannot be read.
    """
    targets = expand(str(hr))
    if not lr:
        return [_made(target) for target in targets]
    lows = pair_lows(targets, expand(str(lr)), str(lr))
    return [_given(target, low) for target, low in zip(targets, lows, strict=True)]


def _made(file: ImageFile) -> Pair:
    target = cut_to_scale(file.read_rgb())
    if not target.size:
        raise DataError(f"{file.name} is smaller than {SCALE} pixels: remove it from the evaluation set")
    return Pair(file.stem, imresize(target, 1 / SCALE), target)


def _given(file: ImageFile, low: ImageFile) -> Pair:
    target, lq = file.read_rgb(), low.read_rgb()
    if not fits(target.shape[0], lq.shape[0], target.shape[1], lq.shape[1]):
        raise DataError(
            f"{low.name} is {lq.shape[1]}x{lq.shape[0]}, {file.name} needs {target.shape[1] // SCALE}x"
            f"{target.shape[0] // SCALE}: give low-resolution images made at x{SCALE}"
        )
    target = cut_to_scale(target)
    return Pair(file.stem, lq[: target.shape[0] // SCALE, : target.shape[1] // SCALE], target)
