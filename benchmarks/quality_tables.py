"""The tables, the CSV file and the picture of benchmarks/quality.py."""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS = {"PSNR": "{:.3f}", "SSIM": "{:.4f}", "LPIPS": "{:.4f}", "NIQE": "{:.3f}"}
COLUMNS = ["method", "set", "origin", "runtime", "parameters", *(key.lower() for key in METRICS), "seconds"]
OURS = "HATFreq"  # how the names of our rows begin


@dataclass(frozen=True)
class Figures:
    """One method on one set.

    Attributes:
        means: metric -> mean over the images.
        seconds: an image; None where they were not measured.
    """

    method: str
    set: str
    runtime: str
    parameters: int
    means: dict[str, float]
    seconds: float | None


def tables(figures: Sequence[Figures], published: Path, setting: str) -> str:
    """Markdown: a table a set, the setting, and the figures of others in a table of their own."""
    parts = []
    for name in dict.fromkeys(one.set for one in figures):
        lines = [
            f"### {name}, measured here",
            "",
            "| method | parameters | PSNR-Y, dB | SSIM-Y | LPIPS | NIQE | s an image |",
        ]
        lines += ["|" + "---|" * 7, *(_row(one) for one in figures if one.set == name)]
        parts.append("\n".join(lines))
    parts += [setting, _published(published)]
    return "\n\n".join(parts) + "\n"


def csv_rows(figures: Sequence[Figures], published: Path) -> Iterator[list[Any]]:
    """A row for each method and set, those of others marked `published` in the column `origin`."""
    for one in figures:
        values = [one.means.get(key, "") for key in METRICS]
        yield [one.method, one.set, "measured", one.runtime, one.parameters, *values, one.seconds or ""]
    for row in _read(published):
        for name in _SETS:
            if row[name]:
                yield [row["method"], name, "published", "", row["parameters"], row[name], *[""] * len(METRICS)]


def draw(path: Path, figures: Sequence[Figures]) -> None:
    """Write a PNG: PSNR against CPU seconds, a panel a set; a marker's area is in proportion to the parameters."""
    from matplotlib.figure import Figure

    timed = [one for one in figures if one.seconds and "PSNR" in one.means]
    names = list(dict.fromkeys(one.set for one in timed))
    if not names:
        print(f"no picture {path.name}: nothing has been timed", file=sys.stderr)
        return
    figure = Figure(figsize=(4.6 * len(names), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for one in (one for one in timed if one.set == name):
            assert one.seconds
            colour = "tab:red" if one.method.startswith(OURS) else "tab:blue"
            marker, area = ("o", _AREA * one.parameters / 1e6) if one.parameters else ("x", 40)
            axes.scatter(one.seconds, one.means["PSNR"], s=area, c=colour, marker=marker, alpha=0.7)
            side = -1 if one.method.startswith(OURS) else 1  # labels of ours below, of others above: they lie close
            axes.annotate(one.method.replace(", ", ",\n"), (one.seconds, one.means["PSNR"]), fontsize=8, ha="center",
                          xytext=(0, side * (area**0.5 / 2 + 3)), textcoords="offset points",
                          va="top" if side < 0 else "bottom")  # fmt: skip
        axes.set_xscale("log")
        axes.margins(0.25, 0.2)
        axes.set_title(name)
        axes.set_xlabel("CPU seconds an image, one thread")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("PSNR-Y, dB")
    figure.suptitle("area: parameters (cross: none)", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


_SETS = ("Set5", "Set14", "BSD100")
_AREA = 90.0  # square points a million parameters


def _row(one: Figures) -> str:
    """A line; what is not available is a blank that the text below explains."""
    cells = [one.method, f"{one.parameters:,}" if one.parameters else ""]
    cells += [form.format(one.means[key]) if key in one.means else "" for key, form in METRICS.items()]
    cells.append("not measured" if one.seconds is None else f"{one.seconds:.3f}")
    return f"| {' | '.join(cells)} |"


def _published(path: Path) -> str:
    """The figures of others as a table, marked as what they are."""
    lines = ["### Published by others, not run here", "", f"| method | parameters | {' | '.join(_SETS)} | source |"]
    lines.append("|" + "---|" * (3 + len(_SETS)))
    for row in _read(path):
        cells = [row["method"], f"{int(row['parameters']):,}", *(row[name] for name in _SETS), row["source"]]
        lines.append(f"| {' | '.join(cells)} |")
    note = "PSNR-Y in dB as the sources give it; blanks: not taken over. All were trained on larger data, on GPUs."
    return "\n".join([*lines, "", note])


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
