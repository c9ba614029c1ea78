"""The submission's three stages: the factsheet's values, and the scripts that run them one after the other."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training_run import TINY, checkpoint
from training.config import parse_arguments

FACTSHEET = {"stage1_imagenet": (64, 256, 70_000), "stage2_df2k": (96, 128, 50_000), "stage3_ldcc": (112, 64, 20_000)}
SMALL = ["--preset", "light", "--device", "cpu", "--steps", "3", "--batch", "2", "--patch", "16", "--warmup", "1"]
SMALL += ["--milestones", "2", "--workers", "0", "--valid_every", "9"]


@pytest.mark.parametrize("name", FACTSHEET)
def test_configurations_hold_the_factsheets_values(root: Path, name: str) -> None:
    config = parse_arguments(["--config", str(root / "configs" / f"{name}.yaml"), "--data", "x", "--out", "y"])
    assert (config.patch, config.batch, config.steps) == FACTSHEET[name]
    assert (config.preset, config.frequency, config.betas, config.ema) == ("large", "bands", (0.9, 0.99), 0.999)
    hat = {"stage1_imagenet": (300, 500, 650, 700, 750, 800)}.get(name, (125, 200, 225, 240, 250))
    assert config.milestones == tuple(round(config.steps * step / hat[-1]) for step in hat[:-1])
    assert config.grad_clip == 1.0 and config.save_minutes == 10


@pytest.fixture
def datasets(photos: Path, tmp_path: Path) -> Path:
    """The training sets as docs/data.md lays them out, four small photographs in all."""
    images = sorted((photos / "train").iterdir())
    places = ["ImageNet/train/n01", "ImageNet/train/n02", "DIV2K/DIV2K_train_HR", "Flickr2K/Flickr2K_HR"]
    for path, place in zip(images, places, strict=True):
        (tmp_path / "datasets" / place).mkdir(parents=True)
        shutil.copy(path, tmp_path / "datasets" / place)
    (tmp_path / "datasets" / "Data-LDCC").mkdir()
    (tmp_path / "datasets" / "Data-LDCC" / "data_ldcc.txt").write_text("../ImageNet/train/n01/0.png\n")
    (tmp_path / "datasets" / "Data-LDCC" / "data_ldcc_weights.txt").write_text("2\n")
    return tmp_path / "datasets"


def run(root: Path, datasets: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "GPUS": "0"}
    environment |= {"DATA": str(datasets), "RUNS": str(datasets.parent / "runs")}
    command = ["bash", str(root / "scripts" / script), *SMALL, *words, "--model_overrides", *TINY]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_each_stage_starts_from_the_one_before(root: Path, datasets: Path) -> None:
    runs = datasets.parent / "runs"
    early = run(root, datasets, "train_stage2.sh")
    assert early.returncode == 1 and f"{runs}/stage1 holds no run: train that stage first" in early.stderr
    stopped = run(root, datasets, "train_all.sh", "--max_minutes", "1e-9")
    assert stopped.returncode == 1
    assert f"{runs}/stage1 stands at step 1 of 3: let that stage finish first" in stopped.stderr
    assert not (runs / "stage2").exists()
    done = run(root, datasets, "train_all.sh")
    assert done.returncode == 0, done.stderr
    assert [checkpoint(runs / f"stage{number}")["step"] for number in (1, 2, 3)] == [3, 3, 3]
    found = re.findall(r"^(\d) training images", done.stdout, re.M)
    assert found == ["2", "2", "3"], done.stdout
    ldcc = datasets / "Data-LDCC"
    sources = json.loads((runs / "stage3" / "config.json").read_text())["training"]["data"]
    assert sources[0] == f"hr={ldcc}/data_ldcc.txt,image_weights={ldcc}/data_ldcc_weights.txt"
    loaded = re.findall(r"^last\.safetensors: .* parameters from safetensors", done.stdout, re.M)
    assert len(loaded) == 2, done.stdout
    again = run(root, datasets, "train_all.sh")
    assert again.returncode == 0 and again.stdout.count("finished: ") == 3
    (datasets / "Data-LDCC" / "data_ldcc.txt").unlink()
    missing = run(root, datasets, "train_stage3.sh")
    assert missing.returncode == 1 and "make it with scripts/build_data_ldcc.sh" in missing.stderr
