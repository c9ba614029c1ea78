"""Nothing lost: kills at random moments and inside a checkpoint's writing, full disks, images that go bad meanwhile."""

import os
import random
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from models.team08_HATFreq.image_io import write_png
from tests.training_run import assert_equal_runs, checkpoint
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")

# Kills the trainer at the n-th of the moments at which a checkpoint's writing can be torn, or limits its disk.
SABOTAGE = """
import resource
from training import checkpoint
moment, save, replace = "{moment}", torch.save, os.replace
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
        if moment == f"rename {{renames}}":
            die()
    replace(source, target)
    if saves == 2 and moment == f"renamed {{renames}}" and str(target).endswith(".pt"):
        die()

checkpoint.torch.save, checkpoint.os.replace = torn_save, torn_replace
"""


@pytest.mark.slow
def test_fourteen_kills_at_random_moments_change_nothing(server, command, tmp_path):
    long = ["--steps", "150", "--save_every", "2", "--valid_every", "30", "--workers", "1"]
    assert train.main(command("whole", *long)) == 0
    seed = random.randrange(10**6)
    draw, said, statuses = random.Random(seed), "", []
    for _ in range(14):
        run = server.start(command("killed", *long))
        if draw.random() < 0.7:  # else somewhere in its start
            run.wait_for("\nstep ")
        time.sleep(draw.uniform(0.02, 0.5))
        os.kill(run.pids[0], signal.SIGKILL)
        statuses.append(run.wait()[0])
        said += run.said
    starts = re.findall(r"steps (\d+) to 150", said)
    assert statuses.count(-signal.SIGKILL) >= 7, f"seed {seed}: {said}"
    assert len(set(starts)) >= 3, f"seed {seed}: it never got on: {starts}"
    assert train.main(command("killed", *long)) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


SHORT = ["--steps", "6", "--save_every", "2", "--valid_every", "6"]


@pytest.fixture(scope="module")
def whole() -> dict:
    """The last checkpoint of an undisturbed run, once it was made."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "moment", [*(f"{when} {n}" for when in ("rename", "renamed") for n in (1, 2, 3)), "writing", "written", "disk"]
)
def test_a_checkpoint_torn_while_it_is_written_costs_its_steps_only(server, command, tmp_path, whole, moment):
    torn = server.start(command("torn", *SHORT), patch=SABOTAGE.format(moment=moment))
    if moment == "disk":
        assert torn.wait() == {0: 1}
        assert re.search(r"cannot write .*checkpoint\.new\.pt.*; the checkpoints before it are un", torn.said)
        assert not list((tmp_path / "torn").glob(".partial-*"))
    else:
        assert torn.wait() == {0: -signal.SIGKILL}, torn.said
    state, _ = load_checkpoint(tmp_path / "torn")
    assert state is not None and state["step"] == (4 if moment == "renamed 3" else 2)
    assert train.main(command("torn", *SHORT)) == 0
    if not whole:
        assert train.main(command("whole", *SHORT)) == 0
        whole.update(checkpoint(tmp_path / "whole"))
    end = checkpoint(tmp_path / "torn")
    assert end["step"] == 6 and all(torch.equal(end["ema"][key], whole["ema"][key]) for key in whole["ema"])


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (72, 72, 3), np.uint8)


@pytest.fixture
def going_bad(tmp_path, monkeypatch):
    """Four small photographs of their own; in the third step, one that is drawn later is cut short."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for number in range(4):
        write_png(folder / f"{number}.png", noise(number))
    in_third_step(monkeypatch, lambda: (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:100]))
    return folder


def in_third_step(monkeypatch, action, honest=train.train_step) -> None:
    def acting(run, parts):
        if run.step == 2:
            action()
        return honest(run, parts)

    monkeypatch.setattr(train, "train_step", acting)


def with_data(argv: list[str], folder: Path) -> list[str]:
    place = argv.index("--data")
    return [*argv[: place + 1], str(folder), *argv[place + 2 :]]


FOURTEEN = ["--steps", "14", "--save_every", "2", "--cache_gb", "0", "--valid_every", "14"]


def test_an_image_that_goes_bad_stops_the_run_and_restored_it_resumes(command, going_bad, tmp_path, monkeypatch):
    good = (going_bad / "1.png").read_bytes()
    argv = with_data(command("run", *FOURTEEN), going_bad)
    with pytest.raises(SystemExit, match=r"1\.png .*--bad_images skip"):
        train.main(argv)
    assert checkpoint(tmp_path / "run")["step"] >= 2
    (going_bad / "1.png").write_bytes(good)
    in_third_step(monkeypatch, lambda: None)
    for name in ("run", "whole"):
        assert train.main(with_data(command(name, *FOURTEEN), going_bad)) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def test_an_image_that_goes_bad_is_skipped_when_asked_to_after_a_restart_too(command, going_bad, tmp_path, capsys):
    argv = with_data(command("run", *FOURTEEN, "--bad_images", "skip"), going_bad)
    assert train.main(argv) == 0 and capsys.readouterr().out.count("unreadable image number 1") == 1
    assert train.main([*argv, "--steps", "16"]) == 0
    assert checkpoint(tmp_path / "run")["step"] == 16
