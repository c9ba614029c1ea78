"""Sub-images: large photographs cut into overlapping squares, which a loader decodes in a few milliseconds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale, fits
from image_data.sources import ImageFile
from image_data.workers import in_order
from models.team08_HATFreq.image_io import ImageError, write_png
from utils.files import make_folder, refuse_doubled

Pair = tuple[ImageFile, ImageFile | None]  # a photograph and its official low-resolution image


@dataclass(frozen=True)
class Cut:
    """How photographs are cut, and into which folder.

    Attributes:
        out: folder of the sub-images.
        out_lr: folder of those of the official low-resolution images; None without.
        side, step: of the sub-images, and from one to the next, in pixels; multiples of the scale.
    """

    out: Path
    out_lr: Path | None = None
    side: int = 480
    step: int = 240


def positions(length: int, side: int, step: int) -> list[int]:
    """Where windows start along an axis: every `step`, the last one flush with the end; the first alone if it is short.

    Args:
        length, side, step: in pixels; positions are multiples of the step but for the last.
    """
    return [0] if length <= side else [*range(0, length - side, step), length - side]


def cut_all(images: Sequence[ImageFile], lr_images: Sequence[ImageFile | None], cut: Cut) -> Iterator[tuple[int, str]]:
    """Cut photographs, and their official low-resolution images on the same grid, by all cores.

    A sub-image that exists is left alone, and each is written whole or not at all: killed at any moment, the same call
    ends with the same files.

    Yields:
        Of each photograph, in order, the number of sub-images; and why it cannot be read, empty if it can.

    Raises:
        UserError: photographs of one name.
    """
    refuse_doubled([image.stem for image in images], "sub-images are named by them: cut each folder to its own --out")
    for folder in filter(None, (cut.out, cut.out_lr)):
        make_folder(folder)
    yield from in_order(partial(_cut, cut=cut), list(zip(images, lr_images, strict=True)))


def _cut(pair: Pair, cut: Cut) -> tuple[int, str]:
    image, lr = pair
    try:
        height, width = image.size_in_pixels()
        if min(height, width) < SCALE:
            raise ImageError(f"{image.name} has {width}x{height} pixels, less than the scale: take it out")
        tops, lefts = (positions(length - length % SCALE, cut.side, cut.step) for length in (height, width))
        windows = [(top, left) for top in tops for left in lefts]
        names = [f"{image.stem}_s{number:03}.png" for number in range(1, len(windows) + 1)]
        folders = [cut.out, *([cut.out_lr] if lr is not None and cut.out_lr else [])]
        if all((folder / name).exists() for folder in folders for name in names):
            return len(names), ""
        parts = [(cut.out, cut_to_scale(image.read_rgb()), 1)]
        if lr is not None and cut.out_lr:
            lq = lr.read_rgb()
            if not fits(height, lq.shape[0], width, lq.shape[1]):
                size = f"{lq.shape[1]}x{lq.shape[0]}"
                raise ImageError(f"{lr.name} is {size}, {image.name} needs {width // SCALE}x{height // SCALE}")
            parts.append((cut.out_lr, lq[: height // SCALE, : width // SCALE], SCALE))
    except ImageError as error:
        return 0, str(error)
    for folder, samples, shrunk in parts:
        for name, (top, left) in zip(names, windows, strict=True):
            y, x, side = top // shrunk, left // shrunk, cut.side // shrunk
            write_png(folder / name, np.ascontiguousarray(samples[y : y + side, x : x + side]))
    return len(names), ""
