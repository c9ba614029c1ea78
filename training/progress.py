"""What a run shows and obeys while it goes: losses, the progress bar, signals."""

import math
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from image_data.sources import DataError
from models.team08_HATFreq.system import peak_memory
from training.data import Batch

LAZY_LOSSES = 20  # steps whose losses may wait on a GPU: reading one waits until the GPU has made it
REMEDY = "lower --lr or set --grad_clip, and start again: the last checkpoint is untouched"


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
        """Take the loss of the step with this number."""
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

    def take_mean(self) -> float:
        """Mean loss since the last call; nan if there was none."""
        self.read()
        mean = math.fsum(self.values) / len(self.values) if self.values else math.nan
        self.values.clear()
        return mean


class Unreadable:
    """Images that could not be read when they were drawn: a lost sample ends the run, others are said and counted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def take(self, parts: Sequence[Batch]) -> None:
        """Look at a step's batches.

        Raises:
            DataError: a sample is lost; names the images and the remedy.
        """
        for part in parts:
            if part.lost:
                raise DataError(
                    f"{'; '.join(dict.fromkeys(part.faults))}. Restore the image and start again: the last checkpoint "
                    "is untouched; or pass unreadable images over with --bad_images skip"
                )
            for fault in part.faults:
                self.counts[fault] += 1
                if self.counts[fault] == 1:
                    text = f"unreadable image number {len(self.counts)}, other images are drawn instead: {fault}"
                    tqdm.write(text, file=sys.stderr)


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


class StopSignals:
    """Remembers the first SIGTERM or SIGINT, so that the step in progress ends with a checkpoint; a second one acts."""

    def __init__(self) -> None:
        self.received = 0
        self.before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()


def say(message: str) -> None:
    """Print a line above the progress bar, at once."""
    tqdm.write(message, file=sys.stdout)
    sys.stdout.flush()
