"""scripts/build_data_ldcc.sh: from folders to the list that the trainer reads, without a leak."""

import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_curation import dedup, embed
from models.team08_HATFreq.image_io import write_png
from scripts import prepare_data
from utils.resize import imresize

ENCODER = "a.safetensors"


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    """A pool of two photographs and a test image in disguise, the test's images, and one tile of what is trained on."""
    data = pytest.importorskip("skimage.data")
    torchvision = pytest.importorskip("torchvision")
    for name in ("pool", "HR", "LR", "DF2K"):
        (tmp_path / name).mkdir()
    coffee = np.ascontiguousarray(data.coffee()[:384, :512])
    write_png(tmp_path / "pool" / "coffee.png", coffee)
    write_png(tmp_path / "pool" / "astronaut.png", data.astronaut())
    write_png(tmp_path / "DF2K" / "known.png", np.ascontiguousarray(coffee[128:256, 128:256]))
    target = np.ascontiguousarray(data.chelsea()[:296, :448])
    write_png(tmp_path / "HR" / "cat.png", target)
    write_png(tmp_path / "LR" / "catx4.png", imresize(target, 0.25))
    mirrored = cv2.imencode(".jpg", target[:, ::-1, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 70])[1]
    (tmp_path / "pool" / "leak.jpg").write_bytes(mirrored.tobytes())
    torch.manual_seed(0)
    features = torchvision.models.alexnet().features[:12].state_dict()
    save_file({f"features.{key}": value for key, value in features.items()}, tmp_path / ENCODER)
    return tmp_path


def removed_by(folder: Path) -> list[str]:
    return [Path(name).name for name in (folder / "removed.txt").read_text().splitlines()]


def test_the_default_folders_may_hold_blanks(root: Path, tmp_path: Path) -> None:
    python, data = tmp_path / "python", tmp_path / "my data"
    python.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >> "{tmp_path}/calls"\necho >> "{tmp_path}/calls"\n')
    python.chmod(0o755)
    given = {"DATA": str(data), "PYTHON": str(python), "GPUS": "0", "SELECT": "--top_k 3"}
    environment = {key: value for key, value in os.environ.items() if key not in ("POOL", "QUERIES")} | given
    subprocess.run(["bash", str(root / "scripts" / "build_data_ldcc.sh")], env=environment, check=True)
    queries, pool, *_ = (tmp_path / "calls").read_text().splitlines()
    assert f"|{data}/DIV2K_test_LR|--out|" in queries
    assert f"|{data}/LSDIR/**|{data}/HQ-50K/**|{data}/Flickr2K/Flickr2K_HR|--downscale|" in pool


@pytest.mark.slow
def test_the_guard_has_to_see_whole_images(datasets: Path) -> None:
    """Of the tiles of a copy it misses some if the test image is known in low resolution only."""
    for name, side in (("pool", 128), ("LR", 32)):
        argv = ["sub-images", str(datasets / name), "--side", str(side), "--step", str(side)]
        prepare_data.main([*argv, "--out", str(datasets / "tiles" / name)])
    features = {}
    for name, folder in (("pool", "tiles/pool"), ("LR", "tiles/LR"), ("HR", "HR")):
        shrunk = [] if name == "LR" else ["--downscale", "4"]
        features[name] = str(datasets / "features" / name)
        encoder = ["--backbone", "alexnet", "--weights", str(datasets / ENCODER)]
        embed.main([str(datasets / folder), *encoder, *shrunk, "--out", features[name]])
    removed = {}
    for known in ("HR", "LR"):
        out = datasets / f"by {known}"
        dedup.main(["--pool", features["pool"], "--evaluation", features[known], "--out", str(out)])
        counts = json.loads((out / "duplicates.json").read_text())["counts"]
        removed[known] = counts["removed_for_evaluation"]
        assert counts["readable"] == 12 + 12 + 16  # tiles of the copy, of coffee, of the astronaut
    assert removed["HR"] == 12 > removed["LR"]  # 6 here
