"""Time and memory: passes and training steps beside the reference HAT, and what a user waits for.

    python -m benchmarks.speed --what forward    # one pass beside spandrel's HAT: time, peak memory, difference, floor
    python -m benchmarks.speed --what step       # one training step beside it: time, peak memory
    python -m benchmarks.speed --what count      # parameters and multiply-accumulates; measures nothing
    python -m benchmarks.speed --what memory     # what a pass adds, for each preset, precision and size
    python -m benchmarks.speed --what folder     # test.py on a folder beside the bare passes
    python -m benchmarks.speed --what times      # one image by its size and the number of threads
    python -m benchmarks.speed --what forward --device cuda --presets base large --sizes 352x512 --bf16

`forward` gives all networks the same random weights; fresh frequency blocks add nothing to the result, but take their
time. `light`, whose upsampler HAT lacks, is measured with HAT's and with its own. The networks take turns in one
process; peaks are measured in a process for each. The floor is the time of the pass's products at the rate of a large
convolution, the fastest product that the device was seen to make in the same process.

`step` is the trainer's step (LR made on the fly, forward, backward, Adam, averaged weights) beside a plain loop with
spandrel's HAT, L1 and Adam; each in a process of its own, by turns. `memory` is the most that four passes add to what a
process held; bytes a LR pixel are what `--tile auto` reckons with. `folder` and `times` use the shipped
weights, single passes, fp32, and scikit-image's astronaut or the evaluation sets.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import train
from benchmarks.common import (
    BENCH,
    CPU,
    RESULTS,
    WEIGHTS,
    Row,
    added_memory,
    by_turns,
    in_child,
    named,
    publish,
    reference_hat,
    run_script,
    seconds,
    setting,
)
from evaluation.score import find_sets, open_network
from image_data.degradation import KERNEL_MARGIN
from models.team08_HATFreq import PRESETS, HATFreq, build_model, override, set_fused_attention
from models.team08_HATFreq import main as upscale
from models.team08_HATFreq.image_io import list_images, read_rgb, write_png
from models.team08_HATFreq.system import HATFreqError, World
from models.team08_HATFreq.tiling import self_ensemble, to_tensor
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
    "own upsampler": {"frequency": "none"},
    "own upsampler, with frequency blocks": {"frequency": "bands"},
}
CASES: dict[str, dict[str, Any]] = {  # name -> settings of the trainer; empty for the reference
    "reference HAT, fp32": {},
    "the same network here, fp32": {"frequency": "none", "model_overrides": ("upsampler=pixelshuffle",)},
    "with frequency blocks, as the preset is, fp32": {"frequency": "bands"},
    "reference HAT, bf16 autocast": {},
    "the same network here, bf16": {"frequency": "none", "model_overrides": ("upsampler=pixelshuffle",)},
    "with frequency blocks, bf16": {"frequency": "bands"},
    "with frequency blocks, checkpointing, fp32": {"frequency": "bands", "checkpointing": True},
}
ONLY_CUDA = ("reference HAT, bf16 autocast", "the same network here, bf16")
SIDES = {"light": (64, 128, 256, 384), "small": (48, 80, 112), "base": (48, 80, 112), "large": (48, 80)}
IMAGE_SIDES = (128, 256, 512)  # of `times`
PASSES = 4  # the allocator fragments: the second pass takes more than the first, the fifth hardly more
WARM_UP = 32  # side of the image that does not count
Args = argparse.Namespace


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


def forward_times(
    preset: str, size: str, precision: str, device: torch.device, threads: int, kinds: list[str], rounds: int
) -> tuple[dict[str, float], dict[str, float], float]:
    """Seconds by kind, largest difference from the reference by kind, seconds of the floor; in a process of its own."""
    torch.set_num_threads(threads)
    models = {kind: network(preset, kind, device) for kind in kinds}
    lq = torch.rand(1, 3, *map(int, size.split("x")), device=device)
    with torch.inference_mode(), autocast(device, precision):
        outputs = {kind: model(lq).float() for kind, model in models.items()}
        taken = by_turns({kind: partial(model, lq) for kind, model in models.items()}, rounds, device)
    floor = flops(models["reference HAT"], lq) / product_rate(device, precision)
    reference = outputs["reference HAT"]
    return taken, {kind: (sr - reference).abs().max().item() for kind, sr in outputs.items()}, floor


def forward_peak(preset: str, size: str, precision: str, device: torch.device, threads: int, kind: str) -> int:
    """Bytes that a pass adds to what the process holds after a pass over one window; in a process of its own."""
    torch.set_num_threads(threads)
    model = network(preset, kind, device)
    with torch.inference_mode(), autocast(device, precision):
        model(torch.rand(1, 3, 16, 16, device=device))
        return added_memory(device, lambda: model(torch.rand(1, 3, *map(int, size.split("x")), device=device)))


def measure_forward(args: Args) -> list[Row]:
    """A row a preset, size, precision and kind."""
    rows: list[Row] = []
    for preset in args.presets or ["base"]:
        own = PRESETS[preset].upsampler != HAT_UPSAMPLER["upsampler"]
        kinds = [kind for kind in KINDS if own or not kind.startswith("own upsampler")]
        for size in args.sizes:
            for precision in ("fp32", "bf16") if args.bf16 else ("fp32",):
                case = (preset, size, precision, torch.device(args.device), args.threads)
                taken, difference, floor = in_child(forward_times, *case, kinds, args.rounds)
                peaks = {kind: in_child(forward_peak, *case, kind) for kind in kinds}
                plain = {"with frequency blocks": kinds[1], kinds[-1]: kinds[-2]}  # the same without the blocks
                for kind in kinds:
                    blocks = plain.get(kind) if kind.endswith("frequency blocks") else None
                    rows.append({
                        "preset": preset, "LR pixels": size, "precision": precision, "": kind,
                        "s": f"{taken[kind]:.3f}", "faster": f"{taken[kinds[0]] / taken[kind]:.2f}x",
                        "of it in the blocks": f"{1 - taken[blocks] / taken[kind]:.1%}" if blocks else "",
                        "peak MB": f"{peaks[kind] / 1e6:.0f}",
                        "of the reference's": f"{peaks[kind] / peaks[kinds[0]]:.2f}",
                        "max difference": "" if kind.startswith("own") else f"{difference[kind]:.1e}",
                        "s of the floor": f"{floor:.3f}",
                    })  # fmt: skip
    return rows


def measure_count(args: Args) -> list[Row]:
    """Parameters and multiply-accumulates of each preset, without and with frequency blocks.

    Counted in a real pass with attention in plain steps, so that no padding of the heads is counted.
    """
    rows: list[Row] = []
    for preset in args.presets or PRESETS:
        models = [HATFreq(override(PRESETS[preset], {"frequency": name})).eval() for name in ("none", "bands")]
        sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
        macs = [flops(PlainAttention(model), torch.zeros(1, 3, COUNT_SIDE, COUNT_SIDE)) / 2e9 for model in models]
        rows.append({
            "preset": preset, "parameters of HAT": f"{sizes[0]:,}", "of HATFreq": f"{sizes[1]:,}",
            "more": f"{sizes[1] / sizes[0] - 1:.1%}", "GMAC of HAT": f"{macs[0]:.1f}",
            "GMAC of HATFreq": f"{macs[1]:.1f}", "more GMAC": f"{macs[1] / macs[0] - 1:.1%}",
        })  # fmt: skip
    return rows


def pass_peak(preset: str, precision: str, device: torch.device, side: int) -> int:
    """Bytes that passes over `side` x `side` pixels add at their peak to what was held; in a process of its own."""
    torch.set_num_threads(1)
    model = build_model(preset).to(device).eval()

    def passes() -> None:
        for _ in range(PASSES):
            model(torch.rand(1, 3, side, side, device=device)).float()

    with torch.inference_mode(), autocast(device, precision):
        model(torch.rand(1, 3, 16, 16, device=device))
        return added_memory(device, passes)


def measure_memory(args: Args) -> list[Row]:
    """A row a preset, precision and side: the highest of `rounds` processes."""
    rows: list[Row] = []
    device = torch.device(args.device)
    for preset in args.presets or PRESETS:
        for precision in ("fp32", "bf16"):
            for side in SIDES[preset]:
                peak = max(in_child(pass_peak, preset, precision, device, side) for _ in range(args.rounds))
                row = {"device": device.type, "preset": preset, "precision": precision, "LR pixels": f"{side}x{side}"}
                rows.append({**row, "peak, MB": f"{peak / 1e6:.0f}", "bytes a LR pixel": f"{peak / side**2:,.0f}"})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# One training step
# ---------------------------------------------------------------------------------------------------------------------


def our_step(preset: str, case: str, batch: int, patch: int, device: torch.device) -> Callable[[], object]:
    """The trainer's step on a prepared batch."""
    precision: Literal["bf16", "fp32"] = "bf16" if "bf16" in case else "fp32"
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {"preset": preset, "batch": batch, "patch": patch, "warmup": 0, **CASES[case]}
        config = TrainConfig(data=("none",), out=f"{folder}/run", precision=precision, **arguments)
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


