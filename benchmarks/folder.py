"""test.py on a folder, end to end, beside the bare forward passes of the same images.

    python -m benchmarks.folder --bench $DATA/bench
    python -m benchmarks.folder --sets Set5 Set14 --ensemble 8 --out benchmarks/results/folder_x8.json

Whole images, the shipped `light` weights, fp32, on the CPU, one thread; a process for each, and they take turns. The
bare passes are the network's time alone, with all images in memory before. `main` is what the organisers' test.py
calls: weights loaded, images read, restored and written. The whole process also starts Python and imports PyTorch.
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.common import BENCH, CPU, WEIGHTS, in_child, named, publish, run_script, setting
from benchmarks.render import RESULTS
from evaluation.score import find_sets, open_network
from models.team08_HATFreq import main as restore
from models.team08_HATFreq.image_io import list_images, read_rgb, write_png
from models.team08_HATFreq.system import HATFreqError
from models.team08_HATFreq.tiling import self_ensemble, to_tensor
from utils.files import command


@torch.inference_mode()
def bare_seconds(folder: Path, ensemble: int) -> float:
    """Seconds that the network takes for the images of a folder; in a process of its own."""
    torch.set_num_threads(1)
    model = open_network(WEIGHTS)
    images = [to_tensor(read_rgb(path)) for path in list_images(folder)]
    began = time.perf_counter()
    for lq in images:
        self_ensemble(model, lq) if ensemble == 8 else model(lq)
    return time.perf_counter() - began


def main_seconds(folder: Path, out: Path, ensemble: int) -> float:
    """Seconds of the submission's `main`; in a process of its own."""
    torch.set_num_threads(1)
    began = time.perf_counter()
    restore(WEIGHTS, folder, out, CPU, tile=0, ensemble=ensemble)
    return time.perf_counter() - began


def process_seconds(folder: Path, out: Path, ensemble: int) -> float:
    """Seconds of test.py from its start to its end."""
    words = ["--test_dir", folder, "--save_dir", out, "--ensemble", ensemble, "--tile", 0, "--device", "cpu"]
    return run_script("test.py", *words).seconds


@command("benchmarks.folder", HATFreqError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bench", type=Path, default=BENCH, help="folder of the evaluation sets (default: %(default)s)")
    add("--sets", nargs="+", default=(), help="some of them only")
    add("--ensemble", type=int, choices=(1, 8), default=1, help="1: single pass (default); 8")
    add("--rounds", type=int, default=3, help="turns; the table holds medians (default %(default)s)")
    add("--out", type=Path, default=RESULTS / "folder.json", help="results file (default: %(default)s)")
    args = parser.parse_args(argv)
    sets = find_sets(args.bench, args.sets)
    os.environ["OMP_NUM_THREADS"] = "1"  # for test.py
    taken: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "LR"
        folder.mkdir()
        for name, pairs in sets.items():
            for pair in pairs:
                write_png(folder / f"{name}_{pair.name}.png", pair.lq)
        for _ in range(args.rounds):
            turn = {
                "bare forward passes": in_child(bare_seconds, folder, args.ensemble),
                "main, weights and files included": in_child(main_seconds, folder, Path(scratch) / "a", args.ensemble),
                "test.py, the whole process": process_seconds(folder, Path(scratch) / "b", args.ensemble),
            }
            for what, value in turn.items():
                taken.setdefault(what, []).append(value)
            for out in ("a", "b"):  # what stands there would be kept, and not restored again
                shutil.rmtree(Path(scratch) / out)
    rows = [{"what": what, "seconds": statistics.median(values)} for what, values in taken.items()]
    pixels = sum(pair.lq.size // 3 for pairs in sets.values() for pair in pairs)
    facts = setting(
        argv,
        WEIGHTS,
        data=f"{named(sets)}, {pixels / 1e6:.2f} million LR pixels",
        tile="whole images",
        precision=f"fp32, {'x8 self-ensemble' if args.ensemble == 8 else 'single pass'}",
        rounds=f"medians of {args.rounds} turns",
    )
    print(publish(args.out, "folder", rows, facts))


if __name__ == "__main__":
    sys.exit(main())
