"""The x8 self-ensemble beside eight single passes that are made and averaged separately: time and difference.

    python benchmarks/ensemble.py --out benchmarks/results/ensemble.md

The shipped `light` weights, whole images, fp32, on the CPU. The eight passes are turned with NumPy, run one by one and
averaged in float64; ensemble and single passes take turns, and the table holds the medians.
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
from models.team08_HATFreq.images import read_rgb
from models.team08_HATFreq.restore import self_ensemble, to_tensor

COLUMNS = ["image", "single_s", "ensemble_s", "times", "largest_difference"]


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
def measure(model: Callable[[Tensor], Tensor], lq: Tensor, rounds: int) -> tuple[float, float, float]:
    """Seconds of a single pass and of the ensemble, and its largest difference from the mean of eight."""
    difference = np.abs(mean_of_eight(model, lq) - self_ensemble(model, lq).numpy()).max()  # warms up, too
    single, ensemble = [], []
    for _ in range(rounds):
        single.append(seconds_of(lambda: model(lq)))
        ensemble.append(seconds_of(lambda: self_ensemble(model, lq)))
    return statistics.median(single), statistics.median(ensemble), float(difference)


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
        single, ensemble, difference = measure(model, to_tensor(rgb), args.rounds)
        name = f"Set5 {path.stem}, {rgb.shape[1]}x{rgb.shape[0]}"
        rows.append([name, round(single, 4), round(ensemble, 4), round(ensemble / single, 3), f"{difference:.1e}"])
    lines = ["| LR image | single pass, s | x8 ensemble, s | times | largest difference |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | {single:.3f} | {eight:.3f} | {times:.2f} | {far} |" for name, single, eight, times, far in rows
    ]
    whole = sum(row[2] for row in rows) / sum(row[1] for row in rows)
    lines.append(f"| all | {sum(row[1] for row in rows):.3f} | {sum(row[2] for row in rows):.3f} | {whole:.2f} | |")
    data = f"`light`, fp32, whole images; medians of {args.rounds} turns; differences in a range of 0 to 1"
    publish("\n".join([*lines, "", data, machine()]) + "\n", args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
