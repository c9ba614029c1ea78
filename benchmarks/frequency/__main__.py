"""Train the candidates of docs/frequency.md stage by stage, and make the tables.

    python -m benchmarks.frequency --shared $SHARED --work runs/frequency --screen
    python -m benchmarks.frequency --report      # into benchmarks/results/frequency.md and .png

SHARED holds `data/train/{hq480-a,hq480-b,bsds-sun}`, `data/train/hq480_manifest.csv` and `data/bench`. Every stage
is a list of jobs, one after the other on one thread; a stopped command resumes its job at its last checkpoint. The
results of finished jobs are kept in benchmarks/results/frequency, and these jobs are not run again. What the stages
compare and which candidates go on is said in docs/frequency.md.
"""

import argparse
import fcntl
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
import torch

from benchmarks.common import ROOT
from benchmarks.render import STYLE, draw_differences, save
from image_data.pairs import Pair
from models.team08_HATFreq.system import write_bytes

from .blocks import CANDIDATES, places_of
from .data import read_pool, read_sets
from .jobs import Job, run
from .periodicity import periodicity
from .report import PERIODICITY, Compared, against_controls, at_the_bar, details, jobs_of, psnr, read_results, table

RESULTS = ROOT / "benchmarks" / "results" / "frequency"
SCREEN_SEEDS, CONFIRM_SEEDS, LIGHT_SEEDS = (0, 1, 2), tuple(range(10, 18)), tuple(range(20, 25))
KEPT_AFTER_FIRST, KEPT_AFTER_SCREEN = 4, 3
NARROW, LIGHT = Job("none"), Job("none", shape="light")
LARGE_PATCHES = Job("none", patch=64, patches=2)
STAGES = {
    "Screening (narrow)": (SCREEN_SEEDS, NARROW),
    "Confirmation (narrow, fresh seeds)": (CONFIRM_SEEDS, NARROW),
    "light": (LIGHT_SEEDS, LIGHT),
    "Patches of 64 (narrow)": (SCREEN_SEEDS, LARGE_PATCHES),
    "Before the attention (narrow)": (SCREEN_SEEDS, Job("none", place="before")),
    "Last group only (narrow)": (SCREEN_SEEDS, Job("none", place="last")),
    "With a frequency loss of 0.05 (narrow)": (SCREEN_SEEDS, Job("none", frequency_loss=0.05)),
}


def ranking(folder: Path, seeds: Sequence[int]) -> dict[str, Compared]:
    """Candidates that finished all seeds against their control, the largest mean difference first."""
    found = against_controls(read_results(folder), seeds, NARROW)
    return {name: one for name, one in found.items() if len(one.values) == len(seeds)}


def side_by_side(names: Sequence[str], seeds: Sequence[int], setting: Job) -> Iterator[Job]:
    """`none`, then each candidate and its control, seed by seed: a stopped stage leaves whole pairs."""
    for seed in seeds:
        yield from jobs_of("none", False, [seed], setting)
        for name in names:
            for control in (False, True):
                yield from jobs_of(name, control, [seed], setting)


def screen(results: Path) -> Iterator[Job]:
    """All candidates with the first seed, the better ones with the others."""
    yield from side_by_side(CANDIDATES, SCREEN_SEEDS[:1], NARROW)
    kept = list(ranking(results, SCREEN_SEEDS[:1]))[:KEPT_AFTER_FIRST]
    yield from side_by_side(kept, SCREEN_SEEDS[1:], NARROW)


def finalists(results: Path) -> list[str]:
    """The three best of the screening, as far as they are above their control."""
    found = ranking(results, SCREEN_SEEDS)
    if len(found) < KEPT_AFTER_FIRST:
        raise SystemExit(f"{len(found)} candidates have finished the screening: run --screen to its end first")
    if not (above := [name for name in list(found)[:KEPT_AFTER_SCREEN] if found[name].mean > 0]):
        raise SystemExit("no candidate is above its control in the screening: there is nothing to confirm")
    return above


def confirmed(results: Path) -> list[str]:
    """The finalists that reach the bar in the confirmation; no other can reach it in `light` as well."""
    found, names = read_results(results), finalists(results)
    unfinished = [
        job.name for name in names for control in (False, True)
        for job in jobs_of(name, control, CONFIRM_SEEDS, NARROW) if job not in found
    ]  # fmt: skip
    if unfinished:
        raise SystemExit(f"{unfinished[0]} and {len(unfinished) - 1} more are not finished: run --confirm first")
    if not (reached := [name for name in names if name in at_the_bar(found, CONFIRM_SEEDS, NARROW)]):
        raise SystemExit("no candidate has reached the bar in the confirmation: there is nothing to train in light")
    return reached


