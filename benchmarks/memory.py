"""Peak memory: of one pass for every preset and precision, and of test.py on a small and a large image.

    python -m benchmarks.memory                         # passes, on the CPU
    python -m benchmarks.memory --device cuda
    python -m benchmarks.memory --image                 # test.py; the large image takes minutes

A point is the most of several processes: what passes over random pixels add to what the process held before. Bytes a
LR pixel are what `--tile auto` reckons with. With --image, test.py restores a 750x500 and a 3000x2000 image
(scikit-image's astronaut, enlarged) in single passes with `light`, at one tile size and with `--tile auto`: at one
tile size the peak grows by the images' own samples and no more, 3 bytes a LR pixel of input and 48 of result.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.common import WEIGHTS, added_memory, in_child, publish, run_script, setting
from benchmarks.render import RESULTS
from models.team08_HATFreq import PRESETS, build_model
from models.team08_HATFreq.image_io import write_png
from models.team08_HATFreq.system import HATFreqError
from utils.files import command

SIDES = {"light": (64, 128, 256, 384), "small": (48, 80, 112), "base": (48, 80, 112), "large": (48, 80)}
PASSES = 4  # the allocator fragments: the second pass takes more than the first, the fifth hardly more
SAMPLES = 3 + 48  # bytes of samples a LR pixel, input and result
SIZES, TILES = ("750x500", "3000x2000"), ("256", "auto")


def pass_peak(preset: str, precision: str, device: torch.device, side: int) -> int:
    """Bytes that passes over `side` x `side` pixels add at their peak to what was held; in a process of its own."""
    torch.set_num_threads(1)
    model = build_model(preset).to(device).eval()

    def passes() -> None:
        for _ in range(PASSES):
            model(torch.rand(1, 3, side, side, device=device)).float()

    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        model(torch.rand(1, 3, 16, 16, device=device))
        return added_memory(device, passes)


def measure_passes(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row a preset, precision and side."""
    rows, device = [], torch.device(args.device)
    for preset in args.presets:
        for precision in ("fp32", "bf16"):
            for side in args.sides or SIDES[preset]:
                peak = max(in_child(pass_peak, preset, precision, device, side) for _ in range(args.rounds))
                row = {"device": device.type, "preset": preset, "precision": precision, "side": side}
                rows.append({**row, "peak_bytes": peak})
                print(f"{preset}, {precision}, {side}x{side}: {peak / 1e6:.1f} MB", file=sys.stderr, flush=True)
    return rows


def image_row(tile: str, size: str) -> dict[str, Any]:
    """test.py on one image of `WIDTHxHEIGHT` LR pixels."""
    from skimage.data import astronaut

    width, height = map(int, size.split("x"))
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "LR").mkdir()
        write_png(Path(scratch) / "LR" / "a.png", cv2.resize(astronaut(), (width, height)))
        words = ["--test_dir", f"{scratch}/LR", "--save_dir", f"{scratch}/out", "--device", "cpu", "--tile", tile]
        done = run_script("test.py", *words, "--ensemble", 1)
    samples = SAMPLES * width * height
    row = {"tile": tile, "size": size, "cpu_seconds": round(done.cpu_seconds, 1)}
    return {**row, "peak_bytes": done.peak, "sample_bytes": samples}


@command("benchmarks.memory", HATFreqError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--image", action="store_true", help="test.py on two images instead of passes")
    add("--device", default="cpu", help="of the passes: cpu or cuda")
    add("--presets", nargs="+", choices=list(PRESETS), default=list(PRESETS), help="of the passes (default: all)")
    add("--sides", nargs="+", type=int, help="LR pixels a side of the passes (default: some for each preset)")
    add("--rounds", type=int, default=3, help="processes for each point of the passes (default %(default)s)")
    add("--out", type=Path, help="results file (default: benchmarks/results/memory[_image].json)")
    args = parser.parse_args(argv)
    if args.image:
        rows = [image_row(tile, size) for tile in TILES for size in SIZES]
        facts = setting(argv, WEIGHTS, data="scikit-image's astronaut, enlarged", tile="as the rows say, overlap 32")
        print(publish(args.out or RESULTS / "memory_image.json", "memory_image", rows, facts))
        return
    peak = f"the most that {PASSES} passes add to what the process held, in the highest of {args.rounds} processes"
    facts = setting(argv, device=args.device, data="random images, random weights", peak=peak)
    print(publish(args.out or RESULTS / "memory.json", "memory", measure_passes(args), facts))


if __name__ == "__main__":
    sys.exit(main())
