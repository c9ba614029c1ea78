"""One folder, several processes: who restores what, and one record in the end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models.team08_HATFreq import PRESETS, HATFreq, override
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.inference import restore_folder
from models.team08_HATFreq.record import RECORD, Record, RestorationError, open_record
from models.team08_HATFreq.restorer import NetworkRestorer
from models.team08_HATFreq.system import own_device, share_out
from models.team08_HATFreq.weights import save_weights

SHAPE = override(PRESETS["light"], {"embed_dim": 8, "depths": (1,), "num_heads": (1,)})
SETTINGS = {"model": "some"}


def test_pixels_are_shared_out_largest_first() -> None:
    pixels = {"a": 10, "b": 70, "c": 50, "d": 40, "e": 30, "f": 0}
    assert share_out(pixels, 2) == [["b", "e", "f"], ["a", "c", "d"]]  # 100 and 100 pixels, in the folder's order
    assert share_out(pixels, 1) == [list(pixels)]
    assert share_out({"a": 5}, 3) == [["a"], [], []]
    assert share_out({}, 2) == [[], []]


def test_shares_are_even_and_hold_every_image_once() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        count, processes = int(rng.integers(1, 120)), int(rng.integers(1, 9))
        pixels = {str(n): int(rng.integers(0, 300_000)) for n in range(count)}
        shares = share_out(pixels, processes)
        assert sorted(name for share in shares for name in share) == sorted(pixels)
        loads = [sum(pixels[name] for name in share) for share in shares]
        assert max(loads) - min(loads) <= max(pixels.values())
        assert max(loads) <= 4 / 3 * max(sum(loads) / processes, max(pixels.values())) + count


def test_a_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device(torch.device("cuda")) == torch.device("cuda:3")
    assert own_device(torch.device("cuda:1")) == torch.device("cuda:1")
    assert own_device(torch.device("cpu")) == torch.device("cpu")


@pytest.fixture
def lq(tmp_path: Path) -> Path:
    (tmp_path / "LR").mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        image = rng.integers(0, 256, (8 + 4 * number, 12, 3), dtype=np.uint8)
        write_png(tmp_path / "LR" / f"{number}.png", image)
    return tmp_path / "LR"


def torchrun(root: Path, lq: Path, out: Path, weights: Path) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = ["--test_dir", lq, "--save_dir", out, "--weights", weights, "--device", "cpu", "--ensemble", "1"]
    command = [*launch, str(root / "test.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_processes_make_what_one_makes(root: Path, tmp_path: Path, lq: Path) -> None:
    torch.manual_seed(0)
    model = HATFreq(SHAPE).eval()
    torch.nn.init.normal_(model.upsample[0].weight, std=0.05)
    save_weights(model, tmp_path / "w.safetensors", {})
    (lq / "3.png").write_bytes(b"cut")
    done = torchrun(root, lq, tmp_path / "out", tmp_path / "w.safetensors")
    assert done.returncode != 0 and "1 of 5 images could not be restored" in done.stderr and "3.png" in done.stderr
    assert done.stdout.count("4 images restored") == 1
    folder = tmp_path / "out" / "08_HATFreq" / "test"
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png", "2.png", "4.png", RECORD]
    record = json.loads((folder / RECORD).read_text())
    assert list(record["images"]) == ["0.png", "1.png", "2.png", "4.png"]
    assert record["run"]["processes"] == 2 and record["run"]["restored"] == 4
    (lq / "3.png").unlink()
    restore_folder(NetworkRestorer(model, torch.device("cpu"), "fp32", 0, 4, 1, {}), lq, tmp_path / "alone")
    for name in record["images"]:
        difference = read_rgb(folder / name).astype(int) - read_rgb(tmp_path / "alone" / name)
        assert np.abs(difference).max() <= 1  # another number of threads


def test_what_killed_processes_noted_is_kept(tmp_path: Path) -> None:
    record = open_record(tmp_path, SETTINGS, [], overwrite=False)
    for rank, name in enumerate(("b.png", "a.png")):
        (tmp_path / name).touch()
        record.part(rank).add(name, {"source_sha256": name})
    assert json.loads((tmp_path / RECORD).read_text())["images"] == {}
    continued = open_record(tmp_path, SETTINGS, [], overwrite=False)
    assert list(continued.content["images"]) == ["a.png", "b.png"]
    assert continued.finished("a.png", "a.png") and not continued.finished("a.png", "of other content")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.png", "b.png", RECORD]
    Record(tmp_path / "record.1.json", {"settings": {"model": "other"}, "images": {}}).save()
    with pytest.raises(RestorationError, match="results of other settings"):
        open_record(tmp_path, SETTINGS, [], overwrite=False)
    assert open_record(tmp_path, SETTINGS, [], overwrite=True).content["images"] == {}
    assert not (tmp_path / "record.1.json").exists()
