"""Training pairs cut from high-resolution images, the low-resolution side made on the fly or taken as it is given.

Every pair is a pure function of (seed, step, index in the batch): there is no sampler state to save, and a resumed run
draws exactly the pairs that an undisturbed one would have seen.
"""

import multiprocessing
import signal
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count, islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from image_data.degradation import KERNEL_MARGIN, SCALE, bicubic_downscale
from image_data.geometry import cut_region, orient
from models.team08_HATFreq.image_io import ImageError
from training.lifetime import leave_with_parent
from training.run_log import say
from training.training_set import DataError, Image, TrainingSet
from utils.files import UserError, listed

MAX_DRAWS = 100  # draws for one sample before a training set counts as lost
Key = tuple[int, int]  # step, index in the batch


class LoaderError(UserError):
    """The loader's processes deliver nothing any more."""


class Crop(NamedTuple):
    """Where a pair comes from: position in an image after it was flipped and transposed (`orientation`, 0-7)."""

    number: int
    orientation: int
    top: int
    left: int


class Batch(NamedTuple):
    """Samples together.

    NumPy's arrays, not tensors: workers send them through pipes, without /dev/shm, which is small in containers.

    Attributes:
        hr_region: uint8 `b 4p+12 4p+12 3`: gt with `KERNEL_MARGIN` more pixels on each side, mirrored at the borders.
        lq: uint8 `b p p 3`: official low-resolution patches; black where they have to be made from the region. None if
            all have to be made.
        has_lq: bool `b`: whether lq is given.
        faults: messages about images that could not be read when they were drawn.
        lost: whether a sample is missing, because of them.
    """

    hr_region: NDArray[np.uint8]
    lq: NDArray[np.uint8] | None = None
    has_lq: NDArray[np.bool_] | None = None
    faults: tuple[str, ...] = ()
    lost: bool = False