def measure_step(args: Args) -> list[Row]:
    """A row a preset and case, `light` with eight times the batch; they take turns."""
    device = torch.device(args.device)
    cases = [case for case in CASES if device.type == "cuda" or case not in ONLY_CUDA]
    points = [(preset, case) for preset in args.presets or ["light", "base"] for case in cases]
    found: dict[tuple[str, str], list[tuple[float, int]]] = {point: [] for point in points}
    for _ in range(args.rounds):
        for preset, case in points:
            batch = args.batch * (8 if preset == "light" else 1)
            cost = in_child(step_cost, preset, case, batch, args.patch, device, args.threads, args.steps)
            found[preset, case].append(cost)
            print(f"{preset}, {case}: {cost[0]:.3f} s", file=sys.stderr, flush=True)
    rows: list[Row] = []
    base = 0.0
    for (preset, case), costs in found.items():
        taken, peaks = zip(*costs, strict=True)
        median = statistics.median(taken)
        base = median if case.startswith("reference") else base
        rows.append({
            "preset": preset, "": case,
            "patches": f"{args.batch * (8 if preset == 'light' else 1)} of {args.patch}x{args.patch}",
            "s a step": f"{median:.3f}", "lowest to highest": f"{min(taken):.3f} to {max(taken):.3f}",
            "faster than the reference": f"{base / median:.2f}x", "GB": f"{statistics.median(peaks) / 1e9:.2f}",
        })  # fmt: skip
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# What a user waits for
# ---------------------------------------------------------------------------------------------------------------------


