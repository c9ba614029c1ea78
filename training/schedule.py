"""The learning rate as a pure function of the step, and the cool-down that ends a run from where it stands."""

import math
from dataclasses import dataclass, replace

GAMMA = 0.5  # what a milestone multiplies the rate by


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to `lr`, then one of three kinds; at any step a cool-down may take over.

    Attributes:
        kind: `cosine`, whose last step, `end - 1`, is made at `min_lr`; `constant`; or `milestones`.
        lr: rate at the end of the warm-up.
        min_lr: rate of the last step of a cosine decay, and of a cool-down.
        warmup: steps of linear warm-up from 0.
        end: number of steps in all.
        milestones: steps from which on the rate is `GAMMA` times what it was.
        cool_from, cool_steps: where the cool-down began and how long it is; 0 steps for none.
    """

    kind: str
    lr: float
    min_lr: float
    warmup: int
    end: int
    milestones: tuple[int, ...] = ()
    cool_from: int = 0
    cool_steps: int = 0

    def lr_at(self, step: int) -> float:
        """The rate of the step with this number; the first is 0."""
        if self.cool_steps and step >= self.cool_from:
            begin = replace(self, cool_steps=0).lr_at(self.cool_from)
            progress = min(1.0, (step - self.cool_from) / max(1, self.cool_steps - 1))
            return self.min_lr + max(0.0, begin - self.min_lr) * (1 - math.sqrt(progress))
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.kind == "constant":
            return self.lr
        if self.kind == "milestones":
            return self.lr * GAMMA ** sum(step >= milestone for milestone in self.milestones)
        progress = min(1.0, max(0.0, step - self.warmup) / max(1.0, self.end - 1 - self.warmup))
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1 + math.cos(math.pi * progress))

    @property
    def last(self) -> int:
        """The number of steps in all, the cool-down's where there is one."""
        return self.cool_from + self.cool_steps if self.cool_steps else self.end

    def continued(self, step: int, cool_from: int, cool_steps: int, finish_in: int) -> "Schedule":
        """This schedule at a restart.

        Args:
            step: steps made.
            cool_from, cool_steps: the cool-down in which the run is; 0 steps for none. It outlives restarts.
            finish_in: steps of a cool-down that begins now, unless it is the one in which the run is; 0 for none.
        """
        if finish_in and finish_in != cool_steps:
            return replace(self, cool_from=step, cool_steps=finish_in)
        return replace(self, cool_from=cool_from, cool_steps=cool_steps)
