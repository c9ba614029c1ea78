"""Validation in the organisers' metric, on one or several sets."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from evaluation.score import restore_uint8
from image_data.pairs import Pair, load_pairs
from training.audit import digest
from training.distributed import World
from utils.metrics import psnr_y

Network = Callable[[Tensor], Tensor]
PLAIN = ("hr", "gt", "targets")  # folder names that say nothing of the set: its parent's name does


@dataclass(frozen=True)
class ValidationSet:
    """Pairs under the name that the log calls them by."""

    name: str
    pairs: list[Pair]


def load_sets(valid_hr: tuple[str, ...], valid_lr: tuple[str, ...]) -> list[ValidationSet]:
    """Read the validation sets.

    Args:
        valid_hr: the targets of each set, named as training images are (`image_data.sources.expand`).
        valid_lr: their low-resolution images, a word a set; none to make all with MATLAB's bicubic.

    Raises:
        DataError: a missing folder, a target without its pair (the first ten are named), or sizes that do not fit.
        ImageError: an image that cannot be read.
    """
    lows = valid_lr or ("",) * len(valid_hr)
    names = set_names(valid_hr)
    return [ValidationSet(name, load_pairs(hr, lr)) for name, hr, lr in zip(names, valid_hr, lows, strict=True)]


def set_names(words: tuple[str, ...]) -> list[str]:
    """What sets are called: `bench/Set5/HR` -> `Set5`, `DIV2K_valid_HR` as it is; the whole word where two agree."""
    parts = [[part for part in Path(word).parts if part.lower() not in (*PLAIN, "**")] for word in words]
    names = [Path(found[-1]).stem if found else word for found, word in zip(parts, words, strict=True)]
    return [name if names.count(name) == 1 else word for name, word in zip(names, words, strict=True)]


def digests(sets: list[ValidationSet]) -> dict[str, str]:
    """digest -> name of every target, for the audit of the training set."""
    return {digest(pair.target): f"{one.name}/{pair.name}" for one in sets for pair in one.pairs}


def validate(network: Network, sets: list[ValidationSet], world: World, tile: int) -> dict[str, float]:
    """Mean PSNR-Y in dB of each set, by its name; the images of all sets are shared out over the processes."""
    scores = torch.zeros(sum(len(one.pairs) for one in sets), dtype=torch.float64)
    for number, pair in enumerate(pair for one in sets for pair in one.pairs):
        if number % world.size == world.rank:
            scores[number] = psnr_y(restore_uint8(network, pair.lq, world.device, tile), pair.target)
    found = iter(world.sum(scores.to(world.device)).tolist())
    return {one.name: math.fsum(next(found) for _ in one.pairs) / len(one.pairs) for one in sets}
