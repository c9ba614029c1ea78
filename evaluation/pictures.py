"""Two PNG files to look at: the worst, median and best restoration, and the radial power spectra."""

import io
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from evaluation.pairing import RGB, EvaluationError, Pair
from evaluation.spectrum import mean_radial_power
from evaluation.tables import Rows
from models.team08_HATFreq.image_io import read_rgb
from utils.files import write_bytes
from utils.metrics import psnr_y, rgb_to_y, ssim_y
from utils.resize import SCALE, imresize

CROP = 160  # side of the detail that is shown, in target pixels
ERROR_RANGE = 32  # levels of Y at which the error's colours end
NYQUIST = 0.5 / SCALE  # of the LR image, in cycles per target pixel
TINY = 1e-6  # levels²: keeps a plain image's empty spectrum on a logarithmic axis
SPECTRUM_IMAGES = 100  # at most so many images, evenly picked, enter the spectra
COLOURS = {"target": "#222222", "restored": "#0072b2", "bicubic": "#d55e00"}  # distinct for colour-blind readers
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.dpi": 150,
}


@dataclass(frozen=True)
class Panel:
    """One restored image beside bicubic and its target, uint8 `h w 3`."""

    rank: str
    name: str
    bicubic: RGB
    restored: RGB
    target: RGB


def bicubic_of(pair: Pair, target: RGB) -> RGB:
    """The bicubic enlargement of the LR image, or of the shrunken target where there is none at hand."""
    lq = read_rgb(pair.lq) if pair.lq is not None else imresize(target, 1 / SCALE, "clamp")
    enlarged = imresize(lq, SCALE, "clamp")
    if enlarged.shape != target.shape:
        raise EvaluationError(f"{pair.lq} at x{SCALE} has not the size of {pair.target}: give its own LR image")
    return enlarged


def draw_comparison(path: Path, pairs: list[Pair], rows: Rows) -> None:
    """Write the comparison of the worst, median and best image by PSNR (fewer for fewer images)."""
    with matplotlib.rc_context(STYLE):
        panels = [_panel(rank, pair) for rank, pair in ranked(pairs, rows)]
        figure = Figure(figsize=(12.5, 0.35 + 2.75 * len(panels)), layout="constrained")
        grid = figure.subplots(len(panels), 5, squeeze=False)
        for axes, panel in zip(grid, panels, strict=True):
            _draw_row(figure, list(axes), panel)
        _save(figure, path)


def ranked(pairs: list[Pair], rows: Rows) -> list[tuple[str, Pair]]:
    """Worst, median and best by PSNR, without repetition."""
    ordered = sorted(pairs, key=lambda pair: (rows[pair.name]["psnr"], pair.name))
    chosen = {"best": ordered[-1], "median": ordered[(len(ordered) - 1) // 2], "worst": ordered[0]}
    by_name = {pair.name: (rank, pair) for rank, pair in chosen.items()}  # the later rank wins: worst, median, best
    return [by_name[pair.name] for pair in ordered if pair.name in by_name]


def detail(error: NDArray[np.float64], side: int = CROP) -> tuple[slice, slice]:
    """The window of `h w` with the largest mean error, `side` pixels a side or as large as the image."""
    height, width = (min(side, length) for length in error.shape)
    integral = np.pad(error.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    bands = integral[height:] - integral[:-height]
    total = bands[:, width:] - bands[:, :-width]
    top, left = np.unravel_index(np.argmax(total), total.shape)
    return slice(int(top), int(top) + height), slice(int(left), int(left) + width)


def draw_spectrum(path: Path, pairs: list[Pair]) -> None:
    """Write the mean radial power spectra of bicubic, restored and target, and their ratio to the target."""
    chosen = pairs[:: max(1, len(pairs) // SPECTRUM_IMAGES)][:SPECTRUM_IMAGES]
    lumas: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in COLOURS}
    for pair in chosen:
        panel = _panel("", pair)
        for kind in COLOURS:
            lumas[kind].append(rgb_to_y(getattr(panel, kind)))
    spectra = {kind: mean_radial_power(images) for kind, images in lumas.items()}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        power, ratio = figure.subplots(1, 2)
        for kind, (frequency, values) in spectra.items():
            style = {"color": COLOURS[kind], "label": kind, "lw": 1.8, "ls": "--" if kind == "bicubic" else "-"}
            power.semilogy(frequency, values + TINY, **style)
            if kind != "target":
                ratio.plot(frequency, 10 * np.log10((values + TINY) / (spectra["target"][1] + TINY)), **style)
        ratio.axhline(0, color=COLOURS["target"], lw=1, label="target")
        _label_spectrum(power, f"Power of Y, mean of {len(chosen)} images", "power (levels²)")
        _label_spectrum(ratio, "Share of the target's power that is there", "ratio to target (dB)")
        _save(figure, path)


def _label_spectrum(axes: Axes, title: str, ylabel: str) -> None:
    axes.axvline(NYQUIST, color="#999999", lw=1, ls="--")
    axes.annotate(
        "finest detail\nof the LR image", (NYQUIST, 0.03), xycoords=("data", "axes fraction"), xytext=(4, 0),
        textcoords="offset points", color="#666666", fontsize=8,
    )  # fmt: skip
    axes.set(title=title, xlabel="spatial frequency (cycles/pixel)", ylabel=ylabel, xlim=(0, 0.5))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def _panel(rank: str, pair: Pair) -> Panel:
    restored, target = pair.read()
    if target is None:
        raise EvaluationError(f"{pair.name} has no target to be compared with")
    return Panel(rank, pair.name, bicubic_of(pair, target), restored, target)


def _draw_row(figure: Figure, axes: list[Axes], panel: Panel) -> None:
    """whole target with the detail's frame | bicubic | restored | target | error."""
    difference = rgb_to_y(panel.restored) - rgb_to_y(panel.target)
    rows, columns = detail(np.abs(difference))
    axes[0].imshow(panel.target, interpolation="antialiased")
    frame = (columns.start, rows.start), columns.stop - columns.start, rows.stop - rows.start
    axes[0].add_patch(Rectangle(*frame, fill=False, color="#ffd400", lw=1.6))
    name = panel.name.encode(errors="replace").decode()  # a name that is not UTF-8 has no letters for its bytes
    axes[0].set_title(f"{panel.rank}: {name}", fontweight="bold", parse_math=False)
    for ax, kind in zip(axes[1:4], ("bicubic", "restored", "target"), strict=True):
        ax.imshow(getattr(panel, kind)[rows, columns], interpolation="nearest")
        ax.set_title(_caption(panel, kind))
    shown = axes[4].imshow(difference[rows, columns], cmap="RdBu_r", vmin=-ERROR_RANGE, vmax=ERROR_RANGE)
    axes[4].set_title("restored minus target")
    scale = axes[4].inset_axes((1.03, 0, 0.05, 1))  # as high as the panel, whatever its shape
    figure.colorbar(shown, cax=scale, label="error of Y (levels)", extend="both", extendfrac=0.03)
    for ax in axes:
        ax.set_anchor("N")  # titles of a row on one line, whatever the image's shape
        ax.set_axis_off()


def _caption(panel: Panel, kind: str) -> str:
    if kind == "target":
        return "target"
    image = getattr(panel, kind)
    psnr = f"{kind}  {psnr_y(image, panel.target):.2f} dB"
    try:
        return f"{psnr} / {ssim_y(image, panel.target):.4f}"
    except ValueError:  # too small for SSIM's window
        return psnr


def _save(figure: Figure, path: Path) -> None:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_bytes(path, content.getvalue())
