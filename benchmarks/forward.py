"""One forward pass beside the reference HAT with the same weights: time, peak memory, difference, and the floor.

    python benchmarks/forward.py --out benchmarks/results/forward_cpu.md
    python benchmarks/forward.py --device cuda --presets base large --sizes 352x512 --bf16 \
        --out benchmarks/results/forward_cuda.md

The reference is spandrel's HAT (`pip install spandrel`). For each size one process loads its weights into our network
without and with frequency blocks (fresh ones: they add nothing to the result, but take their time), and lets all take
turns; the table holds the medians. Memory is measured in processes of their own, as a process's peak never falls.

The floor is the time that the pass's multiplications would take at the rate of a large convolution, the fastest product
that the device was seen to make in the same process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reference import held, reference_hat, synchronise
from benchmarks.results_file import publish
from models.team08_HATFreq import PRESETS, build_model

KINDS = ("reference HAT", "the same network here", "with frequency blocks")
COLUMNS = [
    "preset",
    "size",
    "precision",
    "kind",
    "seconds",
    "faster",
    "megabytes",
    "of_reference",
    "difference",
    "floor",
]


def network(preset: str, kind: str, device: torch.device) -> nn.Module:
    """One of KINDS, with the weights that the reference draws at seed 0."""
    torch.manual_seed(0)
    reference = reference_hat(PRESETS[preset])
    if kind == KINDS[0]:
        return reference.eval().to(device)
    model = build_model(preset, "none" if kind == KINDS[1] else "both")
    model.load_state_dict(reference.state_dict(), strict=kind == KINDS[1])
    return model.eval().to(device)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """bf16 autocast, or none."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    synchronise(device)
    began = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - began


def product_rate(device: torch.device, precision: str) -> float:
    """FLOP a second of a large 3x3 convolution: the best of ten."""
    x = torch.rand(1, 256, 64, 64, device=device).to(memory_format=torch.channels_last)
    weight = torch.rand(256, 256, 3, 3, device=device).to(memory_format=torch.channels_last)
    with torch.inference_mode(), autocast(device, precision):
        times = [seconds(lambda: F.conv2d(x, weight, padding=1), device) for _ in range(11)][1:]
    return 2 * 256 * 256 * 9 * 64 * 64 / min(times)


def flops(model: nn.Module, lq: Tensor) -> int:
    """Floating-point operations of the products of one pass."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(lq)
    return counter.get_total_flops()


def measure_time(preset: str, height: int, width: int, precision: str, args: argparse.Namespace) -> list[list[float]]:
    """For each of KINDS: median seconds, greatest difference from the reference, seconds of the floor."""
    device = torch.device(args.device)
    models = [network(preset, kind, device) for kind in KINDS]
    lq = torch.rand(1, 3, height, width, device=device)
    with torch.inference_mode(), autocast(device, precision):
        outputs = [model(lq).float() for model in models]
        times: list[list[float]] = [[] for _ in KINDS]
        for _ in range(args.rounds):
            for taken, model in zip(times, models, strict=True):
                taken.append(seconds(lambda: model(lq), device))  # noqa: B023 - called at once
    differences = [(output - outputs[0]).abs().max().item() for output in outputs]
    floor = flops(models[0], lq) / product_rate(device, precision)
    return [[statistics.median(t), d, floor] for t, d in zip(times, differences, strict=True)]


def measure_memory(preset: str, height: int, width: int, precision: str, kind: str, device: torch.device) -> float:
    """MB that a pass adds to what the process holds after a pass over one window; the reference's in fp32 on CUDA."""
    model = network(preset, kind, device)
    with torch.inference_mode(), autocast(device, precision):
        model(torch.rand(1, 3, 16, 16, device=device))
        before = held(device)
        model(torch.rand(1, 3, height, width, device=device))
    return (held(device, peak=True) - before) / 1e6


def child(args: argparse.Namespace, *job: str) -> list[list[float]]:
    """The figures of a process of its own, a list of rows."""
    command = [sys.executable, __file__, "--device", args.device, "--threads", str(args.threads)]
    command += ["--rounds", str(args.rounds), "--job", *job]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [list(map(float, line.split())) for line in done.stdout.splitlines()]


def run_job(args: argparse.Namespace) -> None:
    """What a child does: print the figures of one measurement."""
    preset, size, precision, *kind = args.job
    height, width = map(int, size.split("x"))
    if args.device == "cpu":
        torch.set_num_threads(args.threads)
    if kind:
        print(measure_memory(preset, height, width, precision, kind[0], torch.device(args.device)))
        return
    for row in measure_time(preset, height, width, precision, args):
        print(*row)


def rows_of(preset: str, size: str, precision: str, args: argparse.Namespace) -> list[list[object]]:
    """The table's rows of one size."""
    timed = child(args, preset, size, precision)
    memory = [child(args, preset, size, precision, kind)[0][0] for kind in KINDS]
    return [
        [preset, size, precision, kind, took, timed[0][0] / took, held_by, held_by / memory[0], difference, floor]
        for kind, (took, difference, floor), held_by in zip(KINDS, timed, memory, strict=True)
    ]


def table(rows: list[list[object]], args: argparse.Namespace) -> str:
    """Markdown."""
    titles = ["preset", "LR pixels", "precision", "", "s", "faster", "peak MB", "of the reference's", "max difference"]
    lines = [f"| {' | '.join([*titles, 's of the floor'])} |", "|" + "---|" * (len(titles) + 1)]
    for preset, size, precision, kind, took, faster, memory, share, difference, floor in rows:
        figures = f"{took:.3f} | {faster:.2f}x | {memory:.0f} | {share:.2f} | {difference:.1e} | {floor:.3f}"
        lines.append(f"| {preset} | {size} | {precision} | {kind} | {figures} |")
    cpu = f"{args.threads} thread(s) of {os.cpu_count()} cores"
    where = cpu if args.device == "cpu" else torch.cuda.get_device_name()
    return "\n".join([*lines, "", f"{where}, torch {torch.__version__}, medians of {args.rounds} passes"]) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--presets", nargs="+", default=["base"], help="which presets")
    parser.add_argument("--sizes", nargs="+", default=["64x64", "128x128", "96x160"], help="LR sizes, HEIGHTxWIDTH")
    parser.add_argument("--bf16", action="store_true", help="under bf16 autocast too")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=3, help="timed passes of each network")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.job:
        run_job(args)
        return
    precisions = ["fp32", "bf16"] if args.bf16 else ["fp32"]
    rows = [
        row
        for preset in args.presets
        for size in args.sizes
        for precision in precisions
        for row in rows_of(preset, size, precision, args)
    ]
    publish(table(rows, args), args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
