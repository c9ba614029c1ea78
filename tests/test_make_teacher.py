"""A teacher's restorations: right sizes and pixels, resumed, of one teacher only."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("spandrel", reason="spandrel is not installed (pip install -e .[dev])")

from models.team08_HATFreq import PRESETS, HATFreq, override
from models.team08_HATFreq.folder import RECORD, read_lines
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.tiling import to_samples, to_tensor
from models.team08_HATFreq.weights import save_weights
from scripts import make_teacher
from utils.resize import imresize


@pytest.fixture
def teacher(tmp_path: Path) -> tuple[HATFreq, Path]:
    torch.manual_seed(0)
    model = HATFreq(override(PRESETS["light"], {"embed_dim": 8, "depths": (1,), "num_heads": (1,)})).eval()
    torch.nn.init.normal_(model.upsample[0].weight, std=0.05)
    save_weights(model, tmp_path / "teacher.safetensors", {})
    return model, tmp_path / "teacher.safetensors"


@pytest.fixture
def photos_of_odd_sizes(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    (tmp_path / "HR").mkdir()
    for name, shape in (("a", (42, 57)), ("b", (64, 48))):
        write_png(tmp_path / "HR" / f"{name}.png", draw.integers(0, 256, (*shape, 3), dtype=np.uint8))
    return tmp_path / "HR"


def words(teacher: Path, data: Path, out: Path) -> list[str]:
    return ["--teacher", str(teacher), "--data", str(data), "--out", str(out), "--device", "cpu"]


def test_restorations_are_the_teachers_of_the_low_resolution(
    tmp_path: Path, teacher: tuple[HATFreq, Path], photos_of_odd_sizes: Path, capsys: pytest.CaptureFixture
) -> None:
    model, file = teacher
    assert make_teacher.main(words(file, photos_of_odd_sizes, tmp_path / "out")) == 0
    hr = read_rgb(photos_of_odd_sizes / "a.png")[:40, :56]
    with torch.inference_mode():
        expected = to_samples(model(to_tensor(imresize(hr, 1 / 4))).clamp(0, 1), np.dtype(np.uint8))
    np.testing.assert_array_equal(read_rgb(tmp_path / "out" / "a.png"), expected)
    assert len(read_lines(tmp_path / "out" / RECORD)[0]["settings"]["teacher_sha256"]) == 64
    (tmp_path / "out" / "b.png").unlink()
    capsys.readouterr()
    assert make_teacher.main(words(file, photos_of_odd_sizes, tmp_path / "out")) == 0
    assert "1 image restored" in capsys.readouterr().out


def test_teachers_are_not_mixed_and_must_be_x4(
    tmp_path: Path,
    teacher: tuple[HATFreq, Path],
    photos_of_odd_sizes: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, file = teacher
    assert make_teacher.main(words(file, photos_of_odd_sizes, tmp_path / "out")) == 0
    model.upsample[0].bias.data += 0.1
    save_weights(model, tmp_path / "other.safetensors", {})
    assert make_teacher.main(words(tmp_path / "other.safetensors", photos_of_odd_sizes, tmp_path / "out")) == 1
    assert "other settings (teacher was" in capsys.readouterr().err
    save_weights(HATFreq(override(model.config, {"scale": 2})), tmp_path / "x2.safetensors", {})
    assert make_teacher.main(words(tmp_path / "x2.safetensors", photos_of_odd_sizes, tmp_path / "two")) == 1
    assert "x4 network" in capsys.readouterr().err
    (tmp_path / "text.pth").write_text("no network")
    assert make_teacher.main(words(tmp_path / "text.pth", photos_of_odd_sizes, tmp_path / "three")) == 1
    assert "not a network that spandrel opens" in capsys.readouterr().err
    assert make_teacher.main(words(tmp_path / "none.pth", photos_of_odd_sizes, tmp_path / "four")) == 1
    assert "none.pth is not a file" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "spandrel", None)
    assert make_teacher.main(words(file, photos_of_odd_sizes, tmp_path / "five")) == 1
    assert "make_teacher: error: teachers are opened by spandrel: pip install" in capsys.readouterr().err
