"""Pairs of a high-resolution image and its low-resolution one, which is given or made by MATLAB's bicubic."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale, fits
from image_data.sources import MAX_LISTED, DataError, ImageFile, ImageList, expand
from utils.resize import imresize

Image = NDArray[np.uint8]
LR_SUFFIX = "x4"  # official low-resolution images may carry it: 0001.png <-> 0001x4.png
DETAIL = 9  # LR pixels over which `same_content` takes the local mean
SAME = 0.25  # least correlation of the detail of an image and its LR image; unrelated photographs reach 0.15


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


def match_lr(images: Sequence[ImageFile], lr_images: Sequence[ImageFile], where: str) -> ImageList:
    """The low-resolution image of each image: named alike, or with `x4` after the name.

    Args:
        where: what the low-resolution images were named by, for messages.

    Raises:
        DataError: some have none (the first ten are named), or several have the same name.
    """
    remedy = f"they are named like the target, or with {LR_SUFFIX} after its name"
    return _match(images, lr_images, where, (LR_SUFFIX, ""), "low-resolution images", remedy)


def match_teacher(images: Sequence[ImageFile], restorations: Sequence[ImageFile], where: str) -> ImageList:
    """The teacher's restoration of each image: named alike; arguments and errors as `match_lr`."""
    remedy = "make them with the same command of scripts.make_teacher, which resumes"
    return _match(images, restorations, where, ("",), "teacher's restorations", remedy)


def _match(
    images: Sequence[ImageFile],
    others: Sequence[ImageFile],
    where: str,
    suffixes: tuple[str, ...],
    what: str,
    remedy: str,
) -> ImageList:
    """The partner of each image: its name is the image's and one of the suffixes, of which the first is preferred."""
    by_stem = {image.stem: image for image in others}
    for side, stems in (("the targets", [i.stem for i in images]), (where, [i.stem for i in others])):
        if doubled := [stem for stem, count in Counter(stems).items() if count > 1]:
            raise DataError(
                f"{side}: several images are called {', '.join(doubled[:MAX_LISTED])}: pairs are matched by name"
            )
    found = [next(filter(None, (by_stem.get(image.stem + one) for one in suffixes)), None) for image in images]
    missing = [image.name for image, partner in zip(images, found, strict=True) if partner is None]
    if missing:
        raise DataError(
            f"{where} lacks the {what} of {len(missing)} targets: {', '.join(missing[:MAX_LISTED])}; {remedy}"
        )
    return ImageList(image for image in found if image is not None)


def same_content(image: Image, lq: Image) -> bool:
    """Whether an image and a low-resolution one show the same, however the latter was made.

    Compared is the detail of both, what differs from the local mean: brightness and colour play no part.

    Args:
        image: uint8 `4h 4w 3`.
        lq: uint8 `h w 3`.

    Returns:
        True also where there is too little detail to tell.
    """
    h, w = lq.shape[:2]
    shrunk = cv2.resize(np.ascontiguousarray(image), (w, h), interpolation=cv2.INTER_AREA)
    details = []
    for one in (shrunk, np.ascontiguousarray(lq)):
        grey = cv2.cvtColor(one, cv2.COLOR_RGB2GRAY).astype(np.float32)
        details.append(grey - cv2.blur(grey, (DETAIL, DETAIL)))
    first, second = details
    energy = float(np.vdot(first, first)) * float(np.vdot(second, second))
    return energy < (h * w) ** 2 or abs(float(np.vdot(first, second))) > SAME * energy**0.5
