"""The shipped weights in spandrel's loader and in onnxruntime, beside PyTorch: difference, PSNR, time, memory.

    python scripts/export_onnx.py --out hatfreq_light_x4.onnx
    python -m benchmarks.integrations --onnx hatfreq_light_x4.onnx --sets Set5 Set14

Whole images, single pass, on the CPU, one thread. The ways take turns on each image; differences are those of the
results in [0, 1] before rounding. Memory is measured in a process for each way and side: what passes over a square add
at their peak to what the process held after a pass over 16x16 pixels.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import BENCH, CPU, WEIGHTS, added_memory, by_turns, in_child, named, publish, setting
from benchmarks.render import RESULTS
from evaluation.score import find_sets, open_network
from image_data.pairs import Pair
from models.team08_HATFreq.system import HATFreqError
from models.team08_HATFreq.tiling import to_samples, to_tensor
from utils.files import command
from utils.metrics import psnr_y

Way = Callable[[Tensor], Tensor]  # float32 1 3 h w -> float32 1 3 4h 4w, in [0, 1]
PASSES = 3
WAYS = ("PyTorch", "spandrel, fp32", "spandrel, bf16", "onnxruntime")


def way_of(name: str, onnx: Path) -> Way:
    """One of WAYS, ready to restore."""
    if name == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        return lambda lq: torch.from_numpy(session.run(None, {"lq": lq.numpy()})[0]).clamp(0, 1)
    if name == "PyTorch":
        model = open_network(WEIGHTS)
        return lambda lq: model(lq).clamp(0, 1)
    from spandrel import ModelLoader

    from integrations.spandrel_hatfreq import install

    install()
    dtype = torch.bfloat16 if name.endswith("bf16") else torch.float32
    opened = ModelLoader(device="cpu").load_from_file(WEIGHTS).to(dtype=dtype)
    return lambda lq: opened(lq.to(dtype)).float()


@torch.inference_mode()
def compare(ways: dict[str, Way], name: str, pairs: list[Pair], rounds: int) -> list[dict[str, Any]]:
    """A row a way for one set: mean PSNR-Y, largest difference from the first way, sum of the median seconds."""
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in ways}
    for pair in pairs:
        lq = to_tensor(pair.lq)
        results = {way: call(lq) for way, call in ways.items()}
        taken = by_turns({way: partial(call, lq) for way, call in ways.items()}, rounds)
        first = next(iter(results.values()))
        for way, sr in results.items():
            psnr = psnr_y(to_samples(sr, np.dtype(np.uint8)), pair.target)
            found[way].append((psnr, float((sr - first).abs().max()), taken[way]))
    rows = []
    for way, values in found.items():
        psnrs, differences, seconds = zip(*values, strict=True)
        row = {"set": name, "way": way, "psnr": float(np.mean(psnrs)), "difference": max(differences)}
        rows.append({**row, "seconds": sum(seconds)})
    return rows


@torch.inference_mode()
def peak_bytes(name: str, onnx: Path, side: int) -> int:
    """What passes over `side` x `side` random pixels add to what was held before; in a process of its own."""
    torch.set_num_threads(1)
    way, lq = way_of(name, onnx), torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    way(lq[..., :16, :16].contiguous())

    def passes() -> None:
        for _ in range(PASSES):
            way(lq)

    return added_memory(CPU, passes)


@command("benchmarks.integrations", HATFreqError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--onnx", type=Path, required=True, help="what scripts/export_onnx.py wrote for `light`")
    add("--bench", type=Path, default=BENCH, help="folder of evaluation sets (default: %(default)s)")
    add("--sets", nargs="+", default=["Set5"], help="which of them")
    add("--sides", nargs="*", type=int, default=[256, 512], help="of the squares for memory")
    add("--rounds", type=int, default=3, help="turns (default %(default)s)")
    add("--out", type=Path, default=RESULTS / "integrations.json", help="results file (default: %(default)s)")
    args = parser.parse_args(argv)
    if not args.onnx.exists():
        raise SystemExit(f"{args.onnx} does not exist: write it with scripts/export_onnx.py --out {args.onnx}")
    torch.set_num_threads(1)
    sets, ways = find_sets(args.bench, args.sets), {name: way_of(name, args.onnx) for name in WAYS}
    rows = [row for name, pairs in sets.items() for row in compare(ways, name, pairs, args.rounds)]
    for side in args.sides:
        for way in WAYS:
            rows.append({"side": side, "way": way, "peak_bytes": in_child(peak_bytes, way, args.onnx.resolve(), side)})
    facts = setting(
        argv,
        WEIGHTS,
        packages=["spandrel", "onnxruntime"],
        data=f"{named(sets)}; memory on random squares",
        tile="whole images",
        precision="fp32 unless the row says bf16, single pass",
        rounds=f"medians of {args.rounds} turns, summed over a set",
    )
    print(publish(args.out, "integrations", rows, facts))


if __name__ == "__main__":
    sys.exit(main())
