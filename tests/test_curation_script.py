"""scripts/build_data_ldcc.sh: from folders to the list that the trainer reads, without a leak."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_curation import dedup, embed
from image_data.sources import expand
from models.team08_HATFreq.image_io import read_rgb, write_png
from scripts import prepare_data
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
    for folder in (tmp_path, tmp_path / "pool"):
        (folder / "leak.jpg").write_bytes(mirrored.tobytes())
    torch.manual_seed(0)
    features = torchvision.models.alexnet().features[:12].state_dict()
    save_file({f"features.{key}": value for key, value in features.items()}, tmp_path / "a.safetensors")
    return tmp_path


def run(root: Path, datasets: Path, **more: str) -> Path:
    """The script; its folder of results."""
    words = {"POOL": "pool", "QUERIES": "LR", "GUARD": "HR", "TRAINED": "DF2K"}
    environment = {**os.environ, **{key: str(datasets / name) for key, name in words.items()}, "GPUS": "0"}
    environment |= {"ENCODER": f"--backbone alexnet --weights {datasets / 'a.safetensors'}", "SELECT": "--top_k 3"}
    environment |= {"OUT": str(datasets / "out"), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **more}
    command = ["bash", str(root / "scripts" / "build_data_ldcc.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return datasets / "out"


def removed_by(folder: Path) -> list[str]:
    return [Path(name).name for name in (folder / "removed.txt").read_text().splitlines()]


@pytest.mark.slow
def test_from_folders_to_the_list(root: Path, datasets: Path) -> None:
    (datasets / "DF2K").mkdir()
    (datasets / "DF2K" / "known.png").write_bytes((datasets / "pool" / "coffee_0.png").read_bytes())
    run(root, datasets)
    assert removed_by(datasets / "out" / "duplicates") == ["leak.jpg"]
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


@pytest.mark.slow
def test_tiles_are_chosen_of_what_the_guard_keeps(root: Path, datasets: Path) -> None:
    """And the guard has to see whole images: it misses half of the copy's tiles if only the LR image is known."""
    data = pytest.importorskip("skimage.data")
    shutil.rmtree(datasets / "pool")
    (datasets / "pool").mkdir()
    write_png(datasets / "pool" / "coffee.png", np.ascontiguousarray(data.coffee()[:384, :512]))
    write_png(datasets / "pool" / "astronaut.png", data.astronaut())
    (datasets / "pool" / "leak.jpg").write_bytes(datasets.joinpath("leak.jpg").read_bytes())
    (datasets / "DF2K").mkdir()
    known = np.ascontiguousarray(data.coffee()[128:256, 128:256])  # trained on beside the list: coffee's sixth tile
    write_png(datasets / "DF2K" / "known.png", known)
    out = run(root, datasets, TILE="128")
    assert removed_by(out / "duplicates") == ["leak.jpg"]
    chosen = expand(str(out / "data_ldcc.txt"))
    assert len(chosen) == 3
    assert {image.stem.rpartition("_s")[0] for image in chosen} <= {"coffee", "astronaut"}
    assert all(image.read_rgb().shape == (128, 128, 3) for image in chosen)
    rows = (out / "data_ldcc.csv").read_text().splitlines()
    assert len(rows) == 1 + 12 + 16
    assert [Path(row.split(",")[0]).name for row in rows if "trained on anyway" in row] == ["coffee_s006.png"]
    assert sorted(path.name for path in (out / "tiles" / "queries").glob("*.png"))[-1] == "catx4_s012.png"

    cut = ["sub-images", str(datasets / "leak.jpg"), "--side", "128", "--step", "128"]
    prepare_data.main([*cut, "--out", str(datasets / "leaked")])
    encoder = ["--backbone", "alexnet", "--weights", str(datasets / "a.safetensors")]
    both = [str(datasets / "leaked"), str(out / "tiles" / "pool")]
    embed.main([*both, "--downscale", "4", *encoder, "--out", str(datasets / "f")])
    found = {}
    for known_as, features in (("LR", out / "tiles" / "features" / "queries"), ("HR", out / "features" / "guard")):
        dedup.main(["--pool", str(datasets / "f"), "--evaluation", str(features), "--out", str(datasets / known_as)])
        found[known_as] = json.loads((datasets / known_as / "duplicates.json").read_text())["counts"]
    assert found["HR"]["readable"] == 12 + 28
    assert found["HR"]["removed_for_evaluation"] == 12 > found["LR"]["removed_for_evaluation"]  # 6 here
