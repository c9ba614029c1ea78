"""benchmarks/ablation.py and shapes.py: the runs that they keep, the error's spectrum, and what their tables say."""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ablation, scored_runs, shapes
from benchmarks.quality import find_sets
from benchmarks.scored_runs import Runs, Score, evaluate
from benchmarks.spectrum import BANDS, band_edges, error_bands
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.weights import load_weights
from utils.metrics import psnr_y
from utils.resize import imresize

SHAPE = ["embed_dim=8", "depths=1", "num_heads=1"]


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
    return ablation.arguments([*words, "--shape", *SHAPE, "--patch", "16", "--batch", "1", "--seeds", "0", "1"])


@pytest.mark.slow
def test_a_finished_run_is_kept_and_scores_what_it_trained(
    tmp_path: Path, photos: Path, bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(tmp_path, photos, bench)
    sets = find_sets(bench)
    runs = Runs(args.work, args.data, sets)
    first = ablation.trained(args, "window", 0, runs)
    (folder,) = args.work.glob("window_0_*")
    model = ablation.network(args, "window")
    assert first == evaluate(model, folder / "last.safetensors", sets)
    load_weights(model, folder / "last.safetensors")
    monkeypatch.setattr(scored_runs, "call", lambda *words: pytest.fail("a finished run was made again"))
    assert ablation.trained(args, "window", 0, runs) == first
    settings = json.loads((folder / "config.json").read_text())
    assert "window" in json.dumps(settings) and "start_0.safetensors" in json.dumps(settings)


def test_variants_of_a_seed_start_from_the_same_result(tmp_path: Path, photos: Path, bench: Path) -> None:
    args = arguments(tmp_path, photos, bench)
    ablation.write_start(args, 1, args.work / "start.safetensors")
    sets = find_sets(bench)
    scores = [evaluate(ablation.network(args, one), args.work / "start.safetensors", sets) for one in ablation.VARIANTS]
    assert all(score == scores[0] for score in scores)
    # Fresh weights enlarge by repeating pixels.
    lq, gt = read_rgb(bench / "Cat" / "LRbicx4" / "catx4.png"), read_rgb(bench / "Cat" / "HR" / "cat.png")
    assert scores[0]["Cat"].psnr == pytest.approx(psnr_y(lq.repeat(4, 0).repeat(4, 1), gt), abs=1e-9)


def test_an_errors_energy_is_in_its_band() -> None:
    gt = np.full((136, 136, 3), 128, np.uint8)
    x = np.arange(136)
    for frequency in (0.03, 0.22, 0.43):
        wave = np.rint(128 + 40 * np.sin(2 * np.pi * frequency * x))[None, :, None]
        sr = np.broadcast_to(wave, gt.shape).astype(np.uint8)
        bands = error_bands(sr, gt)
        band = int(frequency * 2 * BANDS)
        assert band_edges()[band] <= frequency < band_edges()[band + 1]
        assert bands.argmax() == band and bands[band] > 0.98 * bands.sum()
        energy = 0.5 * (40 * 219 / 255) ** 2  # of Y
        assert bands.sum() == pytest.approx(energy, rel=0.02)


def test_tables_say_what_the_scores_say(tmp_path: Path, photos: Path, bench: Path) -> None:
    """`window` is better than `none` by 0.1 and 0.12 dB and halves the error of the third band."""
    args = arguments(tmp_path, photos, bench)
    even = (1.0,) * BANDS
    scores = {(v, s): {"Cat": Score(20.0 + s, even)} for v in ablation.VARIANTS for s in (0, 1)}
    halved = (1.0, 1.0, 0.5, *even[3:])
    scores["window", 0], scores["window", 1] = {"Cat": Score(20.1, halved)}, {"Cat": Score(21.12, halved)}
    found = ablation.differences(scores, "mean")
    assert found["window", "none"].values == pytest.approx((0.1, 0.12)) and found["both", "none"].values == (0.0, 0.0)
    gains = ablation.band_gains(scores, "window")
    assert gains.shape == (2, BANDS) and gains[0, 2] == pytest.approx(10 * np.log10(2)) and not gains[:, 3:].any()
    text = ablation.table(args, scores, find_sets(bench))
    assert "| window less none | +0.1100 ± 0.1271 | +0.1100 ± 0.1271 |" in text
    assert "`window` against `none`: no effect" in text  # two seeds so far apart prove nothing
    assert "in 0.10 to 0.15 (+3.010 dB) cycles/pixel" in text and "`both`: the error's energy differs" in text
    assert "that of `none` in no band" in text
    ablation.write_bands(tmp_path / "b.csv", scores)
    with (tmp_path / "b.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["variant"] == "window" and row["seed"] == "1"]
    assert [float(row["error_energy"]) for row in rows] == list(halved)
    ablation.draw_bands(tmp_path / "b.png", scores)
    assert (tmp_path / "b.png").stat().st_size > 5_000


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        ablation.arguments(["--data", "a", "--bench", "b", "--work", "c", "--seeds", "1"])


def test_shapes_get_the_steps_that_their_time_allows(
    tmp_path: Path, photos: Path, bench: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = {}
    step = {name: 0.5 if "16" in name else 0.25 for name in shapes.SHAPES}

    def scored(self: Runs, name: str, model: object, words: list[str]) -> dict[str, Score]:
        trained[list(shapes.SHAPES)[int(name)]] = int(words[words.index("--steps") + 1])
        return {"Cat": Score(20.0 + len(trained), ())}

    monkeypatch.setattr(shapes, "measure_times", lambda names, *_: {n: {"step": step[n], "image": 0.1} for n in names})
    monkeypatch.setattr(Runs, "scored", scored)
    words = ["--data", str(photos / "train"), "--bench", str(bench), "--work", str(tmp_path / "work")]
    shapes.main([*words, "--seconds", "10", "--out", str(tmp_path / "s.md")])
    assert trained == {name: 20 if "16" in name else 40 for name in shapes.SHAPES}
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [row["shape"] for row in rows] == list(shapes.SHAPES)
    assert rows[0]["parameters"] == "423582" and rows[1]["fusion"] == "none"
    lines = (tmp_path / "s.md").read_text().splitlines()
    assert lines[2].startswith("| windows of 16 |") and lines[2].endswith("| 28.000 | 28.000 |")  # the best first


def test_every_shape_can_be_trained_and_timed(photos: Path) -> None:
    import torch

    names = ["light", "windows of 16"]
    times = shapes.measure_times(names, 1, 16, torch.rand(1, 3, 16, 16))
    assert all(times[name]["step"] > 0 and times[name]["image"] > 0 for name in names)
    assert all(shapes.parameters(name) < 1_000_000 for name in shapes.SHAPES)
