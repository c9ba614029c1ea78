"""What a run leaves to look at: losses, the progress line, `log.csv`, TensorBoard, curves and sample pictures."""

import csv
import io
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from image_data.degradation import SCALE
from image_data.pairs import Pair
from models.team08_HATFreq.image_io import write_png
from models.team08_HATFreq.system import peak_memory, write_bytes
from training.lifetime import FolderError
from training.validation import ValidationSet

Image = NDArray[np.uint8]
LAZY_LOSSES = 20  # steps whose losses may wait on a GPU: reading one waits until the GPU has made it
COLUMNS = ("step", "loss", "lr", "psnr", "images_per_s", "seconds")
PANELS = (
    ("loss", "training loss", "#d55e00"),
    ("psnr", "validation PSNR-Y (dB)", "#0072b2"),
    ("lr", "rate", "#666666"),
)
REDRAW_AFTER = 60  # seconds between two drawings of the curves, which take half a second; the last one is at the end
SIDE = 64  # LR pixels of the window that a sample picture shows
GAP = 8  # white pixels between its windows
REMEDY = (
    "the last checkpoint is untouched. Start again with a lower --lr, or with --grad_clip, and with "
    "--change lr grad_clip; or with other batches, by --seed and --change seed"
)


class NonFiniteError(ArithmeticError):
    """The loss or the weights left the finite numbers."""


class Losses:
    """Losses read from the device a few at a time, each checked before anything is saved that depends on it."""

    def __init__(self, values: list[float], explain: Callable[[int], str], lazy: bool) -> None:
        """`values` takes the losses that were read; `explain` describes a step; `lazy` lets losses wait (on a GPU)."""
        self.values = values
        self.explain = explain
        self.room = LAZY_LOSSES if lazy else 1
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
        steps = [step for step, _ in self.waiting]
        self.waiting.clear()
        for step, value in zip(steps, values, strict=True):
            if not math.isfinite(value):
                raise NonFiniteError(f"loss is {value} at step {step}, {self.explain(step)}; {REMEDY}")
        self.values += values
        self.latest = values[-1]

    @property
    def mean(self) -> float:
        """Of what was read since the last row of the log; nan if there is none."""
        return math.fsum(self.values) / len(self.values) if self.values else math.nan


class Progress:
    """A bar on a terminal, a line every `log_every` steps elsewhere; seconds are those of the steps and their data."""

    def __init__(
        self, step: int, end: int, batch: int, log_every: int, device: torch.device, silent: bool = False
    ) -> None:
        self.step, self.end, self.batch, self.log_every, self.device = step, end, batch, log_every, device
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0  # of this start
        self.bar = tqdm(
            total=end, initial=step, unit="step", dynamic_ncols=True, disable=silent or not sys.stderr.isatty()
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    @property
    def images_per_second(self) -> float:
        """Mean since this start."""
        return self.steps * self.batch / max(1e-9, self.seconds)

    def show(self, seconds: float, waited: float, loss: float, lr: float) -> None:
        """Report one step more, which took `seconds`, of which it `waited` for its data."""
        self.step, self.steps = self.step + 1, self.steps + 1
        self.seconds, self.waited = self.seconds + seconds, self.waited + waited
        if self.bar.disable and self.step % self.log_every:
            return
        share = self.waited / max(1e-9, self.seconds)
        memory, where = peak_memory(self.device)
        used = "" if memory is None else f", {memory / 1e9:.1f} GB {where}"
        rate = f"{self.images_per_second:.1f} images/s, {share:.0%} waiting for data{used}"
        if not self.bar.disable:
            self.bar.total = self.end
            self.bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.1e}, {rate}", refresh=False)
            self.bar.update(1)
            return
        left = tqdm.format_interval((self.end - self.step) * self.seconds / self.steps)
        say(f"step {self.step}/{self.end}  loss {loss:.5f}  lr {lr:.2e}  {rate}  {left} left")


class Log:
    """The log of a run folder: `log.csv`, `curves.png` and, if asked for, `tensorboard/`.

    Args:
        folder: the run folder.
        step: rows after it are dropped: the resumed run makes them again.
        sets: names of the validation sets; with more than one, each has a column of its own.
        tensorboard: whether to write for TensorBoard too.
    """

    def __init__(self, folder: Path, step: int, sets: list[str], tensorboard: bool = False) -> None:
        self.folder, self.path = folder, folder / "log.csv"
        self.writer: Any = None
        self.drawn, self.undrawn = time.monotonic(), False
        rows = [row for row in read_rows(self.path) if int(row["step"]) <= step]
        names = [*COLUMNS, *(f"psnr_{name}" for name in sets if len(sets) > 1)]
        self.columns = list(dict.fromkeys([*names, *chain.from_iterable(rows)]))  # an earlier start's sets stay
        content = io.StringIO(newline="")
        writer = csv.DictWriter(content, self.columns, restval="nan")
        writer.writeheader()
        writer.writerows(rows)
        write_bytes(self.path, content.getvalue().encode())
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def add(self, row: dict[str, float], scores: dict[str, float]) -> None:
        """Add a row of `COLUMNS` with the PSNR of each set, and redraw the curves once in a while."""
        values = {**row, **({f"psnr_{name}": psnr for name, psnr in scores.items()} if len(scores) > 1 else {})}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="nan").writerow(
                {key: value if isinstance(value, int) else f"{value:.6g}" for key, value in values.items()}
            )
        self.undrawn = True
        if time.monotonic() - self.drawn > REDRAW_AFTER:
            self._draw()
        if self.writer:
            for key, value in values.items():
                if key != "step":
                    self.writer.add_scalar(key, value, int(row["step"]))
            self.writer.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self.undrawn:
            self._draw()
        if self.writer:
            self.writer.close()

    def _draw(self) -> None:
        draw_curves(self.path, self.folder / "curves.png")
        self.drawn, self.undrawn = time.monotonic(), False


