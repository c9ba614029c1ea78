"""Tables and plots from the results files: all that the documentation and the factsheet show of them is made here.

    python -m benchmarks.render              # all of benchmarks/results
    python -m benchmarks.render FILE.json    # one

A benchmark renders its own result when it writes it; the command is for a change of the layout.
"""

import argparse
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.tables import TABLES, Result, is_teacher, unique
from utils.files import write_bytes

RESULTS = Path(__file__).parent / "results"
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#666666"  # Okabe and Ito's, but grey
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
OURS = "HATFreq"


def draw_quality(result: Result) -> Figure | None:
    """PSNR against CPU seconds, means over the sets; ours as discs, others as squares, each with its name."""
    points, below = quality_points(result)
    if not points:
        return None
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.margins(0.3, 0.22)
    for ours, colour, marker in ((True, ORANGE, "o"), (False, BLUE, "s")):
        chosen = [point for name, point in points.items() if name.startswith(OURS) == ours]
        axes.plot(*zip(*chosen, strict=True), marker, color=colour, markersize=9) if chosen else None
    place_labels(axes, points)
    axes.set_xlabel("CPU seconds an image, one thread")
    axes.set_ylabel("PSNR-Y, dB")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    note = f"\nbelow the axis: {', '.join(below)}" if below else ""
    axes.set_title(f"mean of {', '.join(unique(row['set'] for row in result['rows']))}{note}", fontsize=9.5, color=GREY)
    return figure


def quality_points(result: Result) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Name -> (seconds, PSNR) of what has been timed on every set, and what lies 1.5 dB or more below the best."""
    sets = set(unique(row["set"] for row in result["rows"]))
    points = {}
    for name in unique(row["method"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["method"] == name and row["seconds"]]
        if {row["set"] for row in rows} == sets:
            size = f"\n{rows[0]['parameters'] / 1e6:.2f} M" if rows[0]["parameters"] else ""
            seconds, psnr = (statistics.fmean(row[key] for row in rows) for key in ("seconds", "psnr"))
            points[f"{name}{' (teacher)' * is_teacher(result, rows[0])}{size}"] = seconds, psnr
    best = max((psnr for _, psnr in points.values()), default=0.0)
    below = [f"{name.splitlines()[0]} {psnr:.2f} dB" for name, (_, psnr) in points.items() if psnr < best - 1.5]
    return {name: point for name, point in points.items() if point[1] >= best - 1.5}, below


def place_labels(axes: Any, points: dict[str, tuple[float, float]]) -> None:
    """Write each name beside its point, on the first side where it covers no point and no other name."""
    axes.figure.draw_without_rendering()  # sizes are known after a first drawing
    sides = {"bottom": (0, 10), "top": (0, -10), "left": (10, 0), "right": (-10, 0)}
    taken = [axes.transData.transform(point) for point in points.values()]
    boxes: list[Any] = []
    for name, point in points.items():
        for side, offset in sides.items():
            vertical = side in ("bottom", "top")
            text = axes.annotate(
                name.replace(", ", ",\n"), point, offset, textcoords="offset points", fontsize=10.5,
                ha="center" if vertical else side, va=side if vertical else "center",
                color=ORANGE if name.startswith(OURS) else BLUE,
            )  # fmt: skip
            box = text.get_window_extent()
            free = not any(box.overlaps(other) for other in boxes) and not any(box.contains(*xy) for xy in taken)
            if (free and axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1)) or side == "right":
                boxes.append(box)
                break
            text.remove()


def plots(result: Result) -> dict[str, Figure | None]:
    """What comes after the file's stem -> a figure."""
    kind = result["kind"]
    if kind == "quality":
        return {"": draw_quality(result)}
    return {}


def read_result(path: Path) -> Result:
    """A results file.

    Raises:
        SystemExit: it is missing; names the command that makes it.
    """
    if not path.is_file():
        raise SystemExit(f"{path} does not exist: measure it with python -m benchmarks.{path.stem.split('_')[0]}")
    return json.loads(path.read_text(encoding="utf-8"))


def setting_lines(setting: dict[str, Any]) -> list[str]:
    """How a result was measured, a list in Markdown."""
    lines = []
    for key, value in setting.items():
        if key == "weights":
            lines.append(f"- weights: {value['file']}, sha256 `{value['sha256'][:12]}`")
            lines += [f"- teacher of these weights: {one['name']}" for one in value["teachers"]]
        elif isinstance(value, dict):
            lines.append(f"- {key}: {', '.join(f'{name} {one}' for name, one in value.items())}")
        elif isinstance(value, list):
            lines += [f"- {one}" for one in value]
        elif value:
            lines.append(f"- {key}: `{value}`" if key == "command" else f"- {key}: {value}")
    return lines


def render(path: Path) -> str:
    """Write the tables (`.md`) and plots (`.png`, `.pdf`) of a results file beside it; returns the Markdown."""
    result = read_result(path)
    parts = [table.markdown() for table in TABLES[result["kind"]](result)]
    text = "\n\n".join([*parts, "\n".join(setting_lines(result["setting"]))]) + "\n"
    write_bytes(path.with_suffix(".md"), text.encode())
    with matplotlib.rc_context(STYLE):
        for name, figure in plots(result).items():
            if figure is not None:
                save(figure, path.with_name(f"{path.stem}{name}"))
    return text


def save(figure: Figure, stem: Path) -> None:
    """Write a figure as `.png` and `.pdf`; without a date, so that equal results give equal bytes."""
    for kind in ("png", "pdf"):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=130, metadata={"CreationDate": None} if kind == "pdf" else None)
        write_bytes(stem.with_name(f"{stem.name}.{kind}"), content.getvalue())


def main(argv: Sequence[str] | None = None) -> None:
    """Render the files that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.json", help="default: all of benchmarks/results")
    for path in parser.parse_args(argv).files or sorted(RESULTS.glob("*.json")):
        render(path)


if __name__ == "__main__":
    main()
