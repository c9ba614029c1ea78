"""eval.py as the organisers run it, and its parts: pairs, tables, total score, pictures, spectra."""

import csv
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from huggingface_hub import constants

import eval as script
from evaluation import perceptual, pictures
from evaluation.pairing import EvaluationError, Pair, find_pairs
from evaluation.perceptual import PERCEPTUAL, MetricError, make_metrics, measure, total_score
from evaluation.pictures import detail, ranked
from evaluation.spectrum import mean_radial_power, radial_power
from evaluation.tables import averages, result_stem, score_line, write_tables
from models.team08_HATFreq.image_io import read_rgb, write_png
from utils.metrics import psnr_y, rgb_to_y, ssim_y
from utils.resize import imresize

CPU = torch.device("cpu")


def smooth(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three restored images of rising quality and their targets, named like the organisers'."""
    restored, target = tmp_path / "08_HATFreq" / "test", tmp_path / "HR"
    restored.mkdir(parents=True)
    target.mkdir()
    for number, noise in enumerate((30, 10, 3)):
        gt = smooth(number)
        error = np.random.default_rng(9).integers(-noise, noise + 1, gt.shape)
        write_png(target / f"090{number}.png", gt)
        write_png(restored / f"090{number}x4.png", np.clip(gt + error, 0, 255).astype(np.uint8))
    return restored, target


Score = Callable[..., SimpleNamespace]


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Score:
    """Runs eval.py's main in `tmp_path`: status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> SimpleNamespace:
        try:
            status = script.main([str(word) for word in argv])
        except SystemExit as error:  # as the interpreter ends: a message goes to stderr, with status 1
            status = error.code if isinstance(error.code, int) else 1
            print("" if isinstance(error.code, int) else error.code, file=sys.stderr)
        said = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=said.out, stderr=said.err)

    return run


@pytest.mark.slow
def test_the_program_starts_and_ends_with_its_status(root: Path, tmp_path: Path, folders: tuple[Path, Path]) -> None:
    argv = [
        "--output_folder",
        str(folders[0]),
        "--target_folder",
        str(folders[1]),
        "--metrics",
        "psnr",
        "--no_pictures",
    ]
    command = [sys.executable, str(root / "eval.py"), *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for status in (0, 1):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        (folders[1] / "0901.png").write_bytes(b"")


def test_the_organisers_command(score: Score, tmp_path: Path, folders: tuple[Path, Path]) -> None:
    restored, target = folders
    # A trailing slash must not empty the results' name.
    argv = ("--output_folder", f"{restored}/", "--target_folder", target, "--gpu_ids", "0,1", "--metrics", "psnr,ssim")
    done = score(*argv)
    assert done.returncode == 0, done.stderr
    results = tmp_path / "IQA_results"
    names = {f"08_HATFreq--test{end}" for end in (".csv", ".txt", "_comparison.png", "_spectrum.png")}
    assert {path.name for path in results.iterdir()} == names
    with (results / "08_HATFreq--test.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["Filename", "psnr", "ssim"]
    assert [row[0] for row in rows[1:]] == ["0900x4.png", "0901x4.png", "0902x4.png"]
    pairs = [(read_rgb(restored / row[0]), read_rgb(target / row[0].replace("x4", ""))) for row in rows[1:]]
    for row, pair in zip(rows[1:], pairs, strict=True):
        assert float(row[1]) == psnr_y(*pair) and float(row[2]) == ssim_y(*pair)
    lines = (results / "08_HATFreq--test.txt").read_text().splitlines()
    assert lines[0].startswith("psnr: ")
    assert float(lines[0].split(": ")[1]) == pytest.approx(np.mean([psnr_y(*pair) for pair in pairs]))
    assert lines[-1] == "Total Score: not available (missing: LPIPS, DISTS, NIQE, MUSIQ, MANIQA, CLIP-IQA)"
    assert "Total Score" not in done.stdout  # nobody asked for its metrics
    assert torch.cuda.is_available() or "there is no CUDA device" in done.stderr
    assert "Average of 3 images" in done.stdout and "08_HATFreq--test_comparison.png" in done.stdout
    for end in ("comparison", "spectrum"):
        picture = read_rgb(results / f"08_HATFreq--test_{end}.png")
        assert min(picture.shape[:2]) > 500 and picture.std() > 20


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--output_folder", "nowhere"], "nowhere does not exist"),
        (["--output_folder", "HR/empty"], "holds no PNG files: name the folder that test.py wrote"),
        (["--output_folder", "08_HATFreq/test", "--metrics", "psnr"], "psnr need targets: give --target_folder"),
        (["--output_folder", "08_HATFreq/test", "--metrics", "vmaf"], "unknown metric 'vmaf': choose from psnr, ssim"),
        (["--output_folder", "08_HATFreq/test", "--metrics", " ,"], "no metric is named: choose from psnr, ssim"),
        (["--output_folder", "08_HATFreq/test", "--target_folder", "HR", "--gpu_ids", "a"], "--gpu_ids takes numbers"),
        (
            ["--output_folder", "08_HATFreq/test", "--target_folder", "HR", "--metrics_save_path", "HR/0900.png"],
            "HR/0900.png is a file: name a folder with --metrics_save_path",
        ),
        (
            ["--output_folder", "08_HATFreq/test", "--target_folder", "HR/empty"],
            "lacks the target of 3 of 3: 0900x4.png",
        ),
    ],
    ids=str,
)
def test_errors_name_the_remedy(
    score: Score, tmp_path: Path, folders: tuple[Path, Path], argv: list[str], text: str
) -> None:
    (tmp_path / "HR" / "empty").mkdir()
    done = score(*argv)
    assert done.returncode in (1, 2)
    assert text in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "IQA_results").exists()


def test_one_bad_file_costs_no_scores(score: Score, tmp_path: Path, folders: tuple[Path, Path]) -> None:
    restored, target = folders
    argv = ("--output_folder", restored, "--target_folder", target, "--metrics", "psnr")
    write_png(target / "0901.png", smooth(1)[:44])
    (target / "0902.png").write_bytes(b"")
    done = score(*argv)
    assert done.returncode == 1 and "2 of 3 images could not be scored" in done.stderr
    assert "0901x4.png is 64x48 and its target" in done.stderr and "0901.png is 64x44" in done.stderr
    assert "0902.png is empty" in done.stderr and "Average of 1 images" in done.stdout
    rows = (tmp_path / "IQA_results" / "08_HATFreq--test.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["Filename", "0900x4.png"]
    summary = (tmp_path / "IQA_results" / "08_HATFreq--test.txt").read_text()
    assert "not scored: 0901x4.png" in summary and "Total Score: not available (images failed)" in summary


def test_a_wrong_low_resolution_image_comes_after_the_scores(
    score: Score, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    (tmp_path / "LR").mkdir()
    for number in range(3):
        write_png(tmp_path / "LR" / f"090{number}x4.png", smooth(number, 9, 9))
    argv = ("--output_folder", folders[0], "--target_folder", folders[1], "--metrics", "psnr", "--lq_folder", "LR")
    done = score(*argv)
    assert done.returncode == 1 and "x4.png at x4 has not the size of" in done.stderr
    assert "Average of 3 images" in done.stdout and "psnr" in done.stdout
    assert (tmp_path / "IQA_results" / "08_HATFreq--test.csv").exists()


def test_an_image_too_small_for_ssim_is_named(score: Score, tmp_path: Path, folders: tuple[Path, Path]) -> None:
    for path in (folders[0] / "0901x4.png", folders[1] / "0901.png"):
        write_png(path, smooth(1, 16, 16))
    argv = ("--output_folder", folders[0], "--target_folder", folders[1], "--metrics")
    done = score(*argv, "psnr,ssim")
    assert done.returncode == 1
    assert "0901x4.png cannot be scored (SSIM needs 11 pixels a side inside the border, got 8x8)" in done.stderr
    done = score(*argv, "psnr")  # where nobody asks for SSIM, the pictures do without it
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "IQA_results" / "08_HATFreq--test_comparison.png").exists()


@pytest.mark.parametrize("name", [r"$\q$", "$x_1$", "a,b\n", os.fsdecode(b"\xff\xfe")])
@pytest.mark.slow
def test_names_of_any_kind_are_scored_and_drawn(score: Score, tmp_path: Path, name: str) -> None:
    for folder in ("sr", "hr"):
        (tmp_path / folder).mkdir()
        write_png(tmp_path / folder / f"{name}.png", smooth(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message="Glyph")  # a letter that the font lacks
        done = score("--output_folder", "sr", "--target_folder", "hr", "--metrics", "psnr")
    assert done.returncode == 0, done.stderr
    table = next((tmp_path / "IQA_results").glob("*.csv")).read_bytes()
    assert os.fsencode(name) in table and len(list((tmp_path / "IQA_results").glob("*.png"))) == 2


def test_a_comparison_that_cannot_be_ordered_is_said_to_be_missing(
    score: Score, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    argv = ("--output_folder", folders[0], "--target_folder", folders[1], "--metrics", "ssim")
    done = score(*argv)
    assert done.returncode == 0
    assert "no 08_HATFreq--test_comparison.png: it is ordered by PSNR, so add psnr to --metrics" in done.stderr
    names = {f"08_HATFreq--test{end}" for end in (".csv", ".txt", "_spectrum.png")}
    assert {path.name for path in (tmp_path / "IQA_results").iterdir()} == names


TWO_DEVICES = """
import sys, torch
import eval as script

script.choose_devices = lambda gpu_ids: [torch.device("cpu")] * int(gpu_ids)
sys.exit(script.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_several_devices_write_the_tables_of_one(root: Path, tmp_path: Path, folders: tuple[Path, Path]) -> None:
    devices = 5  # more than there are images
    argv = ["--output_folder", str(folders[0]), "--target_folder", str(folders[1]), "--metrics", "psnr,ssim"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    for count in (1, devices):
        options = ["--no_pictures", "--gpu_ids", str(count), "--metrics_save_path", str(tmp_path / f"on{count}")]
        command = [sys.executable, "-c", TWO_DEVICES, *argv, *options]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    for end in ("csv", "txt"):
        one, several = (tmp_path / f"on{count}" / f"08_HATFreq--test.{end}" for count in (1, devices))
        assert one.read_bytes() == several.read_bytes()


def test_a_metric_that_one_process_lacks_is_left_out_of_all() -> None:
    pairs = [Pair(Path(f"{n}.png")) for n in range(4)]
    even = script.Scored({"0.png": {"psnr": 1.0, "NIQE": 5.0}, "2.png": {"psnr": 3.0, "NIQE": 6.0}}, {})
    odd = script.Scored({"1.png": {"psnr": 2.0}}, {"NIQE": "no network"}, {"3.png": "empty"})
    merged = script.merge_parts(pairs, [even, odd])
    assert list(merged.rows.items()) == [("0.png", {"psnr": 1.0}), ("1.png", {"psnr": 2.0}), ("2.png", {"psnr": 3.0})]
    assert merged.missing == {"NIQE": "no network"} and merged.failed == {"3.png": "empty"}


def test_without_targets_only_blind_metrics_are_asked_for(score: Score, folders: tuple[Path, Path]) -> None:
    done = score("--output_folder", folders[0], "--target_folder", "None", "--metrics", "psnr,NIQE")
    if "pyiqa is not installed" in done.stderr:
        assert done.returncode == 1 and "no metric could be computed" in done.stderr
    else:
        assert "psnr" not in done.stdout


# -- pairs ------------------------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_pairs_by_name(tmp_path: Path) -> None:
    restored = touch(tmp_path / "sr", "0901x4.png", "box4x4.png", "x4x4.png", "same.png", "record.json")
    target = touch(tmp_path / "hr", "0901.png", "box4.jpg", "x4.png", "same.png")
    lq = touch(tmp_path / "lr", "0901x4.png", "box4x4.png", "x4x4.png", "same.png")
    pairs = {pair.name: pair for pair in find_pairs(restored, target, lq)}
    assert {name: (pair.target.name, pair.lq.name) for name, pair in pairs.items()} == {
        "0901x4.png": ("0901.png", "0901x4.png"),
        "box4x4.png": ("box4.jpg", "box4x4.png"),  # only the scale at the end is taken off
        "x4x4.png": ("x4.png", "x4x4.png"),
        "same.png": ("same.png", "same.png"),
    }
    assert find_pairs(restored, None, None)[0] == Pair(restored / "0901x4.png")


def test_pairs_that_are_missing_or_ambiguous(tmp_path: Path) -> None:
    restored = touch(tmp_path / "sr", *(f"{n:02}x4.png" for n in range(12)))
    with pytest.raises(EvaluationError, match=r"lacks the target of 12 of 12: 00x4.png, .*, 09x4.png and 2 more"):
        find_pairs(restored, touch(tmp_path / "hr"), None)
    target = touch(tmp_path / "hr", *(f"{n:02}.png" for n in range(12)), "99.png")
    with pytest.raises(EvaluationError, match=r"has targets without a restored image: 99\.png"):
        find_pairs(restored, target, None)
    (target / "99.png").rename(target / "03x4.png")
    with pytest.raises(EvaluationError, match=r"holds 03x4.png and 03.png, and either could be the target of 03x4.png"):
        find_pairs(restored, target, None)
    (target / "03x4.png").unlink()
    touch(restored, "03.png")
    with pytest.raises(
        EvaluationError, match=r"share a target: 03\.png and 03x4\.png \(of 03\.png\); keep one of each"
    ):
        find_pairs(restored, target, None)


# -- tables and total score -------------------------------------------------------------------------------------------


def test_total_score_by_hand() -> None:
    means = {"LPIPS": 0.25, "DISTS": 0.125, "NIQE": 4.0, "MUSIQ": 60.0, "MANIQA": 0.4, "CLIP-IQA": 0.7}
    assert total_score(means) == pytest.approx(0.75 + 0.875 + 0.7 + 0.4 + 0.6 + 0.6)
    assert total_score({**means, "NIQE": 12.0}) == pytest.approx(0.75 + 0.875 + 0.7 + 0.4 + 0.6)
    assert total_score({**means, "psnr": 30.0}) == total_score(means)


@pytest.mark.parametrize("name", list(PERCEPTUAL))
def test_no_total_score_from_a_part_of_the_metrics(name: str) -> None:
    means = dict.fromkeys(PERCEPTUAL, 0.5)
    assert total_score({key: value for key, value in means.items() if key != name}) is None
    assert total_score({**means, name: math.nan}) is None
    assert score_line({}, {name: "why"}) == f"not available (missing: {name})"


def test_tables_have_sorted_columns_and_averages(tmp_path: Path) -> None:
    rows = {f"{n}.png": {"ssim": 0.5, "psnr": 30.0 + n, **dict.fromkeys(PERCEPTUAL, 0.5)} for n in range(2)}
    table, summary = write_tables(tmp_path / "new", "a--b", rows, {}, {})
    assert table.read_text().splitlines()[0] == "Filename,CLIP-IQA,DISTS,LPIPS,MANIQA,MUSIQ,NIQE,psnr,ssim"
    assert table.read_text().splitlines()[2] == "1.png,0.5,0.5,0.5,0.5,0.5,0.5,31.0,0.5"
    assert averages(rows)["psnr"] == 30.5
    assert summary.read_text().splitlines()[-1] == "Total Score: 2.955000"
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"a--b.csv", "a--b.txt"}


def test_result_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    assert result_stem(Path("b/")) == "a--b"
    assert result_stem(Path("..") / "a" / "b") == "a--b"


# -- perceptual metrics -----------------------------------------------------------------------------------------------


def test_metrics_that_cannot_be_had_are_named_with_the_reason() -> None:
    def factory(name: str, device: torch.device) -> object:
        if name == "musiq":
            raise OSError("<urlopen error [Errno -2] Name or service not known>\nTraceback")
        return lambda *images: torch.tensor(float(len(images)))

    metrics, missing = make_metrics(list(PERCEPTUAL), CPU, factory)
    assert missing == {"MUSIQ": "OSError: <urlopen error [Errno -2] Name or service not known>"}
    image = smooth(0)
    values = measure(metrics, image, image, "a.png")
    assert values == {"LPIPS": 2.0, "DISTS": 2.0, "NIQE": 1.0, "MANIQA": 1.0, "CLIP-IQA": 1.0}
    assert measure(metrics, image, None, "a.png") == {"NIQE": 1.0, "MANIQA": 1.0, "CLIP-IQA": 1.0}


def test_metrics_get_rgb_in_zero_to_one() -> None:
    seen: list[torch.Tensor] = []
    image = smooth(0)
    image.flags.writeable = False  # as decoders give it
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measure({"NIQE": lambda image: (seen.append(image), torch.tensor(1.0))[1]}, image, None, "a.png")
    assert seen[0].shape == (1, 3, 48, 64) and seen[0].dtype == torch.float32
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).numpy() * 255, smooth(0), atol=1e-4)


