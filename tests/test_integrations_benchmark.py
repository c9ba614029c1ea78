"""The benchmark of the integrations scores every way and writes what it says."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import integrations
from models.team08_HATFreq.image_io import write_png


def test_every_way_is_scored_beside_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hr = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for folder, name, image in (("HR", "a", hr), ("LRbicx4", "ax4", hr[::4, ::4])):
        (tmp_path / "Set5" / folder).mkdir(parents=True)
        write_png(tmp_path / "Set5" / folder / f"{name}.png", np.ascontiguousarray(image))
    enlarged = {name: index / 100 for index, name in enumerate(integrations.WAYS)}  # brighter by a hundredth each

    def way_of(name: str, onnx: Path) -> integrations.Way:
        return lambda lq: lq.mul(0.5).add(enlarged[name]).repeat_interleave(4, 2).repeat_interleave(4, 3)

    monkeypatch.setattr(integrations, "way_of", way_of)
    monkeypatch.setattr(integrations, "measure_memory", lambda names, onnx, sides: [[256, names[0], "", "", "", 12.0]])
    monkeypatch.setattr(integrations, "versions", lambda: "versions")
    (tmp_path / "w.onnx").touch()
    words = ["--onnx", str(tmp_path / "w.onnx"), "--bench", str(tmp_path), "--rounds", "1"]
    integrations.main([*words, "--out", str(tmp_path / "t.md")])
    with (tmp_path / "t.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["way"] for row in rows] == [*integrations.WAYS, "PyTorch"]
    found = [float(row["largest_difference"]) for row in rows[:-1]]
    assert found == pytest.approx([0, 0.01, 0.02, 0.03], abs=1e-6)
    assert all(float(row["seconds"]) > 0 and 0 < float(row["psnr_y"]) < 30 for row in rows[:-1])
    text = (tmp_path / "t.md").read_text()
    assert "| Set5 | onnxruntime | " in text and "| 256x256 | PyTorch | 12 |" in text


def test_peaks_are_those_of_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = iter([1000, 4500])
    monkeypatch.setattr(integrations, "held", lambda device, peak=False: next(held))
    seen: list[torch.Size] = []
    monkeypatch.setattr(integrations, "way_of", lambda name, onnx: lambda lq: seen.append(lq.shape) or lq)
    assert integrations.added_bytes("PyTorch", tmp_path, 24) == 3500
    assert [size[-1] for size in seen] == [16] + [24] * integrations.PASSES


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"absent\.onnx does not exist: write it with scripts/export_onnx\.py"):
        integrations.main(["--onnx", str(tmp_path / "absent.onnx")])
