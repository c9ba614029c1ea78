"""The factsheet's drawings: the data's flow, the frequency block with its shapes, and quality against time."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from benchmarks.quality_tables import OURS, Figures
from factsheet.shapes import Shapes

INK, PALE, WARM, GREEN = "#1f3b57", "#e8eef5", "#fbeee0", "#dcebd5"
SIZE = 6.8  # points: what stands in the drawings, at their width in print
AREA = 40.0  # square points a million parameters
OUR_COLOURS, OTHER_COLOURS = ("#c0392b", "#e67e22"), ("#7f8c8d", "#2471a3", "#148f77", "#7d3c98", "#566573")


def draw_flow(path: Path, counts: dict[str, int]) -> None:
    """Figure 1: from the pool to the chosen images.

    Args:
        path: file to write, PDF or PNG.
        counts: step of the selection -> images (`factsheet.results.flow`).
    """
    n = {key: f"{value:,}" for key, value in counts.items()}
    axes = _canvas(100, 2.35)
    guard = (
        "leakage guard:\nnear pairs laid over each other\n"
        f"evaluation: {n['pairs verified against evaluation']} pairs, {n['removed for evaluation']} removed\n"
        f"pool: {n['pairs verified within the pool']} pairs, {n['removed within the pool']} removed"
    )
    row = [
        (0.3, 11.5, f"pool\n{n['pool']} images", PALE),
        (14.6, 13.5, f"readable,\nshrunk ×1/4,\nembedded\n{n['readable']}", PALE),
        (30.9, 25, guard, WARM),
        (58.8, 9.6, f"eligible\n{n['eligible']}", PALE),
        (71.6, 13.2, "cosine\nsimilarity,\nmost similar\nkept", WARM),
        (88, 11.7, f"Data-LDCC\n{n['chosen']} images", GREEN),
    ]
    for left, width, text, colour in row:
        _box(axes, left + width / 2, 70, width, 50, text, colour)
    for (left, width, *_), (following, *_) in pairwise(row):
        _arrow(axes, (left + width, 70), (following, 70))
    _box(axes, 43.4, 14, 25, 24, f"evaluation images\n{n['evaluation images guarded']} files, LR and HR", PALE)
    _box(axes, 78.2, 14, 22, 24, f"queries: LR images\n{n['queries']}, embedded", PALE)
    for x in (43.4, 78.2):
        _arrow(axes, (x, 26), (x, 45))
    axes.figure.savefig(path)


def draw_block(path: Path, shapes: Shapes, gains: Shapes) -> None:
    """Figure 2: the frequency block, each arrow with the shape that a forward pass reported."""
    axes = _canvas(112, 2.75)
    axes.set_xlim(-1.5, 113.5)  # room for the outer shapes
    window = gains["window gain"][1]
    _box(axes, 16, 48, 11, 26, "1×1 to half\nthe channels,\nGELU", PALE)
    mixing = f"1×1 on [Re, Im]\n{_size(gains['mix'])},\nLeakyReLU;\nradial gain\n{_size(gains['global gain'])}"
    rows = (
        (74, "global", "less the mean,\nrfft2 of the\nwhole image", mixing, WARM),
        (20, "window", f"rfft2 of\n{window}×{window}\nwindows", f"real gain\n{_size(gains['window gain'])}", PALE),
    )
    for y, name, transform, middle, colour in rows:
        _box(axes, 38, y, 13, 36, transform, colour)
        _box(axes, 63, y, 15, 36, middle, colour)
        _box(axes, 78, y, 8, 36, "irfft2", colour)
        _arrow(axes, (21.5, 48), (31.5, y))
        _arrow(axes, (44.5, y), (55.5, y))
        _arrow(axes, (70.5, y), (74, y))
        _arrow(axes, (82, y), (91.5, 56 if y > 48 else 40))
        _label(axes, 49.8, y + 4, f"{_size(shapes[f'{name} spectrum'])}\ncomplex")
        _label(axes, 87.3, y + 3 if y > 48 else y - 8, _size(shapes[name]))
    _box(axes, 97, 48, 11, 26, "join,\n1×1, zero\nat first", PALE)
    _label(axes, 4.3, 51, f"$r$\n{_size(shapes['input'])}")
    _label(axes, 27.5, 46, _size(shapes["reduce"]))
    _label(axes, 86, 46, _size(shapes["joined"]))
    _label(axes, 108.2, 51, f"$\\mathcal{{F}}(r)$\n{_size(shapes['output'])}")
    _arrow(axes, (-1.5, 48), (10.5, 48))
    _arrow(axes, (102.5, 48), (113.5, 48))
    axes.figure.savefig(path)


def draw_quality(path: Path, figures: Sequence[Figures]) -> None:
    """Figure 3: PSNR against CPU seconds, a panel a set; methods without a time are left to the table."""
    timed = [one for one in figures if one.seconds and "PSNR" in one.means]
    sets = list(dict.fromkeys(one.set for one in timed))
    colours = _colours(list(dict.fromkeys(one.method for one in timed)))
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for one in (one for one in timed if one.set == name):
            area, marker = (AREA * one.parameters / 1e6, "o") if one.parameters else (28.0, "x")
            axes.scatter(one.seconds, one.means["PSNR"], s=area, c=colours[one.method], marker=marker, alpha=0.85)
        axes.set_xscale("log")
        axes.margins(0.15, 0.15)
        axes.set_title(name, fontsize=SIZE + 1)
        axes.set_xlabel("CPU seconds an image", fontsize=SIZE)
        axes.tick_params(labelsize=SIZE)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("PSNR-Y, dB", fontsize=SIZE)
    for method, colour in colours.items():
        plain = any(one.method == method and not one.parameters for one in timed)
        figure.axes[0].scatter([], [], s=18, c=colour, marker="x" if plain else "o", label=method)
    figure.legend(loc="outside lower center", ncols=len(colours), fontsize=SIZE, frameon=False, handletextpad=0.1)
    figure.savefig(path)


def _colours(methods: Sequence[str]) -> dict[str, str]:
    """Warm colours for ours, others for the rest."""
    ours = [method for method in methods if method.startswith(OURS)]
    rest = [method for method in methods if method not in ours]
    found = {method: OTHER_COLOURS[number % len(OTHER_COLOURS)] for number, method in enumerate(rest)}
    return found | {method: OUR_COLOURS[number % len(OUR_COLOURS)] for number, method in enumerate(ours)}


def _canvas(units: float, height: float) -> Axes:
    """Axes without a frame, 7.2 inches wide: 0 to `units` across, 0 to 100 up."""
    axes = Figure(figsize=(7.2, height)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, units), ylim=(0, 100))
    axes.axis("off")
    return axes


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    corner = (x - width / 2, y - height / 2)
    shape = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=1", ec=INK, fc=colour, lw=0.8)
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=SIZE, color=INK, linespacing=1.3)


def _label(axes: Axes, x: float, y: float, text: str) -> None:
    axes.text(x, y, text, ha="center", va="bottom", fontsize=SIZE - 0.6, linespacing=1.2)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": INK, "lw": 0.9, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
    axes.annotate("", end, start, arrowprops=style)


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
