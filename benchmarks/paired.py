"""Paired differences of few repetitions: the mean, its t interval, what may be said of it, and a picture."""

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as student

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Differences of pairs that share a seed.

    Attributes:
        values: one a pair.
        half: half the width of the interval that holds the true mean with a probability of `LEVEL`, if the differences
            are normally distributed.
    """

    values: tuple[float, ...]
    half: float

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.fmean(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        return self.mean - self.half, self.mean + self.half

    @property
    def direction(self) -> int:
        """1 where the interval lies above 0, -1 below, 0 where it holds 0."""
        low, high = self.interval
        return (low > 0) - (high < 0)


def paired(ours: Sequence[float], others: Sequence[float]) -> Difference:
    """`ours` less `others`, pair by pair, with Student's t interval of n - 1 degrees of freedom.

    Raises:
        ValueError: not as many of one as of the other, or fewer than two pairs, which have no spread.
    """
    if len(ours) != len(others) or len(ours) < 2:
        raise ValueError(f"paired differences need two pairs or more, got {len(ours)} and {len(others)} values")
    values = tuple(a - b for a, b in zip(ours, others, strict=True))
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Difference(values, float(student.ppf((1 + LEVEL) / 2, len(values) - 1)) * error)


def verdict(subject: str, other: str, difference: Difference) -> str:
    """A sentence on a difference in dB, from its interval alone: `no effect` where that holds 0."""
    low, high = difference.interval
    figures = (
        f"{difference.mean:+.3f} dB ({LEVEL:.0%} interval {low:+.3f} to {high:+.3f}, n = {len(difference.values)})"
    )
    if not difference.direction:
        return f"{subject} against {other}: no effect, {figures}: the interval holds 0."
    return f"{subject} against {other}: {'better' if difference.direction > 0 else 'worse'}, {figures}."


def draw_differences(path: Path, differences: Mapping[str, Difference], label: str) -> None:
    """Write a PNG: a line a comparison with its interval, its mean and the single differences; 0 is marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.8 + 0.55 * len(differences)), layout="constrained")
    axes = figure.subplots()
    for row, difference in enumerate(differences.values()):
        axes.errorbar(difference.mean, row, xerr=difference.half, fmt="D", color="black", capsize=4, zorder=3)
        axes.plot(difference.values, [row] * len(difference.values), "o", color="tab:orange", alpha=0.8)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(range(len(differences)), list(differences))
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.set_xlabel(label)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def add_repetitions(parser: argparse.ArgumentParser, steps: int, lr: float) -> None:
    """Options of a comparison of short trainings: the seeds, and what every run has in common."""
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="two or more (default: 0 1 2)")
    add("--steps", type=int, default=steps, help="of each run (default %(default)s)")
    add("--batch", type=int, default=8, help="patches a step (default %(default)s)")
    add("--patch", type=int, default=32, help="LR pixels a side (default %(default)s)")
    add("--lr", type=float, default=lr, help="peak rate (default %(default)s)")
    add("--ema", type=float, default=0.99, help="decay of the averaged weights (default %(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="bf16", help="of the training (default %(default)s)")


def parse_repetitions(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The parser's arguments; ends the program with its usage where the seeds are equal or too few."""
    args = parser.parse_args(argv)
    if len(set(args.seeds)) != len(args.seeds) or len(args.seeds) < 2:
        parser.error(f"--seeds takes two or more different numbers, got {args.seeds}: one alone has no spread")
    return args
