"""test.py on a folder, end to end, beside the bare forward passes of the same images.

    python benchmarks/folder.py --out benchmarks/results/folder.md
    python benchmarks/folder.py --sets Set5 --ensemble 8 --out benchmarks/results/folder_x8.md

Both restore whole images with the shipped `light` weights on the CPU, each in processes of its own, which take turns.
The passes' time is their sum, without reading, conversion and writing. test.py's is the one that it prints (weights
loaded, images read, restored and written), and that of the whole process, which also starts Python and imports PyTorch.
What of it the network took is summed up from record.json: the same process, so that a machine whose speed varies from
minute to minute does not matter.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_sets import BENCH, SETS, machine, pairs, run_measured, shipped
from benchmarks.results_file import publish
from models.team08_HATFreq.image_io import list_images, read_rgb
from models.team08_HATFreq.tiling import self_ensemble, to_tensor

COLUMNS = ["what", "seconds", "over the bare passes", "over its own passes"]
NAMES = ("bare forward passes", "test.py, in the network", "test.py, as it prints", "test.py, the whole process")


@torch.inference_mode()
def bare_seconds(folder: Path, ensemble: int) -> float:
    """Seconds that the network takes for the images of a folder, all of which are in memory before."""
    model = shipped()
    images = [to_tensor(read_rgb(path)) for path in list_images(folder)]
    began = time.perf_counter()
    for lq in images:
        self_ensemble(model, lq) if ensemble == 8 else model(lq)
    return time.perf_counter() - began


def script_seconds(folder: Path, out: Path, ensemble: int) -> tuple[float, float, float]:
    """Seconds that test.py's network took, those that it prints, and those of its process."""
    words = ["test.py", "--test_dir", str(folder), "--save_dir", str(out), "--ensemble", str(ensemble)]
    done = run_measured([*words, "--tile", "0", "--device", "cpu", "--preset", "light"])
    line = next(line for line in done.text.splitlines() if "runtime (Including I/O)" in line)
    images = json.loads((out / "08_HATFreq" / "test" / "record.json").read_text())["images"].values()
    return sum(image["seconds"] for image in images), float(line.split()[-2]) / 1000, done.seconds


def collect(bench: Path, sets: list[str], folder: Path) -> int:
    """Copy the sets' low-resolution images into one folder; returns their pixels."""
    folder.mkdir()
    pixels = 0
    for name in sets:
        for path, _ in pairs(bench, name):
            shutil.copyfile(path, folder / f"{name}_{path.name}")
            height, width = read_rgb(path).shape[:2]
            pixels += height * width
    return pixels


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bench", type=Path, default=BENCH, help="folder of the evaluation sets (default: %(default)s)"
    )
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="which of them")
    parser.add_argument("--ensemble", type=int, choices=(1, 8), default=1, help="1: single pass (default); 8")
    parser.add_argument("--rounds", type=int, default=1, help="turns; the table holds medians")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.bare:
        print(bare_seconds(args.bare, args.ensemble))
        return
    found: list[tuple[float, ...]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "LR"
        pixels = collect(args.bench, args.sets, folder)
        for number in range(args.rounds):
            words = [__file__, "--bare", str(folder), "--ensemble", str(args.ensemble)]
            bare = float(run_measured(words).text.split()[-1])
            found.append((bare, *script_seconds(folder, Path(scratch) / f"out{number}", args.ensemble)))
        count = len(list_images(folder))
    medians = [statistics.median(column) for column in zip(*found, strict=True)]
    own = [statistics.median(one[column] / one[1] for one in found) for column in range(1, 4)]
    rows = [
        (name, round(seconds, 2), round(seconds / medians[0], 3), round(ratio, 3) if ratio else "")
        for name, seconds, ratio in zip(NAMES, medians, [None, *own], strict=True)
    ]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    data = f"{count} images of {', '.join(args.sets)}, {pixels / 1e6:.2f} million LR pixels, whole, fp32, "
    data += f"`light`, {'x8 ensemble' if args.ensemble == 8 else 'single pass'}; medians of {args.rounds} turn(s)"
    publish("\n".join([*lines, "", data, machine()]) + "\n", args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
