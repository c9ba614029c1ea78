"""Pairs of a high-resolution image and its low-resolution one, which is given or made by MATLAB's bicubic."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale, fits
from image_data.sources import DataError, ImageFile, ImageList, expand
from utils.files import listed, refuse_doubled
from utils.resize import imresize

Image = NDArray[np.uint8]
LR_SUFFIX = "x4"  # official low-resolution images may carry it: 0001.png <-> 0001x4.png


@dataclass(frozen=True)
class Pair:
    """A target and its low-resolution image, uint8 `h w 3`; the target's sides are multiples of the scale."""

    name: str
    lq: Image
    target: Image


class PairFiles:
    """A set of pairs by their files; each is read when it is asked for.

    Args:
        hr: the targets, named as training images are (`image_data.sources.expand`).
        lr: their low-resolution images; empty to make them with MATLAB's bicubic.

    Raises:
        DataError: a missing folder, or a target without its pair (the first ten are named).
    """

    def __init__(self, hr: str | Path, lr: str | Path = "") -> None:
        self.targets = expand(str(hr))
        self.lr_images = match_lr(self.targets, expand(str(lr)), str(lr)) if lr else None

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Pair:
        """Read one pair.

        Raises:
            DataError: sizes that do not fit.
            ImageError: an image that cannot be read.
        """
        file = self.targets[index]
        target = cut_to_scale(whole := file.read_rgb())
        if not target.size:
            raise DataError(f"{file.name} is smaller than {SCALE} pixels: remove it from the evaluation set")
        if self.lr_images is None:
            return Pair(file.stem, imresize(target, 1 / SCALE), target)
        lr_file = self.lr_images[index]
        lq = lr_file.read_rgb()
        if not fits(whole.shape[0], lq.shape[0], whole.shape[1], lq.shape[1]):
            raise DataError(
                f"{lr_file.name} is {lq.shape[1]}x{lq.shape[0]}, {file.name} needs {target.shape[1] // SCALE}x"
                f"{target.shape[0] // SCALE}: give low-resolution images made at x{SCALE}"
            )
        return Pair(file.stem, lq[: target.shape[0] // SCALE, : target.shape[1] // SCALE], target)

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))


def load_pairs(hr: str | Path, lr: str | Path = "") -> list[Pair]:
    """Read a set of pairs, sorted by name; arguments and errors as `PairFiles`."""
    return list(PairFiles(hr, lr))


def partner_stems(stem: str) -> list[str]:
    """The stems under which an image is found: its own, and without `x4` or `_x4` at its end."""
    plain = stem.removesuffix(LR_SUFFIX).removesuffix("_") if stem.endswith(LR_SUFFIX) else ""
    return [stem, plain] if plain else [stem]


def match_lr(images: Sequence[ImageFile], lr_images: Sequence[ImageFile], where: str) -> ImageList:
    """The low-resolution image of each image: named alike, or with `x4` after the name, which is preferred.

    Args:
        where: how the low-resolution images were named, for messages.

    Raises:
        UserError: some have none (the first ten are named), or several have the same name.
    """
    for stems in ([image.stem for image in images], [image.stem for image in lr_images]):
        refuse_doubled(stems, f"pairs of {where} are matched by name")
    by_stem: dict[str, ImageFile] = {}
    for image in sorted(lr_images, key=lambda image: len(image.stem)):  # with x4 last: it is preferred
        by_stem |= dict.fromkeys(partner_stems(image.stem), image)
    pairs = [by_stem.get(image.stem) for image in images]
    if missing := [image.name for image, lr_image in zip(images, pairs, strict=True) if lr_image is None]:
        raise DataError(
            f"{where} lacks the low-resolution images of {len(missing)} targets: {listed(missing)}; they are named "
            f"like the target, or with {LR_SUFFIX} after its name"
        )
    return ImageList(image for image in pairs if image is not None)
