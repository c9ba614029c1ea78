"""What the benchmarks share: evaluation sets, networks, child processes, turns, and the files of results."""

import ctypes
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.render import render
from image_data.workers import start_worker
from models.team08_HATFreq import HATConfig
from models.team08_HATFreq.system import resident_memory
from utils.environment import cpu_name, git_commit, shown_command
from utils.files import file_sha256, write_bytes

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "model_zoo" / "team08_HATFreq" / "hatfreq_light_x4.safetensors"
BENCH = Path(os.environ.get("HATFREQ_SHARED", ROOT.parent / "shared")) / "data" / "bench"
CPU = torch.device("cpu")

Image = NDArray[np.uint8]
T = TypeVar("T")
K = TypeVar("K")


# ---------------------------------------------------------------------------------------------------------------------
# What is measured
# ---------------------------------------------------------------------------------------------------------------------


def named(sets: Mapping[str, Sequence[Any]]) -> str:
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


@dataclass(frozen=True)
class Process:
    """What a finished process took: seconds by the clock, seconds of CPU, peak resident bytes."""

    seconds: float
    cpu_seconds: float
    peak: int


def run_script(*words: object) -> Process:
    """Run a Python script of this repository.

    Its peak is at least what this process held when it started it: call it with little in memory.

    Raises:
        SystemExit: the script failed; what it wrote to stderr has been shown.
    """
    command, began = [str(word) for word in words], time.perf_counter()
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return Process(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, maxrss_bytes(usage))


def maxrss_bytes(usage: resource.struct_rusage) -> int:
    """The peak of resident memory; macOS counts bytes, Linux KiB."""
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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


def setting(
    argv: Sequence[str] | None,
    weights: Path | None = None,
    threads: int = 1,
    packages: Sequence[str] = (),
    **facts: Any,
) -> dict[str, Any]:
    """How a result was measured.

    Args:
        argv: words of the command line; None for those that this process was started with.
        weights: the file that was measured, for its hash.
        threads: of the CPU.
        packages: whose versions matter, besides torch.
        facts: `data`, `tile`, `precision`, `notes` and what else a reader needs.
    """
    device = torch.device(facts.pop("device", "cpu"))
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    found: dict[str, Any] = {
        "command": shown_command(argv),
        "measured": time.strftime("%Y-%m-%d"),
        "commit": git_commit(),
        **facts,
        "machine": f"{cpu_name()}, {threads} of {os.cpu_count()} threads, {gpu}",
        "versions": {name: version(name) for name in ("torch", *packages)},
    }
    if weights is not None:
        found["weights"] = {"file": weights.name, "sha256": file_sha256(weights), "teachers": teachers(weights)}
    return found


def teachers(weights: Path) -> list[dict[str, str]]:
    """The networks that weights were distilled from, as the facts beside them tell (`scripts/release_weights.py`)."""
    path = weights.with_suffix(".json")
    if not path.is_file():
        return []
    facts = json.loads(path.read_text(encoding="utf-8"))
    if facts["sha256"] != file_sha256(weights):
        return []
    found = [run["teacher"] for run in facts["runs"] if run["teacher"]]
    return [one for number, one in enumerate(found) if one not in found[:number]]


def publish(out: Path, kind: str, rows: list[dict[str, Any]], setting: dict[str, Any], **more: Any) -> str:
    """Write a result as JSON, and the tables and plots that are rendered from it beside it; returns the tables.

    Args:
        out: the JSON file.
        kind: which renderer of `benchmarks.tables` it is for.
        rows: one a measurement.
        setting: of `setting`.
        more: what belongs to the result and is no row.
    """
    write_result(out, kind, rows, setting, **more)
    return render(out)


def write_result(out: Path, kind: str, rows: list[dict[str, Any]], setting: dict[str, Any], **more: Any) -> None:
    """The JSON alone, with a line for each row, so that a change of one is a change of one line."""
    head = json.dumps({"kind": kind, "setting": setting, **more}, indent=1, ensure_ascii=False)
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, f'{head[:-2]},\n "rows": [\n  {lines}\n ]\n}}\n'.encode())
