"""The learning rate as a pure function of the step, and its reshaping when a run gets a new end."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

GAMMA = 0.5  # what a milestone multiplies the rate by
MINUTES = "min"
FromMain = Callable[[Callable[[], Any]], Any]
REPLAN_AFTER = 20  # steps until the speed of a run with a deadline is known well enough
RESERVE = 0.97  # share of the time left that is planned for: validations and a slow machine take their part


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `lr`, then cosine decay, whose last step, `end - 1`, is made at `min_lr`; or milestones.

    Attributes:
        lr: rate at the end of the warm-up, and the rate from which the decay starts.
        min_lr: rate of the last step of a cosine decay.
        warmup: steps of linear warm-up from 0.
        start: step at which the decay starts; not whole where a deadline moved the end.
        end: number of steps in all.
        milestones: steps from which on the rate is `GAMMA` times what it was; none for a cosine decay.
        finish_in: the reshaping asked for, `500` steps or `90min`; empty when the run goes as planned.
        deadline: seconds of training, over all starts, at which a run that was given minutes ends; 0 for none.
    """

    lr: float
    min_lr: float
    warmup: int
    start: float
    end: int
    milestones: tuple[int, ...] = ()
    finish_in: str = ""
    deadline: float = 0.0

    def lr_at(self, step: int) -> float:
        """The rate of the step with this number; the first is 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.milestones:
            return self.lr * GAMMA ** sum(step >= milestone for milestone in self.milestones)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * self._progress(step)))

    def finishing(self, step: int, finish_in: str, seconds: float) -> "Schedule":
        """This schedule reshaped: from its rate at `step` down to `min_lr` in so many steps or minutes, then the end.

        With minutes the end is not known until the speed is: `replanned` sets it.

        Args:
            step: steps made.
            finish_in: as `500` or `90min`.
            seconds: of training so far, over all starts.
        """
        steps, minutes = parse_finish_in(finish_in)
        reshaped = replace(self, milestones=(), finish_in=finish_in)
        if steps or step >= self.warmup:
            reshaped = replace(reshaped, lr=self.lr_at(step), start=step, warmup=0)
        if minutes:
            end = max(self.end, step + 2 * REPLAN_AFTER)
            return replace(reshaped, end=end, deadline=seconds + 60 * minutes)
        return replace(reshaped, end=step + steps, deadline=0.0)

    def replanned(self, step: int, seconds: float, seconds_per_step: float) -> "Schedule":
        """This schedule with the end that its deadline allows; the rate at `step` stays what it is.

        Args:
            step: steps made.
            seconds: of training so far, over all starts.
            seconds_per_step: as measured, validations and checkpoints included.
        """
        progress = self._progress(step)
        if progress >= 1:  # this step is the last, at `min_lr`
            return self
        left = RESERVE * (self.deadline - seconds) / seconds_per_step
        end = step + max(2, int(left))  # at least this step at its rate, and the last one at `min_lr`
        if progress <= 0:  # still warming up, which takes a tenth of a short run at most
            warmup = min(self.warmup, max(step, end // 10))
            return replace(self, warmup=warmup, start=max(self.start - self.warmup + warmup, warmup), end=end)
        # The decay keeps its place: (step - start) / (end - 1 - start) stays what it is.
        return replace(self, start=(step - progress * (end - 1)) / (1 - progress), end=end)

    def state(self) -> dict[str, Any]:
        """The fields, for a checkpoint."""
        return asdict(self)

    def _progress(self, step: int) -> float:
        """Share of the decay that is done, 0 to 1."""
        return min(1.0, max(0.0, step - self.start) / max(1.0, self.end - 1 - self.start))


def planned(lr: float, min_lr: float, warmup: int, steps: int, milestones: tuple[int, ...] = ()) -> Schedule:
    """The schedule of a run that ends after `steps` steps."""
    return Schedule(lr, min_lr, warmup, start=warmup, end=steps, milestones=milestones)


def resumed(
    plan: Schedule, saved: dict[str, Any], step: int, finish_in: str, seconds: float, factor: float = 1.0
) -> Schedule:
    """The schedule on which a run is resumed.

    A reshaped schedule outlives a restart: asking again for the same `finish_in`, or for none, keeps it. Another
    `finish_in` reshapes once more, from the rate at `step`. A run that has ended stays ended.

    Args:
        plan: what the command line asks for.
        saved: `Schedule.state()` of the checkpoint.
        step: steps made so far.
        finish_in: what the command line asks for; empty for none.
        seconds: of training so far, over all starts.
        factor: by which the command line changes the rate of a schedule that was reshaped.
    """
    before = Schedule(**saved)
    current = replace(before, lr=before.lr * factor, min_lr=plan.min_lr) if before.finish_in else plan
    if step < current.end and finish_in not in ("", before.finish_in):
        return current.finishing(step, finish_in, seconds)
    return current


def parse_finish_in(text: str) -> tuple[int, float]:
    """`500` -> (500, 0.0) steps, `90min` -> (0, 90.0) minutes, empty -> neither.

    Raises:
        ValueError: not a positive number of steps or minutes.
    """
    try:
        if not text:
            return 0, 0.0
        minutes = float(text.removesuffix(MINUTES)) if text.endswith(MINUTES) else 0.0
        steps = 0 if text.endswith(MINUTES) else int(text)
        if steps < 0 or not 0 <= minutes < math.inf or not (steps or minutes):
            raise ValueError(text)
    except ValueError as error:
        raise ValueError(f"finish_in takes steps, as 500, or minutes, as 90{MINUTES}; got {text!r}") from error
    return steps, minutes


class Pace:
    """How long a run has trained, and the end that its speed allows where it was given minutes.

    Args:
        step: steps made before this start.
        seconds: of training before this start.
    """

    def __init__(self, step: int, seconds: float) -> None:
        self.first, self.before, self.began = step, seconds, time.monotonic()
        self.next = step + REPLAN_AFTER

    @property
    def seconds(self) -> float:
        """Of training, over all starts."""
        return self.before + time.monotonic() - self.began

    def replanned(self, schedule: Schedule, step: int, from_main: FromMain) -> Schedule:
        """The schedule, reshaped now and then, at steps that all processes agree on (`from_main`)."""
        if not schedule.deadline or step < self.next:
            return schedule
        speed = (self.seconds - self.before) / (step - self.first)
        schedule = from_main(lambda: schedule.replanned(step, self.seconds, speed))
        self.next = step + max(REPLAN_AFTER, (schedule.end - step) // 10)
        return schedule
