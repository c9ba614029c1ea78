"""The shipped weights in spandrel's loader and in onnxruntime, beside PyTorch: difference, PSNR, time, memory.

    python scripts/export_onnx.py --out hatfreq_light_x4.onnx
    python benchmarks/integrations.py --onnx hatfreq_light_x4.onnx --out benchmarks/results/integrations.md

Whole images, single pass, on the CPU. Each image is restored in every way by turns, after a pass that is not counted;
differences are those of the results in [0, 1] before rounding. Memory is measured in a process of its own for each way
and side: the peak of three passes above what the process held after a pass over 16x16 pixels.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_sets import BENCH, ZOO, machine, pairs, run_measured, shipped
from benchmarks.reference import held
from benchmarks.results_file import publish
from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.tiling import to_samples, to_tensor
from scripts.export_onnx import session_of
from utils.metrics import psnr_y

Row = list[Any]  # by COLUMNS
Way = Callable[[Tensor], Tensor]  # float32 1 3 h w -> float32 1 3 4h 4w, in [0, 1]
WEIGHTS = ZOO / "hatfreq_light_x4.safetensors"
PASSES = 3
WAYS = ("PyTorch", "spandrel, fp32", "spandrel, bf16", "onnxruntime")
COLUMNS = ["set_or_side", "way", "psnr_y", "largest_difference", "seconds", "peak_mb"]


def opened_by_spandrel(dtype: torch.dtype) -> Way:
    """The shipped weights as spandrel opens and calls them."""
    from spandrel import ModelLoader

    from integrations.spandrel_hatfreq import install

    install()
    model = ModelLoader(device="cpu").load_from_file(WEIGHTS).to(dtype=dtype)
    return lambda lq: model(lq.to(dtype)).float()


def run_by_onnxruntime(file: Path) -> Way:
    """An exported file in onnxruntime."""
    session = session_of(file.read_bytes())
    return lambda lq: torch.from_numpy(session.run(None, {"lq": lq.numpy()})[0]).clamp(0, 1)


def way_of(name: str, onnx: Path) -> Way:
    """One of WAYS, ready to restore."""
    if name == "onnxruntime":
        return run_by_onnxruntime(onnx)
    if name.startswith("spandrel"):
        return opened_by_spandrel(torch.bfloat16 if name.endswith("bf16") else torch.float32)
    model = shipped()
    return lambda lq: model(lq).clamp(0, 1)


@torch.inference_mode()
def timed(way: Way, lq: Tensor) -> tuple[Tensor, float]:
    """The result, and its seconds."""
    began = time.perf_counter()
    sr = way(lq)
    return sr, time.perf_counter() - began


def compare(ways: dict[str, Way], lq: Tensor, target: NDArray[np.uint8], rounds: int) -> dict[str, list[float]]:
    """PSNR-Y in dB, largest difference from the first way, and the median of the seconds, of each way."""
    results = {name: timed(way, lq)[0] for name, way in ways.items()}  # warms up, too
    turns = [{name: timed(way, lq)[1] for name, way in ways.items()} for _ in range(rounds)]
    reference = next(iter(results.values()))
    return {
        name: [
            psnr_y(to_samples(sr, np.dtype(np.uint8)), target),
            float((sr - reference).abs().max()),
            statistics.median(turn[name] for turn in turns),
        ]
        for name, sr in results.items()
    }


def compare_set(ways: dict[str, Way], bench: Path, name: str, rounds: int) -> list[Row]:
    """A row of COLUMNS for every way: mean PSNR, largest difference, sum of the seconds."""
    figures = [compare(ways, to_tensor(read_rgb(lq)), read_rgb(gt), rounds) for lq, gt in pairs(bench, name)]
    rows: list[Row] = []
    for way in ways:
        psnr, difference, seconds = zip(*(image[way] for image in figures), strict=True)
        rows.append([name, way, statistics.mean(psnr), max(difference), sum(seconds), ""])
    return rows


def measure_memory(names: Sequence[str], onnx: Path, sides: list[int]) -> list[Row]:
    """A row of COLUMNS for every side and way: MB at the peak above what was held before."""
    rows: list[Row] = []
    for side in sides:
        for name in names:
            words = [__file__, "--onnx", str(onnx), "--child", name, "--sides", str(side)]
            rows.append([side, name, "", "", "", int(run_measured(words).text) / 1e6])
    return rows


def added_bytes(name: str, onnx: Path, side: int) -> int:
    """What PASSES passes over `side` x `side` random pixels add, at their peak, to what this process held before."""
    way, lq = way_of(name, onnx), torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    timed(way, lq[..., :16, :16].contiguous())
    before = held(torch.device("cpu"))
    for _ in range(PASSES):
        timed(way, lq)
    return held(torch.device("cpu"), peak=True) - before


def tables(quality: list[Row], memory: list[Row], rounds: int) -> str:
    """Both tables as Markdown."""
    lines = ["| set | way | PSNR-Y, dB | largest difference from PyTorch | seconds | of PyTorch's |"]
    lines.append("|---|---|---|---|---|---|")
    base = 1.0
    for name, way, psnr, difference, seconds, _ in quality:
        base = seconds if way == WAYS[0] else base
        lines.append(f"| {name} | {way} | {psnr:.4f} | {difference:.1e} | {seconds:.2f} | {seconds / base:.2f} |")
    lines += ["", "| LR pixels | way | peak, MB |", "|---|---|---|"]
    lines += [f"| {side}x{side} | {way} | {peak:.0f} |" for side, way, *_, peak in memory]
    data = f"`light`, single pass, whole images; medians of {rounds} turns, summed over a set"
    return "\n".join([*lines, "", data, f"{machine()}, {versions()}"]) + "\n"


def versions() -> str:
    """The two packages that were measured."""
    from importlib.metadata import version

    return f"spandrel {version('spandrel')}, onnxruntime {version('onnxruntime')}"


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnx", type=Path, required=True, help="what scripts/export_onnx.py wrote for `light`")
    parser.add_argument("--bench", type=Path, default=BENCH, help="evaluation sets (default: %(default)s)")
    parser.add_argument("--sets", nargs="+", default=["Set5"], help="sets of it")
    parser.add_argument("--sides", nargs="*", type=int, default=[256, 512], help="of the memory's squares")
    parser.add_argument("--rounds", type=int, default=3, help="turns")
    parser.add_argument("--child", choices=WAYS, help="measure one way on the first side: print bytes")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    args = parser.parse_args(argv)
    if not args.onnx.exists():
        raise SystemExit(f"{args.onnx} does not exist: write it with scripts/export_onnx.py --out {args.onnx}")
    if args.child:
        print(added_bytes(args.child, args.onnx, args.sides[0]))
        return
    memory = measure_memory(WAYS, args.onnx, args.sides)  # first: a child's peak starts at its parent's
    ways = {name: way_of(name, args.onnx) for name in WAYS}
    quality = [row for name in args.sets for row in compare_set(ways, args.bench, name, args.rounds)]
    publish(tables(quality, memory, args.rounds), args.out, COLUMNS, [*quality, *memory])


if __name__ == "__main__":
    main()
