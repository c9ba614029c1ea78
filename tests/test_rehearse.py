"""scripts/rehearse.sh: the submission's whole training at toy size, stopped and resumed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.weights import load
from tests.training_run import checkpoint


def rehearse(root: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    words = ["bash", str(root / "scripts" / "rehearse.sh"), str(folder)]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=3600)


def test_a_folder_with_a_blank_is_refused_at_the_start(root: Path, tmp_path: Path) -> None:
    done = rehearse(root, tmp_path / "a b")
    assert done.returncode == 1 and f"{tmp_path}/a b holds a blank" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_whole_training_at_toy_size_and_again(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("skimage.data")
    pytest.importorskip("torchvision")
    done = rehearse(root, tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = tmp_path / "out" / "runs"
    assert [checkpoint(runs / f"stage{number}")["step"] for number in (1, 2, 3)] == [70, 50, 20]
    assert done.stdout.count("last.safetensors: ") == 2  # stages 2 and 3 start from the stage before
    assert load(runs / "stage3" / "best.safetensors").config.embed_dim == 12
    assert read_rgb(tmp_path / "out" / "results" / "08_HATFreq" / "test" / "cat.png").shape == (296, 448, 3)
    last = done.stdout.strip().splitlines()[-1]
    assert "3 stages (140 steps), 6 images selected" in last and f"{tmp_path}/out" in last

    (runs / "stage3" / "checkpoint.pt").unlink()
    (runs / "stage3" / "checkpoint.previous.pt").unlink(missing_ok=True)
    again = rehearse(root, tmp_path / "out")  # what is finished is passed over, the rest is made again
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("finished: ") == 2 and checkpoint(runs / "stage3")["step"] == 20
