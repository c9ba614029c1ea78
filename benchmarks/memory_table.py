"""Peak memory of forward passes for every preset and precision: the table that `test.py --tile auto` rests on.

    python benchmarks/memory_table.py                       # measure on the CPU, and on CUDA where there is one
    python benchmarks/memory_table.py --presets light       # these rows only; the others stay

Writes models/team08_HATFreq/memory_table.json and benchmarks/results/memory_table.md. Every point is the most of some
processes of their own, as a process's peak never falls; what each held before its passes is taken off. A line is laid
above all points of a preset and precision, and raised by a margin. Rows for CUDA that no GPU has measured are the
CPU's, raised further, and say so.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.team08_HATFreq.memory import TABLE

from benchmarks.reference import held
from benchmarks.results_file import publish
from models.team08_HATFreq import PRESETS, build_model
from models.team08_HATFreq.system import write_bytes

PRECISIONS = ("fp32", "bf16")
SIDES = {"light": (64, 128, 256, 384), "small": (48, 80, 112), "base": (48, 80, 112), "large": (48, 80)}
PASSES = 4  # freed memory comes in pieces: the second pass takes more than the first, the fifth hardly more
CUDA_SIDES = (64, 128, 256, 384)
REPEATS = 3  # processes on the CPU: how the heap falls to pieces differs from one to the next, by a third
MARGIN = 1.2  # for what other sizes, versions and machines take
UNMEASURED = 1.5  # for a GPU that nobody has measured: other kernels, and their workspaces
WARM = 16


def measure(preset: str, precision: str, device: str, side: int) -> int:
    """Bytes that passes over `side` x `side` pixels add at their peak to what was held before."""
    model, place = build_model(preset).to(device).eval(), torch.device(device)
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
        model(torch.rand(1, 3, WARM, WARM, device=device))
        before = held(place)
        for _ in range(PASSES):
            model(torch.rand(1, 3, side, side, device=device)).float()
    return held(place, peak=True) - before


def in_child(preset: str, precision: str, device: str, side: int) -> int:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--case", preset, precision, device, str(side)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def line_above(points: list[tuple[int, int]]) -> tuple[int, float]:
    """Fixed bytes and bytes a pixel: the least-squares line, lifted above all (pixels, bytes), times the margin."""
    pixels, taken = (np.array(column, float) for column in zip(*points, strict=True))
    slope = max(np.polyfit(pixels, taken, 1)[0], 0.0)
    fixed = max(0.0, (taken - slope * pixels).max())
    return int(MARGIN * fixed), round(MARGIN * slope, 1)


def line(preset: str, precision: str, device: str) -> dict[str, Any]:
    """Measure one row of the table."""
    points, repeats = [], 1 if device == "cuda" else REPEATS
    for side in CUDA_SIDES if device == "cuda" else SIDES[preset]:
        points.append((side**2, max(in_child(preset, precision, device, side) for _ in range(repeats))))
        print(f"{device} {preset} {precision} {side}x{side}: {points[-1][1] / 1e6:.1f} MB", file=sys.stderr)
    fixed, per_pixel = line_above(points)
    channels = PRESETS[preset].embed_dim
    return {"fixed": fixed, "per_pixel": per_pixel, "channels": channels, "measured": True, "points": points}


def unmeasured(row: dict[str, Any]) -> dict[str, Any]:
    """A GPU's row made from the CPU's."""
    raised = {"fixed": int(UNMEASURED * row["fixed"]), "per_pixel": round(UNMEASURED * row["per_pixel"], 1)}
    return {**raised, "channels": row["channels"], "measured": False, "points": []}


def updated(lines: dict[str, Any], presets: Iterable[str], cuda: bool) -> dict[str, Any]:
    """The table with the rows of some presets measured anew."""
    for preset in presets:
        for precision in PRECISIONS:
            row = line(preset, precision, "cpu")
            lines.setdefault("cpu", {}).setdefault(preset, {})[precision] = row
            gpu = lines.setdefault("cuda", {}).setdefault(preset, {})
            if cuda:
                gpu[precision] = line(preset, precision, "cuda")
            elif not gpu.get(precision, {}).get("measured"):
                gpu[precision] = unmeasured(row)
    return {device: {name: lines[device][name] for name in PRESETS if name in lines[device]} for device in lines}


def rows(lines: dict[str, Any]) -> list[list[Any]]:
    """device, preset, precision, fixed, per_pixel, measured."""
    return [
        [device, preset, precision, row["fixed"], row["per_pixel"], "yes" if row["measured"] else "no"]
        for device, presets in lines.items()
        for preset, precisions in presets.items()
        for precision, row in precisions.items()
    ]


def markdown(lines: dict[str, Any], machine: str) -> str:
    """The table."""
    text = ["| device | preset | precision | fixed, MB | bytes a LR pixel | measured |", "|---|---|---|---|---|---|"]
    for device, preset, precision, fixed, per_pixel, measured in rows(lines):
        text.append(f"| {device} | {preset} | {precision} | {fixed / 1e6:.1f} | {per_pixel:,.0f} | {measured} |")
    kept = (
        f"Lines above all measured peaks of one pass, raised by {MARGIN}; unmeasured rows: the CPU's by {UNMEASURED}."
    )
    return "\n".join([*text, "", kept, machine]) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Measure one point (in a child), or the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS), help="rows to measure")
    parser.add_argument("--table", type=Path, default=TABLE, help="JSON file to update")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/memory_table.md"), help="Markdown file")
    parser.add_argument("--case", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.case:
        print(measure(*args.case[:3], int(args.case[3])))
        return
    content = json.loads(args.table.read_text()) if args.table.exists() else {"lines": {}}
    cuda = torch.cuda.is_available()
    lines = updated(content["lines"], args.presets, cuda)
    machine = f"torch {torch.__version__}, {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores, "
    machine += torch.cuda.get_device_name() if cuda else "no GPU"
    text = json.dumps({"command": "python benchmarks/memory_table.py", "machine": machine, "lines": lines}, indent=1)
    write_bytes(args.table, (text + "\n").encode())
    columns = ["device", "preset", "precision", "fixed_bytes", "bytes_per_pixel", "measured"]
    publish(markdown(lines, machine), args.out, columns, rows(lines))


if __name__ == "__main__":
    main()
