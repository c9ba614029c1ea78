"""How long one picture takes, by its size and the number of threads: the table of docs/restoring.md.

    python -m benchmarks.times
    python -m benchmarks.times --device cuda --sizes 512 1024 2048

A square cut of scikit-image's astronaut (enlarged for more than 512 pixels) is restored by what test.py calls, with the
shipped `light` weights, fp32, in a single pass: weights loaded, picture read, restored and written. Each point is the
fastest of several rounds in a process of its own, after a small picture that does not count. On a machine with other
work the seconds by the clock are too many; those of the CPU tell what the work itself takes.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.common import WEIGHTS, in_child, publish, setting
from benchmarks.render import RESULTS
from models.team08_HATFreq import main as restore
from models.team08_HATFreq.image_io import write_png
from models.team08_HATFreq.system import HATFreqError
from utils.files import command

WARM_UP = 32  # side of the picture that does not count


def seconds_of(side: int, threads: int, device: str, rounds: int) -> dict[str, Any]:
    """A row: the fewest seconds by the clock and of the CPU for `side` x `side` pixels; in a process of its own."""
    from skimage.data import astronaut

    torch.set_num_threads(threads)
    image = astronaut() if side <= 512 else cv2.resize(astronaut(), (side, side), interpolation=cv2.INTER_CUBIC)
    taken = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, size in enumerate((WARM_UP, *[side] * rounds)):
            lq, out = Path(scratch) / f"{number}.png", Path(scratch) / f"out{number}"
            write_png(lq, np.ascontiguousarray(image[:size, :size]))
            began, cpu = time.perf_counter(), time.process_time()
            restore(WEIGHTS, lq, out, torch.device(device), ensemble=1)
            taken.append((time.perf_counter() - began, time.process_time() - cpu))
    wall, used = (min(one) for one in zip(*taken[1:], strict=True))
    return {"side": side, "threads": threads, "seconds": round(wall, 2), "cpu_seconds": round(used, 2)}


@command("benchmarks.times", HATFreqError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=[128, 256, 512], help="sides in pixels (default: %(default)s)")
    add("--threads", type=int, nargs="+", default=[1, 2], help="default: %(default)s")
    add("--device", default="cpu", help="cpu or cuda")
    add("--rounds", type=int, default=2, help="the table holds the fastest (default: %(default)s)")
    add("--notes", nargs="*", default=[], help="what else a reader should know of the machine")
    add("--out", type=Path, default=RESULTS / "times.json", help="results file (default: %(default)s)")
    args = parser.parse_args(argv)
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # for the children, as in test.py
    rows = [in_child(seconds_of, side, n, args.device, args.rounds) for side in args.sizes for n in args.threads]
    facts = setting(
        argv,
        WEIGHTS,
        threads=max(args.threads),
        device=args.device,
        data="squares of scikit-image's astronaut",
        tile="auto",
        precision="fp32, single pass",
        rounds=f"the fastest of {args.rounds}",
        load=f"{os.getloadavg()[0]:.0f} processes on {os.cpu_count()} cores before",
        notes=args.notes,
    )
    print(publish(args.out, "times", rows, facts))


if __name__ == "__main__":
    sys.exit(main())
