"""One training step (forward, backward, optimiser) beside the reference HAT in a plain loop, and its peak memory.

    python benchmarks/train_step.py --out benchmarks/results/train_step_cpu.md
    python benchmarks/train_step.py --device cuda --batch 8 --out benchmarks/results/train_step_cuda.md

The reference is spandrel's HAT (`pip install spandrel`) of the same shape, L1 and `torch.optim.Adam`. Ours is the
trainer's own `train_step`: it also makes the low-resolution side, averages the weights and sums the loss. `light` has
an upsampler that HAT does not know, so that a row gives it HAT's. Every measurement is a process of its own, as a
process's peak never falls, and the cases take turns; the table holds the medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from benchmarks.reference import held, reference_hat, synchronise
from benchmarks.results_file import publish
from image_data.degradation import KERNEL_MARGIN
from models.team08_HATFreq import PRESETS
from training.config import TrainConfig
from training.data import Batch
from training.distributed import World


@dataclass(frozen=True)
class Case:
    """One way to train one shape."""

    preset: str
    name: str
    ours: bool = True
    settings: tuple[tuple[str, Any], ...] = ()
    bf16: bool = False
    only: str = ""  # the kind of device that it is for; empty for all


HAT_LIKE = ("model_overrides", ("upsampler=pixelshuffle",))
PLAIN, BOTH = ("frequency", "none"), ("frequency", "both")
RECOMPUTED = ("checkpointing", True)
PRODUCTS = ("aten::bmm", "aten::baddbmm", "aten::mm", "aten::addmm", "aten::mkldnn_convolution")
PRODUCTS += ("aten::convolution_backward", "aten::_slow_conv2d_forward", "aten::mkldnn_linear", "aten::addbmm")
CASES = [
    *(
        case
        for preset, like in (("light", (PLAIN, HAT_LIKE)), ("base", (PLAIN,)))
        for case in (
            Case(preset, "reference HAT, fp32", ours=False),
            Case(preset, "the same network here, fp32", settings=like),
            Case(preset, "with fusion, as the preset is, fp32", settings=(BOTH,)),
            Case(preset, "reference HAT, bf16 autocast", ours=False, bf16=True, only="cuda"),
            Case(preset, "the same network here, bf16", settings=like, bf16=True, only="cuda"),
            Case(preset, "with fusion, bf16", settings=(BOTH,), bf16=True),
            Case(preset, "with fusion, checkpointing, fp32", settings=(BOTH, RECOMPUTED)),
            Case(preset, "with fusion, checkpointing, bf16", settings=(BOTH, RECOMPUTED), bf16=True, only="cuda"),
        )
    )
]


# ---------------------------------------------------------------------------------------------------------------------
# One measurement
# ---------------------------------------------------------------------------------------------------------------------


def our_step(case: Case, batch: int, patch: int, device: torch.device) -> Callable[[], object]:
    """The trainer's step on a prepared batch."""
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(case.settings) | {"preset": case.preset, "batch": batch, "patch": patch, "warmup": 0}
        config = TrainConfig(data=("none",), out=f"{folder}/run", precision="bf16" if case.bf16 else "fp32", **settings)
        torch.backends.cudnn.allow_tf32 = case.bf16
        run = train.start(config, World(0, 1, device))
    side = 4 * patch + 2 * KERNEL_MARGIN
    region = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
    part = Batch(region, torch.zeros(batch, patch, patch, 3, dtype=torch.uint8), torch.zeros(batch).bool(), (), False)
    return lambda: train.train_step(run, [part])


def reference_step(case: Case, batch: int, patch: int, device: torch.device) -> Callable[[], object]:
    """A plain loop's step of spandrel's HAT."""
    model = reference_hat(PRESETS[case.preset]).to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    lq, gt = (torch.rand(batch, 3, side, side, device=device) for side in (patch, 4 * patch))

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=case.bf16):
            sr = model(lq)
        nn.functional.l1_loss(sr.float(), gt).backward()
        optimiser.step()

    return step


def prepared(case: Case, args: argparse.Namespace) -> Callable[[], object]:
    """A case's step, ready to be made."""
    device = torch.device(args.device)
    if device.type == "cpu":
        torch.set_num_threads(args.threads)
    batch, patch = sizes(case.preset, args)
    return (our_step if case.ours else reference_step)(case, batch, patch, device)


def product_share(case: Case, args: argparse.Namespace) -> tuple[float, float]:
    """(seconds of a step under the profiler, those in matrix products and convolutions): on a CPU, the floor."""
    step = prepared(case, args)
    step()
    with torch.profiler.profile() as profile:
        step()
    times = {event.key: event.self_cpu_time_total / 1e6 for event in profile.key_averages()}
    return sum(times.values()), sum(times.get(name, 0.0) for name in PRODUCTS)


