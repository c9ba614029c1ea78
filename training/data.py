"""Training pairs cut from high-resolution photographs, the low-resolution side made on the fly or taken as it is given.

Every pair is a pure function of (seed, step, index in the batch): there is no sampler state to save, and a resumed run
goes on with exactly the pairs that an undisturbed one would have seen.
"""

import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from image_data.degradation import REACH, SCALE, shrink
from image_data.geometry import cut_region, orient
from models.team08_HATFreq.image_io import ImageError
from training.audit import Photograph
from training.decoded import DecodedImages, low_pixels

ATTEMPTS = 100  # draws for one sample before a training set counts as lost

Image = NDArray[np.uint8]
Key = tuple[int, int]  # step, index in the batch
T = TypeVar("T")


@dataclass(frozen=True)
class Crop:
    """Where a pair comes from: position in the photograph after it was flipped and transposed (`orientation`, 0-7)."""

    photograph: Photograph
    orientation: int
    top: int
    left: int


class Sample(NamedTuple):
    """What a worker makes of one crop.

    Attributes:
        region: uint8 `4p+12 4p+12 3`: gt with `REACH` more pixels on each side, mirrored at the photograph's borders.
        lq: uint8 `p p 3`: the official low-resolution patch; black where it has to be made from the region.
        given: whether lq is given.
        faults: messages about images that could not be read when they were drawn.
        lost: whether there is no sample, because of them.
    """

    region: Image
    lq: Image
    given: bool
    faults: tuple[str, ...] = ()
    lost: bool = False


class Batch(NamedTuple):
    """Samples together: uint8 `b 4p+12 4p+12 3`, uint8 `b p p 3`, bool `b`; the faults of all; whether any is lost."""

    region: Tensor
    lq: Tensor
    given: Tensor
    faults: tuple[str, ...]
    lost: bool


