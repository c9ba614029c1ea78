"""The factsheet's drawings: the data's flow with its counts, and the frequency block with its shapes."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from factsheet.shapes import Shapes

INK, PALE = "#1f3b57", "#e8eef5"
WARM = "#fbeee0"


def draw_flow(path: Path, counts: dict[str, int]) -> None:
    """Figure 1: from the pool to the chosen images.

    Args:
        path: file to write, PDF or PNG.
        counts: step of the selection -> images (`factsheet.results.flow`).
    """
    axes = _canvas(path, 7.2, 2.7)
    shown = {key: f"{value:,}" for key, value in counts.items()}
    lost = shown["removed for evaluation"], shown["removed within the pool"]
    _box(axes, 8.5, 72, 17, 30, f"pool\n{shown['pool']} images", PALE)
    _box(axes, 30, 72, 18, 30, f"readable,\nshrunk x1/4,\nembedded\n{shown['readable']}", PALE)
    _box(
        axes,
        56,
        72,
        26,
        36,
        f"leakage guard\n{shown['pairs verified against evaluation']} + {shown['pairs verified within the pool']} pairs"
        f" laid over\neach other; {lost[0]} + {lost[1]}\nimages removed",
        WARM,
    )
    _box(axes, 78, 72, 12, 30, f"eligible\n{shown['eligible']}", PALE)
    _box(axes, 94.5, 72, 11, 30, f"Data-LDCC\n{shown['chosen']}", "#d9ead3")
    _box(axes, 56, 20, 26, 26, f"evaluation images\n{shown['evaluation images guarded']}, LR and HR", PALE)
    _box(axes, 86, 20, 22, 26, f"queries: LR images\n{shown['queries']}, embedded", PALE)
    for start, end in ((17, 21), (39, 43), (69, 72), (84, 89)):
        _arrow(axes, (start, 72), (end, 72))
    _arrow(axes, (56, 33), (56, 54))
    _arrow(axes, (86.5, 33), (86.5, 71))
    axes.text(87.5, 48, "cosine\nsimilarity", fontsize=7.5, color=INK, va="center")
    axes.figure.savefig(path)


def draw_block(path: Path, shapes: Shapes, gains: Shapes) -> None:
    """Figure 2: the frequency block, each arrow with the shape that a forward pass reported."""
    axes = _canvas(path, 7.2, 3.5)
    _box(axes, 9, 50, 15, 24, "1x1 to half\nthe channels,\nGELU", PALE)
    _box(axes, 33, 76, 17, 26, "less the mean,\nrfft2 of the\nwhole image", WARM)
    _box(axes, 57, 76, 21, 26, f"1x1 on [Re, Im]\n{_size(gains['mix'])}, LeakyReLU,\nradial gain\n"
         f"{_size(gains['global gain'])}", WARM)  # fmt: skip
    _box(axes, 33, 24, 17, 26, "rfft2 of\nshifted\nwindows", PALE)
    _box(axes, 57, 24, 21, 26, f"real gain\n{_size(gains['window gain'])}", PALE)
    _box(axes, 79, 76, 9, 26, "irfft2", WARM)
    _box(axes, 79, 24, 9, 26, "irfft2", PALE)
    _box(axes, 92, 50, 12, 24, "join,\n1x1, zero\nat first", PALE)
    for row, name in ((76, "global"), (24, "window")):
        _arrow(axes, (16.5, 50), (24.5, row))
        _arrow(axes, (41.5, row), (46.5, row))
        _arrow(axes, (67.5, row), (74.5, row))
        _arrow(axes, (83.5, row), (87, 62 if row > 50 else 38))
        above = row + 17 if row > 50 else row - 17
        side = "bottom" if row > 50 else "top"
        axes.text(50, above, f"spectrum {_size(shapes[f'{name} spectrum'])}, complex", ha="center", va=side, fontsize=8)
        axes.text(80, above, _size(shapes[name]), ha="center", va=side, fontsize=8)
    axes.text(9, 34, f"in {_size(shapes['input'])}\nout {_size(shapes['reduce'])}", ha="center", va="top", fontsize=8)
    axes.text(92, 34, f"in {_size(shapes['joined'])}\nout {_size(shapes['output'])}", ha="center", va="top", fontsize=8)
    axes.figure.savefig(path)


def _canvas(path: Path, width: float, height: float) -> Axes:
    path.parent.mkdir(parents=True, exist_ok=True)
    axes = Figure(figsize=(width, height)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 100.5), ylim=(0, 100))
    axes.axis("off")
    return axes


def _box(axes: Axes, x: float, y: float, width: float, height: float, text: str, colour: str) -> None:
    corner = (x - width / 2, y - height / 2)
    shape = FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=1", ec=INK, fc=colour, lw=0.9)
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=8, color=INK, linespacing=1.25)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 1, "shrinkA": 0, "shrinkB": 0})


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
