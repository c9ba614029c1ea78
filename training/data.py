"""Training pairs cut from high-resolution photographs, the low-resolution side made on the fly or taken as it is given.

Every pair is a pure function of (seed, step, index in the batch): there is no sampler state to save, and a resumed run
draws exactly the pairs that an undisturbed one would have seen.
"""

import multiprocessing
import os
import signal
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from ctypes import c_bool
from hashlib import blake2b
from itertools import count, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from image_data.degradation import KERNEL_MARGIN, SCALE, bicubic_downscale
from image_data.geometry import cut_region, orient
from models.team08_HATFreq.image_io import ImageError
from training.photographs import Image, Photograph, Photographs

MAX_DRAWS = 100  # draws for one sample before a training set counts as lost

Key = tuple[int, int]  # step, index in the batch
T = TypeVar("T")


class LoaderError(RuntimeError):
    """A process of the loader ended by force."""


class Crop(NamedTuple):
    """Where a pair comes from: position in a photograph after it was flipped and transposed (`orientation`, 0-7)."""

    photograph: int
    orientation: int
    top: int
    left: int


class Batch(NamedTuple):
    """Samples together; the loader's workers make batches of one.

    Attributes:
        hr_region: uint8 `b 4p+12 4p+12 3`: gt with `KERNEL_MARGIN` more pixels on each side, mirrored at the borders.
        lq: uint8 `b p p 3`: official low-resolution patches; black where they have to be made from the region.
        has_lq: bool `b`: whether lq is given.
        faults: messages about images that could not be read when they were drawn.
        lost: whether a sample is missing, because of them.
        restoration: uint8 `b 4p 4p 3`: a teacher's, black where there is none; None if no image of the set has one.
        teacher_weight: float `b`: the restoration's part in the target; None likewise.
    """

    hr_region: Tensor
    lq: Tensor
    has_lq: Tensor
    faults: tuple[str, ...] = ()
    lost: bool = False
    restoration: Tensor | None = None
    teacher_weight: Tensor | None = None


