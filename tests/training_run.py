"""What the trainer's tests share: a tiny network's settings, runs in processes of their own, comparisons of runs."""

import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from models.team08_HATFreq.weights import read_state_dict

TINY = ["embed_dim=12", "depths=1,1", "num_heads=2,2", "window_size=8", "drop_path_rate=0.5"]
OTHER_SPEED = {"images_per_s", "seconds"}  # the only columns that may differ between equal runs

# Imports the trainer once, then forks a launcher for every line it reads. The launcher starts the ranks of a run as
# torchrun would, and notes how each of them ends; `patch` is Python that is run in each rank first.
SERVER = """
import json, os, sys, time, signal
import torch
import train
from training.lifetime import exit_with, leave_with_parent
torch.set_num_threads(1)


def launch(output, report, ranks, port, patch, arguments):
    os.setsid()
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    pids = {}
    for rank in range(ranks):
        pid = os.fork()
        if pid == 0:
            os.setsid()
            if ranks > 1:
                size = str(ranks)
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "MASTER_PORT": str(port)}
                os.environ |= {"LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
                leave_with_parent()
            exec(patch, {"train": train, "os": os, "signal": signal, "time": time, "torch": torch, "rank": rank})
            exit_with(lambda: train.main(arguments))
        pids[pid] = rank
    with open(report, "w") as notes:
        print(json.dumps({"launcher": os.getpid(), "pids": list(pids)}), file=notes, flush=True)
        while pids:
            pid, status = os.wait()
            status = os.waitstatus_to_exitcode(status)
            print(json.dumps({"rank": pids.pop(pid), "status": status}), file=notes, flush=True)
    os._exit(0)


signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG))
for line in sys.stdin:
    if os.fork() == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        launch(**json.loads(line))
"""


class Run:
    """A run of train.py in processes of its own."""

    def __init__(self, folder: Path) -> None:
        self.output, self.report = folder / "output.txt", folder / "report.txt"

    @property
    def said(self) -> str:
        """All that its processes wrote."""
        return self.output.read_text() if self.output.exists() else ""

    @property
    def notes(self) -> list[dict]:
        """What the launcher noted: the process ids, then each rank's end."""
        return [json.loads(line) for line in self.report.read_text().splitlines()] if self.report.exists() else []

    @property
    def pids(self) -> list[int]:
        return self.notes[0]["pids"]

    @property
    def statuses(self) -> dict[int, int]:
        """rank -> exit status of those that have ended."""
        return {note["rank"]: note["status"] for note in self.notes[1:]}

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until the run says something."""
        wait_until(lambda: text in self.said or (self.notes and len(self.statuses) == len(self.pids)), seconds, self)
        assert text in self.said, f"it ended early: {self.statuses}\n{self.said}"

    def wait(self, seconds: float = 60) -> dict[int, int]:
        """Wait for the end of all ranks; returns their statuses."""
        wait_until(lambda: self.notes and len(self.statuses) == len(self.pids), seconds, self)
        return self.statuses

    def family(self) -> list[int]:
        """The ranks and all processes below them."""
        return [one for pid in self.pids for one in process_tree(pid)]


def process_tree(pid: int) -> list[int]:
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in process_tree(int(child)))]


def alive(pids: list[int]) -> list[int]:
    """Those of the processes that have not ended; one that nobody has waited for yet has."""
    states = {}
    for pid in pids:
        try:
            states[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
    return [pid for pid, state in states.items() if state != "Z"]


def wait_until(condition, seconds: float, run: Run | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s; {f'{run.notes}: {run.said}' if run else ''}")
        time.sleep(0.02)


class Server:
    """Starts runs in no time: PyTorch is imported once."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process, self.folder, self.count = process, folder, 0

    def start(self, arguments: list[str], ranks: int = 1, patch: str = "") -> Run:
        self.count += 1
        folder = self.folder / str(self.count)
        folder.mkdir()
        run = Run(folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        argv = [*arguments, "--log_every", "0"]
        request = {"ranks": ranks, "port": port, "patch": patch, "arguments": argv}
        line = json.dumps({"output": str(run.output), "report": str(run.report), **request})
        assert self.process.stdin
        print(line, file=self.process.stdin, flush=True)
        wait_until(lambda: run.notes, 60)
        return run


@contextmanager
def run_server(root: Path, folder: Path) -> Iterator[Server]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=environment, cwd=root) as process:
        yield Server(process, folder)


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def log_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return [{key: v for key, v in row.items() if key not in OTHER_SPEED} for row in csv.DictReader(file)]


def assert_equal_runs(a: Path, b: Path) -> None:
    """Weights, averages, optimiser state, schedule, log and released weights agree bit for bit."""
    one, two = checkpoint(a), checkpoint(b)
    for key in ("model", "ema"):
        assert one[key].keys() == two[key].keys()
        assert all(torch.equal(one[key][name], two[key][name]) for name in one[key]), key
    assert one["optimiser"]["param_groups"] == two["optimiser"]["param_groups"]
    for number, moments in one["optimiser"]["state"].items():
        assert all(torch.equal(moments[name], two["optimiser"]["state"][number][name]) for name in moments)
    for key in ("step", "schedule", "losses", "best", "data"):
        assert one[key] == two[key], key
    assert log_rows(a) == log_rows(b)
    for name in ("best.safetensors", "last.safetensors"):
        first, second = read_state_dict(a / name), read_state_dict(b / name)
        assert all(torch.equal(first[key], second[key]) for key in first), name


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    """Read the process's lines until it reports a step."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith(f"step {step}/"):
            return
    pytest.fail("the trainer ended early:\n" + "".join(seen))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