def factors(results: Path) -> Iterator[Job]:
    """Larger patches for the finalists; the place and a frequency loss for the best of them."""
    names = finalists(results)
    yield from side_by_side(names, SCREEN_SEEDS, LARGE_PATCHES)
    for place in (one for one in places_of(names[0]) if one != "tail"):
        yield from side_by_side(names[:1], SCREEN_SEEDS, Job("none", place=place))
    yield from side_by_side(names[:1], SCREEN_SEEDS, Job("none", frequency_loss=0.05))


def work_off(jobs: Iterator[Job], work: Path, results: Path, shared: Path) -> None:
    """Run the jobs; one command at a time in a folder."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another command is at work in {work}") from None
        train = shared / "data" / "train"
        pool = read_pool([train / "hq480-a", train / "bsds-sun"], train / "hq480_manifest.csv")
        sets = read_sets(shared / "data" / "bench", train)
        write_periodicity(sets, results)
        print(f"{len(pool)} photographs; {', '.join(f'{k} ({len(v)})' for k, v in sets.items())}", flush=True)
        for job in jobs:
            result = run(job, work, results, pool, sets)
            shown = ", ".join(f"{name} {psnr(result, name):.3f}" for name in result["sets"])
            print(f"{job.name}: {shown} dB, {result['train_cpu_seconds']:.0f} CPU s", flush=True)


def write_periodicity(sets: dict[str, list[Pair]], results: Path) -> None:
    """Write how periodic the HR version of each image is."""
    path = results / PERIODICITY
    if not path.exists():
        results.mkdir(parents=True, exist_ok=True)
        found = {pair.name: round(periodicity(pair.target), 6) for pairs in sets.values() for pair in pairs}
        write_bytes(path, json.dumps(found).encode())


def report(folder: Path) -> str:
    """All tables that the results allow."""
    results = read_results(folder)
    if not results:
        return f"No finished job in {folder}.\n"
    ranked = json.loads((folder / PERIODICITY).read_text())
    parts = []
    for title, (seeds, setting) in STAGES.items():
        if any(job in results for name in CANDIDATES for job in jobs_of(name, True, seeds, setting)):
            parts += [f"## {title}\n", table(results, seeds, setting), details(results, seeds, setting, ranked)]
    return "\n".join(parts) or "No control is finished.\n"


def write_report(folder: Path) -> str:
    """Write the tables, and a plot of what has two seeds or more, beside the folder; returns the tables."""
    text, results = report(folder), read_results(folder)
    if not results:
        return text
    machines = sorted({result.get("machine", "unknown") for result in results.values()})
    facts = f"- results: `{folder.name}/`, one file a job\n- machines: {'; '.join(machines)}; one thread\n"
    write_bytes(folder.with_suffix(".md"), f"{text}\n{facts}".encode())
    found = {
        f"{name}, {title.split(' (')[0].lower()}": one.difference
        for title, (seeds, setting) in STAGES.items()
        for name, one in against_controls(results, seeds, setting).items() if len(one.values) > 1
    }  # fmt: skip
    if found:
        with matplotlib.rc_context(STYLE):
            save(draw_differences(found, "PSNR-Y minus the control's, dB"), folder)
    return text


def main(argv: Sequence[str] | None = None) -> None:
    """Run a stage, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, help="folder of checkpoints and weights")
    add("--results", type=Path, default=RESULTS, help="folder of results (default: this repository's)")
    add("--shared", type=Path, help="folder that holds data/train and data/bench")
    stage = parser.add_mutually_exclusive_group(required=True)
    for name, text in (
        ("screen", "all candidates, seeds 0 to 2"),
        ("confirm", "the three best that are above their control, with eight fresh seeds"),
        ("light", "those of them that reached the bar, in `light`"),
        ("factors", "larger patches, places, a frequency loss"),
        ("report", "print and write the tables of what is finished, and draw them"),
    ):
        stage.add_argument(f"--{name}", action="store_true", help=text)
    args = parser.parse_args(argv)
    if args.report:
        print(write_report(args.results))
        return
    if args.shared is None or args.work is None:
        parser.error("a stage needs --shared and --work")
    torch.set_num_threads(1)
    if args.screen:
        jobs = screen(args.results)
    elif args.factors:
        jobs = factors(args.results)
    elif args.confirm:
        jobs = side_by_side(finalists(args.results), CONFIRM_SEEDS, NARROW)
    else:
        jobs = side_by_side(confirmed(args.results), LIGHT_SEEDS, LIGHT)
    work_off(jobs, args.work, args.results, args.shared)


if __name__ == "__main__":
    main()
