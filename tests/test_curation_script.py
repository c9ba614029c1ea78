"""scripts/build_data_ldcc.sh: from folders to the list that the trainer reads, without a leak."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from image_data.sources import expand
from models.team08_HATFreq.image_io import read_rgb, write_png
from utils.resize import imresize


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    """A pool of tiles of two photographs, one of them a test image in disguise, and the test's images."""
    data = pytest.importorskip("skimage.data")
    torchvision = pytest.importorskip("torchvision")
    for name in ("pool", "HR", "LR"):
        (tmp_path / name).mkdir()
    for name, image in (("astronaut", data.astronaut()), ("coffee", data.coffee()[:, :512])):
        for number in range(4):
            top, left = 100 * number, 80 * number
            write_png(
                tmp_path / "pool" / f"{name}_{number}.png",
                np.ascontiguousarray(image[top : top + 96, left : left + 96]),
            )
    target = np.ascontiguousarray(data.chelsea()[:296, :448])
    write_png(tmp_path / "HR" / "cat.png", target)
    write_png(tmp_path / "LR" / "catx4.png", imresize(target, 0.25))
    mirrored = cv2.imencode(".jpg", target[:, ::-1, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 70])[1]
    (tmp_path / "pool" / "leak.jpg").write_bytes(mirrored.tobytes())
    torch.manual_seed(0)
    features = torchvision.models.alexnet().features[:12].state_dict()
    save_file({f"features.{key}": value for key, value in features.items()}, tmp_path / "a.safetensors")
    return tmp_path


@pytest.mark.slow
def test_from_folders_to_the_list(root: Path, datasets: Path) -> None:
    (datasets / "DF2K").mkdir()
    (datasets / "DF2K" / "known.png").write_bytes((datasets / "pool" / "coffee_0.png").read_bytes())
    words = {"POOL": "pool", "QUERIES": "LR", "GUARD": "HR", "TRAINED": "DF2K"}
    environment = {**os.environ, **{key: str(datasets / name) for key, name in words.items()}, "GPUS": "0"}
    environment |= {"ENCODER": f"--backbone alexnet --weights {datasets / 'a.safetensors'}", "SELECT": "--top_k 3"}
    environment |= {"OUT": str(datasets / "out"), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(root / "scripts" / "build_data_ldcc.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    removed = (datasets / "out" / "duplicates" / "removed.txt").read_text().splitlines()
    assert [Path(name).name for name in removed if not name.startswith("#")] == ["leak.jpg"]
    table = (datasets / "out" / "data_ldcc.csv").read_text()
    assert [Path(line.split(",")[0]).name for line in table.splitlines() if "trained on anyway" in line] == [
        "coffee_0.png"]  # fmt: skip
    page = (datasets / "out" / "report" / "index.html").read_text()
    assert "1 trained on anyway" in page
    moved = datasets.rename(datasets.with_name("another machine"))
    chosen = expand(str(moved / "out" / "data_ldcc.txt"))
    assert len(chosen) == 3 and "leak" not in {image.stem for image in chosen}
    assert all(image.read_rgb().shape == (96, 96, 3) for image in chosen)
    assert "not CLIP" in page and read_rgb(moved / "out" / "report" / "chosen.png").ndim == 3
