"""One picture of a run's log, redrawn as it trains."""

import csv
import io
import math
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from models.team08_HATFreq.system import write_bytes

PANELS = (
    ("loss", "training loss", "#d55e00"),
    ("psnr", "validation PSNR-Y (dB)", "#0072b2"),
    ("lr", "rate", "#666666"),
)


def draw_curves(log: Path, picture: Path) -> None:
    """Draw loss, validation PSNR and learning rate over the steps.

    Args:
        log: the run's CSV file.
        picture: PNG file to write, whole or not at all.
    """
    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(11, 3.2), dpi=120, layout="constrained")
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
