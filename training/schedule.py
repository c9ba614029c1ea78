"""The learning rate as a pure function of the step."""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `lr`, then cosine decay; the last step, `end - 1`, is made at `min_lr`.

    Attributes:
        lr: rate at the end of the warm-up, and the rate from which the decay starts.
        min_lr: rate of the last step.
        warmup: steps of linear warm-up from 0.
        start: step at which the decay starts.
        end: number of steps in all.
        finish_in: steps that a reshaped schedule was given for its decay; 0 when it runs as planned.
    """

    lr: float
    min_lr: float
    warmup: int
    start: int
    end: int
    finish_in: int = 0

    def lr_at(self, step: int) -> float:
        """The rate of the step with this number; the first is 0."""
        if step < self.warmup and not self.finish_in:
            return self.lr * (step + 1) / self.warmup
        progress = min(1.0, max(0, step - self.start) / max(1, self.end - 1 - self.start))
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    def finishing(self, step: int, finish_in: int) -> "Schedule":
        """This schedule reshaped: from its rate at `step` down to `min_lr` in `finish_in` steps, then the end."""
        return replace(self, lr=self.lr_at(step), start=step, end=step + finish_in, finish_in=finish_in)

    def state(self) -> dict[str, Any]:
        """The fields, for a checkpoint."""
        return asdict(self)


def planned(lr: float, min_lr: float, warmup: int, steps: int) -> Schedule:
    """The schedule of a run that ends after `steps` steps."""
    return Schedule(lr, min_lr, warmup, start=warmup, end=steps)


def resumed(plan: Schedule, saved: dict[str, Any], step: int, finish_in: int) -> Schedule:
    """The schedule on which a run goes on.

    A reshaped schedule outlives a restart: asking again for the same `finish_in`, or for none, goes on with it. Another
    `finish_in` reshapes once more, from the rate at `step`. A run that has ended stays ended.

    Args:
        plan: what the command line asks for.
        saved: `Schedule.state()` of the checkpoint.
        step: steps made so far.
        finish_in: what the command line asks for; 0 for none.
    """
    before = Schedule(**saved)
    current = before if before.finish_in else plan
    if step < current.end and finish_in not in (0, before.finish_in):
        return current.finishing(step, finish_in)
    return current
