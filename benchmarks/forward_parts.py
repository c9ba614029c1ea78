"""What each part of the speed of a forward pass on the CPU is worth: the pass with one part taken out at a time.

    python benchmarks/forward_parts.py --out benchmarks/results/forward_parts_cpu.md

Networks take turns in one process; the table holds the medians. A part is taken out by putting the plain step in its
place, and the result stays the same to rounding. The profile below the table is of the whole pass, by operator.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.forward import seconds
from benchmarks.results_file import publish
from models.team08_HATFreq import PRESETS, HATFreq, attention, layers, network, override

PLAIN_STEPS = {"fused_attention": False}


def indexed(table: Tensor, index: Tensor) -> Tensor:
    """The position biases by indexing."""
    return table[index].permute(2, 0, 1)


PATCHES: dict[str, list[tuple[object, str, object]]] = {
    "everything in": [],
    "without linear layers by oneDNN": [(module, "linear", F.linear) for module in (layers, attention, network)],
    "without pieces": [(module, "PIECE", 10**9) for module in (layers, attention)],
    "without additions in place": [(network, "add", torch.add)],
    "without biases by gather": [(module, "position_bias", indexed) for module in (attention, network)],
    "without the fused attention": [],
    "without the frequency blocks": [],
}


def changes(name: str) -> dict[str, object]:
    """Fields of the network's shape that a row changes."""
    if "fused" in name:
        return PLAIN_STEPS
    return {"frequency": "none"} if "frequency" in name else {}


def timed(name: str, model: nn.Module, lq: Tensor) -> float:
    """Seconds of one pass with a row's patches."""
    patches = [patch.object(*one) for one in PATCHES[name]]
    for one in patches:
        one.start()
    try:
        return seconds(lambda: model(lq), lq.device)
    finally:
        for one in patches:
            one.stop()


def profile(model: Callable[[Tensor], Tensor], lq: Tensor, top: int = 8) -> str:
    """Markdown: the operators that take most of the pass's own time."""
    with torch.profiler.profile() as record:
        model(lq)
    events = sorted(record.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    lines = ["| operator | share of the pass | calls |", "|---|---|---|"]
    lines += [f"| {e.key} | {e.self_cpu_time_total / total:.0%} | {e.count} |" for e in events[:top]]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", choices=PRESETS, help="which preset")
    parser.add_argument("--sizes", nargs="+", default=["64x64", "96x160"], help="LR sizes, HEIGHTxWIDTH")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    parser.add_argument("--rounds", type=int, default=3, help="timed passes of each row")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    models = {name: HATFreq(override(PRESETS[args.preset], changes(name))).eval() for name in PATCHES}
    found: dict[str, list[float]] = {name: [] for name in PATCHES}
    with torch.inference_mode():
        for size in args.sizes:
            lq = torch.rand(1, 3, *map(int, size.split("x")))
            rounds = [{name: timed(name, model, lq) for name, model in models.items()} for _ in range(args.rounds + 1)]
            for name, values in found.items():
                values.append(statistics.median(one[name] for one in rounds[1:]))
        operators = profile(models["everything in"], lq)
    lines = [f"| {args.preset}, fp32 | {' | '.join(f'{size}, s' for size in args.sizes)} |"]
    lines.append("|" + "---|" * (len(args.sizes) + 1))
    for name, values in found.items():
        whole = found["everything in"]
        cells = [f"{took:.3f} ({took / all_in:.2f}x)" for took, all_in in zip(values, whole, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    where = f"{args.threads} thread(s) of {os.cpu_count()} cores, torch {torch.__version__}, medians of {args.rounds}"
    text = "\n".join([*lines, "", f"{where} passes; the profile is of {args.sizes[-1]}", "", operators]) + "\n"
    rows = [[name, size, took] for name, v in found.items() for size, took in zip(args.sizes, v, strict=True)]
    publish(text, args.out, ["row", "size", "seconds"], rows)


if __name__ == "__main__":
    main()
