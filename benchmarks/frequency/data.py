"""Training patches and evaluation sets: decoded once, the same for every job.

Kept apart from the trainer's loader on purpose: a run of the experiment must give the same patches for as long as its
results are compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.resize import imresize

from .periodicity import CROP, Image, read_crops, read_image, read_origins

SCALE = 4


@dataclass(frozen=True)
class Pair:
    """An image and its low-resolution version: uint8 `4h 4w 3` and `h w 3`."""

    name: str
    hr: Image
    lr: Image


def read_pool(folders: Sequence[Path], manifest: Path) -> list[Pair]:
    """All photographs of the folders but those that the held-out crops come from, with their LR images (mirrored)."""
    origins = read_origins(manifest)
    held_out = {crop.origin for crop in read_crops()}
    pool = []
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        if origins.get(path.name, path.name) not in held_out:
            hr = read_image(path)
            hr = hr[: len(hr) - len(hr) % SCALE, : hr.shape[1] - hr.shape[1] % SCALE]
            pool.append(Pair(f"{path.parent.name}/{path.name}", hr, imresize(hr, 1 / SCALE)))
    if not pool:
        raise ValueError(f"no photographs in {', '.join(map(str, folders))}")
    return pool


def batch(pool: Sequence[Pair], seed: int, step: int, number: int, side: int) -> tuple[Tensor, Tensor]:
    """The patches of a step, which depend on nothing but seed and step.

    Returns:
        LR float32 `number 3 side side` and HR `number 3 4*side 4*side`, in [0, 1].
    """
    rng = np.random.default_rng((seed, step))
    lows: list[Image] = []
    highs: list[Image] = []
    while len(lows) < number:
        pair = pool[int(rng.integers(len(pool)))]
        room = [size - side for size in pair.lr.shape[:2]]
        if min(room) < 0:
            continue
        y, x = (int(rng.integers(one + 1)) for one in room)
        orientation = int(rng.integers(8))
        lows.append(_orient(pair.lr[y : y + side, x : x + side], orientation))
        y, x, high = y * SCALE, x * SCALE, side * SCALE
        highs.append(_orient(pair.hr[y : y + high, x : x + high], orientation))
    return to_tensor(lows), to_tensor(highs)


def _orient(image: Image, orientation: int) -> Image:
    """One of the eight flips and quarter turns."""
    if orientation & 4:
        image = image.swapaxes(0, 1)
    return image[:: -1 if orientation & 2 else 1, :: -1 if orientation & 1 else 1]


def to_tensor(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """uint8 `h w 3`, all of one size -> float32 `n 3 h w` in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float() / 255


def read_sets(bench: Path, train: Path) -> dict[str, list[Pair]]:
    """The evaluation sets: Set14, BSD100, and `Repeated`, the held-out crops of repeated structure.

    Args:
        bench: folder with `Set14` and `BSD100`, each with `HR` and `LRbicx4`.
        train: folder that holds the folders named in `repeated.csv`.
    """
    sets = {name: read_set(bench / name) for name in ("Set14", "BSD100")}
    sets["Repeated"] = []
    for crop in read_crops():
        hr = read_image(train / crop.file)[crop.top : crop.top + CROP, crop.left : crop.left + CROP]
        sets["Repeated"].append(Pair(crop.file, hr, imresize(hr, 1 / SCALE)))
    return sets


def read_set(folder: Path) -> list[Pair]:
    pairs = []
    for path in sorted((folder / "HR").iterdir()):
        lr = read_image(folder / "LRbicx4" / f"{path.stem}x4.png")
        hr = read_image(path)[: lr.shape[0] * SCALE, : lr.shape[1] * SCALE]
        pairs.append(Pair(path.name, hr, lr))
    return pairs
