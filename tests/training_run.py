"""What the trainer's tests share: a tiny network's settings, starts of the script, and comparisons of runs."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.team08_HATFreq.weights import read_state_dict

TINY = ["embed_dim=12", "depths=1,1", "num_heads=2,2", "window_size=8", "drop_path_rate=0.5"]
OTHER_SPEED = {"images_per_s", "seconds"}  # the only columns that may differ between equal runs


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
    for key in ("step", "schedule", "losses", "best_psnr", "data"):
        assert one[key] == two[key], key
    assert log_rows(a) == log_rows(b)
    for name in ("best.safetensors", "last.safetensors"):
        first, second = read_state_dict(a / name), read_state_dict(b / name)
        assert all(torch.equal(first[key], second[key]) for key in first), name


def start_process(root: Path, arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, str(root / "train.py"), *arguments, "--log_every", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


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
