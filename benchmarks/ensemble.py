"""The x8 self-ensemble beside a single pass, and beside eight passes that are made and averaged separately.

    python benchmarks/ensemble.py --out benchmarks/results/ensemble.md

The shipped `light` weights, whole images, fp32, on the CPU, from samples to samples as test.py restores them. The eight
passes are turned with NumPy, run one by one and averaged in float64; the difference is that of the float results. All
three take turns, and the table holds the medians.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_sets import BENCH, machine, pairs, shipped
from benchmarks.results_file import publish
from models.team08_HATFreq import HATFreq
from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.inference import HATFreqRestorer
from models.team08_HATFreq.tiling import self_ensemble, to_tensor

COLUMNS = ["image", "single_s", "ensemble_s", "eight_passes_s", "largest_difference"]


def mean_of_eight(fn: Callable[[Tensor], Tensor], lq: Tensor) -> NDArray[np.float64]:
    """The mean of `fn` over the quarter turns of `b c h w` and of its mirror image, each turned back."""
    results = []
    for mirrored in (False, True):
        for quarter in range(4):
            array = np.rot90(lq.numpy()[..., ::-1] if mirrored else lq.numpy(), quarter, (-2, -1))
            back = np.rot90(fn(torch.from_numpy(array.copy())).numpy(), -quarter, (-2, -1))
            results.append((back[..., ::-1] if mirrored else back).astype(np.float64))
    return np.mean(results, axis=0)


def seconds_of(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


@torch.inference_mode()
def measure(model: HATFreq, rgb: NDArray[np.uint8], rounds: int) -> tuple[list[float], float]:
    """Seconds of a single pass, the ensemble and eight separate passes; the largest difference of the last two."""
    lq, cpu = to_tensor(rgb), torch.device("cpu")
    difference = np.abs(mean_of_eight(model, lq) - self_ensemble(model, lq).numpy()).max()  # warms up, too
    single, ensemble = (HATFreqRestorer(model, cpu, "fp32", 0, 0, passes, {}) for passes in (1, 8))
    ways = (lambda: single(rgb), lambda: ensemble(rgb), lambda: mean_of_eight(model, to_tensor(rgb)))
    turns = [[seconds_of(way) for way in ways] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*turns, strict=True)], float(difference)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bench", type=Path, default=BENCH, help="folder of the evaluation sets (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=5, help="images of Set5")
    parser.add_argument("--rounds", type=int, default=3, help="turns")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    args = parser.parse_args(argv)
    model, rows = shipped(), []
    for path, _ in pairs(args.bench, "Set5")[: args.images]:
        rgb = read_rgb(path)
        seconds, difference = measure(model, rgb, args.rounds)
        rows.append([f"Set5 {path.stem}, {rgb.shape[1]}x{rgb.shape[0]}", *seconds, difference])
    rows.append(["all", *(sum(row[column] for row in rows) for column in (1, 2, 3)), max(row[4] for row in rows)])
    lines = ["| LR image | single pass, s | x8, s | eight passes, s | x8 over single | largest difference |"]
    lines.append("|---|---|---|---|---|---|")
    for name, single, eight, separate, far in rows:
        lines.append(f"| {name} | {single:.3f} | {eight:.3f} | {separate:.3f} | {eight / single:.2f} | {far:.1e} |")
    data = f"`light`, fp32, whole images; medians of {args.rounds} turns; differences in a range of 0 to 1"
    publish("\n".join([*lines, "", data, machine()]) + "\n", args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
