"""Validation in the organisers' metric, on one or several sets."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from evaluation.score import restore_uint8, score
from image_data.pairs import Pair, PairFiles
from image_data.sources import DataError
from models.team08_HATFreq.system import World
from training.training_set import file_sizes
from utils.metrics import BORDER

Network = Callable[[Tensor], Tensor]
PLAIN = ("hr", "gt", "targets", "**")  # folder names that say nothing of the set: its parent's name does


class ValidationSet:
    """Pairs under the name that the log calls them by; each is read and made when it is first asked for, and kept."""

    def __init__(self, name: str, files: PairFiles) -> None:
        self.name, self.files = name, files
        self.pairs: dict[int, Pair] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:
        if index not in self.pairs:
            pair = self.files[index]
            h, w = pair.target.shape[:2]
            if min(h, w) <= 2 * BORDER:
                name, least = self.files.targets[index].name, 2 * BORDER + 1
                raise DataError(
                    f"{name} has {w}x{h} pixels, and validation needs {least} a side: take it out of the set"
                )
            self.pairs[index] = pair
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
    return [ValidationSet(name, pairs) for name, pairs in zip(set_names(valid_hr), files, strict=True)]


def set_names(words: tuple[str, ...]) -> list[str]:
    """What sets are called: `bench/Set5/HR` -> `Set5`, `DIV2K_valid_HR` as it is; the whole word where two agree."""
    parts = [[part for part in Path(word).parts if part.lower() not in PLAIN] for word in words]
    names = [Path(telling[-1]).stem if telling else word for telling, word in zip(parts, words, strict=True)]
    return [name if names.count(name) == 1 else word for name, word in zip(names, words, strict=True)]


def identity(sets: list[ValidationSet]) -> str:
    """A hash of the sets' names and files' sizes, by which a resumed run knows whether they are the same."""
    digest = blake2b(digest_size=16)
    for valid in sets:
        digest.update(
            repr((valid.name, [image.stem for image in valid.files.targets])).encode(errors="surrogateescape")
        )
        for images in (valid.files.targets, valid.files.lr_images):
            digest.update(file_sizes(images).tobytes() if images else b"")
    return digest.hexdigest() if sets else ""


def shares(sets: list[ValidationSet], world: World) -> Iterator[tuple[int, ValidationSet, int]]:
    """This process's images: number over all sets, set, and number in the set."""
    pairs = [(valid, index) for valid in sets for index in range(len(valid))]
    for number in range(world.rank, len(pairs), world.size):
        yield number, *pairs[number]


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
    for number, valid, index in shares(sets, world):
        if stopped():
            values[-1] = 1
            break
        values[number] = score(restore, [valid[index]], ssim=False)[0].psnr
    *psnr, interrupted = world.sum(values.to(world.device)).tolist()
    if interrupted:
        return None
    each = iter(psnr)
    return {valid.name: math.fsum(next(each) for _ in range(len(valid))) / len(valid) for valid in sets}
