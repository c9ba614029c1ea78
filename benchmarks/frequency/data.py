"""Training patches and evaluation sets: decoded once, the same for every job.

Patches are drawn apart from the trainer's loader on purpose: a run of the experiment must give the same ones for as
long as its results are compared.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale, orient
from image_data.pairs import Pair, load_pairs
from models.team08_HATFreq.image_io import read_rgb
from utils.resize import imresize

from .periodicity import CROP, Image, read_crops, read_origins


def read_pool(folders: Sequence[Path], manifest: Path) -> list[Pair]:
    """All photographs of the folders but those that the held-out crops come from, with their LR images (mirrored)."""
    origins = read_origins(manifest)
    held_out = {crop.origin for crop in read_crops()}
    pool = []
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        if origins.get(path.name, path.name) not in held_out:
            target = cut_to_scale(read_rgb(path))
            pool.append(Pair(f"{path.parent.name}/{path.name}", imresize(target, 1 / SCALE), target))
    if not pool:
        raise ValueError(f"no photographs in {', '.join(map(str, folders))}")
    return pool


def batch(pool: Sequence[Pair], seed: int, step: int, number: int, side: int) -> tuple[Tensor, Tensor]:
    """The patches of a step, which depend on nothing but seed and step.

    Returns:
        LR float32 `number 3 side side` and HR `number 3 4*side 4*side`, in [0, 1].
    """
    rng = np.random.default_rng((seed, step))
    lq: list[Image] = []
    gt: list[Image] = []
    while len(lq) < number:
        pair = pool[int(rng.integers(len(pool)))]
        room = [size - side for size in pair.lq.shape[:2]]
        if min(room) < 0:
            continue
        y, x = (int(rng.integers(one + 1)) for one in room)
        orientation = int(rng.integers(8))
        lq.append(orient(pair.lq[y : y + side, x : x + side], orientation))
        y, x, high = y * SCALE, x * SCALE, side * SCALE
        gt.append(orient(pair.target[y : y + high, x : x + high], orientation))
    return to_tensor(lq), to_tensor(gt)


def to_tensor(images: Sequence[NDArray[np.uint8]]) -> Tensor:
    """uint8 `h w 3`, all of one size -> float32 `n 3 h w` in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous().float() / 255


def read_sets(bench: Path, train: Path) -> dict[str, list[Pair]]:
    """The evaluation sets: Set14, BSD100, and `Repeated`, the held-out crops of repeated structure.

    Args:
        bench: folder with `Set14` and `BSD100`, each with `HR` and `LRbicx4`.
        train: folder that holds the folders named in `repeated.csv`.
    """
    sets = {name: load_pairs(bench / name / "HR", bench / name / "LRbicx4") for name in ("Set14", "BSD100")}
    sets["Repeated"] = []
    for crop in read_crops():
        target = read_rgb(train / crop.file)[crop.top : crop.top + CROP, crop.left : crop.left + CROP]
        sets["Repeated"].append(Pair(crop.file, imresize(target, 1 / SCALE), target))
    return sets
