"""The command `hatfreq`: pictures in, enlarged pictures out."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.team08_HATFreq import PRESETS, HATFreq, override
from models.team08_HATFreq.cli import main
from models.team08_HATFreq.image_io import read_picture, read_rgb, write_png
from models.team08_HATFreq.weights import save_weights

RGB = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with tiny weights `w.safetensors` and a picture `a.png`."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = HATFreq(override(PRESETS["light"], {"embed_dim": 8, "depths": (1,), "num_heads": (1,)}))
    save_weights(model, "w.safetensors", {})
    write_png("a.png", RGB)
    return tmp_path


def hatfreq(*argv: str) -> int:
    return main([*argv, "--device", "cpu", "--weights", "w.safetensors"])


def test_a_picture_goes_beside_or_where_it_is_told(here: Path, capsys: pytest.CaptureFixture) -> None:
    assert hatfreq("a.png") == 0 and hatfreq("a.png", "-o", "new/b.png") == 0
    assert "a_x4.png  28x36" in capsys.readouterr().out
    assert Path("a_x4.png").read_bytes() == Path("new/b.png").read_bytes()
    np.testing.assert_array_equal(read_rgb("a_x4.png"), RGB.repeat(4, 0).repeat(4, 1))  # fresh weights: the nearest


def test_several_pictures_and_folders_go_into_a_folder(here: Path) -> None:
    Path("more").mkdir()
    write_png("more/c.png", RGB)
    assert hatfreq("a.png", "more", "-o", "out") == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "c.png"]


def test_one_bad_picture_is_named_and_the_others_are_made(here: Path, capsys: pytest.CaptureFixture) -> None:
    Path("bad.png").write_bytes(b"cut")
    write_png("clear.png", np.dstack([RGB, RGB[..., :1]]))
    assert hatfreq("bad.png", "clear.png", "a.png", "-o", "out") == 1
    assert "bad.png is not an image" in capsys.readouterr().err
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "clear.png"]


def test_suffixes_choose_the_format(here: Path) -> None:
    for name, kind in (("b.webp", "WEBP"), ("b.jpg", "JPEG"), ("b.JPEG", "JPEG")):
        assert hatfreq("a.png", "-o", name) == 0
        assert Image.open(name).format == kind


def test_small_tiles_overlap_by_half(here: Path) -> None:
    write_png("large.png", np.zeros((40, 40, 3), np.uint8))
    assert hatfreq("large.png", "--tile", "32") == 0
    assert read_rgb("large_x4.png").shape == (160, 160, 3)


def test_what_exists_is_not_replaced_unasked(here: Path, capsys: pytest.CaptureFixture) -> None:
    Path("a_x4.png").write_bytes(b"mine")
    assert hatfreq("a.png") == 1
    assert "a_x4.png exists" in capsys.readouterr().err and Path("a_x4.png").read_bytes() == b"mine"
    assert hatfreq("a.png", "--overwrite") == 0 and read_picture("a_x4.png").rgb.shape == (36, 28, 3)


def test_a_folder_twice_makes_nothing_of_the_results(here: Path, capsys: pytest.CaptureFixture) -> None:
    Path("c").mkdir()
    write_png("c/b.png", RGB)
    assert hatfreq("c") == 0
    before = Path("c/b_x4.png").stat().st_mtime_ns
    write_png("c/d.png", RGB)
    capsys.readouterr()
    assert hatfreq("c") == 0
    assert capsys.readouterr().out.startswith("1 of 2 results exist and stay; --overwrite makes them again\n")
    assert Path("c/b_x4.png").stat().st_mtime_ns == before
    assert hatfreq("c", "--overwrite") == 0 and Path("c/b_x4.png").stat().st_mtime_ns > before
    assert sorted(path.name for path in Path("c").iterdir()) == ["b.png", "b_x4.png", "d.png", "d_x4.png"]
    assert hatfreq("c", "-o", "e") == 0
    assert sorted(path.name for path in Path("e").iterdir()) == ["b.png", "d.png"]
    assert read_rgb("e/b.png").shape == read_rgb("c/b_x4.png").shape == (36, 28, 3)


def test_an_input_is_never_replaced(here: Path, capsys: pytest.CaptureFixture) -> None:
    write_png("a_x4.png", RGB)
    Path("link").symlink_to(here)
    for argv in (["a.png", "a_x4.png"], ["a.png", "-o", "link/a.png"], [".", "-o", "link"], [".", "-o", "."]):
        assert hatfreq(*argv, "--overwrite") == 1
        assert ".png is an input, and a result would replace it" in capsys.readouterr().err
    assert (read_rgb("a.png") == RGB).all() and (read_rgb("a_x4.png") == RGB).all()


def test_a_name_too_long_for_its_result_stops_no_others(here: Path, capsys: pytest.CaptureFixture) -> None:
    Path("c").mkdir()
    write_png("c/b.png", RGB)
    write_png("z.png", RGB)
    Path("z.png").rename(f"c/{'a' * 250}.png")
    assert hatfreq("c") == 1 and Path("c/b_x4.png").exists()
    assert "(File name too long): choose a shorter name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["nowhere.png"], "nowhere.png does not exist"),
        (["a.png", "a.png", "-o", "one.png"], "one.png is one file and there are 2 pictures"),
        (["a.png", "-o", "a.gif"], "a.gif: results can be"),
        (["a.png", "--tile", "7"], "tile must be 0 (the whole image) or at least 32, got 7"),
        (["a.png", "-o", "w.safetensors/b.png"], "cannot make the folder w.safetensors (File exists): a file has that"),
        (["clear.png", "-o", "c.jpeg"], "JPEG holds no transparency, and c has some: write PNG or WebP"),
        (["wide.png", "-o", "c.webp"], "c.webp would have 16384x4 pixels, and WEBP holds 16383 a side: write PNG"),
        (["tall.png", "-o", "c.jpg"], "c.jpg would have 4x65504 pixels, and JPEG holds 65500 a side: write PNG"),
        (["empty"], "empty holds no images"),
        (["empty", "a.png", "-o", "out"], "empty holds no images"),
        (["a.png", "a.jpg"], "a.png, a.jpg would share names of results"),
        (["a.png", "../{here}/a.jpg"], "a.png, a.jpg would share names of results"),
        (["a.png", "a.png"], "a.png is named twice"),
    ],
    ids=str,
)
def test_errors_name_the_remedy_before_the_network_runs(
    here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, argv: list[str], text: str
) -> None:
    monkeypatch.delattr(HATFreq, "forward")
    Path("empty").mkdir()
    write_png("clear.png", np.dstack([RGB, RGB[..., :1]]))
    write_png("wide.png", np.zeros((1, 4096, 3), np.uint8))
    write_png("tall.png", np.zeros((16376, 1, 3), np.uint8))
    assert hatfreq(*(word.format(here=here.name) for word in argv)) == 1
    assert text in capsys.readouterr().err


@pytest.mark.slow
def test_a_terminal_that_knows_no_unicode_loses_no_list(here: Path, root: Path) -> None:
    write_png("日本.png", RGB)
    argv = ["日本.png", "gone.png", "-o", "out_日本", "--weights", "w.safetensors", "--device", "cpu"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "models.team08_HATFreq.cli", *argv], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "gone.png does not exist" in done.stderr and "Traceback" not in done.stderr
    assert Path("out_日本", "日本.png").exists()
