"""Speed beside the reference HAT (`pip install spandrel`) of the same shape.

    python -m benchmarks.speed forward                  # one pass: time, peak memory, difference, floor
    python -m benchmarks.speed step                     # one training step: time, peak memory
    python -m benchmarks.speed count                    # parameters and multiply-accumulates; measures nothing
    python -m benchmarks.speed forward --device cuda --presets base large --sizes 352x512 --bf16
    python -m benchmarks.speed step --device cuda --batch 8

`forward` gives all networks the same random weights; fresh frequency blocks add nothing to the result, but take their
time. `light`, whose upsampler HAT lacks, is measured with HAT's and with its own, beside which the blocks weigh more.
The networks take turns in one process; memory is measured in a process for each, as a process's peak never falls. The
floor is the time that the pass's products would take at the rate of a large convolution, the fastest product that the
device was seen to make in the same process.

`step` is the trainer's own step (LR made on the fly, forward, backward, Adam, averaged weights) beside a plain loop
with spandrel's HAT, L1 and Adam; each is a process of its own, and they take turns. `light` has an upsampler that HAT
lacks, so that one row gives it HAT's.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import train
from benchmarks.common import added_memory, by_turns, in_child, publish, reference_hat, seconds, setting
from benchmarks.render import RESULTS
from image_data.degradation import KERNEL_MARGIN
from models.team08_HATFreq import PRESETS, HATFreq, override, set_fused_attention
from models.team08_HATFreq.compiling import compile_blocks
from models.team08_HATFreq.system import HATFreqError, World
from training.config import TrainConfig
from training.data import Batch
from utils.files import command

COUNT_SIDE = 64  # LR pixels a side of the input whose multiply-accumulates are counted
HAT_UPSAMPLER = {"upsampler": "pixelshuffle"}
KINDS: dict[str, dict[str, Any]] = {  # name -> changes to the preset
    "reference HAT": {},
    "the same network here": {"frequency": "none", **HAT_UPSAMPLER},
    "with frequency blocks": {"frequency": "bands", **HAT_UPSAMPLER},
    "with frequency blocks, plain attention": {"frequency": "bands", **HAT_UPSAMPLER},
    "with frequency blocks, compiled": {"frequency": "bands", **HAT_UPSAMPLER},
    "own upsampler": {"frequency": "none"},
    "own upsampler, with frequency blocks": {"frequency": "bands"},
}
Row = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------------
# One pass
# ---------------------------------------------------------------------------------------------------------------------


def network(preset: str, kind: str, device: torch.device) -> nn.Module:
    """One of KINDS, with the weights that the reference draws at seed 0."""
    torch.manual_seed(0)
    reference = reference_hat(PRESETS[preset])
    if kind == "reference HAT":
        return reference.eval().to(device)
    model = HATFreq(override(PRESETS[preset], KINDS[kind]))
    state, own = reference.state_dict(), model.state_dict()
    shared = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    model.load_state_dict(shared, strict=kind == "the same network here")
    model = model.eval().to(device)
    if kind.endswith("compiled"):
        compile_blocks(model, device, sizes_vary=True)
    return PlainAttention(model) if kind.endswith("plain attention") else model


class PlainAttention(nn.Module):
    """A network with its attention in plain steps."""

    def __init__(self, model: HATFreq) -> None:
        super().__init__()
        self.model = model

    def forward(self, lq: Tensor) -> Tensor:
        with set_fused_attention(False):
            return self.model(lq)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """bf16 autocast, or none."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def product_rate(device: torch.device, precision: str) -> float:
    """FLOP a second of a large 3x3 convolution: the best of ten."""
    x = torch.rand(1, 256, 64, 64, device=device).to(memory_format=torch.channels_last)
    weight = torch.rand(256, 256, 3, 3, device=device).to(memory_format=torch.channels_last)
    with torch.inference_mode(), autocast(device, precision):
        times = [seconds(lambda: F.conv2d(x, weight, padding=1), device) for _ in range(11)][1:]
    return 2 * 256 * 256 * 9 * 64 * 64 / min(times)


