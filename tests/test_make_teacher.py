"""A teacher's restorations: right sizes and pixels, resumed, learned as pairs."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("spandrel", reason="spandrel is not installed (pip install -e .[dev])")

from models.team08_HATFreq import PRESETS, HATFreq, override
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.tiling import to_samples, to_tensor
from models.team08_HATFreq.weights import save_weights
from scripts import make_teacher
from utils.resize import imresize


def test_restorations_are_the_teachers_of_the_low_resolution_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = HATFreq(override(PRESETS["light"], {"embed_dim": 8, "depths": (1,), "num_heads": (1,)})).eval()
    torch.nn.init.normal_(model.upsample[0].weight, std=0.05)
    save_weights(model, tmp_path / "teacher.safetensors", {})
    (tmp_path / "HR").mkdir()
    for name, shape in (("a", (42, 57)), ("b", (64, 48))):
        image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        write_png(tmp_path / "HR" / f"{name}.png", image)
    argv = ["--teacher", str(tmp_path / "teacher.safetensors"), "--data", str(tmp_path / "HR"), "--device", "cpu"]
    assert make_teacher.main([*argv, "--out", str(tmp_path / "out")]) == 0
    lq = imresize(read_rgb(tmp_path / "HR" / "a.png")[:40, :56], 1 / 4)
    with torch.inference_mode():
        expected = to_samples(model(to_tensor(lq)).clamp(0, 1), np.dtype(np.uint8))
    np.testing.assert_array_equal(read_rgb(tmp_path / "out" / "a.png"), expected)
    np.testing.assert_array_equal(read_rgb(tmp_path / "out" / "lr" / "a.png"), lq)
    before = (tmp_path / "out" / "a.png").stat().st_mtime_ns
    (tmp_path / "out" / "b.png").unlink()
    assert make_teacher.main([*argv, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "b.png").exists() and (tmp_path / "out" / "a.png").stat().st_mtime_ns == before
    save_weights(model.requires_grad_(False), tmp_path / "other.safetensors", {"note": "another file"})
    with pytest.raises(SystemExit, match=r"teacher\.json"):
        make_teacher.main(["--teacher", str(tmp_path / "other.safetensors"), *argv[2:], "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="none"):
        make_teacher.main(["--teacher", "none", *argv[2:], "--out", str(tmp_path / "out")])