class Patches(Dataset[Any]):
    """Samples addressed by (step, index in the batch).

    Args:
        photographs: what the audit found usable.
        patch: side of lq in pixels.
        seed: decides, with the key, what is drawn.
        weights: the sources' shares of the samples; none to draw every photograph in proportion to its area.
        images: where decoded pixels come from.
        skip: draw anew for an image that cannot be read any more, instead of giving the sample up.
    """

    def __init__(
        self,
        photographs: list[Photograph],
        patch: int,
        seed: int,
        weights: Sequence[float] = (),
        images: DecodedImages | None = None,
        skip: bool = False,
    ) -> None:
        self.photographs = photographs
        self.patch = patch
        self.seed = seed
        self.ends = np.cumsum(masses(photographs, weights))
        self.images = images or DecodedImages()
        self.skip = skip

    def __getitem__(self, key: Key) -> Sample:
        faults: list[str] = []
        for attempt in range(ATTEMPTS if self.skip else 1):
            try:
                return self._cut(self.crop_at(*key, attempt))._replace(faults=tuple(faults))
            except ImageError as error:
                faults.append(str(error))
            except OSError as error:  # the folder of decoded pixels: another draw would fail as well
                return self._nothing([*faults, str(error)])
        return self._nothing(faults)

    def crop_at(self, step: int, index: int, attempt: int = 0) -> Crop:
        """The crop of a sample: photographs by their mass, positions on the grid of the scale."""
        counter = np.array([0, attempt, index, step], np.uint64)
        rng = np.random.Generator(np.random.Philox(key=np.array([self.seed, 0], np.uint64), counter=counter))
        number = int(np.searchsorted(self.ends, rng.integers(self.ends[-1]), side="right"))
        photograph, orientation = self.photographs[number], int(rng.integers(8))
        h, w = photograph.height, photograph.width
        if orientation & 4:
            h, w = w, h
        top, left = (SCALE * int(rng.integers(n // SCALE - self.patch + 1)) for n in (h, w))
        return Crop(photograph, orientation, top, left)

    def files_at(self, step: int, batch: int) -> list[str]:
        """The files of one step's batch, for messages."""
        return [self.crop_at(step, index).photograph.image.name for index in range(batch)]

    def _cut(self, crop: Crop) -> Sample:
        photograph, patch = crop.photograph, self.patch
        image = orient(self.images.pixels(photograph), crop.orientation)
        region = cut_region(image, crop.top, crop.left, SCALE * patch)
        if photograph.low is None:
            return Sample(region, np.zeros((patch, patch, 3), np.uint8), False)
        low = orient(low_pixels(photograph), crop.orientation)
        top, left = crop.top // SCALE, crop.left // SCALE
        return Sample(region, low[top : top + patch, left : left + patch].copy(), True)

    def _nothing(self, faults: list[str]) -> Sample:
        side = SCALE * self.patch + 2 * REACH
        black = np.zeros((side, side, 3), np.uint8)
        return Sample(black, black[: self.patch, : self.patch], False, tuple(faults), lost=True)


class StepBatches(Sampler[list[Key]]):
    """The keys from step `start` on that one process takes, `micro` at a time and `passes` times a step, without end.

    The shares of the processes follow one another in the global batch, which is the same for every number of them.
    """

    def __init__(self, start: int, micro: int, passes: int = 1, rank: int = 0) -> None:
        self.start, self.micro, self.passes, self.rank = start, micro, passes, rank

    def __iter__(self) -> Iterator[list[Key]]:
        first = self.rank * self.passes * self.micro
        for step in count(self.start):
            for begin in range(first, first + self.passes * self.micro, self.micro):
                yield [(step, index) for index in range(begin, begin + self.micro)]


def by_step(batches: Iterable[T], passes: int) -> Iterator[list[T]]:
    """The batches of each step together."""
    iterator = iter(batches)
    while step := list(islice(iterator, passes)):
        yield step


def make_loader(patches: Patches, batches: StepBatches, workers: int, pin_memory: bool) -> DataLoader[Any]:
    """`Batch`es in order, made ahead by `workers` processes."""
    # Forked workers share the decoded photographs; spawned ones would each hold a copy.
    fork = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        patches,
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=pin_memory,
        collate_fn=together,
        worker_init_fn=_ignore_signals,
        multiprocessing_context="fork" if fork else None,
    )


def together(samples: list[Sample]) -> Batch:
    """Samples stacked."""
    region = torch.from_numpy(np.stack([sample.region for sample in samples]))
    lq = torch.from_numpy(np.stack([sample.lq for sample in samples]))
    given = torch.tensor([sample.given for sample in samples])
    faults = tuple(fault for sample in samples for fault in sample.faults)
    return Batch(region, lq, given, faults, any(sample.lost for sample in samples))


def to_pair(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """(lq, gt), float `b c h w` in [0, 1] on the device, where what is not given of lq is made."""
    region = batch.region.to(device, non_blocking=True)
    given = batch.lq.to(device, non_blocking=True)
    if batch.given.all():
        lq = given
    elif not batch.given.any():
        lq = shrink(region)
    else:
        lq = torch.where(batch.given.to(device)[:, None, None, None], given, shrink(region))
    return _to_network(lq), _to_network(region[:, REACH:-REACH, REACH:-REACH])


def masses(photographs: list[Photograph], weights: Sequence[float] = ()) -> NDArray[np.int64]:
    """How often each photograph is drawn in relation to the others: its area, scaled to its source's weight.

    Args:
        photographs: at least one.
        weights: by number of the source; none for areas alone. A source without photographs takes no part.

    Returns:
        int64 `n_photographs`, each at least 1.
    """
    areas = np.array([photograph.height * photograph.width for photograph in photographs], np.int64)
    if not len(weights):
        return areas
    sources = np.array([photograph.source for photograph in photographs])
    totals = np.bincount(sources, areas, len(weights))
    shares = np.divide(weights, totals, out=np.zeros(len(weights)), where=totals > 0)
    scaled = areas * shares[sources]
    return np.maximum(1, np.rint(scaled / scaled.sum() * 2**52)).astype(np.int64)


def _to_network(batch: Tensor) -> Tensor:
    return batch.permute(0, 3, 1, 2).float().div_(255)


def _ignore_signals(_worker: int) -> None:
    # Ctrl-C and a cluster's preemption reach every process of the group: the main process alone decides when to end,
    # and needs the workers until its checkpoint is written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
