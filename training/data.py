"""Training pairs cut from high-resolution photographs, the low-resolution side made on the fly.

Every pair is a pure function of (seed, step, index in the batch): there is no sampler state to save, and a resumed run
goes on with exactly the pairs that an undisturbed one would have seen.
"""

import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from models.team08_HATFreq.images import ImageError, list_images, read_rgb
from training.sources import DataError
from utils.resize import imresize

SCALE = 4
MARGIN = 2  # low-resolution pixels; the bicubic kernel reaches 6 high-resolution pixels beyond a patch
NAMED = 10  # how many unusable images a message lists

Image = NDArray[np.uint8]
Key = tuple[int, int]  # step, index in the batch
T = TypeVar("T")


@dataclass(frozen=True)
class Photograph:
    """A training image that passed the audit; `pixels` is None when it is decoded anew for every crop."""

    path: Path
    height: int
    width: int
    digest: str
    pixels: Image | None

    def read(self) -> Image:
        """uint8 `h w 3`, its bottom and right cut to multiples of the scale."""
        return self.pixels if self.pixels is not None else read_cropped(self.path)


@dataclass(frozen=True)
class Crop:
    """Where a pair comes from: position in the photograph after it was flipped and transposed (`orientation`, 0-7)."""

    photograph: Photograph
    orientation: int
    top: int
    left: int


