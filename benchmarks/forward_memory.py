"""Peak memory of one forward pass on the CPU, in bytes for each LR pixel.

The estimate in models/team08_HATFreq/memory.py rests on it.

    python benchmarks/forward_memory.py

Every row is a process of its own, as a process's peak never falls; what it held before the pass is taken off.
"""

import argparse
import resource
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.team08_HATFreq import PRESETS, build_model

CASES = (("light", 256, "fp32"), ("light", 512, "fp32"), ("light", 768, "fp32"), ("light", 512, "bf16"),
         ("base", 96, "fp32"), ("base", 192, "fp32"), ("base", 192, "bf16"))  # fmt: skip


def measure(preset: str, side: int, precision: str) -> int:
    """Bytes a pixel that a pass over `side` x `side` pixels adds to the process's peak."""
    model = build_model(preset).eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(torch.rand(1, 3, 16, 16))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model(torch.rand(1, 3, side, side))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 // side**2


def main(argv: list[str] | None = None) -> None:
    """Measure one case, or all of them in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", nargs="*", help="preset, side and precision; default: the table")
    case = parser.parse_args(argv).case
    if case:
        print(measure(case[0], int(case[1]), case[2]))
        return
    print("| preset | LR pixels | precision | bytes a pixel | a pixel and channel |\n|---|---|---|---|---|")
    for preset, side, precision in CASES:
        command = [sys.executable, __file__, preset, str(side), precision]
        found = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        per_channel = found / PRESETS[preset].embed_dim
        print(f"| {preset} | {side}x{side} | {precision} | {found:,} | {per_channel:.0f} |", flush=True)


if __name__ == "__main__":
    main()
