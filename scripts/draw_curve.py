"""Draw how far the released weights were below the goals after so many hours of training, from the facts of their card.

python -m scripts.draw_curve docs/images/training_curve.png
"""

import argparse
import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.render import BLUE, GREEN, GREY, ORANGE, STYLE
from scripts.release_weights import GOALS, ZOO, Facts, hours_to_goal, training_points
from utils.files import atomic_write


def draw(facts: Facts) -> Figure:
    """PSNR less the goal, a line a set; dotted to where the pace of the last points reaches the goal."""
    points = training_points(facts["runs"])
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for (name, goal), colour in zip(GOALS.items(), (BLUE, ORANGE, GREEN), strict=True):
        hours, below = zip(*((hours, run["scores"][name] - goal) for hours, run in points), strict=True)
        axes.plot(hours, below, color=colour, label=f"{name} ({goal:.2f} dB)")
        for marker, taught in (("s", False), ("o", True)):
            chosen = [place for place, (_, run) in enumerate(points) if bool(run["teacher"]) == taught]
            axes.plot([hours[i] for i in chosen], [below[i] for i in chosen], marker, color=colour)
        if there := hours_to_goal(points, name):
            axes.plot([hours[-1], there], [below[-1], 0], ":", color=colour)
    axes.axhline(0, color=GREY, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("hours of training, one CPU thread or two")
    axes.set_ylabel("PSNR-Y less the goal, dB")
    axes.set_title("squares: learned from photographs; discs: from a teacher", fontsize=9.5, color=GREY)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="lower right")
    return figure


def main(argv: list[str] | None = None) -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="PNG file")
    parser.add_argument("--facts", type=Path, default=ZOO / "hatfreq_light_x4.json", help="default: %(default)s")
    args = parser.parse_args(argv)
    with matplotlib.rc_context(STYLE), atomic_write(args.out) as file:
        draw(json.loads(args.facts.read_text(encoding="utf-8"))).savefig(file, format="png", dpi=130)


if __name__ == "__main__":
    main()