def flops(model: nn.Module, lq: Tensor) -> int:
    """Floating-point operations of the products of one pass; Fourier transforms and elementwise steps do not count."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(lq)
    return counter.get_total_flops()


def forward_rows(
    preset: str, size: str, precision: str, device: torch.device, threads: int, kinds: list[str], rounds: int
) -> list[Row]:
    """The rows of one size, without their memory; in a process of its own."""
    torch.set_num_threads(threads)
    models = {kind: network(preset, kind, device) for kind in kinds}
    lq = torch.rand(1, 3, *map(int, size.split("x")), device=device)
    with torch.inference_mode(), autocast(device, precision):
        outputs = {kind: model(lq).float() for kind, model in models.items()}
        taken = by_turns({kind: partial(model, lq) for kind, model in models.items()}, rounds, device)
    floor = flops(models["reference HAT"], lq) / product_rate(device, precision)
    row = {"preset": preset, "size": size, "precision": precision, "floor_seconds": floor}
    rows: list[Row] = [{**row, "kind": kind, "seconds": taken[kind], "difference": None} for kind in kinds]
    for one in rows:
        if not one["kind"].startswith("own upsampler"):
            one["difference"] = (outputs[one["kind"]] - outputs["reference HAT"]).abs().max().item()
    return rows


def forward_peak(preset: str, size: str, precision: str, device: torch.device, threads: int, kind: str) -> int:
    """Bytes that a pass adds to what the process holds after a pass over one window; in a process of its own."""
    torch.set_num_threads(threads)
    model = network(preset, kind, device)
    with torch.inference_mode(), autocast(device, precision):
        model(torch.rand(1, 3, 16, 16, device=device))
        return added_memory(device, lambda: model(torch.rand(1, 3, *map(int, size.split("x")), device=device)))


def measure_forward(args: argparse.Namespace) -> list[Row]:
    """All rows of `forward`."""
    rows, device = [], torch.device(args.device)
    for preset in args.presets or ["base"]:
        own = PRESETS[preset].upsampler != HAT_UPSAMPLER["upsampler"]
        kinds = [kind for kind in asked(KINDS, args) if own or not kind.startswith("own upsampler")]
        for size in args.sizes:
            for precision in ("fp32", "bf16") if args.bf16 else ("fp32",):
                case = (preset, size, precision, device, args.threads)
                for row in in_child(forward_rows, *case, kinds, args.rounds):
                    rows.append({**row, "peak_bytes": in_child(forward_peak, *case, row["kind"])})
    return rows


def asked(cases: dict[str, dict[str, Any]], args: argparse.Namespace) -> list[str]:
    """The cases to measure: compiled ones, which take minutes to begin, with --compile alone."""
    return [case for case in cases if args.compile or "compiled" not in case]


def count(args: argparse.Namespace) -> list[Row]:
    """Parameters and multiply-accumulates of every preset, without and with frequency blocks.

    Counted in a real pass with attention in plain steps, so that no padding of the heads is counted.
    """
    rows, lq = [], torch.zeros(1, 3, COUNT_SIDE, COUNT_SIDE)
    for preset in args.presets or PRESETS:
        for frequency in ("none", "bands"):
            model = HATFreq(override(PRESETS[preset], {"frequency": frequency})).eval()
            parameters = sum(parameter.numel() for parameter in model.parameters())
            row = {"preset": preset, "frequency": frequency, "parameters": parameters}
            rows.append({**row, "macs": flops(PlainAttention(model), lq) // 2})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# One training step
# ---------------------------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {  # name -> settings of the trainer; empty for the reference
    "reference HAT, fp32": {},
    "the same network here, fp32": {"frequency": "none", "model_overrides": ("upsampler=pixelshuffle",)},
    "with fusion, as the preset is, fp32": {"frequency": "bands"},
    "reference HAT, bf16 autocast": {},
    "the same network here, bf16": {"frequency": "none", "model_overrides": ("upsampler=pixelshuffle",)},
    "with fusion, bf16": {"frequency": "bands"},
    "with fusion, compiled, fp32": {"frequency": "bands", "compile": True},
    "with fusion, checkpointing, fp32": {"frequency": "bands", "checkpointing": True},
    "with fusion, checkpointing, bf16": {"frequency": "bands", "checkpointing": True},
}
ONLY_CUDA = ("reference HAT, bf16 autocast", "the same network here, bf16", "with fusion, checkpointing, bf16")


def our_step(preset: str, case: str, batch: int, patch: int, device: torch.device) -> Callable[[], object]:
    """The trainer's step on a prepared batch."""
    precision = "bf16" if "bf16" in case else "fp32"
    with tempfile.TemporaryDirectory() as folder:
        words: dict[str, Any] = {"preset": preset, "batch": batch, "patch": patch, "warmup": 0, **CASES[case]}
        config = TrainConfig(data=("none",), out=f"{folder}/run", precision=precision, **words)
        torch.backends.cudnn.allow_tf32 = precision == "bf16"
        run = train.start(config, World(0, 1, device))
    side = 4 * patch + 2 * KERNEL_MARGIN
    part = Batch(np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8))
    return lambda: train.train_step(run, [part])


