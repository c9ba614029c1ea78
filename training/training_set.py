"""The training set: names, sizes by the headers, how often each image is drawn, and no evaluation image among them.

A million images are a few arrays, which forked workers share: some 100 MB. What cannot be decoded is found when it is
drawn.
"""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale
from image_data.mixture import Source
from image_data.sources import DataError, ImageFile, ImageList
from image_data.workers import in_order
from models.team08_HATFreq.image_io import ImageError
from training.run_log import say
from utils.files import atomic_write, listed, write_bytes

RECORD = "images.npz"  # of the run folder: the sizes, so that a restart reads no headers
LEFT_OUT = "left_out.csv"
SHARE = 512  # headers that a worker reads at once
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class TrainingSet:
    """Images in their order.

    Attributes:
        images, lr_images: their files; `lr_images` is empty if all are made on the fly, and so is a single one's path.
        heights, widths: in pixels, cut to multiples of the scale.
        ends: cumulative sampling weights: image i is drawn for the numbers from `ends[i - 1]` to `ends[i] - 1`.
        fingerprint: hash of sizes, order and sampling weights: of what (seed, step, index) draws from.
        left_out: how many images were left out.
    """

    images: ImageList
    lr_images: ImageList
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    ends: NDArray[np.int64]
    fingerprint: str = ""
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.images)

    def decode(self, number: int) -> Image:
        """uint8 `h w 3`, its sides cut to multiples of the scale.

        Raises:
            ImageError: it cannot be read, or has another size than its header said at the start.
        """
        return self._checked(self.images[number], cut_to_scale(self.images[number].read_rgb()), number, 1)

    def decode_lr(self, number: int) -> Image | None:
        """uint8 `h/4 w/4 3`: the official low-resolution image, None if it is made on the fly; errors as `decode`."""
        if not self.lr_images or not (file := self.lr_images[number]).path.name:
            return None
        lq = file.read_rgb()
        h, w = (int(sides[number]) // SCALE for sides in (self.heights, self.widths))
        return self._checked(file, lq[:h, :w] if max(lq.shape[0] - h, lq.shape[1] - w) <= 1 else lq, number, SCALE)

    def _checked(self, file: ImageFile, image: Image, number: int, scale: int) -> Image:
        expected = int(self.heights[number]) // scale, int(self.widths[number]) // scale
        if image.shape[:2] != expected:
            (h, w), (y, x) = image.shape[:2], expected
            raise ImageError(f"{file.name} is {w}x{h} pixels, and {x}x{y} are expected: restore it")
        return image


def open_training_set(
    sources: Sequence[Source], patch: int, evaluation: Sequence[ImageFile], skip: bool, folder: Path
) -> TrainingSet:
    """Look at names and headers, and refuse evaluation images.

    Args:
        sources: the images.
        patch: side of a low-resolution patch; an image's sides must be at least `patch * SCALE`.
        evaluation: the targets that are validated on.
        skip: leave unusable images out (listed in `LEFT_OUT`) instead of refusing the set.
        folder: the run's; the sizes found are kept there.

    Raises:
        DataError: images whose header cannot be read, too small or of the evaluation set (the first ten are named);
            with `skip`, when none is left.
    """
    images, lr_images = ImageList(), ImageList()
    for source in sources if len(sources) > 1 else ():
        images.extend(source.images)
    images = images or sources[0].images  # a million names are not held twice
    if any(source.lr_images for source in sources):
        for source in sources:
            lr_images.extend(source.lr_images or ImageList([ImageFile(Path())] * len(source.images)))
    sizes = file_sizes(images)
    heights, widths, sizes, faults = read_sizes(images, sizes, folder / RECORD, skip)
    for number in np.flatnonzero((np.minimum(heights, widths) < patch * SCALE) & (heights > 0)).tolist():
        size = f"{widths[number]}x{heights[number]} pixels, a patch of {patch} needs {patch * SCALE}"
        faults[number] = f"{images[number].name} is too small: {size}"
    for number, name in evaluation_images(images, sizes, evaluation).items():
        faults[number] = f"{images[number].name} is the evaluation image {name}"
    if faults and (not skip or len(faults) == len(images)):
        text = listed([faults[number] for number in sorted(faults)], "; ")
        remedy = "" if skip else "; remove or replace them, or leave them out with --bad_images skip"
        raise DataError(f"{len(faults)} of {len(images)} training images cannot be used: {text}{remedy}")
    write_left_out(folder / LEFT_OUT, [(images[number].name, faults[number]) for number in sorted(faults)])
    kept = np.ones(len(images), bool)
    kept[list(faults)] = False
    weights = sampling_weights(sources, heights, widths, kept)
    if faults:
        images, lr_images = (ImageList(f for f, use in zip(fs, kept, strict=True) if use) if fs else fs
                             for fs in (images, lr_images))  # fmt: skip
        heights, widths, sizes, weights = (values[kept] for values in (heights, widths, sizes, weights))
    ends = np.cumsum(weights)
    fingerprint = blake2b(digest_size=16)
    for values in (heights, widths, sizes, ends, file_sizes(lr_images)):
        fingerprint.update(values.tobytes())
    return TrainingSet(images, lr_images, heights, widths, ends, fingerprint.hexdigest(), len(faults))


def file_sizes(images: ImageList) -> NDArray[np.int64]:
    """Bytes of each file; -1 for one that is not there, 0 for no file."""
    sizes = np.frombuffer(images.sizes, np.int64).copy()
    for number, (path, in_shard) in enumerate(images.paths()):
        if not in_shard and path != b".":
            try:
                sizes[number] = os.stat(path).st_size
            except OSError:
                sizes[number] = -1  # its header cannot be read either, which names it
    return sizes


def read_sizes(
    images: ImageList, sizes: NDArray[np.int64], record: Path, skip: bool
) -> tuple[Any, Any, Any, dict[int, str]]:
    """Heights and widths cut to the scale, 0 for what cannot be read; file sizes; and the reasons by number.

    They come from the headers at the first start, and from the run's record later, but for files that have changed
    since: these are looked at again, or with `skip` are left for when they are drawn.
    """
    key = blake2b(images.names, digest_size=16)
    for values in (images.ends, images.offsets, images.sizes):
        key.update(values.tobytes())
    heights, widths, before = (np.zeros(len(images), kind) for kind in (np.int32, np.int32, np.int64))
    faults: dict[int, str] = {}
    unknown: Any = range(len(images))
    try:
        with np.load(record) as known:
            if str(known["key"]) == key.hexdigest():
                heights, widths, before = known["heights"], known["widths"], known["sizes"]
                faults = dict.fromkeys(np.flatnonzero(heights == 0).tolist(), "it could not be read at the first start")
                unknown = [] if skip else np.flatnonzero(before != sizes).tolist()
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # none, or a damaged one
        pass
    if unknown:
        say(f"reading the headers of {len(unknown):,} training images")
    for number, (height, width, fault) in zip(
        unknown,
        in_order(look, [images[n] for n in unknown] if len(unknown) < len(images) else images, SHARE),
        strict=True,
    ):
        heights[number], widths[number] = height - height % SCALE, width - width % SCALE
        before[number] = sizes[number]
        if fault:
            faults[number] = fault
    if unknown:
        with atomic_write(record) as file:
            np.savez(file, key=np.array(key.hexdigest()), heights=heights, widths=widths, sizes=before)
    return heights, widths, before, faults


def look(image: ImageFile) -> tuple[int, int, str]:
    """Height and width by the header, and why it cannot be read."""
    try:
        return *image.size_in_pixels(), ""
    except ImageError as error:
        return 0, 0, str(error)


def evaluation_images(images: ImageList, sizes: NDArray[np.int64], evaluation: Sequence[ImageFile]) -> dict[int, str]:
    """Number -> name of the evaluation image that the file equals; only files of equal size are hashed."""
    targets: dict[bytes, str] = {}
    lengths = set()
    for target in evaluation:
        content = target.content()
        targets[blake2b(content).digest()] = target.name
        lengths.add(len(content))
    suspects = np.flatnonzero(np.isin(sizes, list(lengths)))
    hashes = ((int(number), blake2b(images[number].content()).digest()) for number in suspects)
    return {number: targets[digest] for number, digest in hashes if digest in targets}


def sampling_weights(
    sources: Sequence[Source], heights: NDArray[np.int32], widths: NDArray[np.int32], kept: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """How often each is drawn in relation to the others, at least 1: area x weight, scaled to its source's weight."""
    areas = np.where(kept, heights.astype(np.int64) * widths, 0)
    if not any(source.weight for source in sources):
        return areas
    number = np.repeat(np.arange(len(sources)), [len(source.images) for source in sources])
    totals = np.bincount(number, areas, len(sources))
    factors = np.divide([s.weight for s in sources], totals, out=np.zeros(len(sources)), where=totals > 0)
    scaled = areas * factors[number]
    return np.maximum(1, np.rint(scaled / scaled.sum() * 2**52)).astype(np.int64)


def write_left_out(path: Path, rows: list[tuple[str, str]]) -> None:
    """List what was left out, with the reasons; no file if there is nothing."""
    path.unlink(missing_ok=True)
    if not rows:
        return
    content = io.StringIO(newline="")
    csv.writer(content).writerows([("name", "reason"), *rows])
    write_bytes(path, content.getvalue().encode(errors="surrogateescape"))
    say(f"warning: {len(rows)} training images are left out, as {rows[0][1]}; all are in {path}")