def astronaut(width: int, height: int) -> np.ndarray:
    """scikit-image's astronaut, enlarged or cut to a size."""
    from skimage import data

    image = data.astronaut()
    if max(width, height) > image.shape[0]:
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(image[:height, :width])


@torch.inference_mode()
def bare_seconds(folder: Path, ensemble: int) -> float:
    """Seconds of the network alone for the images of a folder; in a process of its own."""
    torch.set_num_threads(1)
    model = open_network(WEIGHTS)
    images = [to_tensor(read_rgb(path)) for path in list_images(folder)]
    began = time.perf_counter()
    for lq in images:
        self_ensemble(model, lq) if ensemble == 8 else model(lq)
    return time.perf_counter() - began


def main_seconds(folder: Path, out: Path, ensemble: int) -> float:
    """Seconds of the submission's `main`: weights, files and all; in a process of its own."""
    torch.set_num_threads(1)
    return seconds(lambda: upscale(WEIGHTS, folder, out, CPU, tile=0, ensemble=ensemble))


def measure_folder(args: Args) -> list[Row]:
    """The bare passes, `main` and the whole process of test.py on the images of the sets, by turns."""
    os.environ["OMP_NUM_THREADS"] = "1"  # for test.py
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder, a, b = (Path(scratch) / name for name in ("LR", "a", "b"))
        folder.mkdir()
        for name, pairs in find_sets(args.bench, args.sets).items():
            for pair in pairs:
                write_png(folder / f"{name}_{pair.name}.png", pair.lq)
        arguments = ["--test_dir", folder, "--save_dir", b, "--ensemble", args.ensemble, "--tile", 0, "--device", "cpu"]
        for _ in range(args.rounds):
            turn = {
                "bare forward passes": in_child(bare_seconds, folder, args.ensemble),
                "main, weights and files included": in_child(main_seconds, folder, a, args.ensemble),
                "test.py, the whole process": run_script("test.py", *arguments),
            }
            for what, value in turn.items():
                taken.setdefault(what, []).append(value)
            for out in (a, b):  # results that exist are skipped
                shutil.rmtree(out)
    medians = {what: statistics.median(values) for what, values in taken.items()}
    base = medians["bare forward passes"]
    return [
        {"what": key, "seconds": f"{s:.2f}", "over the bare passes": f"{s / base:.3f}"} for key, s in medians.items()
    ]


