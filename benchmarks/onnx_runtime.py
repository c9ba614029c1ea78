"""The exported network in onnxruntime beside PyTorch: seconds and difference.

    pip install -r requirements-onnx.txt
    python benchmarks/onnx_runtime.py --out benchmarks/results/onnx_runtime.md

The shipped `light` weights, exported by scripts/export_onnx.py's own function, on random images; both take turns on the
same number of threads.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_sets import machine, shipped
from benchmarks.results_file import publish
from scripts.export_onnx import onnx_model, session_of

COLUMNS = ["size", "pytorch_seconds", "onnxruntime_seconds", "ratio", "difference"]
SIZES = ((64, 64), (128, 128), (81, 122), (33, 50))


def main(argv: list[str] | None = None) -> None:
    """Export, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns after the first (default %(default)s)")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    args = parser.parse_args(argv)
    model = shipped()
    session, draw = session_of(onnx_model(model, {})), np.random.default_rng(0)
    rows = []
    for height, width in SIZES:
        lq = draw.random((1, 3, height, width), np.float32)
        taken: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.rounds + 1):
            began = time.perf_counter()
            with torch.inference_mode():
                expected = model(torch.from_numpy(lq)).numpy()
            between = time.perf_counter()
            found = session.run(None, {"lq": lq})[0]
            taken[0].append(between - began)
            taken[1].append(time.perf_counter() - between)
        ours, theirs = (statistics.median(one[1:]) for one in taken)
        rows.append([f"{height}x{width}", ours, theirs, theirs / ours, float(np.abs(found - expected).max())])
    lines = ["| LR pixels | PyTorch, s | onnxruntime, s | onnxruntime over PyTorch | largest difference |"]
    lines.append("|---|---|---|---|---|")
    lines += [f"| {size} | {a:.3f} | {b:.3f} | {ratio:.2f} | {diff:.1e} |" for size, a, b, ratio, diff in rows]
    text = f"`light`, fp32, one pass; medians of {args.rounds} turns; differences in a range of 0 to 1\n{machine()}\n"
    publish("\n".join([*lines, "", text]), args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
