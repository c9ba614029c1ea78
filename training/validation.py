"""Validation in the organisers' metric, on one or several sets."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from evaluation.score import restore_uint8, score
from image_data.geometry import orient
from image_data.pairs import Pair, PairFiles
from image_data.sources import DataError
from training.distributed import World
from training.photographs import digest
from utils.metrics import BORDER

Network = Callable[[Tensor], Tensor]
PLAIN = ("hr", "gt", "targets")  # folder names that say nothing of the set: its parent's name does


class ValidationSet:
    """Pairs under the name that the log calls them by; each is read and made when it is first asked for, and kept."""

    def __init__(self, name: str, files: PairFiles) -> None:
        self.name, self.files = name, files
        self.pairs: dict[int, Pair] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:
        if index not in self.pairs:
            self.pairs[index] = self.files[index]
        return self.pairs[index]

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))


def open_sets(valid_hr: tuple[str, ...], valid_lr: tuple[str, ...]) -> list[ValidationSet]:
    """List the validation sets.

    Args:
        valid_hr: the targets of each set, named as training images are (`image_data.sources.expand`).
        valid_lr: their low-resolution images, a word a set; none to make all with MATLAB's bicubic.

    Raises:
        DataError: a missing folder, or a target without its pair (the first ten are named).
    """
    lrs = valid_lr or ("",) * len(valid_hr)
    files = [PairFiles(hr, lr) for hr, lr in zip(valid_hr, lrs, strict=True)]
    return [ValidationSet(name, one) for name, one in zip(set_names(valid_hr), files, strict=True)]


def set_names(words: tuple[str, ...]) -> list[str]:
    """What sets are called: `bench/Set5/HR` -> `Set5`, `DIV2K_valid_HR` as it is; the whole word where two agree."""
    parts = [[part for part in Path(word).parts if part.lower() not in (*PLAIN, "**")] for word in words]
    names = [Path(found[-1]).stem if found else word for found, word in zip(parts, words, strict=True)]
    return [name if names.count(name) == 1 else word for name, word in zip(names, words, strict=True)]


def shares(sets: list[ValidationSet], world: World) -> Iterator[tuple[int, ValidationSet, int]]:
    """This process's images: number over all sets, set, and number in the set."""
    places = [(one, index) for one in sets for index in range(len(one))]
    for number in range(world.rank, len(places), world.size):
        yield number, *places[number]


def read_sets(sets: list[ValidationSet], world: World) -> tuple[dict[bytes, str], str]:
    """Read all pairs, each in the process that will validate on it.

    Returns:
        digest -> name of every target, in all eight orientations, for the audit of the training set; and a hash of the
        sets, by which a resumed run knows whether they are the same.

    Raises:
        DataError: sizes that do not fit, or a target of which the metric's border leaves nothing.
        ImageError: an image that cannot be read.
    """
    names: dict[bytes, str] = {}
    hashes: list[tuple[int, str]] = []
    for number, one, index in shares(sets, world):
        pair = one[index]
        h, w = pair.target.shape[:2]
        if min(h, w) <= 2 * BORDER:
            raise DataError(
                f"{one.files.targets[index].name}, cut to multiples of the scale, has {w}x{h} pixels, and the metric "
                f"leaves {BORDER} on each side out: "
                "take it out of the validation set"
            )
        for orientation in range(8):
            names.setdefault(digest(orient(pair.target, orientation)), f"{one.name}/{pair.name}")
        hashes.append((number, (digest(pair.target) + digest(pair.lq)).hex()))
    gathered = world.gather((names, hashes))
    everything = sorted(pair for _, part in gathered for pair in part)
    identity = blake2b(repr(([(one.name, len(one)) for one in sets], everything)).encode(), digest_size=16).hexdigest()
    return {key: name for part, _ in gathered for key, name in part.items()}, identity if sets else ""


def validate(
    network: Network, sets: list[ValidationSet], world: World, tile: int, stopped: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """Mean PSNR-Y in dB of each set, by its name; the images of all sets are shared out over the processes.

    Args:
        tile: side in LR pixels; 0 for whole images.
        stopped: looked at before each image.

    Returns:
        None if any process was stopped.
    """
    restore = partial(restore_uint8, network, device=world.device, tile=tile)
    values = torch.zeros(sum(map(len, sets)) + 1, dtype=torch.float64)
    for number, one, index in shares(sets, world):
        if stopped():
            values[-1] = 1
            break
        values[number] = score(restore, [one[index]], ssim=False)[0].psnr
    *found, interrupted = world.sum(values.to(world.device)).tolist()
    if interrupted:
        return None
    each = iter(found)
    return {one.name: math.fsum(next(each) for _ in range(len(one))) / len(one) for one in sets}
