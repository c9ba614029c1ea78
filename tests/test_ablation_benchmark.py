"""benchmarks/ablation.py: its starts, its runs, and the spectrum of errors."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablation, short_runs
from benchmarks.common import find_sets
from benchmarks.tables import BANDS
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.weights import load_weights
from utils.metrics import psnr_y
from utils.resize import imresize


@pytest.fixture
def bench(tmp_path: Path, photos: Path) -> Path:
    """A set of one image."""
    gt = read_rgb(photos / "valid" / "cat.png")[:64, :64]
    for kind, image in (("HR", gt), ("LRbicx4", imresize(gt, 0.25))):
        (tmp_path / "bench" / "Cat" / kind).mkdir(parents=True)
        write_png(tmp_path / "bench" / "Cat" / kind / f"cat{'x4' if kind != 'HR' else ''}.png", image)
    return tmp_path / "bench"


def arguments(tmp_path: Path, photos: Path, bench: Path) -> argparse.Namespace:
    words = ["--data", str(photos / "train"), "--bench", str(bench), "--work", str(tmp_path / "work"), "--steps", "2"]
    words += ["--shape", "embed_dim=8", "depths=1", "num_heads=1", "--patch", "16", "--batch", "1"]
    return ablation.arguments([*words, "--seeds", "0", "1", "--precision", "fp32"])


@pytest.mark.slow
def test_a_finished_run_is_kept_and_scores_what_it_trained(
    tmp_path: Path, photos: Path, bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args, sets = arguments(tmp_path, photos, bench), find_sets(bench)
    first = ablation.run(args, "window", 0, sets)
    (folder,) = args.work.glob("window_0_*")
    model = ablation.network(args, "window")
    load_weights(model, folder / "last.safetensors")
    assert [{"variant": "window", "seed": 0, **row} for row in ablation.score(model, sets)] == first
    monkeypatch.setattr(short_runs, "call", lambda *words: pytest.fail("a finished run was trained again"))
    assert ablation.run(args, "window", 0, sets) == first
    assert "start_0.safetensors" in (folder / "config.json").read_text()


def test_variants_of_a_seed_start_from_the_same_result(tmp_path: Path, photos: Path, bench: Path) -> None:
    args, sets = arguments(tmp_path, photos, bench), find_sets(bench)
    start, scores = ablation.write_start(args, 1), []
    for variant in ablation.VARIANTS:
        model = ablation.network(args, variant)
        load_weights(model, start)
        scores.append(ablation.score(model, sets))
    assert all(score == scores[0] for score in scores)
    pair = sets["Cat"][0]  # fresh weights enlarge by repeating pixels
    assert scores[0][0]["psnr"] == pytest.approx(psnr_y(pair.lq.repeat(4, 0).repeat(4, 1), pair.target), abs=1e-9)


def test_an_errors_power_is_in_its_band(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photos: Path, bench: Path
) -> None:
    pair = find_sets(bench)["Cat"][0]
    x = np.arange(pair.target.shape[1])
    for frequency in (0.07, 0.22, 0.43):
        wave = np.rint(20 * np.sin(2 * np.pi * frequency * x))[None, :, None]
        sr = np.clip(pair.target // 2 + 60 + wave, 0, 255).astype(np.uint8)
        base = np.ascontiguousarray(pair.target // 2 + 60)
        monkeypatch.setattr(ablation, "restorer", lambda model, sr=sr: lambda lq: sr)
        (row,) = ablation.score(
            ablation.network(arguments(tmp_path, photos, bench), "none"), {"Cat": [type(pair)("cat", pair.lq, base)]}
        )
        assert int(np.argmax(row["bands"])) == int(frequency * 2 * BANDS)


def test_one_seed_has_no_spread() -> None:
    with pytest.raises(SystemExit):
        ablation.arguments(["--data", "a", "--work", "c", "--seeds", "1"])
