"""What a run leaves to look at: losses, lines of progress, `log.csv`, TensorBoard and sample pictures."""

import csv
import io
import math
import time
from collections.abc import Callable, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from image_data.degradation import SCALE
from models.team08_HATFreq.image_io import write_png
from models.team08_HATFreq.system import peak_memory
from training.lifetime import FolderError
from utils.files import UserError, write_bytes
from utils.pictures import sheet

Image = NDArray[np.uint8]
LAZY_LOSSES = 20  # steps whose losses may wait on a GPU: reading one waits until the GPU has made it
COLUMNS = ("step", "loss", "lr", "psnr", "images_per_s", "seconds")
SIDE = 64  # LR pixels of the window that a sample picture shows
SAMPLES = 3  # images that it shows


class NonFiniteError(UserError):
    """The loss or the weights left the finite numbers."""


def say(message: str) -> None:
    """Print a line at once; names in it may be any bytes."""
    print(message.encode(errors="backslashreplace").decode(), flush=True)


class Losses:
    """Losses read from the device a few at a time, each checked before anything is saved that depends on it."""

    def __init__(self, values: list[float], explain: Callable[[str, int], str], lazy: bool) -> None:
        """`values` takes the losses that were read; `explain` describes a step; `lazy` lets losses wait (on a GPU)."""
        self.values, self.explain, self.room = values, explain, LAZY_LOSSES if lazy else 1
        self.waiting: list[tuple[int, Tensor]] = []
        self.latest = math.nan

    def add(self, step: int, loss: Tensor) -> None:
        self.waiting.append((step, loss))
        if len(self.waiting) >= self.room:
            self.read()

    def read(self) -> None:
        """Read what waits; raises NonFiniteError on the first value that is not finite."""
        if not self.waiting:
            return
        values = torch.stack([loss for _, loss in self.waiting]).tolist()
        for (step, _), value in zip(self.waiting, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(self.explain(f"the loss is {value}", step))
        self.waiting.clear()
        self.values += values
        self.latest = values[-1]

    @property
    def mean(self) -> float:
        """Of what was read since the last row of the log."""
        return math.fsum(self.values) / len(self.values)


class Progress:
    """A line for the first step and then every so many seconds; speeds are those of the steps and their data."""

    def __init__(self, end: int, batch: int, every: float, device: torch.device) -> None:
        self.end, self.batch, self.every, self.device = end, batch, every, device
        self.steps, self.seconds, self.waited, self.told = 0, 0.0, 0.0, -math.inf

    @property
    def images_per_second(self) -> float:
        """Mean since this start."""
        return self.steps * self.batch / max(1e-9, self.seconds)

    def show(self, step: int, seconds: float, waited: float, loss: float, lr: float) -> None:
        """Report step number `step`, which took `seconds`, of which it `waited` for its data."""
        self.steps, self.seconds, self.waited = self.steps + 1, self.seconds + seconds, self.waited + waited
        if time.monotonic() - self.told < self.every:
            return
        self.told = time.monotonic()
        memory, where = peak_memory(self.device)
        used = "" if memory is None else f", {memory / 1e9:.1f} GB {where}"
        speed = f"{self.images_per_second:.1f} images/s, {self.waited / max(1e-9, self.seconds):.0%} waiting for data"
        minutes, second = divmod(round((self.end - step) * self.seconds / self.steps), 60)
        left = f"{minutes // 60}:{minutes % 60:02}:{second:02} left"
        say(f"step {step}/{self.end}  loss {loss:.5f}  lr {lr:.2e}  {speed}{used}  {left}")


# ---------------------------------------------------------------------------------------------------------------------
# The log
# ---------------------------------------------------------------------------------------------------------------------


class Log:
    """The log of a run folder: `log.csv` and, if asked for, `tensorboard/`.

    Args:
        folder: the run folder.
        step: rows after it are dropped: the resumed run makes them again.
        sets: names of the validation sets; with more than one, each has a column of its own.
        tensorboard: whether to write for TensorBoard too.
    """

    def __init__(self, folder: Path, step: int, sets: list[str], tensorboard: bool = False) -> None:
        self.path = folder / "log.csv"
        self.writer: Any = None
        self.rows = [row for row in read_rows(self.path) if int(row["step"]) <= step]
        names = [*COLUMNS, *(f"psnr_{name}" for name in sets if len(sets) > 1)]
        self.columns = list(dict.fromkeys([*names, *chain.from_iterable(self.rows)]))  # an earlier start's sets stay
        self.write()
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, row: dict[str, float], scores: dict[str, float]) -> None:
        """Add a row of `COLUMNS` with the PSNR of each set."""
        values = {**row, **({f"psnr_{name}": psnr for name, psnr in scores.items()} if len(scores) > 1 else {})}
        self.rows.append({key: str(v) if isinstance(v, int) else f"{v:.6g}" for key, v in values.items()})
        self.write()
        if self.writer:
            for key, value in values.items():
                if key != "step" and math.isfinite(value):
                    self.writer.add_scalar(key, value, int(row["step"]))
            self.writer.flush()

    def write(self) -> None:
        """Write all rows: a kill leaves the former file or the new one."""
        content = io.StringIO(newline="")
        writer = csv.DictWriter(content, self.columns, restval="nan")
        writer.writeheader()
        writer.writerows(self.rows)
        write_bytes(self.path, content.getvalue().encode())

    def gain(self) -> str:
        """What the run has gained since its first validation, in a sentence; empty without two."""
        scores = [(float(row["psnr"]), int(row["step"])) for row in self.rows]
        scores = [(psnr, step) for psnr, step in scores if math.isfinite(psnr)]
        if len(scores) < 2:
            return ""
        (first, start), (best, step) = scores[0], max(scores, key=lambda score: score[0])
        return f"best PSNR-Y {best:.3f} dB at step {step}, {best - first:+.3f} dB against step {start}"


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a log; none without a file. A last line without an end is left out.

    Raises:
        FolderError: it is damaged.
    """
    try:
        text = path.read_text().rpartition("\n")[0] if path.exists() else ""
        rows = list(csv.DictReader(io.StringIO(text)))
        for row in rows:
            int(row["step"])
            list(map(float, row.values()))
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise FolderError(f"{path} is damaged ({error}): mend it or move it away, and start again") from error
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Sample pictures
# ---------------------------------------------------------------------------------------------------------------------


def draw_samples(restore: Callable[[Image], Image], sets: Sequence[Any], picture: Path) -> None:
    """Draw one row an image: the low-resolution middle enlarged by OpenCV's bicubic, restored, and as it should be.

    Args:
        restore: uint8 `h w 3` -> uint8 `4h 4w 3`.
        sets: validation sets; images are taken from each in turn.
        picture: PNG file to write, whole or not at all; its folder is made.
    """
    in_turn = (pair for pair in chain.from_iterable(zip_longest(*sets)) if pair)
    windows = []
    for pair in islice(in_turn, SAMPLES):
        lq, target = _middle(pair.lq, SIDE), _middle(pair.target, SIDE * SCALE)
        bicubic = cv2.resize(lq, target.shape[1::-1], interpolation=cv2.INTER_CUBIC)
        windows += [bicubic, restore(lq), target]
    picture.parent.mkdir(exist_ok=True)
    write_png(picture, sheet(windows, 3))


def _middle(image: Image, side: int) -> Image:
    """The middle of an image, on the grid of the scale in the target as in its low-resolution image."""
    unit = side // SIDE
    top, left = (unit * max(0, (n // unit - SIDE) // 2) for n in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])
