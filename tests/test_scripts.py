"""The small scripts that a person types."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from models.team08_HATFreq.image_io import read_rgb, write_png
from utils.resize import imresize


def script(root: Path, name: str) -> ModuleType:
    """A file of scripts/, imported by its path."""
    spec = importlib.util.spec_from_file_location(name, root / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_photographs_to_lr(root: Path, tmp_path: Path) -> None:
    script(root, "export_photographs").main([str(tmp_path / "HR")])
    script(root, "make_lr").main([str(tmp_path / "HR"), str(tmp_path / "LR")])
    names = sorted(path.name for path in (tmp_path / "LR").iterdir())
    assert names == ["astronautx4.png", "chelseax4.png", "coffeex4.png", "rocketx4.png"]
    gt = read_rgb(tmp_path / "HR" / "chelsea.png")
    assert gt.shape == (300, 448, 3)
    assert gt.std() > 30  # a photograph, not a blank
    np.testing.assert_array_equal(read_rgb(tmp_path / "LR" / "chelseax4.png"), imresize(gt, 0.25))


def test_make_lr_crops_and_takes_the_border_rule(root: Path, tmp_path: Path) -> None:
    gt = np.random.default_rng(0).integers(0, 256, (35, 41, 3), dtype=np.uint8)
    write_png(tmp_path / "HR.png", gt)
    for border in ("mirror", "clamp"):
        script(root, "make_lr").main([str(tmp_path), str(tmp_path / border), "--scale", "2", "--border", border])
        np.testing.assert_array_equal(read_rgb(tmp_path / border / "HRx2.png"), imresize(gt[:34, :40], 0.5, border))


def test_make_lr_equals_the_classic_pairs(root: Path, shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "bench" / "Set5"
    script(root, "make_lr").main([str(folder / "HR"), str(tmp_path), "--border", "clamp"])
    for path in sorted((folder / "LRbicx4").iterdir()):
        np.testing.assert_array_equal(read_rgb(tmp_path / path.name), read_rgb(path))


def test_make_lr_names_what_it_cannot_make(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "HR"
    folder.mkdir()

    def said(lr: Path = tmp_path / "LR") -> str:
        with pytest.raises(SystemExit) as stop:
            script(root, "make_lr").main([str(folder), str(lr)])
        return str(stop.value.code)

    assert f"make_lr: error: {folder} holds no images" in said()
    write_png(folder / "a.png", np.zeros((9, 3, 3), np.uint8))
    assert "a.png has 3x9 pixels, less than the scale: take it out" in said()
    (folder / "a.png").write_bytes(b"")
    assert "a.png is empty" in said()
    (folder / "a.jpg").write_bytes(b"")
    assert "a.jpg, a.png would share names of results" in said()
    (folder / "a.jpg").unlink()
    write_png(folder / "a.png", np.zeros((8, 8, 3), np.uint8))
    write_png(folder / "ax4.png", np.ones((8, 8, 3), np.uint8))
    assert "ax4.png is an input, and a result would replace it" in said(folder)
    assert (read_rgb(folder / "ax4.png") == 1).all()
