"""scripts/gpu_check.py does not fail on its first minute on a real GPU: dry, all of its commands run on the CPU."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import gpu_check

SLEEPER = """
import sys
from scripts import gpu_check
class Popen(gpu_check.subprocess.Popen):
    def wait(self, timeout=None):
        print(self.pid, flush=True)
        return super().wait(timeout)
gpu_check.subprocess.Popen = Popen
gpu_check.steps = lambda args: [gpu_check.Step("sleep", ["sleep", "600"], 600)]
sys.exit(gpu_check.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_every_step_runs_dry_and_is_not_repeated(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:  # fmt: skip
    words = ["--dry", "--data", str(photos / "train"), "--out", str(tmp_path / "out"), "--minutes", "60"]
    assert gpu_check.main(words) == 0, (tmp_path / "out" / "page.md").read_text()
    outcomes = json.loads((tmp_path / "out" / "outcomes.json").read_text())["outcomes"]
    names = ["tests", "parity", "forward", "training step", "micro-batch", "memory", "all GPUs", "training"]
    assert [one["name"] for one in outcomes] == names and {one["status"] for one in outcomes} == {"passed"}
    assert json.loads((tmp_path / "out" / "micro_batch.json").read_text())[0]["largest"] == 2
    for result in ("speed_forward_cpu", "speed_step_cpu", "memory_cpu"):
        assert json.loads((tmp_path / "out" / f"{result}.json").read_text())["rows"]
    assert (tmp_path / "out" / "light" / "last.safetensors").exists()
    capsys.readouterr()
    assert gpu_check.main(words) == 0
    assert capsys.readouterr().out.split("# GPU check")[0] == ""  # nothing was run again


def test_results_of_another_check_do_not_count(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = "import pathlib, sys; pathlib.Path(sys.argv[1], 'light').mkdir()"  # fails where there is a run
    step = gpu_check.Step("training", [sys.executable, "-c", train, str(tmp_path)], 60)
    monkeypatch.setattr(gpu_check, "steps", lambda args: [])
    monkeypatch.setattr(gpu_check, "last_training", lambda args, seconds: step)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def said(*words: str) -> str:
        assert gpu_check.main(["--dry", "--out", str(tmp_path), *words]) == 0
        return capsys.readouterr().out.split("# GPU check")[0]

    assert said("--data", "x") == "training: passed in 0 s\n"
    assert said("--data", "x") == ""
    again = said("--data", "y")
    assert "earlier-1 keeps another check" in again and "training: passed" in again
    (tmp_path / "outcomes.json").write_text("[]")  # as older code wrote it
    assert "earlier-2 keeps another check" in said("--data", "y")
    assert (tmp_path / "earlier-1" / "light").is_dir() and (tmp_path / "earlier-2" / "training.log").exists()


def test_what_fails_and_what_takes_too_long_is_said(tmp_path: Path) -> None:
    failed = gpu_check.run(
        gpu_check.Step("a b", [sys.executable, "-c", "print('why'); raise SystemExit(3)"], 60), tmp_path
    )
    assert (failed.status, failed.log, failed.last_line) == ("failed", "a_b.log", "why")
    slow = gpu_check.run(gpu_check.Step("slow", [sys.executable, "-c", "import time; time.sleep(60)"], 0.5), tmp_path)
    assert slow.status == "out of time" and slow.seconds < 20
    text = gpu_check.page([failed, slow])
    assert "| a b | failed |" in text and "| slow | out of time |" in text


@pytest.mark.slow
def test_a_check_that_is_stopped_ends_its_step(root: Path, tmp_path: Path) -> None:
    words = ["--dry", "--data", "x", "--out", str(tmp_path)]
    check = subprocess.Popen([sys.executable, "-c", SLEEPER, *words], cwd=root, stdout=subprocess.PIPE, text=True)
    assert check.stdout is not None
    child = int(check.stdout.readline())
    check.terminate()
    assert check.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_check.main(["--data", "x"])
    assert "PyTorch finds no GPU" in capsys.readouterr().err
