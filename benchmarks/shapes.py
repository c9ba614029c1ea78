"""Which shape for `light`? Networks of other widths, depths, windows and fusion, each trained for the same CPU time.

    python benchmarks/shapes.py --data $DATA/train/hq480-a $DATA/train/bsds-sun --bench $DATA/bench \\
        --work runs/shapes --out benchmarks/results/shapes.md

The trainer's step is timed for all shapes by turns (`--phases time`, in a quiet moment); --seconds divided by it gives
each shape its number of steps. It is trained so long by train.py from scratch, the rate decayed to its end, and scored
on every set of --bench: PSNR-Y of whole images in fp32. Finished runs are kept in --work and a stopped one goes on;
step times are kept too, unless --retime is given.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quality import find_sets, median_image
from benchmarks.results_file import publish
from benchmarks.scored_runs import Runs, Score
from benchmarks.train_step import Case, our_step
from evaluation.pairing import Pair
from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.network import HATFreq
from models.team08_HATFreq.system import write_bytes
from models.team08_HATFreq.tiling import to_tensor
from training.config import TrainConfig, model_config

SHAPES: dict[str, tuple[str, list[str]]] = {  # name -> fusion, changes to `light`
    "light": ("both", []),
    "without fusion": ("none", []),
    "window fusion only": ("window", []),
    "24 channels, 6 blocks a group": ("both", ["embed_dim=24", "depths=6,6,6"]),
    "48 channels, 2 blocks a group": ("both", ["embed_dim=48", "depths=2,2,2"]),
    "2 groups of 6 blocks": ("both", ["depths=6,6", "num_heads=2,2"]),
    "6 groups of 2 blocks": ("both", ["depths=2,2,2,2,2,2", "num_heads=2,2,2,2,2,2"]),
    "windows of 16": ("both", ["window_size=16"]),
}
COLUMNS = ["shape", "fusion", "changes", "parameters", "seconds_a_step", "steps", "seconds_an_image", "set", "psnr_y"]
PHASES = ("time", "train")
ROUNDS = 3
Times = dict[str, dict[str, float]]  # shape -> `step` and `image` -> seconds


def config_of(name: str) -> TrainConfig:
    """Settings that hold a shape."""
    fusion, changes = SHAPES[name]
    return TrainConfig(data=("none",), out="none", preset="light", frequency=fusion, model_overrides=tuple(changes))


def measure_times(names: Sequence[str], batch: int, patch: int, lq: torch.Tensor) -> Times:
    """Seconds of a training step (bf16) and of a forward pass (fp32): medians of turns, the first left out."""
    steps, models = {}, {}
    for name in names:
        fusion, changes = SHAPES[name]
        settings = (("frequency", fusion), ("model_overrides", tuple(changes)))
        steps[name] = our_step(Case("light", name, settings=settings, bf16=True), batch, patch, torch.device("cpu"))
        models[name] = HATFreq(model_config(config_of(name))).eval()
    taken: dict[str, dict[str, list[float]]] = {name: {"step": [], "image": []} for name in names}
    for _ in range(ROUNDS + 1):
        for name in names:
            began = time.perf_counter()
            steps[name]()
            taken[name]["step"].append(time.perf_counter() - began)
            began = time.perf_counter()
            with torch.inference_mode():
                models[name](lq)
            taken[name]["image"].append(time.perf_counter() - began)
    return {
        name: {key: statistics.median(values[1:]) for key, values in kinds.items()} for name, kinds in taken.items()
    }


def kept_times(args: argparse.Namespace, sets: dict[str, list[Pair]]) -> Times:
    """The times, from their file or measured now."""
    names, file = list(SHAPES), args.work / f"times_{args.batch}_{args.patch}.json"
    if args.retime or not file.exists() or set(json.loads(file.read_text())) != set(names):
        image = to_tensor(read_rgb(median_image(next(iter(sets.values()))).restored))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, json.dumps(measure_times(names, args.batch, args.patch, image), indent=1).encode())
    return json.loads(file.read_text())


def training_words(args: argparse.Namespace, name: str, steps: int) -> list[str]:
    """One run's settings in the words of train.py."""
    fusion, changes = SHAPES[name]
    words = ["--preset", "light", "--frequency", fusion, *(["--model_overrides", *changes] if changes else [])]
    words += ["--steps", steps, "--batch", args.batch, "--patch", args.patch, "--lr", args.lr, "--warmup", steps // 20]
    words += ["--grad_clip", 1.0, "--ema", 0.99, "--seed", args.seed, "--precision", "bf16", "--device", "cpu"]
    words += ["--threads", 1, "--workers", 1, "--no-tensorboard", "--log_every", 100, "--sample_images", 0]
    return [str(word) for word in [*words, "--valid_every", steps]]


def table(args: argparse.Namespace, times: Times, steps: dict[str, int], scores: dict[str, dict[str, Score]]) -> str:
    """Markdown: a row a shape, the best mean first."""
    sets = list(next(iter(scores.values())))
    head = ["shape", "parameters", "s a step", "steps", "s an image", *sets, "mean"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    means = {name: statistics.fmean(score.psnr for score in row.values()) for name, row in scores.items()}
    for name in sorted(scores, key=lambda name: -means[name]):
        cells = [name, f"{parameters(name):,}", f"{times[name]['step']:.3f}", str(steps[name])]
        cells += [f"{times[name]['image']:.3f}", *(f"{scores[name][one].psnr:.3f}" for one in sets)]
        lines.append(f"| {' | '.join([*cells, f'{means[name]:.3f}'])} |")
    folders = ", ".join(folder.name for folder in args.data)
    text = (
        f"PSNR-Y, dB. `light` is 32 channels, 3 groups of 4 blocks, windows of 8, fusion `both`. Each trained from "
        f"scratch for {args.seconds:g} s of steps at the rate measured by turns (medians of {ROUNDS}): {args.batch} "
        f"patches of {args.patch}x{args.patch} LR pixels of {folders}, Adam from {args.lr:g} (cosine decay), bf16, "
        f"seed {args.seed}. s an image: the median image of {sets[0]}. Whole images, fp32. CPU, one thread; torch "
        f"{torch.__version__}. One seed: differences of a few hundredths mean nothing."
    )
    return "\n".join([*lines, "", text]) + "\n"


def parameters(name: str) -> int:
    """Of a shape's network."""
    return sum(parameter.numel() for parameter in HATFreq(model_config(config_of(name))).parameters())


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, help="folders of HR photographs")
    add("--bench", type=Path, required=True, help="folder of evaluation sets, each with HR and LRbicx4")
    add("--work", type=Path, required=True, help="folder for the times and runs")
    add("--seconds", type=float, default=150, help="of training for each shape (default %(default)s)")
    add("--batch", type=int, default=8, help="patches a step (default %(default)s)")
    add("--patch", type=int, default=32, help="LR pixels a side (default %(default)s)")
    add("--lr", type=float, default=1e-3, help="peak rate (default %(default)s)")
    add("--seed", type=int, default=0, help="of every run (default %(default)s)")
    add("--phases", nargs="+", choices=PHASES, default=PHASES, help="default: both")
    add("--retime", action="store_true", help="measure the times again, whatever is kept")
    add("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Time, train, score, and write the results."""
    args = arguments(argv)
    torch.set_num_threads(1)
    sets = find_sets(args.bench)
    times = kept_times(args, sets)
    if "train" not in args.phases:
        return
    steps = {name: max(1, round(args.seconds / times[name]["step"])) for name in SHAPES}
    runs, scores = Runs(args.work, args.data, sets), {}
    for number, name in enumerate(SHAPES):
        model = HATFreq(model_config(config_of(name))).eval()
        scores[name] = runs.scored(f"{number}", model, training_words(args, name, steps[name]))
        shown = ", ".join(f"{one} {score.psnr:.3f}" for one, score in scores[name].items())
        print(f"{name}, {steps[name]} steps: {shown} dB", file=sys.stderr, flush=True)
    rows = []
    for name, (fusion, changes) in SHAPES.items():
        shape = [name, fusion, " ".join(changes), parameters(name)]
        shape += [times[name]["step"], steps[name], times[name]["image"]]
        rows += [[*shape, one, score.psnr] for one, score in scores[name].items()]
    publish(table(args, times, steps, scores), args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
