"""What the benchmarks share: evaluation sets, networks, child processes, turns, and the files of results."""

import ctypes
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from image_data.workers import start_worker
from models.team08_HATFreq import HATConfig
from models.team08_HATFreq.system import resident_memory
from utils.environment import cpu_name, git_commit, shown_command
from utils.files import file_sha256, write_bytes

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "model_zoo" / "team08_HATFreq" / "hatfreq_light_x4.safetensors"
RESULTS = ROOT / "benchmarks" / "results"
BENCH = Path(os.environ.get("HATFREQ_SHARED", ROOT.parent / "shared")) / "data" / "bench"
CPU = torch.device("cpu")

Image = NDArray[np.uint8]
T = TypeVar("T")
K = TypeVar("K")


def named(sets: Mapping[str, Sequence[object]]) -> str:
    """`Set5 (5), Set14 (14)`."""
    return ", ".join(f"{name} ({len(pairs)})" for name, pairs in sets.items())


def reference_hat(config: HATConfig) -> nn.Module:
    """spandrel's HAT of a shape; it has HAT's upsampler and no frequency blocks."""
    from spandrel.architectures.HAT import HAT

    own = ("scale", "upsampler", "frequency")
    shape = {name: value for name, value in asdict(config).items() if name not in own}
    return HAT(upscale=config.scale, **shape)


# ---------------------------------------------------------------------------------------------------------------------
# How it is measured
# ---------------------------------------------------------------------------------------------------------------------


def in_child(function: Callable[..., T], *args: Any) -> T:
    """Call a function of a module in a process of its own, which ends with this one: a peak of memory never falls."""
    with ProcessPoolExecutor(1, get_context("spawn"), start_worker) as pool:
        return pool.submit(function, *args).result()


def run_script(*argv: object) -> float:
    """Run a Python script of this repository; returns its seconds by the clock.

    Raises:
        SystemExit: the script failed; what it wrote to stderr has been shown.
    """
    words, began = [sys.executable, *map(str, argv)], time.perf_counter()
    status = subprocess.run(words, stdout=subprocess.DEVNULL, cwd=ROOT, check=False).returncode
    if status:
        raise SystemExit(f"{' '.join(words[1:])} ended with status {status}")
    return time.perf_counter() - began


def seconds(function: Callable[[], object], device: torch.device = CPU) -> float:
    """Wall time of one call, the GPU's work included."""
    synchronise(device)
    began = time.perf_counter()
    function()
    synchronise(device)
    return time.perf_counter() - began


def by_turns(ways: Mapping[K, Callable[[], object]], rounds: int, device: torch.device = CPU) -> dict[K, float]:
    """Median seconds of each way; they take turns, so that a machine whose speed drifts treats all alike."""
    for way in ways.values():
        way()  # the first pass also plans and allocates
    taken = [{name: seconds(way, device) for name, way in ways.items()} for _ in range(rounds)]
    return {name: statistics.median(turn[name] for turn in taken) for name in ways}


def synchronise(device: torch.device) -> None:
    """Wait for the GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def added_memory(device: torch.device, work: Callable[[], object]) -> int:
    """The most bytes that `work` has in use beyond those in use before it: allocated on a GPU, resident on a CPU.

    What the heap holds free is given back first: `work` would use it, and nothing would seem to be added.

    Raises:
        RuntimeError: a CPU's memory on another system than Linux with glibc.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: proc_pid_clear_refs(5)
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"the memory of a CPU is measured on Linux with glibc ({error})") from error
    before = resident_memory("VmRSS") or 0
    work()
    return (resident_memory("VmHWM") or 0) - before


# ---------------------------------------------------------------------------------------------------------------------
# Results
# ---------------------------------------------------------------------------------------------------------------------

Row = Mapping[str, object]  # column -> what the table shows


def setting(
    argv: Sequence[str] | None,
    weights: Path | None = None,
    threads: int = 1,
    packages: Sequence[str] = (),
    device: str = "cpu",
    **facts: str,
) -> dict[str, str]:
    """How a result was measured.

    Args:
        argv: words of the command line; None for those that this process was started with.
        weights: the file that was measured, for its hash.
        threads: of the CPU.
        packages: whose versions matter, besides torch.
        facts: `data`, `tile`, `precision`, `rounds` and what else a reader needs.
    """
    gpu = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else "no GPU"
    results = {
        "command": f"`{shown_command(None if argv is None else list(argv))}`",
        "measured": time.strftime("%Y-%m-%d"),
        "commit": git_commit(),
        **{key: value for key, value in facts.items() if value},
        "machine": f"{cpu_name()}, {threads} of {os.cpu_count()} threads, {gpu}",
        "versions": ", ".join(f"{name} {version(name)}" for name in ("torch", *packages)),
    }
    if weights is not None:
        results["weights"] = f"{weights.name}, sha256 `{file_sha256(weights)[:12]}`"
    return results


def publish(out: Path, tables: Mapping[str, Sequence[Row]], setting: Mapping[str, str]) -> None:
    """Write a result as Markdown, its tables by title and how it was measured, and print it."""
    parts = [f"### {title}\n\n{markdown(rows)}" if title else markdown(rows) for title, rows in tables.items()]
    text = "\n\n".join([*parts, "\n".join(f"- {key}: {value}" for key, value in setting.items())]) + "\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, text.encode())
    print(text)


def markdown(rows: Sequence[Row]) -> str:
    """Rows of the same columns as a table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
