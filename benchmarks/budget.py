"""What pays at a fixed budget of CPU time? Short trainings that differ in one setting, paired by seed.

    python -m benchmarks.budget --data $DATA/train/hq480-a $DATA/train/bsds-sun --teacher teacher/hq480-a \\
        teacher/bsds-sun --bench $DATA/bench --work runs/budget --minutes 20

Every arm is trained from the same weights, for every seed, with as many steps as take --minutes of CPU time: a step's
CPU seconds are measured first, for all arms one after the other, and kept. Keep the machine quiet meanwhile: beside
another process the same step takes up to half as many more. Arms of two stages spend the last part of the budget in a
second run that starts from the first. `--shapes` compares networks instead: shapes of `light`, from scratch, that learn
the teacher's restorations. Scored on every set of --bench: PSNR-Y of whole images in fp32. Finished runs are kept in
--work, and a run that was stopped resumes: the same command finishes what it began.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    BENCH,
    WEIGHTS,
    file_sha256,
    find_sets,
    named,
    open_network,
    publish,
    restorer,
    run_script,
    setting,
)
from benchmarks.render import RESULTS
from benchmarks.selection import psnr, shape_words
from benchmarks.short_runs import add_options, described, parse, scored_run, training_words
from benchmarks.tables import BASE, LIGHT
from evaluation.score import score
from image_data.pairs import Pair, PairFiles
from models.team08_HATFreq.image_io import list_images
from models.team08_HATFreq.system import write_bytes

LAST_STAGE = 0.15  # of the budget, in arms of two stages
# What an arm changes, in the words of train.py: of the whole run, or of its two stages. The last word of a kind counts.
WORDS: dict[str, list[list[str]]] = {
    BASE: [[]],
    "batch16": [["--batch", "16"]],
    "batch32": [["--batch", "32"]],
    "patch48": [["--patch", "48"]],
    "frequency": [["--loss", "l1=1", "frequency=0.05"]],
    "muon": [[]],
    "easier": [[]],
    "teacher": [[]],
    "features": [[]],
    "l1_end": [[], []],
    "mse_end": [[], ["--loss", "mse=1"]],
}
SHAPES: dict[str, list[list[str]]] = {
    LIGHT: [[]],
    "without_fusion": [["--frequency", "none"]],
    "groups_of_six": [["--model_overrides", "depths=6,6", "num_heads=2,2"]],
    "wider": [["--model_overrides", "embed_dim=48", "depths=2,2,2"]],
}
# Arms that take no time which could be measured: their steps are the base's.
AS_BASE = ("easier", "teacher", "l1_end", "mse_end")
HARDEST = 0.05
Sets = dict[str, list[Pair]]


def data_words(args: argparse.Namespace, arm: str) -> list[str]:
    """`--data` of an arm: the truth, the easier part of it, or the teacher's restorations."""
    folders = [str(folder.resolve()) for folder in args.data]
    if arm == "easier":
        return ["--data", str(easier(args))]
    if arm != "teacher" and not args.shapes:
        return ["--data", *folders]
    taught = [f"hr={hr},teacher={folder.resolve()}" for hr, folder in zip(folders, args.teacher, strict=True)]
    return ["--data", *taught]


def easier(args: argparse.Namespace) -> Path:
    """A list of the photographs without those of the lowest PSNR-Y at the start; made once and kept in --work."""
    kept = (args.work / "easier.txt").resolve()
    if not kept.exists():
        restore, found = restorer(open_network(args.init)), list[tuple[float, Path]]()
        for folder in args.data:
            scores = score(restore, PairFiles(folder), ssim=False)
            found += [(one.psnr, path.resolve()) for one, path in zip(scores, list_images(folder), strict=True)]
        others = sorted(path for _, path in sorted(found)[round(HARDEST * len(found)) :])
        write_bytes(kept, "".join(f"{path}\n" for path in others).encode())
    return kept


def script(args: argparse.Namespace, arm: str) -> list[str]:
    """What trains an arm."""
    if arm == "muon":
        return ["-m", "benchmarks.variants", "muon"]
    if arm == "features":
        return ["-m", "benchmarks.variants", "features", str(args.teacher_weights.resolve())]
    return ["train.py"]


def start_words(args: argparse.Namespace) -> list[str]:
    """`--init` of an arm's first stage."""
    return ["--init", str(args.init.resolve())] if args.init else []


def stage_words(args: argparse.Namespace, arm: str, stage: int, seed: int, steps: int) -> list[str]:
    """The settings of a stage, but for --data, --init and --out."""
    common = argparse.Namespace(**{**vars(args), "steps": steps, "lr": args.lr if stage == 0 else args.lr / 4})
    shape = shape_words(args.init) if args.init else []
    return [*shape, *training_words(common, seed), *(WORDS | SHAPES)[arm][stage]]


def step_seconds(args: argparse.Namespace, arm: str) -> float:
    """CPU seconds of a step: what three times as many steps take beyond so many, over all processes of the run.

    Measured once and kept in --work.
    """
    kept = args.work / "step_seconds.json"
    known: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    key = json.dumps([arm, *stage_words(args, arm, 0, 0, 0), args.pace_steps])
    if key not in known:
        taken = []
        for steps in (args.pace_steps, 3 * args.pace_steps):
            folder = args.work / "pace"
            shutil.rmtree(folder, ignore_errors=True)
            words = [*data_words(args, arm), *stage_words(args, arm, 0, 0, steps), *start_words(args)]
            taken.append(run_script(*script(args, arm), *words, "--out", folder.resolve()).cpu_seconds)
            shutil.rmtree(folder, ignore_errors=True)
        known[key] = (taken[1] - taken[0]) / (2 * args.pace_steps)
        if known[key] <= 0:
            raise SystemExit(f"budget: the steps of {arm} were too few to be timed: give more --pace_steps")
        write_bytes(kept, (json.dumps(known, indent=1) + "\n").encode())
    return known[key]


