"""Nothing lost: kills at random moments and inside a checkpoint's writing, full disks, images that go bad meanwhile."""

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import train
from models.team08_HATFreq.image_io import write_png
from tests.training_run import assert_equal_runs, checkpoint
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

# Starts the trainer again and again in children of one process, each killed after the next of the pauses given: a start
# then takes a tenth of a second, as PyTorch is imported once.
KILLER = """
import os, signal, sys, time
import torch
import train
torch.set_num_threads(1)
pauses, arguments = [float(p) for p in sys.argv[1].split(",")], sys.argv[2:]
for pause in pauses:
    child = os.fork()
    if child == 0:
        os._exit(train.main(arguments))
    time.sleep(pause)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    print("killed" if os.WIFSIGNALED(status) else "ended", flush=True)
"""

# Kills the trainer at the n-th of the moments at which a checkpoint's writing can be torn, or limits its disk.
SABOTEUR = """
import os, resource, signal, sys
import torch
import train
from training import checkpoint
torch.set_num_threads(1)
moment, save, replace = sys.argv[1], torch.save, os.replace
saves = renames = 0


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def torn_save(state, file):
    global saves
    saves += 1
    if saves == 2 and moment == "disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    save(state, file)
    if saves == 2 and moment == "writing":
        file.truncate(file.tell() // 2)
        die()
    if saves == 2 and moment == "written":
        file.flush()
        die()


def torn_replace(source, target):
    global renames
    if saves == 2 and str(target).endswith(".pt"):
        renames += 1
        if moment == f"rename {renames}":
            die()
    replace(source, target)
    if saves == 2 and moment == f"renamed {renames}" and str(target).endswith(".pt"):
        die()


checkpoint.torch.save, checkpoint.os.replace = torn_save, torn_replace
sys.exit(train.main(sys.argv[2:]))
"""


def run_script(root: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", script, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_twenty_kills_at_random_moments_change_nothing(root, command, tmp_path):
    long = ["--steps", "150", "--save_every", "2", "--valid_every", "30", "--workers", "1"]
    assert train.main(command("whole", *long)) == 0
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    pauses = ",".join(f"{draw.uniform(0.05, 1.2):.3f}" for _ in range(20))
    done = run_script(root, KILLER, pauses, *command("killed", *long))
    starts = re.findall(r"steps (\d+) to 150", done.stdout)
    assert done.stdout.count("killed") >= 10, f"seed {seed}: {done.stdout}{done.stderr}"
    assert len(set(starts)) >= 5, f"seed {seed}: it never got on: {starts}"
    assert train.main(command("killed", *long)) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("moment", ["writing", "written", "rename 1", "renamed 1", "rename 2", "renamed 2", "disk"])
def test_a_checkpoint_torn_while_it_is_written_costs_its_steps_only(root, command, tmp_path, moment):
    short = ["--steps", "9", "--save_every", "3"]
    assert train.main(command("whole", *short)) == 0
    torn = run_script(root, SABOTEUR, moment, *command("torn", *short))
    if moment == "disk":
        assert torn.returncode == 1
        assert re.search(
            r"train\.py: cannot write .*checkpoint\.pt\.tmp: .*; the checkpoints before it are un", torn.stderr
        )
        assert not (tmp_path / "torn" / "checkpoint.pt.tmp").exists()
    else:
        assert torn.returncode == -signal.SIGKILL, torn.stderr
    state, _ = load_checkpoint(tmp_path / "torn")
    assert state is not None and state["step"] == (6 if moment == "renamed 2" else 3)
    assert train.main(command("torn", *short)) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "torn")


@pytest.fixture
def going_bad(tmp_path, monkeypatch):
    """Four small photographs of their own; after a step, one that is drawn later is cut short."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for number in range(4):
        image = np.random.default_rng(number).integers(0, 256, (72, 72, 3), np.uint8)
        write_png(folder / f"{number}.png", image)
    honest = train.train_step

    def spoil(run, parts):
        if run.step == 2:
            (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:100])
        return honest(run, parts)

    monkeypatch.setattr(train, "train_step", spoil)
    return folder


def bad_command(command, folder: Path, name: str, *more: str) -> list[str]:
    words = command(name, "--steps", "14", "--save_every", "2", "--cache_gb", "0", *more)
    words[words.index("--data") + 1] = str(folder)
    return words


def test_an_image_that_goes_bad_stops_the_run_and_restored_it_goes_on(command, going_bad, tmp_path, monkeypatch):
    good = (going_bad / "1.png").read_bytes()
    with pytest.raises(SystemExit, match=r"train\.py: .*1\.png is damaged or truncated .*--bad_images skip"):
        train.main(bad_command(command, going_bad, "run"))
    assert checkpoint(tmp_path / "run")["step"] >= 2
    with pytest.raises(SystemExit, match=r"(?s)1 of 4 training images cannot be used.*1\.png: unreadable"):
        train.main(bad_command(command, going_bad, "run"))
    (going_bad / "1.png").write_bytes(good)
    monkeypatch.undo()
    assert train.main(bad_command(command, going_bad, "run", "--audit_cache", "none")) == 0
    assert train.main(bad_command(command, going_bad, "whole", "--audit_cache", "none")) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_image_that_goes_bad_is_passed_over_when_asked_to(command, going_bad, tmp_path, capsys, workers):
    assert train.main(bad_command(command, going_bad, "run", "--bad_images", "skip", "--workers", workers)) == 0
    errors = capsys.readouterr().err
    assert errors.count("unreadable image number 1, other images are drawn instead") == 1 and "1.png" in errors
    state = checkpoint(tmp_path / "run")
    # A restart finds it unreadable at once, and still goes on with the same order of the others.
    more = ["--bad_images", "skip", "--steps", "16"]
    assert train.main(bad_command(command, going_bad, "run", *more)) == 0
    assert checkpoint(tmp_path / "run")["step"] == 16 and checkpoint(tmp_path / "run")["data"] == state["data"]