class Patches(Dataset[Batch]):
    """Samples addressed by (step, index in the batch).

    Args:
        images: the training set.
        patch: side of lq in pixels.
        seed: decides, with the key, what is drawn.
        skip: draw another image for one that cannot be read, instead of giving the sample up.
    """

    def __init__(self, images: TrainingSet, patch: int, seed: int, skip: bool = False) -> None:
        self.images, self.patch, self.seed, self.skip = images, patch, seed, skip
        self.decoded: dict[int, Image] = {}

    def keep_decoded(self, gigabytes: float) -> int:
        """Decode the first images, as many as fit into memory (1e9 bytes a GB); returns how many.

        Decoding a 2K image takes far longer than cutting a patch from it. One that cannot be read is left for when it
        is drawn.
        """
        most = int(np.searchsorted(np.cumsum(3.0 * self.images.heights * self.images.widths), gigabytes * 1e9, "right"))
        if most:
            say(f"decoding {most:,} of {len(self.images):,} training images into memory (--cache_gb)")

        def keep(number: int) -> None:
            with suppress(ImageError):
                self.decoded[number] = self.images.decode(number)

        with ThreadPoolExecutor() as pool:
            list(pool.map(keep, range(most)))
        return len(self.decoded)

    def crop_at(self, step: int, index: int, attempt: int = 0) -> Crop:
        """The crop of a sample: images by their sampling weights, with replacement; positions on the scale's grid."""
        counter = np.array([0, attempt, index, step], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, 0], np.uint64), counter=counter))
        number = int(np.searchsorted(self.images.ends, rng.integers(self.images.ends[-1]), side="right"))
        orientation = int(rng.integers(8))
        h, w = int(self.images.heights[number]), int(self.images.widths[number])
        if orientation & 4:
            h, w = w, h
        top, left = (SCALE * int(rng.integers(n // SCALE - self.patch + 1)) for n in (h, w))
        return Crop(number, orientation, top, left)

    def files_at(self, step: int, batch: int) -> str:
        """The files of one step's batch, for messages."""
        return listed([self.images.images[self.crop_at(step, index).number].name for index in range(batch)])

    def __getitem__(self, key: Key) -> Batch:
        """A batch of one."""
        faults: list[str] = []
        for attempt in range(MAX_DRAWS if self.skip else 1):
            try:
                return self._cut(self.crop_at(*key, attempt))._replace(faults=tuple(faults))
            except ImageError as error:
                faults.append(str(error))
        side = SCALE * self.patch + 2 * KERNEL_MARGIN
        return Batch(np.zeros((1, side, side, 3), np.uint8), faults=tuple(faults), lost=True)

    def _cut(self, crop: Crop) -> Batch:
        image = self.decoded.get(crop.number)
        image = self.images.decode(crop.number) if image is None else image
        region = cut_region(orient(image, crop.orientation), crop.top, crop.left, SCALE * self.patch)[None]
        lq = self.images.decode_lr(crop.number)
        if lq is None:
            return Batch(region)
        top, left = crop.top // SCALE, crop.left // SCALE
        window = orient(lq, crop.orientation)[top : top + self.patch, left : left + self.patch]
        return Batch(region, np.ascontiguousarray(window)[None], np.ones(1, np.bool_))


def collate(samples: list[Batch]) -> Batch:
    regions = np.concatenate([sample.hr_region for sample in samples])
    faults = tuple(fault for sample in samples for fault in sample.faults)
    batch = Batch(regions, faults=faults, lost=any(sample.lost for sample in samples))
    given = next((sample.lq for sample in samples if sample.lq is not None), None)
    if given is None:
        return batch
    lq = [np.zeros_like(given) if sample.lq is None else sample.lq for sample in samples]
    has_lq = np.array([sample.lq is not None for sample in samples])
    return batch._replace(lq=np.concatenate(lq), has_lq=has_lq)


def to_pair(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """(lq, gt), float `b c h w` in [0, 1] on the device, where what is not given of lq is made."""
    region = _to_device(batch.hr_region, device)
    if batch.lq is None or batch.has_lq is None:
        lq = bicubic_downscale(region)
    else:
        lq = _to_device(batch.lq, device)
        if not batch.has_lq.all():
            has_lq = _to_device(batch.has_lq, device)
            lq = torch.where(has_lq[:, None, None, None], lq, bicubic_downscale(region))
    gt = region[:, KERNEL_MARGIN:-KERNEL_MARGIN, KERNEL_MARGIN:-KERNEL_MARGIN]
    return _to_network(lq), _to_network(gt)


def _to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    tensor = torch.as_tensor(array)  # from pinned memory the copy runs beside the GPU's work
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _to_network(batch: Tensor) -> Tensor:
    return batch.permute(0, 3, 1, 2).float().div_(255)


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


class StepBatches(Sampler[list[Key]]):
    """The keys from step `start` on that one process takes, `micro` at a time, without end.

    The shares of the processes follow one another in the global batch, which is the same for every number of them.
    """

    def __init__(self, start: int, micro: int, accumulation_steps: int = 1, rank: int = 0) -> None:
        self.start, self.micro, self.accumulation_steps, self.rank = start, micro, accumulation_steps, rank

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.accumulation_steps * self.micro
        for step in count(self.start):
            for begin in range(self.rank * share, (self.rank + 1) * share, self.micro):
                yield [(step, index) for index in range(begin, begin + self.micro)]


@contextmanager
def loading(patches: Patches, batches: StepBatches, workers: int, timeout: float) -> Iterator[Iterator[list[Batch]]]:
    """The parts of each step in order, made ahead by `workers` processes.

    Args:
        timeout: seconds after which a batch that has not come is an error.

    Raises:
        LoaderError: one of them was killed, or hangs.
    """
    # Forked workers share the decoded images; spawned ones would each hold a copy.
    fork = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # train.py has said it in a line
        loader = DataLoader(
            patches,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate,
            timeout=timeout if workers else 0,
            worker_init_fn=_start_worker if workers else None,
            multiprocessing_context=multiprocessing.get_context("fork" if fork else None) if workers else None,
        )
        iterator = iter(loader)
    try:
        yield iter(lambda: list(islice(iterator, batches.accumulation_steps)), [])
    except RuntimeError as error:
        if not str(error).startswith("DataLoader"):
            raise
        raise LoaderError(
            f"the loader's processes deliver nothing ({str(error).splitlines()[0]}): one hangs in a read (look at the "
            "disk), was killed for lack of memory (lower --workers or --cache_gb), or may open no more files (ulimit "
            "-n). The last checkpoint is untouched."
        ) from error


def _start_worker(_number: int) -> None:
    """Leave signals to the main process, which needs its workers until its checkpoint is written, and leave with it."""
    leave_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def report_faults(parts: list[Batch], told: set[str]) -> None:
    """Tell of images that could not be read when they were drawn, each once.

    Raises:
        DataError: a sample is lost; names the images and the remedy.
    """
    faults = list(dict.fromkeys(fault for part in parts for fault in part.faults))
    if any(part.lost for part in parts):
        remedy = "restore the image and start again, the last checkpoint is untouched"
        raise DataError(f"{listed(faults, '; ')}: {remedy}; or skip unreadable images with --bad_images skip")
    for fault in [fault for fault in faults if fault not in told]:
        told.add(fault)
        say(f"warning: unreadable image number {len(told)}, another is drawn instead: {fault}")
