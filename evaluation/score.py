"""The score of a method on pairs, in the organisers' metric: for the trainer, releases and benchmarks alike."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from image_data.pairs import Pair
from models.team08_HATFreq.tiling import restore_tiled
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