def image_seconds(side: int, threads: int, device: str, rounds: int) -> tuple[float, float]:
    """Fewest seconds by the clock and of the CPU for `side` x `side` pixels, read to written; in its own process."""
    torch.set_num_threads(threads)
    taken = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, size in enumerate((WARM_UP, *[side] * rounds)):
            lq, out = Path(scratch) / f"{number}.png", Path(scratch) / f"out{number}"
            write_png(lq, astronaut(side, side)[:size, :size].copy())
            began, cpu = time.perf_counter(), time.process_time()
            upscale(WEIGHTS, lq, out, torch.device(device), ensemble=1)
            taken.append((time.perf_counter() - began, time.process_time() - cpu))
    return min(wall for wall, _ in taken[1:]), min(used for _, used in taken[1:])


def measure_times(args: Args) -> list[Row]:
    """A row a size and number of threads."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # for the children, as in test.py
    rows: list[Row] = []
    for side in IMAGE_SIDES:
        for threads in sorted({1, os.cpu_count() or 1}):
            wall, used = in_child(image_seconds, side, threads, args.device, args.rounds)
            rows.append({
                "picture": f"{side}x{side}", "result": f"{4 * side}x{4 * side}", "threads": threads,
                "seconds by the clock": f"{wall:.1f}", "seconds of the CPU": f"{used:.1f}",
            })  # fmt: skip
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------

DATA = {
    "forward": "random images; random weights, the same in every row",
    "step": "random patches, random weights",
    "count": f"{COUNT_SIDE}x{COUNT_SIDE} LR pixels; convolutions, linear layers and attention (heads without "
    "padding), not Fourier transforms and elementwise steps",
    "memory": f"random images, random weights; the most that {PASSES} passes add to what the process held",
    "times": "squares of scikit-image's astronaut; single pass, fp32; the fastest round",
}
MEASURES: dict[str, Callable[[Args], list[Row]]] = {
    "forward": measure_forward, "step": measure_step, "count": measure_count, "memory": measure_memory,
    "folder": measure_folder, "times": measure_times,
}  # fmt: skip


@command("benchmarks.speed", HATFreqError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--what", choices=MEASURES, required=True, help="what to measure")
    add("--device", default="cpu", help="cpu or cuda (forward, step, memory, times)")
    add("--presets", nargs="+", choices=list(PRESETS), help="default: base; step: light and base; count, memory: all")
    add("--sizes", nargs="+", default=["64x64", "128x128", "96x160"], help="forward: LR sizes, HEIGHTxWIDTH")
    add("--bf16", action="store_true", help="forward: under bf16 autocast too")
    add("--batch", type=int, default=1, help="step: patches of base; light takes eight times as many")
    add("--patch", type=int, default=32, help="step: LR pixels a side")
    add("--steps", type=int, default=3, help="step: timed steps in each process")
    add("--bench", type=Path, default=BENCH, help="folder: evaluation sets")
    add("--sets", nargs="+", default=(), help="folder: some of them only")
    add("--ensemble", type=int, choices=(1, 8), default=1, help="folder: 1 (single pass) or 8")
    add("--threads", type=int, default=1, help="forward, step: CPU threads (default %(default)s)")
    add("--rounds", type=int, default=3, help="timed turns (default %(default)s)")
    add("--out", type=Path, help="result (default: benchmarks/results/speed_WHAT_DEVICE.md)")
    args = parser.parse_args(argv)
    rows = MEASURES[args.what](args)
    data = DATA.get(args.what) or named(find_sets(args.bench, args.sets))
    record = setting(
        argv, WEIGHTS if args.what in ("folder", "times") else None, args.threads,
        ["spandrel"] if args.what in ("forward", "step") else [], args.device, data=data,
        rounds="" if args.what == "count" else f"{args.rounds}, by turns",
    )  # fmt: skip
    publish(args.out or RESULTS / f"speed_{args.what}_{torch.device(args.device).type}.md", {"": rows}, record)


if __name__ == "__main__":
    sys.exit(main())