def test_a_metric_that_fails_names_the_image() -> None:
    def fails(image: torch.Tensor) -> torch.Tensor:
        raise AssertionError("too small")

    with pytest.raises(MetricError, match=r"NIQE failed on a\.png \(too small\)"):
        measure({"NIQE": fails}, smooth(0), None, "a.png")
    with pytest.raises(MetricError, match=r"NIQE is nan on a\.png"):
        measure({"NIQE": lambda image: torch.tensor(math.nan)}, smooth(0), None, "a.png")


def test_without_pyiqa_every_metric_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    metrics, missing = make_metrics(["LPIPS", "NIQE"], CPU)
    assert not metrics
    assert set(missing) == {"LPIPS", "NIQE"} and ".[iqa]" in missing["LPIPS"]


def test_an_unreachable_hub_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(address: str, timeout: float) -> None:
        asked.append(address)
        raise OSError("no network")

    perceptual._reachable.cache_clear()
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    seen: list[bool] = []
    make_metrics(["MUSIQ", "MANIQA"], CPU, lambda name, device: seen.append(constants.HF_HUB_OFFLINE))
    assert seen == [True, True] and asked == [constants.ENDPOINT]
    assert not constants.HF_HUB_OFFLINE
    perceptual._reachable.cache_clear()


def test_a_plain_image_has_a_spectrum_picture(tmp_path: Path) -> None:
    for name in ("sr.png", "hr.png"):
        write_png(tmp_path / name, np.zeros((32, 32, 3), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.draw_spectrum(tmp_path / "out.png", [Pair(tmp_path / "sr.png", tmp_path / "hr.png")])
    assert read_rgb(tmp_path / "out.png").shape[1] > 1000


PYIQA = """
import json, sys, torch
from evaluation.perceptual import make_metrics, measure
from models.team08_HATFreq.image_io import read_rgb
from utils.resize import imresize

metrics, missing = make_metrics(["LPIPS", "NIQE"], torch.device("cpu"))
gt = read_rgb(sys.argv[1])
blurred = imresize(imresize(gt, 0.25), 4.0)
print(json.dumps([missing, *(measure(metrics, image, gt, "a.png") for image in (gt, blurred))]))
"""


@pytest.mark.slow
def test_pyiqa_itself_where_it_is_installed(root: Path, shared: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyiqa")
    subprocess.run([sys.executable, str(shared / "iqa" / "lay_cache.py"), str(tmp_path)], check=True)
    environment = {**os.environ, "TORCH_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}  # read when pyiqa is imported
    image = shared / "data" / "bench" / "Set5" / "HR" / "img_002.png"
    done = subprocess.run(
        [sys.executable, "-c", PYIQA, str(image)], cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    missing, same, worse = json.loads(done.stdout.splitlines()[-1])
    assert not missing
    assert same["LPIPS"] == pytest.approx(0, abs=1e-5)
    assert worse["LPIPS"] > 0.2 and worse["NIQE"] > same["NIQE"]


# -- spectra ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (96, 130)])
@pytest.mark.parametrize("frequency", [0.05, 0.11, 0.3])
def test_a_cosine_peaks_at_its_frequency(size: tuple[int, int], frequency: float) -> None:
    y, x = np.mgrid[: size[0], : size[1]]
    wave = 100 + 50 * np.cos(2 * np.pi * frequency * (0.6 * x + 0.8 * y))
    centres, power = radial_power(wave, bins=32)
    assert abs(centres[np.nanargmax(power)] - frequency) < 1.5 / 64


def test_parseval_and_independence_of_the_size() -> None:
    rng = np.random.default_rng(0)
    for size in ((128, 128), (256, 200)):
        frequency, power = radial_power(rng.normal(100, 7, size), bins=16)
        np.testing.assert_allclose(power[4:], 49, rtol=0.2)  # white noise: its variance at every frequency
        assert frequency[0] == 1 / 64 and frequency[-1] == 31 / 64
    x = np.arange(96)
    wave = np.cos(2 * np.pi * 0.2 * x)[None] * np.ones((96, 1))
    window = np.outer(np.hanning(98)[1:-1], np.hanning(98)[1:-1])
    radius = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(96)[None])
    count = np.histogram(radius, bins=np.arange(17) / 32)[0]
    weighed = (wave - wave.mean()) * window / np.sqrt((window**2).mean())
    assert (radial_power(wave, bins=16)[1] * count).sum() == pytest.approx((weighed**2).sum(), rel=1e-3)


def test_mean_spectrum_skips_rings_that_a_small_image_lacks() -> None:
    small, large = np.random.default_rng(0).normal(size=(8, 8)), np.random.default_rng(1).normal(size=(200, 200))
    _, alone = radial_power(large)
    assert np.isnan(radial_power(small)[1]).any()
    _, both = mean_radial_power([small, large])
    lacking = np.isnan(radial_power(small)[1])
    np.testing.assert_allclose(both[lacking], alone[lacking])


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_worst_median_and_best() -> None:
    pairs = [Pair(Path(f"{n}.png")) for n in range(5)]
    rows = {f"{n}.png": {"psnr": value} for n, value in enumerate((31.0, 25.0, 40.0, 28.0, 33.0))}
    assert [(rank, pair.name) for rank, pair in ranked(pairs, rows)] == [
        ("worst", "1.png"), ("median", "0.png"), ("best", "2.png")]  # fmt: skip
    assert [(rank, pair.name) for rank, pair in ranked(pairs[:2], rows)] == [("worst", "1.png"), ("best", "0.png")]
    assert [rank for rank, _ in ranked(pairs[:1], rows)] == ["worst"]


def test_the_detail_is_where_the_error_is() -> None:
    error = np.zeros((90, 120))
    error[50:60, 80:90] = 1
    rows, columns = detail(error, side=32)
    assert rows.stop - rows.start == columns.stop - columns.start == 32
    assert rows.start <= 50 and rows.stop >= 60 and columns.start <= 80 and columns.stop >= 90
    assert detail(error[:20, :25], side=32) == (slice(0, 20), slice(0, 25))


def test_the_pictures_bicubic_comes_from_the_lr_where_it_is_at_hand(folders: tuple[Path, Path], tmp_path: Path) -> None:
    pair = find_pairs(*folders, None)[0]
    gt = read_rgb(pair.target)
    np.testing.assert_array_equal(pictures.bicubic_of(pair, gt), imresize(imresize(gt, 0.25, "clamp"), 4, "clamp"))
    write_png(tmp_path / "lq.png", smooth(7, 12, 16))
    other = Pair(pair.restored, pair.target, tmp_path / "lq.png")
    np.testing.assert_array_equal(pictures.bicubic_of(other, gt), imresize(smooth(7, 12, 16), 4, "clamp"))
    write_png(tmp_path / "lq.png", smooth(7, 12, 12))
    with pytest.raises(ValueError, match=r"lq\.png at x4 has not the size of .*0900\.png"):
        pictures.bicubic_of(other, gt)


def test_the_spectrum_picture_shows_what_blur_takes_away(folders: tuple[Path, Path]) -> None:
    gt = rgb_to_y(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    blurred = cv2.GaussianBlur(gt, (0, 0), 2)
    _, sharp = mean_radial_power([gt])
    frequency, soft = mean_radial_power([blurred])
    assert (soft[frequency > 0.3] < 0.01 * sharp[frequency > 0.3]).all()


def test_results_of_hatfreq_find_their_targets(tmp_path: Path) -> None:
    for folder, name in (("sr", "baby_x4.png"), ("hr", "baby.png")):
        (tmp_path / folder).mkdir()
        write_png(tmp_path / folder / name, np.zeros((8, 8, 3), np.uint8))
    (pair,) = find_pairs(tmp_path / "sr", tmp_path / "hr", None)
    assert pair.target == tmp_path / "hr" / "baby.png"