def steps_of(args: argparse.Namespace, arm: str) -> list[int]:
    """The steps of an arm's stages that the budget pays for."""
    steps = max(2, round(args.minutes * 60 / step_seconds(args, BASE if arm in AS_BASE else arm)))
    last = max(1, round(LAST_STAGE * steps))
    return [steps - last, last] if len((WORDS | SHAPES)[arm]) == 2 else [steps]


def run(args: argparse.Namespace, arm: str, seed: int, sets: Sets) -> list[dict[str, Any]]:
    """The rows of one arm and seed."""
    steps, init, facts = steps_of(args, arm), start_words(args), [arm, file_sha256(args.init) if args.init else ""]
    facts += [*(folder.name for folder in args.data), *(f"{name} {len(pairs)}" for name, pairs in sets.items())]
    found: Any = None
    for stage, count in enumerate(steps):
        words = stage_words(args, arm, stage, seed, count)
        facts = [*facts, *words]
        last = stage == len(steps) - 1

        def scored(weights: Path, last: bool = last) -> Any:
            return {name: psnr(weights, pairs) for name, pairs in sets.items()} if last else str(weights)

        folder = args.work / f"{arm}_{seed}_{stage}"
        found = scored_run(folder, [*data_words(args, arm), *words, *init], facts, scored, script(args, arm))
        init = ["--init", str(found)]
    taken = {"steps": sum(steps)}
    return [{"variant": arm, "seed": seed, "set": name, "psnr": one, **taken} for name, one in found.items()]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, help="folders of HR photographs")
    add("--teacher", type=Path, nargs="+", default=(), help="their restorations by scripts.make_teacher, in this order")
    add("--teacher_weights", type=Path, help="the teacher itself, which spandrel opens: for its features")
    add("--bench", type=Path, default=BENCH, help="folder of evaluation sets (default: %(default)s)")
    add("--sets", nargs="+", default=(), help="some of them only")
    add("--arms", nargs="+", choices=WORDS, help=f"beside {BASE} (default: all that can be run)")
    add("--shapes", action="store_true", help=f"compare {', '.join(SHAPES)}; --lr 1e-3 suits them")
    add("--init", type=Path, help="weights to start from (default: the model zoo's light ones; of shapes: none)")
    add("--minutes", type=float, default=20.0, help="CPU minutes of a run (default %(default)s)")
    add("--pace_steps", type=int, default=20, help="steps from which a step's time is measured (default %(default)s)")
    add("--out", type=Path, help="results file (default: budget.json or budget_shapes.json in benchmarks/results)")
    add_options(parser, steps=0, lr=2e-4)
    parser.set_defaults(ema=0.999, precision="fp32")
    args = parse(parser, argv)
    args.out = args.out or RESULTS / f"budget{'_shapes' * args.shapes}.json"
    if args.steps:
        parser.error("--steps follows from --minutes: leave it out")
    if args.teacher and len(args.teacher) != len(args.data):
        parser.error(f"--teacher takes a folder for each of --data: got {len(args.teacher)} and {len(args.data)}")
    if args.shapes and (args.arms or args.init or not args.teacher):
        parser.error(
            "--shapes are trained from scratch on --teacher's restorations, and take neither --arms nor --init"
        )
    if args.shapes:
        args.arms = list(SHAPES)
        return args
    args.init = args.init or WEIGHTS
    needs = {"teacher": args.teacher, "features": args.teacher_weights}
    if "teacher" in (args.arms or ()) and not args.teacher:
        parser.error("the arm teacher needs --teacher: make the restorations with scripts.make_teacher")
    if "features" in (args.arms or ()) and not args.teacher_weights:
        parser.error("the arm features needs --teacher_weights: the file that the teacher was opened from")
    possible = [arm for arm in WORDS if needs.get(arm, True)]
    args.arms = [BASE, *(arm for arm in possible if arm != BASE and arm in (args.arms or possible))]
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score, and write the results; seed by seed, so that a stopped command leaves whole pairs."""
    args = arguments(argv)
    torch.set_num_threads(1)
    sets = find_sets(args.bench, args.sets)
    args.work.mkdir(parents=True, exist_ok=True)
    start = f"all start from the weights below, at the same rate; the last {LAST_STAGE:.0%} of l1_end and mse_end "
    start += "from a quarter of it"
    if args.shapes:
        start = "all start from scratch and learn the teacher's restorations"
    facts = setting(
        argv,
        args.init,
        data=f"scored on {named(sets)}; `mean` is that of the sets",
        training=f"{args.minutes:g} CPU minutes a run; {described(args).partition(' steps of ')[2]}; photographs of "
        f"{', '.join(folder.name for folder in args.data)}; {start}",
        seeds=", ".join(map(str, args.seeds)),
        tile="whole images",
        precision="fp32",
    )
    rows: list[dict[str, Any]] = []
    for arm in args.arms:  # all are timed before any is trained, under one load of the machine
        steps_of(args, arm)
    for number, seed in enumerate(args.seeds, start=1):
        for arm in args.arms:
            rows += run(args, arm, seed, sets)
            shown = ", ".join(f"{row['set']} {row['psnr']:.3f}" for row in rows[-len(sets) :])
            print(f"seed {seed}, {arm}: {shown} dB", file=sys.stderr, flush=True)
        if number > 1:  # one seed has no spread
            text = publish(args.out, "budget", rows, {**facts, "seeds": ", ".join(map(str, args.seeds[:number]))})
    print(text)


if __name__ == "__main__":
    main()
