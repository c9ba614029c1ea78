"""Sub-images: large photographs cut into overlapping squares, which a loader decodes in a few milliseconds."""

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale, fits
from image_data.headers import read_header
from image_data.sources import MAX_LISTED, DataError, ImageFile
from image_data.workers import in_order
from models.team08_HATFreq.image_io import ImageError, list_images, read_picture, read_rgb, write_png
from models.team08_HATFreq.system import make_folder, write_bytes

RECORD = "sub_images.json"  # beside the sub-images: how they were cut
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

    @property
    def folders(self) -> list[Path]:
        return [self.out, *([self.out_lr] if self.out_lr else [])]

    def places(self, height: int, width: int) -> list[tuple[int, int]]:
        """Top and left of each window of a photograph, whose sides are cut to multiples of the scale."""
        tops, lefts = (positions(length - length % SCALE, self.side, self.step) for length in (height, width))
        return [(top, left) for top in tops for left in lefts]


@dataclass(frozen=True)
class Pieces:
    """What was made of a photograph: `count` sub-images of `size` bytes in all, or why it cannot be read."""

    count: int = 0
    size: int = 0
    fault: str = ""


def positions(length: int, side: int, step: int) -> list[int]:
    """Where windows start along an axis: every `step`, the last one flush with the end; the first alone if it is short.

    Args:
        length, side, step: in pixels; positions are multiples of the step but for the last.
    """
    if length <= side:
        return [0]
    return [*range(0, length - side, step), length - side]


def cut_all(images: Sequence[ImageFile], lr_images: Sequence[ImageFile | None], cut: Cut) -> Iterator[Pieces]:
    """Cut photographs, and their official low-resolution images on the same grid, by all cores.

    A photograph whose sub-images are all there, and not older than it is, is passed over. Each is written whole or not
    at all: killed at any moment, the same call ends with the same files.

    Args:
        images, lr_images: the photographs and, in the same order, their low-resolution images or None.
        cut: how and where.

    Yields:
        What was made of each photograph, in order.

    Raises:
        DataError: photographs of one name, or folders that hold sub-images cut otherwise.
    """
    doubled = [stem for stem, count in Counter(image.stem for image in images).items() if count > 1]
    if doubled:
        raise DataError(
            f"several photographs are called {', '.join(doubled[:MAX_LISTED])}, and sub-images are named by them: "
            "rename them, or cut each folder to an --out of its own"
        )
    for folder in cut.folders:
        make_folder(folder)
        _check_record(folder, {"side": cut.side, "step": cut.step})
    yield from in_order(partial(_cut, cut=cut), list(zip(images, lr_images, strict=True)))


def strangers(images: Sequence[ImageFile], folder: Path) -> list[str]:
    """Images in a folder that were not cut from these photographs, but by an earlier call from others."""
    stems = {image.stem for image in images}
    return [path.name for path in list_images(folder) if path.stem.rpartition("_s")[0] not in stems]


def _check_record(folder: Path, record: dict[str, int]) -> None:
    """Refuse to mix sub-images cut in different ways; note how they are cut in a folder that holds none."""
    path = folder / RECORD
    found: Any = None
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except (ValueError, OSError) as error:
            raise DataError(f"{path} cannot be read ({error}): name another --out, or empty {folder}") from error
    elif list_images(folder):
        found = "images, and no note how they were cut"
    if found is None:
        write_bytes(path, f"{json.dumps(record)}\n".encode())
    elif found != record:
        raise DataError(f"{folder} holds {found}, this would be {record}: name another --out, or empty it")


def _cut(pair: Pair, cut: Cut) -> Pieces:
    """Cut one photograph, unless that is done."""
    image, lr = pair
    try:
        height, width, changed = _size(image)
        places = cut.places(height, width)
        names = [_name(image.stem, number) for number in range(1, len(places) + 1)]
        if lr is not None:
            lr_height, lr_width, lr_changed = _size(lr)
            changed = max(changed, lr_changed)
            if not fits(height, lr_height, width, lr_width):
                raise ImageError(
                    f"{lr.name} is {lr_width}x{lr_height}, {image.name} needs {width // SCALE}x{height // SCALE}"
                )
        if not _finished(cut.folders, names, changed):
            _write(image, lr, cut, names, places)
    except ImageError as error:
        return Pieces(fault=str(error))
    return Pieces(len(names), sum((cut.out / name).stat().st_size for name in names))


def _size(image: ImageFile) -> tuple[int, int, int]:
    """Height, width and time of change by the header; raises ImageError."""
    header = read_header(image)
    if not header.fault and min(header.height, header.width) < SCALE:
        raise ImageError(f"{image.name} has {header.width}x{header.height} pixels, less than the scale: take it out")
    if header.fault:
        raise ImageError(header.fault)
    return header.height, header.width, header.changed


def _finished(folders: list[Path], names: list[str], changed: int) -> bool:
    """Whether all sub-images are there and not older than what they are cut from."""
    try:
        return all((folder / name).stat().st_mtime_ns >= changed for folder in folders for name in names)
    except FileNotFoundError:
        return False


def _read(image: ImageFile) -> NDArray[np.uint8]:
    """uint8 `h w 3`, or `h w` of a grey file: the trainer's audit tells grey files, and so their sub-images."""
    content = image.content()
    picture = read_picture(image.name, content)
    plain = picture.rgb.dtype == np.uint8 and picture.alpha is None
    rgb = picture.rgb if plain else read_rgb(image.name, content)
    return rgb[..., 0] if picture.grey else rgb


def _write(image: ImageFile, lr: ImageFile | None, cut: Cut, names: list[str], places: list[tuple[int, int]]) -> None:
    """Write the sub-images of a photograph and of its low-resolution image, both read before anything is written."""
    parts = [(cut.out, cut_to_scale(_read(image)), 1)]
    if lr is not None and cut.out_lr is not None:
        height, width = parts[0][1].shape[:2]
        parts.append((cut.out_lr, _read(lr)[: height // SCALE, : width // SCALE], SCALE))
    for folder, samples, shrunk in parts:
        for name, (top, left) in zip(names, places, strict=True):
            y, x, side = top // shrunk, left // shrunk, cut.side // shrunk
            write_png(folder / name, np.ascontiguousarray(samples[y : y + side, x : x + side]))
        _remove_further(folder, image.stem, len(names))


def _remove_further(folder: Path, stem: str, count: int) -> None:
    """Remove the sub-images that a larger photograph of this name had and this one has not."""
    for number in itertools.count(count + 1):
        try:
            os.unlink(folder / _name(stem, number))
        except FileNotFoundError:
            return


def _name(stem: str, number: int) -> str:
    return f"{stem}_s{number:03}.png"