def measure(case: Case, args: argparse.Namespace) -> tuple[float, float]:
    """(seconds a step, GB that the steps add to what the process held before)."""
    device = torch.device(args.device)
    step = prepared(case, args)
    before = held(device)
    step()
    times = []
    for _ in range(args.steps):
        synchronise(device)
        began = time.perf_counter()
        step()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times), (held(device, peak=True) - before) / 1e9


def sizes(preset: str, args: argparse.Namespace) -> tuple[int, int]:
    """Batch and LR patch of a preset."""
    if preset == "light":
        return 8 * args.batch, args.patch or 32
    return args.batch, args.patch or 64


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


def table(results: dict[Case, list[tuple[float, float]]], args: argparse.Namespace) -> str:
    """Markdown: the reference is the row of the same preset and precision, or its fp32 row."""
    columns = ["preset", "", "patches", "s a step", "lowest to highest", "faster than the reference", "GB"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for case, runs in results.items():
        seconds = [one for one, _ in runs]
        batch, patch = sizes(case.preset, args)
        spread = f"{min(seconds):.3f} to {max(seconds):.3f}"
        ratio = base_seconds(results, case) / statistics.median(seconds)
        memory = statistics.median(gigabytes for _, gigabytes in runs)
        row = [case.preset, case.name, f"{batch} of {patch}x{patch}", f"{statistics.median(seconds):.3f}", spread]
        lines.append(f"| {' | '.join(row)} | {ratio:.2f}x | {memory:.2f} |")
    cpu = f"{args.threads} thread(s) of {os.cpu_count()} cores"
    where = cpu if args.device == "cpu" else torch.cuda.get_device_name()
    taken = f"medians of {args.rounds} processes, each the median of {args.steps} steps after the first"
    setting = f"{where}, torch {torch.__version__}, {taken}"
    return "\n".join([*lines, "", setting]) + "\n"


def floor_table(shares: dict[Case, tuple[float, float]]) -> str:
    """Markdown: what a step of each kind spends in matrix products and convolutions, which no rewriting removes."""
    lines = ["", "| preset | | a step under the profiler, s | in matrix products and convolutions, s | share |"]
    lines.append("|---|---|---|---|---|")
    for case, (total, products) in shares.items():
        lines.append(f"| {case.preset} | {case.name} | {total:.3f} | {products:.3f} | {products / total:.0%} |")
    return "\n".join(lines) + "\n"


def base_seconds(results: dict[Case, list[tuple[float, float]]], case: Case) -> float:
    """Median seconds of the reference that a case is compared with: of its precision where it was measured."""
    references = [one for one in results if one.preset == case.preset and not one.ours]
    chosen = next((one for one in references if one.bf16 == case.bf16), references[0])
    return statistics.median(seconds for seconds, _ in results[chosen])


def main(argv: list[str] | None = None) -> None:
    """Measure one case (in a child) or let all take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--presets", nargs="+", default=["light", "base"], help="which presets")
    parser.add_argument("--batch", type=int, default=1, help="patches of base; light takes eight times as many")
    parser.add_argument("--patch", type=int, default=0, help="LR patch; default: 32 for light, 64 for base")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--steps", type=int, default=3, help="timed steps in each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each case")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--products", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.case is not None:
        print(*(product_share if args.products else measure)(CASES[args.case], args))
        return
    kind = torch.device(args.device).type
    chosen = [n for n, case in enumerate(CASES) if case.only in ("", kind) and case.preset in args.presets]
    results: dict[Case, list[tuple[float, float]]] = {CASES[number]: [] for number in chosen}
    words = sys.argv[1:] if argv is None else argv
    for _ in range(args.rounds):
        for number in chosen:
            seconds, gigabytes = child(words, number)
            results[CASES[number]].append((seconds, gigabytes))
            print(f"{CASES[number].preset}, {CASES[number].name}: {seconds:.3f} s, {gigabytes:.2f} GB", file=sys.stderr)
    shares: dict[Case, tuple[float, float]] = {}
    for number in chosen if kind == "cpu" else []:
        if not CASES[number].bf16 and RECOMPUTED not in CASES[number].settings:
            shares[CASES[number]] = child(words, number, "--products")
    figures = ((case.preset, case.name, *run) for case, runs in results.items() for run in runs)
    text = table(results, args) + (floor_table(shares) if shares else "")
    publish(text, args.out, ["preset", "case", "seconds_per_step", "gigabytes"], figures)


def child(words: list[str], number: int, *more: str) -> tuple[float, float]:
    """Two figures of one case, from a process of its own."""
    command = [sys.executable, __file__, *words, "--case", str(number), *more]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    first, second = map(float, done.stdout.split()[-2:])
    return first, second


if __name__ == "__main__":
    main()
