"""Short trainings by train.py, repeated by seeds and kept: a benchmark that was stopped resumes where it was."""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from models.team08_HATFreq.system import write_bytes


def add_options(parser: argparse.ArgumentParser, steps: int, lr: float) -> None:
    """Options of a comparison of trainings: the seeds, and what every run has in common."""
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder that keeps the runs")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="two or more (default: 0 1 2)")
    add("--steps", type=int, default=steps, help="of each run (default %(default)s)")
    add("--batch", type=int, default=8, help="patches a step (default %(default)s)")
    add("--patch", type=int, default=32, help="LR pixels a side (default %(default)s)")
    add("--lr", type=float, default=lr, help="peak rate (default %(default)s)")
    add("--ema", type=float, default=0.99, help="decay of the averaged weights (default %(default)s)")
    add("--precision", choices=("fp32", "bf16"), default="bf16", help="of the training (default %(default)s)")


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ends the program with its usage where the seeds are equal or too few."""
    args = parser.parse_args(argv)
    if len(set(args.seeds)) != len(args.seeds) or len(args.seeds) < 2:
        parser.error(f"--seeds takes two or more different numbers, got {args.seeds}: one alone has no spread")
    return args


def training_words(args: argparse.Namespace, seed: int) -> list[str]:
    """The settings that all runs of a seed share, in the words of train.py."""
    words = ["--steps", args.steps, "--batch", args.batch, "--patch", args.patch, "--lr", args.lr]
    words += ["--warmup", args.steps // 20, "--grad_clip", 1.0, "--ema", args.ema, "--seed", seed]
    words += ["--precision", args.precision, "--device", "cpu", "--threads", 1, "--workers", 1, "--no-tensorboard"]
    words += ["--log_every", 100, "--valid_every", args.steps, "--sample_images", 0]
    return [str(word) for word in words]


def described(args: argparse.Namespace) -> str:
    """The same in a sentence, for the results."""
    return (
        f"{args.steps} steps of {args.batch} patches of {args.patch}x{args.patch} LR pixels, Adam from {args.lr:g} "
        f"(cosine decay), {args.precision}, averaged weights"
    )


def scored_run(
    folder: Path,
    words: list[str],
    facts: list[Any],
    score: Callable[[Path], Any],
    script: Sequence[str] = ("train.py",),
) -> Any:
    """The score of a training, from its folder if it is finished.

    Args:
        folder: how its folder's name begins; the rest is the hash of `facts`.
        words: of train.py, but for --out.
        facts: all that the score depends on, in JSON's types.
        score: weights file -> a value in JSON's types.
        script: what trains.

    Raises:
        subprocess.CalledProcessError: it failed; it has said why.
    """
    folder = folder.with_name(f"{folder.name}_{sha256(json.dumps(facts).encode()).hexdigest()[:12]}").resolve()
    result = folder / "result.json"
    if not result.exists():
        call(*script, *words, "--out", folder)
        write_bytes(result, json.dumps(score(folder / "last.safetensors")).encode())
    return json.loads(result.read_text(encoding="utf-8"))


def call(*words: object) -> None:
    """Run a Python command of this repository.

    Raises:
        subprocess.CalledProcessError: it failed; what it wrote has been shown.
    """
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)