class Patches(Dataset[Batch]):
    """Samples addressed by (step, index in the batch).

    Args:
        photographs: what the audit found usable.
        patch: side of lq in pixels.
        seed: decides, with the key, what is drawn.
        skip: draw another image for one that cannot be read any more, instead of giving the sample up.
        teacher_decay: steps in which the restorations' part in the targets falls linearly to nothing; 0: it stays.
    """

    def __init__(
        self, photographs: Photographs, patch: int, seed: int, skip: bool = False, teacher_decay: int = 0
    ) -> None:
        self.photographs = photographs
        self.patch = patch
        self.seed = seed
        self.ends = np.cumsum(photographs.sampling_weights())
        self.decoded: dict[int, tuple[Image, Image | None]] = {}
        self.skip, self.teacher_decay = skip, teacher_decay

    def keep_decoded(self, gigabytes: float) -> int:
        """Decode the first photographs and their restorations, as many as fit into memory (1e9 bytes a GB).

        Returns how many photographs.

        Decoding a 2K photograph takes far longer than cutting a patch from it. One that cannot be read is left for when
        it is drawn.
        """
        samples = 3 * self.photographs.areas * (1 + self.photographs.has_restoration())
        count = int(np.searchsorted(np.cumsum(samples), gigabytes * 1e9, side="right"))
        with ThreadPoolExecutor() as pool:
            images = pool.map(self._decode_or_none, range(count))
            self.decoded = {number: image for number, image in enumerate(images) if image is not None}
        return len(self.decoded)

    def __getitem__(self, key: Key) -> Batch:
        faults: list[str] = []
        for attempt in range(MAX_DRAWS if self.skip else 1):
            try:
                return self._cut(self.crop_at(*key, attempt), key[0])._replace(faults=tuple(faults))
            except (ImageError, OSError) as error:
                faults.append(str(error))
        side = SCALE * self.patch + 2 * KERNEL_MARGIN
        return self._sample(np.zeros((side, side, 3), np.uint8))._replace(faults=tuple(faults), lost=True)

    def crop_at(self, step: int, index: int, attempt: int = 0) -> Crop:
        """The crop of a sample: photographs by their sampling weights, positions on the grid of the scale.

        Photographs are drawn with replacement: there are no epochs.
        """
        counter = np.array([0, attempt, index, step], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, 0], np.uint64), counter=counter))
        number = int(np.searchsorted(self.ends, rng.integers(self.ends[-1]), side="right"))
        orientation = int(rng.integers(8))
        h, w = (int(self.photographs.rows[side][number]) for side in ("height", "width"))
        if orientation & 4:
            h, w = w, h
        top, left = (SCALE * int(rng.integers(n // SCALE - self.patch + 1)) for n in (h, w))
        return Crop(number, orientation, top, left)

    def sampling_hash(self) -> str:
        """A hash of how often each image is drawn, and of the teacher's part in the targets where there is one."""
        found = blake2b(self.ends.tobytes(), digest_size=16)
        if self.photographs.restorations:
            found.update(np.asarray(self.photographs.teacher_weights, np.float64).tobytes())
        return found.hexdigest()

    def teacher_weight_at(self, number: int, step: int) -> float:
        """The part of a photograph's restoration in the target of a step; 0 where there is none."""
        weight = self.photographs.teacher_weights[self.photographs.rows["source"][number]]
        return weight * max(0.0, 1 - step / self.teacher_decay) if self.teacher_decay else weight

    def files_at(self, step: int, batch: int) -> list[str]:
        """The files of one step's batch, for messages."""
        return [self.photographs.images[self.crop_at(step, index).photograph].name for index in range(batch)]

    def _cut(self, crop: Crop, step: int) -> Batch:
        photograph = self.photographs[crop.photograph]
        image, restoration = self.decoded.get(crop.photograph) or _decode(photograph)
        region = cut_region(orient(image, crop.orientation), crop.top, crop.left, SCALE * self.patch)
        lq = None if photograph.lr_image is None else self._window(photograph.decode_lr(), crop, 1)
        if restoration is None:
            return self._sample(region, lq)
        weight = self.teacher_weight_at(crop.photograph, step)
        return self._sample(region, lq, self._window(restoration, crop, SCALE), weight)

    def _window(self, image: Image, crop: Crop, scale: int) -> Image:
        """The crop of an image that has `scale` times the low-resolution image's sides."""
        top, left, side = crop.top * scale // SCALE, crop.left * scale // SCALE, self.patch * scale
        return orient(image, crop.orientation)[top : top + side, left : left + side].copy()

    def _sample(
        self, region: Image, lq: Image | None = None, restoration: Image | None = None, weight: float = 0.0
    ) -> Batch:
        given = np.zeros((self.patch, self.patch, 3), np.uint8) if lq is None else lq
        pair = torch.from_numpy(region)[None], torch.from_numpy(given)[None], torch.tensor([lq is not None])
        if not self.photographs.restorations:
            return Batch(*pair)
        side = SCALE * self.patch
        taught = np.zeros((side, side, 3), np.uint8) if restoration is None else restoration
        return Batch(*pair, restoration=torch.from_numpy(taught)[None], teacher_weight=torch.tensor([weight]))

    def _decode_or_none(self, number: int) -> tuple[Image, Image | None] | None:
        with suppress(ImageError, OSError):
            return _decode(self.photographs[number])
        return None


def _decode(photograph: Photograph) -> tuple[Image, Image | None]:
    """A photograph and its restoration."""
    return photograph.decode(), photograph.decode_restoration() if photograph.restoration else None


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


def by_step(batches: Iterable[T], accumulation_steps: int) -> Iterator[list[T]]:
    """The batches of each step together."""
    iterator = iter(batches)
    while step := list(islice(iterator, accumulation_steps)):
        yield step


@contextmanager
def loading(patches: Patches, batches: StepBatches, workers: int, pin_memory: bool) -> Iterator[Iterator[list[Batch]]]:
    """The parts of each step in order, made ahead by `workers` processes.

    Raises:
        LoaderError: one of them was killed.
    """
    # Forked workers share the decoded photographs; spawned ones would each hold a copy.
    fork = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork" if fork else None)
    leaving: Any = context.Value(c_bool, False, lock=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # train.py has said it in a line
        loader = DataLoader(
            patches,
            batch_sampler=batches,
            num_workers=workers,
            pin_memory=pin_memory,
            collate_fn=collate,
            worker_init_fn=_Worker(leaving) if workers else None,
            multiprocessing_context=context if workers else None,
        )
    try:
        yield by_step(loader, batches.accumulation_steps)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise LoaderError(
            "a process of the loader ended by force, mostly for lack of memory: lower --workers or --cache_gb, or "
            f"enlarge /dev/shm (a container's --shm-size). The last checkpoint is untouched. ({error})"
        ) from error
    finally:
        leaving.value = True


class _Worker:
    """What a worker does first: it leaves signals to the main process until that is leaving itself.

    Ctrl-C and a cluster's preemption reach every process of the group, while the main process needs its workers until
    its checkpoint is written. Afterwards PyTorch ends them by SIGTERM, and Python waits for each of them at its exit.
    """

    def __init__(self, leaving: Any) -> None:
        self.leaving = leaving

    def __call__(self, _number: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, *_: object) -> None:
        if self.leaving.value:
            os._exit(1)


def collate(samples: list[Batch]) -> Batch:
    region, lq, has_lq = (torch.cat(parts) for parts in zip(*(sample[:3] for sample in samples), strict=True))
    faults = tuple(fault for sample in samples for fault in sample.faults)
    batch = Batch(region, lq, has_lq, faults, any(sample.lost for sample in samples))
    if samples[0].restoration is None:
        return batch
    taught, weight = (torch.cat(parts) for parts in zip(*(sample[5:] for sample in samples), strict=True))
    return batch._replace(restoration=taught, teacher_weight=weight)


def to_pair(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """(lq, gt), float `b c h w` in [0, 1] on the device, where what is not given of lq is made.

    Where there is a teacher, gt is the mix of its restoration and the photograph by `teacher_weight`.
    """
    region = batch.hr_region.to(device, non_blocking=True)
    lq = batch.lq.to(device, non_blocking=True)
    if not batch.has_lq.any():
        lq = bicubic_downscale(region)
    elif not batch.has_lq.all():
        lq = torch.where(batch.has_lq.to(device)[:, None, None, None], lq, bicubic_downscale(region))
    gt = _to_network(region[:, KERNEL_MARGIN:-KERNEL_MARGIN, KERNEL_MARGIN:-KERNEL_MARGIN])
    if batch.restoration is not None and batch.teacher_weight is not None:
        restoration = _to_network(batch.restoration.to(device, non_blocking=True))
        gt = gt.lerp(restoration, batch.teacher_weight.to(device)[:, None, None, None])  # exact at 0 and 1
    return _to_network(lq), gt


def _to_network(batch: Tensor) -> Tensor:
    return batch.permute(0, 3, 1, 2).float().div_(255)
