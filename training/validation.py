"""Validation in the organisers' metric, on one or several sets."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.team08_HATFreq.restore import restore_tiled
from training.audit import cut_to_scale, digest, fits
from training.degrade import SCALE
from training.distributed import World
from training.mixture import pair_lows
from training.sources import DataError, ImageFile, expand
from utils.metrics import psnr_y
from utils.resize import imresize

Image = NDArray[np.uint8]
Network = Callable[[Tensor], Tensor]
OVERLAP = 16  # LR pixels that neighbouring tiles share
PLAIN = ("hr", "gt", "targets")  # folder names that say nothing of the set: its parent's name does


@dataclass(frozen=True)
class ValidationPair:
    """A target and its low-resolution image, uint8 `h w 3`; the target's sides are multiples of the scale."""

    name: str
    lq: Image
    gt: Image


@dataclass(frozen=True)
class ValidationSet:
    """Pairs under the name that the log calls them by."""

    name: str
    pairs: list[ValidationPair]


def load_sets(valid_hr: tuple[str, ...], valid_lr: tuple[str, ...]) -> list[ValidationSet]:
    """Read the validation sets.

    Args:
        valid_hr: the targets of each set, named as training images are (`training.sources.expand`).
        valid_lr: their low-resolution images, a word a set; none to make all with MATLAB's bicubic.

    Raises:
        DataError: a missing folder, a target without its pair (the first ten are named), or sizes that do not fit.
        ImageError: an image that cannot be read.
    """
    lows = valid_lr or ("",) * len(valid_hr)
    names = set_names(valid_hr)
    return [ValidationSet(name, _load_pairs(hr, lr)) for name, hr, lr in zip(names, valid_hr, lows, strict=True)]


def set_names(words: tuple[str, ...]) -> list[str]:
    """What sets are called: `bench/Set5/HR` -> `Set5`, `DIV2K_valid_HR` as it is; the whole word where two agree."""
    parts = [[part for part in Path(word).parts if part.lower() not in (*PLAIN, "**")] for word in words]
    names = [Path(found[-1]).stem if found else word for found, word in zip(parts, words, strict=True)]
    return [name if names.count(name) == 1 else word for name, word in zip(names, words, strict=True)]


def digests(sets: list[ValidationSet]) -> dict[str, str]:
    """digest -> name of every target, for the audit of the training set."""
    return {digest(pair.gt): f"{one.name}/{pair.name}" for one in sets for pair in one.pairs}


def validate(network: Network, sets: list[ValidationSet], world: World, tile: int) -> dict[str, float]:
    """Mean PSNR-Y in dB of each set, by its name; the images of all sets are shared out over the processes."""
    scores = torch.zeros(sum(len(one.pairs) for one in sets), dtype=torch.float64)
    for number, pair in enumerate(pair for one in sets for pair in one.pairs):
        if number % world.size == world.rank:
            scores[number] = psnr_y(restore(network, pair.lq, world.device, tile), pair.gt)
    found = iter(world.sum(scores.to(world.device)).tolist())
    return {one.name: math.fsum(next(found) for _ in one.pairs) / len(one.pairs) for one in sets}


@torch.no_grad()
def restore(network: Network, lq: Image, device: torch.device, tile: int = 0) -> Image:
    """uint8 `h w 3` -> uint8 `4h 4w 3`, in fp32, clamped and rounded; tile by tile unless `tile` is 0."""
    image = torch.tensor(lq).permute(2, 0, 1)[None].float() / 255
    sr = restore_tiled(lambda part: network(part.to(device)), image, SCALE, tile, min(OVERLAP, tile // 2))
    return (sr[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def _load_pairs(hr: str, lr: str) -> list[ValidationPair]:
    targets = expand(hr)
    if not lr:
        return [_pair_made(target) for target in targets]
    return [_pair_given(target, low) for target, low in zip(targets, pair_lows(targets, expand(lr), lr), strict=True)]


def _pair_made(target: ImageFile) -> ValidationPair:
    gt = cut_to_scale(target.read_rgb())
    if not gt.size:
        raise DataError(f"{target.name} is smaller than {SCALE} pixels: remove it from the validation set")
    return ValidationPair(target.stem, imresize(gt, 1 / SCALE), gt)


def _pair_given(target: ImageFile, low: ImageFile) -> ValidationPair:
    gt, lq = target.read_rgb(), low.read_rgb()
    if not fits(gt.shape[0], lq.shape[0], gt.shape[1], lq.shape[1]):
        raise DataError(
            f"{low.name} is {lq.shape[1]}x{lq.shape[0]}, {target.name} needs {gt.shape[1] // SCALE}x"
            f"{gt.shape[0] // SCALE}: give low-resolution images made at x{SCALE}"
        )
    gt = cut_to_scale(gt)
    return ValidationPair(target.stem, lq[: gt.shape[0] // SCALE, : gt.shape[1] // SCALE], gt)
