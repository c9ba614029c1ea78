"""What tiles and bf16 cost in PSNR, against whole images in fp32, and what they take in time.

    python benchmarks/precision.py --out benchmarks/results/precision.md

The shipped `light` weights, single pass, on the CPU: PSNR on Y after rounding to 8 bits, as in every table of this
repository. Tiles overlap by 32 LR pixels, or by half a tile where that is less; images that fit into a tile stay whole.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_sets import BENCH, SETS, machine, pairs, shipped
from benchmarks.results_file import publish
from models.team08_HATFreq import HATFreq
from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.inference import HATFreqRestorer, Precision
from utils.metrics import psnr_y

COLUMNS = ["set", "precision", "tile", "tiled_images", "psnr", "cost", "largest_cost", "seconds"]
OVERLAP = 32
Case = tuple[Precision, int]
WHOLE: Case = ("fp32", 0)


def scores(model: HATFreq, files: list[tuple[Path, Path]], case: Case) -> tuple[list[float], float, int]:
    """PSNR of every image, seconds for all of them, and how many were cut into tiles."""
    precision, tile = case
    restorer = HATFreqRestorer(model, torch.device("cpu"), precision, tile, min(OVERLAP, tile // 2), 1, {})
    values, seconds, tiled = [], 0.0, 0
    for path, target in files:
        rgb = read_rgb(path)
        began = time.perf_counter()
        restored, noted = restorer(rgb)
        seconds += time.perf_counter() - began
        tiled += noted["tile"] > 0
        gt = read_rgb(target)[: restored.shape[0], : restored.shape[1]]
        values.append(psnr_y(restored, gt))
    return values, seconds, tiled


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bench", type=Path, default=BENCH, help="folder of the evaluation sets (default: %(default)s)"
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="which of them")
    parser.add_argument("--tiles", nargs="*", type=int, default=[128, 96, 64], help="sides of tiles, in fp32")
    parser.add_argument("--images", type=int, help="only so many of each set")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    args = parser.parse_args(argv)
    cases: list[Case] = [WHOLE, ("bf16", 0), *(("fp32", tile) for tile in args.tiles)]
    model, rows = shipped(), []
    lines = ["| set | precision | tile | images cut | PSNR-Y, dB | cost, dB | largest cost of an image, dB | seconds |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for name in args.sets:
        files = pairs(args.bench, name)[: args.images]
        base: list[float] = []
        for case in cases:
            values, seconds, tiled = scores(model, files, case)
            base = base or values
            costs = np.subtract(base, values)
            precision, tile = case
            row = [name, precision, tile or "whole", f"{tiled} of {len(files)}", f"{np.mean(values):.4f}"]
            row += [f"{costs.mean():.4f}", f"{costs.max():.4f}", f"{seconds:.1f}"]
            rows.append(row)
            lines.append(f"| {' | '.join(map(str, row))} |")
            print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join([*lines, "", "`light`, single pass; tiles overlap by 32 LR pixels", machine()]) + "\n"
    publish(text, args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
