"""A forward pass on a machine with other work: what it costs that waiting threads spin.

    python benchmarks/busy_threads.py --out benchmarks/results/busy_threads.md

`light` on 128x128 LR pixels, a thread a core, alone and beside as many processes as there are cores that do nothing but
count. Every case is a process of its own: the settings are read when PyTorch loads.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

COLUMNS = ["setting", "other_processes", "seconds"]
SETTINGS = {
    "as PyTorch comes": {},
    "GOMP_SPINCOUNT=1000, as test.py and train.py set it": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
}
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
PATIENCE = 20.0  # seconds of passes


def measure() -> float:
    """Median seconds of the passes after the first, at most ten."""
    import torch

    from models.team08_HATFreq import build_model

    model, lq, taken = build_model("light").eval(), torch.rand(1, 3, 128, 128), []
    began = time.perf_counter()
    with torch.inference_mode():
        while len(taken) < 2 or (len(taken) < 11 and time.perf_counter() - began < PATIENCE):
            start = time.perf_counter()
            model(lq)
            taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


@contextmanager
def other_work(count: int) -> Iterator[None]:
    """Processes that keep a core busy each."""
    workers = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def main(argv: list[str] | None = None) -> None:
    """Measure one case (in a child), or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    args = parser.parse_args(argv)
    if args.case:
        print(measure())
        return
    from benchmarks.results_file import publish

    cores, rows, lines = os.cpu_count() or 1, [], ["| setting | alone, s | on a busy machine, s |", "|---|---|---|"]
    for name, setting in SETTINGS.items():
        environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        for count in (0, cores):
            with other_work(count):
                words = [sys.executable, __file__, "--case"]
                done = subprocess.run(words, env=environment | setting, check=True, stdout=subprocess.PIPE, text=True)
            rows.append([name, count, float(done.stdout.split()[-1])])
        lines.append(f"| {name} | {rows[-2][2]:.3f} | {rows[-1][2]:.3f} |")
    text = f"`light`, 128x128, fp32, {cores} threads; busy: {cores} processes that count; medians of up to 10 passes"
    publish("\n".join([*lines, "", text]) + "\n", args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