class Patches(Dataset[Any]):
    """Pairs (lq, gt), uint8 `h w 3`, addressed by (step, index in the batch)."""

    def __init__(self, photographs: list[Photograph], patch: int, seed: int) -> None:
        self.photographs = photographs
        self.patch = patch
        self.seed = seed
        self.area_ends = np.cumsum([photograph.height * photograph.width for photograph in photographs])

    def __getitem__(self, key: Key) -> tuple[Image, Image]:
        crop = self.crop_at(*key)
        return cut_pair(orient(crop.photograph.read(), crop.orientation), crop.top, crop.left, self.patch)

    def crop_at(self, step: int, index: int) -> Crop:
        """The crop of a pair: photographs in proportion to their area, positions on the grid of the scale."""
        counter = np.array([0, 0, index, step], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, 0], np.uint64), counter=counter))
        number = int(np.searchsorted(self.area_ends, rng.integers(self.area_ends[-1]), side="right"))
        photograph, orientation = self.photographs[number], int(rng.integers(8))
        h, w = photograph.height, photograph.width
        if orientation & 4:
            h, w = w, h
        top, left = (SCALE * int(rng.integers(n // SCALE - self.patch + 1)) for n in (h, w))
        return Crop(photograph, orientation, top, left)

    def files_at(self, step: int, batch: int) -> list[str]:
        """The files of one step's batch, for messages."""
        return [str(self.crop_at(step, index).photograph.path) for index in range(batch)]


class StepBatches(Sampler[list[Key]]):
    """The keys of the steps `start` to `end - 1` that one process takes, `micro` at a time and `passes` times a step.

    The shares of the processes follow one another in the global batch, which is the same for every number of them.
    """

    def __init__(self, start: int, end: int, micro: int, passes: int = 1, rank: int = 0) -> None:
        self.start, self.end, self.micro, self.passes, self.rank = start, end, micro, passes, rank

    def __iter__(self) -> Iterator[list[Key]]:
        first = self.rank * self.passes * self.micro
        for step in range(self.start, self.end):
            for begin in range(first, first + self.passes * self.micro, self.micro):
                yield [(step, index) for index in range(begin, begin + self.micro)]

    def __len__(self) -> int:
        return (self.end - self.start) * self.passes


def by_step(batches: Iterable[T], passes: int) -> Iterator[list[T]]:
    """The batches of each step together."""
    iterator = iter(batches)
    while step := list(islice(iterator, passes)):
        yield step


def make_loader(patches: Patches, batches: StepBatches, workers: int, pin_memory: bool) -> DataLoader[Any]:
    """Batches (lq, gt) in order, uint8 `b h w 3`, made ahead by `workers` processes."""
    # Forked workers share the decoded photographs; spawned ones would each hold a copy.
    fork = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        patches,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_ignore_signals,
        multiprocessing_context="fork" if fork else None,
    )


def to_network(batch: Tensor, device: torch.device) -> Tensor:
    """uint8 `b h w c` -> float `b c h w` in [0, 1] on the device."""
    return batch.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


def cut_pair(image: Image, top: int, left: int, patch: int) -> tuple[Image, Image]:
    """A pair (lq, gt) whose lq equals the same window of the whole image's low-resolution version, bit for bit.

    The region that is resized is larger than gt by a margin, which is cut off again. At the image's borders there is no
    margin to take: the region ends where the image ends, and the resize's border rule acts there as it would on the
    whole image. So every pixel of a photograph is trained on.

    Args:
        image: uint8 `h w 3`, sides multiples of the scale and at least `patch * SCALE`.
        top, left: position of gt in pixels, multiples of the scale.
        patch: side of lq in pixels.
    """
    side, margin = SCALE * patch, SCALE * MARGIN
    y, x = max(0, top - margin), max(0, left - margin)
    lq = imresize(image[y : top + side + margin, x : left + side + margin], 1 / SCALE)
    y, x = (top - y) // SCALE, (left - x) // SCALE
    gt = image[top : top + side, left : left + side]
    return lq[y : y + patch, x : x + patch].copy(), gt.copy()


def orient(image: Image, orientation: int) -> Image:
    """One of the eight flips and quarter turns of `h w c`, as a view: bit 2 transposes, then bits 1 and 0 flip."""
    if orientation & 4:
        image = image.swapaxes(0, 1)
    if orientation & 2:
        image = image[::-1]
    return image[:, ::-1] if orientation & 1 else image


def read_cropped(path: Path) -> Image:
    """An image as uint8 `h w 3`, its bottom and right cut to multiples of the scale.

    Raises:
        ImageError: the file cannot be read as an opaque image.
    """
    image = read_rgb(path)
    h, w = image.shape[:2]
    return image[: h - h % SCALE, : w - w % SCALE]


def digest(image: Image) -> str:
    """A hash of an image's size and pixels."""
    return blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16, person=b"%dx%d" % image.shape[:2]).hexdigest()


def audit(folders: tuple[str, ...], patch: int, excluded: dict[str, str], cache_gb: float) -> list[Photograph]:
    """Read every training image once, and refuse the set if any cannot or must not be trained on.

    Args:
        folders: where the images lie.
        patch: side of a low-resolution patch; an image's sides must be at least `patch * SCALE`.
        excluded: digest -> name of the evaluation images.
        cache_gb: how many GB (1e9 bytes) of decoded images to keep, in the order of the list.

    Raises:
        DataError: an empty or missing folder; images unreadable, too small or of the evaluation set (the first ten
            are named).
    """
    paths = [path for folder in folders for path in images_in(folder)]
    photographs: list[Photograph] = []
    faults: list[str] = []
    room = cache_gb * 1e9
    with ThreadPoolExecutor() as pool:
        for path, found in zip(paths, pool.map(_inspect, paths), strict=True):
            if isinstance(found, str):
                faults.append(found)
                continue
            image, pixels_digest = found
            if fault := _fault(image, patch, excluded.get(pixels_digest)):
                faults.append(f"{path}: {fault}")
                continue
            room -= image.nbytes
            pixels = image if room >= 0 else None
            photographs.append(Photograph(path, image.shape[0], image.shape[1], pixels_digest, pixels))
    if faults:
        raise DataError(_fault_message(faults, len(paths)))
    return photographs


def images_in(folder: str) -> list[Path]:
    """The images of a folder, sorted.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder: give a folder of images")
    paths = list_images(Path(folder))
    if not paths:
        raise DataError(f"{folder} holds no images: give a folder of PNG or JPEG files")
    return paths


def fingerprint(photographs: list[Photograph]) -> str:
    """A hash of the training set, pixels and order: what (seed, step, index) draws from."""
    return blake2b("".join(photograph.digest for photograph in photographs).encode(), digest_size=16).hexdigest()


def _inspect(path: Path) -> tuple[Image, str] | str:
    """An image and its digest, or why it cannot be read."""
    try:
        image = read_cropped(path)
    except ImageError as error:
        return str(error)  # names the file
    except OSError as error:
        return f"{path}: {error}"
    return image, digest(image)


def _fault(image: Image, patch: int, twin: str | None) -> str:
    """Why an image cannot be trained on, `twin` being the evaluation image that it equals; empty if it can."""
    h, w = image.shape[:2]
    if min(h, w) < patch * SCALE:
        return f"{w}x{h} pixels, smaller than the {patch * SCALE} that a patch of {patch} needs"
    return f"equals the evaluation image {twin}" if twin else ""


def _fault_message(faults: list[str], total: int) -> str:
    listed = "\n".join(f"  {fault}" for fault in faults[:NAMED])
    more = f"\n  and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return f"{len(faults)} of {total} training images cannot be used; remove or replace them:\n{listed}{more}"


def _ignore_signals(_worker: int) -> None:
    # Ctrl-C and a cluster's preemption reach every process of the group: the main process alone decides when to end,
    # and needs the workers until its checkpoint is written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
