"""Training sets made ready: sub-images of large photographs, lists, tar shards. Each can be stopped and goes on."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.team08_HATFreq.images import TEMPORARY, ImageError, size_of, write_bytes
from training.degrade import SCALE
from training.mixture import pair_lows
from training.sources import DataError, ImageFile

Image = NDArray[np.uint8]
FAST_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]
Outcome = tuple[int, str]  # what was made of a file (images, or bytes), and why it could not be read; one of them


def positions(length: int, side: int, step: int) -> list[int]:
    """Where windows start along an axis: every `step`, the last one flush with the end; the first alone if it is short.

    Args:
        length, side, step: in pixels; positions are multiples of the step but for the last.
    """
    if length <= side:
        return [0]
    starts = list(range(0, length - side, step))
    return [*starts, length - side]


def cut_all(
    images: list[ImageFile], lows: list[ImageFile], out: Path, out_low: Path | None, side: int, step: int
) -> Iterator[tuple[ImageFile, Outcome]]:
    """Cut photographs into overlapping sub-images, `0001_s001.png` and so on, by all cores.

    A photograph whose last sub-image is there is passed over: it is written after the others.

    Args:
        images: photographs.
        lows: their official low-resolution images, cut on the same grid; empty for none.
        out, out_low: folders; made.
        side, step: of the sub-images in pixels, multiples of the scale.

    Yields:
        Each photograph with the number of its sub-images, or why it cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    pairs = list(pair_lows(images, lows, str(lows[0].path.parent))) if lows else [None] * len(images)
    if out_low:
        out_low.mkdir(parents=True, exist_ok=True)
    work = partial(_cut, out=out, out_low=out_low, side=side, step=step)
    with ProcessPoolExecutor() as pool:
        yield from zip(images, pool.map(work, images, pairs, chunksize=1), strict=True)


def usable(images: list[ImageFile], min_side: int) -> Iterator[tuple[ImageFile, Outcome]]:
    """Each image with its shorter side in pixels by its header, or why it cannot be listed; by all cores."""
    with ProcessPoolExecutor() as pool:
        yield from zip(images, pool.map(partial(_side, min_side=min_side), images, chunksize=256), strict=True)


def pack(images: list[ImageFile], out: Path, stem: str, shard_bytes: int) -> Iterator[tuple[Path, int, int]]:
    """Pack images, their bytes unchanged, into plain tar shards `stem-00000.tar` of about so many bytes.

    The same images give the same bytes. A shard that is there and as long as it will be is passed over.

    Yields:
        Each shard, with the number of images in it and their bytes.

    Raises:
        DataError: two images of the same name in one shard.
        ImageError: an image cannot be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    for number, (members, total) in enumerate(_shares(images, shard_bytes)):
        path = out / f"{stem}-{number:05}.tar"
        _write_shard(path, members)
        yield path, len(members), total


def write_list(path: Path, names: list[str], about: str) -> None:
    """Write a list that the trainer reads: `#` lines that say what it is, then a name a line."""
    head = "".join(f"# {line}\n" for line in about.splitlines())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (head + "".join(f"{name}\n" for name in names)).encode())


def _cut(image: ImageFile, low: ImageFile | None, out: Path, out_low: Path | None, side: int, step: int) -> Outcome:
    try:
        height, width = size_of(image.path) if not image.member else image.read_rgb().shape[:2]
        places = _grid(height - height % SCALE, width - width % SCALE, side, step)
        names = [f"{image.stem}_s{number:03}.png" for number in range(1, len(places) + 1)]
        if (out / names[-1]).exists() and (low is None or out_low is None or (out_low / names[-1]).exists()):
            return len(places), ""
        if low is not None and out_low is not None:
            _write_windows(low.read_rgb(), out_low, names, places, side, SCALE)
        _write_windows(image.read_rgb(), out, names, places, side, 1)
    except ImageError as error:
        return 0, str(error)
    return len(places), ""


def _grid(height: int, width: int, side: int, step: int) -> list[tuple[int, int]]:
    return [(top, left) for top in positions(height, side, step) for left in positions(width, side, step)]


def _write_windows(
    image: Image, folder: Path, names: list[str], places: list[tuple[int, int]], side: int, shrunk: int
) -> None:
    """Write the windows of an image that is `shrunk` times smaller than the grid's."""
    for name, (top, left) in zip(names, places, strict=True):
        y, x, n = top // shrunk, left // shrunk, side // shrunk
        window = np.ascontiguousarray(image[y : y + n, x : x + n, ::-1])
        window = window[: window.shape[0] - window.shape[0] % (SCALE // shrunk)]
        window = window[:, : window.shape[1] - window.shape[1] % (SCALE // shrunk)]
        ok, encoded = cv2.imencode(".png", window, FAST_PNG)
        if not ok:
            raise OSError(f"{folder / name}: OpenCV could not encode it as PNG")
        write_bytes(folder / name, encoded.tobytes())


def _side(image: ImageFile, min_side: int) -> Outcome:
    try:
        side = min(size_of(image.path)) if not image.member else min(image.read_rgb().shape[:2])
    except ImageError as error:
        return 0, str(error)
    return (side, "") if side >= min_side else (0, f"{image.name} is too small: its shorter side has {side} pixels")


def _shares(images: list[ImageFile], shard_bytes: int) -> Iterator[tuple[list[ImageFile], int]]:
    """Images in their order, shared out to shards of about so many bytes."""
    share: list[ImageFile] = []
    total = 0
    for image in images:
        try:
            size = image.size or image.path.stat().st_size
        except OSError as error:
            raise ImageError(f"{image.name} cannot be read ({error.strerror}): restore it") from error
        if share and total + size > shard_bytes:
            yield share, total
            share, total = [], 0
        share.append(image)
        total += size
    if share:
        yield share, total


def _write_shard(path: Path, members: list[ImageFile]) -> None:
    """Write one shard under a temporary name, then rename it; nothing is done if it stands there whole."""
    names = [_member_name(image) for image in members]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise DataError(f"several images of {path.name} are called {double}: rename them, or pack the folders apart")
    sizes = [image.size or image.path.stat().st_size for image in members]
    blocks = sum(tarfile.BLOCKSIZE * (1 + -(-size // tarfile.BLOCKSIZE)) for size in sizes) + 2 * tarfile.BLOCKSIZE
    if path.exists() and path.stat().st_size == -(-blocks // tarfile.RECORDSIZE) * tarfile.RECORDSIZE:
        return
    temporary = path.with_name(TEMPORARY + path.name)
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as shard:
        for image, name in zip(members, names, strict=True):
            content = image.content()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    os.replace(temporary, path)


def _member_name(image: ImageFile) -> str:
    """Folder and file name, as ImageNet's `n01440764/n01440764_10026.JPEG`; a long one keeps a hash of its start."""
    name = image.member or f"{image.path.parent.name}/{image.path.name}"
    if len(name.encode()) <= 100:  # what a plain tar header holds
        return name
    return f"{hashlib.sha1(name.encode()).hexdigest()[:12]}{Path(name).suffix}"