def read_rows(path: Path) -> list[dict[str, str]]:
    """A log's complete rows, which is none without a file: a kill can cut the last one short.

    Raises:
        FolderError: it is damaged.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_text().splitlines(keepends=True)
        reader = csv.DictReader(line for line in lines if line.endswith("\n"))
        rows = [row for row in reader if all(row.get(key) for key in reader.fieldnames or ())]
        for row in rows:  # what is read of them later is checked here
            int(row["step"])
            for value in row.values():
                float(value)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise FolderError(f"{path} is damaged ({error}): mend it or move it away, and start again") from error
    return rows


def draw_curves(log: Path, picture: Path) -> None:
    """Draw loss, validation PSNR and learning rate over the steps of a log into a PNG file."""
    import matplotlib  # takes a second to import
    from matplotlib.figure import Figure

    rows = read_rows(log)
    steps = [int(row["step"]) for row in rows]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 3.2), dpi=120)
        figure.subplots_adjust(left=0.06, right=0.98, bottom=0.15, top=0.9, wspace=0.2)
        for axes, (key, title, colour) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
            values = [float(row[key]) for row in rows]
            axes.plot(steps, values, color=colour, lw=1.6, marker="o" if len(steps) < 30 else "", ms=3)
            axes.set(title=title, xlabel="step", xlim=(0, None))
            axes.grid(alpha=0.25)
            if key == "psnr" and any(map(math.isfinite, values)):
                best = max(range(len(values)), key=lambda i: values[i] if math.isfinite(values[i]) else -math.inf)
                axes.axhline(values[best], color=colour, lw=0.8, ls="--")
                axes.set_title(f"{title}: best {values[best]:.3f} at step {steps[best]:,}")
        content = io.BytesIO()
        figure.savefig(content, format="png")
    write_bytes(picture, content.getvalue())


def draw_samples(restore: Callable[[Image], Image], sets: list[ValidationSet], count: int, picture: Path) -> None:
    """Draw one row an image: the low-resolution middle enlarged by OpenCV's bicubic, restored, and as it should be.

    Args:
        restore: uint8 `h w 3` -> uint8 `4h 4w 3`.
        sets: images are taken from each in turn.
        count: rows.
        picture: PNG file to write, whole or not at all; its folder is made.
    """
    rows = [_sample_row(restore, pair) for pair in islice(in_turn(sets), count)]
    width = max(row.shape[1] for row in rows)
    sheet = np.vstack([np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])
    picture.parent.mkdir(exist_ok=True)
    write_png(picture, sheet[:-GAP])


def in_turn(sets: list[ValidationSet]) -> Iterable[Pair]:
    """The first pair of each set, the second of each, and so on."""
    return (pair for pair in chain.from_iterable(zip_longest(*sets)) if pair)


def _sample_row(restore: Callable[[Image], Image], pair: Pair) -> Image:
    lq, target = _middle(pair.lq, SIDE), _middle(pair.target, SIDE * SCALE)
    h, w = target.shape[:2]
    enlarged = cv2.resize(lq, (w, h), interpolation=cv2.INTER_CUBIC)
    gap = np.full((h, GAP, 3), 255, np.uint8)
    return np.hstack([enlarged, gap, restore(lq), gap, target])


def _middle(image: Image, side: int) -> Image:
    """The middle of an image, on the grid of the scale in the target as in its low-resolution image."""
    unit = side // SIDE
    top, left = (unit * max(0, (n // unit - SIDE) // 2) for n in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def write_list(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Write a table of images; no file if there are none."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    content = io.StringIO(newline="")
    csv.writer(content).writerows([header, *rows])
    write_bytes(path, content.getvalue().encode(errors="surrogateescape"))


def say(message: str) -> None:
    """Print a line above the progress bar, at once."""
    tqdm.write(message.encode(errors="backslashreplace").decode(), file=sys.stdout)  # names may be any bytes
    sys.stdout.flush()