def reference_step(preset: str, case: str, batch: int, patch: int, device: torch.device) -> Callable[[], object]:
    """A plain loop's step of spandrel's HAT."""
    model = reference_hat(PRESETS[preset]).to(device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    lq, gt = (torch.rand(batch, 3, side, side, device=device) for side in (patch, 4 * patch))

    def step() -> None:
        optimiser.zero_grad()
        with autocast(device, "bf16" if "bf16" in case else "fp32"):
            sr = model(lq)
        nn.functional.l1_loss(sr.float(), gt).backward()
        optimiser.step()

    return step


def step_cost(
    preset: str, case: str, batch: int, patch: int, device: torch.device, threads: int, steps: int
) -> tuple[float, int]:
    """Median seconds of the steps after the first, and the bytes that they add; in a process of its own."""
    torch.set_num_threads(threads)
    make = reference_step if case.startswith("reference") else our_step
    step = make(preset, case, batch, patch, device)
    taken: list[float] = []

    def work() -> None:
        step()
        taken.extend(seconds(step, device) for _ in range(steps))

    added = added_memory(device, work)
    return statistics.median(taken), added


def measure_step(args: argparse.Namespace) -> list[Row]:
    """All rows of `step`."""
    device = torch.device(args.device)
    cases = [case for case in asked(CASES, args) if device.type == "cuda" or case not in ONLY_CUDA]
    rows = [
        {"preset": preset, "case": case, "batch": args.batch * (8 if preset == "light" else 1), "patch": args.patch,
         "seconds": [], "peak_bytes": []}
        for preset in args.presets or ["light", "base"]
        for case in cases
    ]  # fmt: skip
    for _ in range(args.rounds):
        for row in rows:
            words = (row["preset"], row["case"], row["batch"], row["patch"])
            taken, peak = in_child(step_cost, *words, device, args.threads, args.steps)
            row["seconds"].append(taken)
            row["peak_bytes"].append(peak)
            print(f"{row['preset']}, {row['case']}: {taken:.3f} s", file=sys.stderr, flush=True)
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", choices=("forward", "step", "count"), help="what to measure")
    add("--device", default="cpu", help="cpu or cuda")
    add("--presets", nargs="+", choices=list(PRESETS), help="default: base; for steps light and base; for counts all")
    add("--sizes", nargs="+", default=["64x64", "128x128", "96x160"], help="forward: LR sizes, HEIGHTxWIDTH")
    add("--bf16", action="store_true", help="forward: under bf16 autocast too")
    add("--compile", action="store_true", help="forward, step: with the blocks compiled, too")
    add("--batch", type=int, default=1, help="step: patches of base; light takes eight times as many")
    add("--patch", type=int, default=32, help="step: LR pixels a side")
    add("--steps", type=int, default=3, help="step: timed steps in each process")
    add("--threads", type=int, default=1, help="CPU threads (default %(default)s)")
    add("--rounds", type=int, default=3, help="timed turns (default %(default)s)")
    add("--out", type=Path, help="results file (default: benchmarks/results/speed_WHAT_DEVICE.json)")
    return parser.parse_args(argv)


@command("benchmarks.speed", HATFreqError)
def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    measure = {"forward": measure_forward, "step": measure_step, "count": count}[args.what]
    name = "speed_count" if args.what == "count" else f"speed_{args.what}_{torch.device(args.device).type}"
    data = {
        "forward": "random images; random weights, the same in every row",
        "step": "random patches, random weights",
        "count": f"{COUNT_SIDE}x{COUNT_SIDE} LR pixels; convolutions, linear layers and attention (heads without "
        "padding), not Fourier transforms and elementwise steps",
    }
    facts = setting(
        argv, threads=args.threads, packages=["spandrel"] if args.what != "count" else [], device=args.device,
        data=data[args.what], rounds="" if args.what == "count" else f"medians of {args.rounds}, by turns",
    )  # fmt: skip
    print(publish(args.out or RESULTS / f"{name}.json", f"speed_{args.what}", measure(args), facts))


if __name__ == "__main__":
    sys.exit(main())
