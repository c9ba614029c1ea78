"""Scores of a method on pairs, in the organisers' metric, and the evaluation sets."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from image_data.pairs import Pair, load_pairs
from models.team08_HATFreq import HATFreq
from models.team08_HATFreq.tiling import restore_tiled, self_ensemble
from models.team08_HATFreq.weights import build, load
from utils.files import UserError
from utils.metrics import psnr_y, ssim_y
from utils.resize import SCALE

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Score:
    """PSNR (dB) and SSIM on Y of one image, 4 pixels of border left out."""

    name: str
    psnr: float
    ssim: float


def score(restore: Callable[[Image], Image], pairs: Iterable[Pair], ssim: bool = True) -> list[Score]:
    """Restore every pair's LR image (uint8 `h w 3` -> `4h 4w 3`) and compare it with its target.

    Args:
        ssim: SSIM too, which takes some seconds for a large image; nan without.
    """
    scores = []
    for pair in pairs:
        sr = restore(pair.lq)
        scores.append(Score(pair.name, psnr_y(sr, pair.target), ssim_y(sr, pair.target) if ssim else math.nan))
    return scores


def mean(scores: list[Score]) -> Score:
    """The mean over the images, as the tables give it."""
    psnr, ssim = (math.fsum(getattr(one, key) for one in scores) / len(scores) for key in ("psnr", "ssim"))
    return Score("mean", psnr, ssim)


@torch.no_grad()
def restore_uint8(
    network: Callable[[Tensor], Tensor], lq: Image, device: torch.device, tile: int = 0, overlap: int = 16
) -> Image:
    """uint8 `h w 3` -> uint8 `4h 4w 3` in fp32, clamped and rounded; tile by tile unless `tile` is 0."""
    image = torch.tensor(lq).permute(2, 0, 1)[None].float() / 255
    sr = restore_tiled(lambda part: network(part.to(device)), image, SCALE, tile, min(overlap, tile // 2))
    return (sr[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def open_network(weights: Path) -> HATFreq:
    """The network of a weights file, ready to restore on the CPU.

    Raises:
        WeightsError: the file cannot be used.
    """
    return build(load(weights))[0].eval()


def restorer(model: HATFreq, ensemble: int = 1) -> Callable[[Image], Image]:
    """uint8 `h w 3` -> uint8 `4h 4w 3`: whole images, fp32, on the CPU.

    Args:
        ensemble: 1 for a single pass, or 8.
    """
    forward = model if ensemble == 1 else lambda lq: self_ensemble(model, lq)
    return lambda lq: restore_uint8(forward, lq, torch.device("cpu"))


def find_sets(bench: Path, names: Sequence[str] = ()) -> dict[str, list[Pair]]:
    """The evaluation sets of a folder, the smallest first: its sub-folders that hold `HR` and `LRbicx4`.

    Args:
        names: some of them; all by default.

    Raises:
        UserError: there is none, or not the one asked for.
    """
    folders = {path.parent.name: path.parent for path in bench.glob("*/HR") if (path.parent / "LRbicx4").is_dir()}
    if not folders:
        raise UserError(f"{bench} holds no evaluation set: a folder with HR and LRbicx4 is one (docs/data.md)")
    if unknown := set(names) - set(folders):
        raise UserError(f"{bench} has no set {min(unknown)}: it has {', '.join(sorted(folders))}")
    sets = {name: load_pairs(folders[name] / "HR", folders[name] / "LRbicx4") for name in names or folders}
    return dict(sorted(sets.items(), key=lambda item: (len(item[1]), item[0])))
