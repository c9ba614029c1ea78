"""The evaluation sets as benchmarks read them, the shipped weights, and what a child process takes."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from models.team08_HATFreq import HATFreq
from models.team08_HATFreq.image_io import list_images
from models.team08_HATFreq.weights import build, load

ROOT = Path(__file__).resolve().parents[1]
BENCH = Path(os.environ.get("HATFREQ_SHARED", ROOT.parent / "shared")) / "data" / "bench"
SETS = ("Set5", "Set14", "BSD100")
ZOO = ROOT / "model_zoo" / "team08_HATFreq"


def pairs(bench: Path, name: str) -> list[tuple[Path, Path]]:
    """Low-resolution file and target of every image of a set.

    Raises:
        FileNotFoundError: the set or a target is missing.
    """
    found = [(path, bench / name / "HR" / f"{path.stem[:-2]}.png") for path in list_images(bench / name / "LRbicx4")]
    if missing := [target for _, target in found if not target.exists()]:
        raise FileNotFoundError(f"{missing[0]} does not exist: get the set anew (docs/data.md)")
    return found


def shipped(preset: str = "light") -> HATFreq:
    """A network with the weights of the model zoo, ready to restore on the CPU."""
    weights = ZOO / f"hatfreq_{preset}_x4.safetensors"
    return build(load(weights), preset)[0].eval()


@dataclass(frozen=True)
class Run:
    """What a process printed and took: seconds on the clock, seconds of CPU, peak resident bytes."""

    text: str
    seconds: float
    cpu_seconds: float
    peak: int


def run_measured(command: list[str]) -> Run:
    """A Python script in a process of its own; its peak is no less than what this process held when it began it.

    Raises:
        SystemExit: it failed.
    """
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}: {text}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(text, time.perf_counter() - began, usage.ru_utime + usage.ru_stime, peak)


def machine() -> str:
    """What a table states of the machine."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} thread(s) of {os.cpu_count()} cores, no GPU used"
