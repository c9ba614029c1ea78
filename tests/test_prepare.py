"""Training sets made ready: every pixel covered, pairs kept, the same bytes after a stop, faults named."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from image_data.sources import expand
from image_data.sub_images import positions
from models.team08_HATFreq.image_io import read_rgb, write_png
from scripts import prepare_data
from tests.training_run import contents
from utils.files import HOST, TEMPORARY


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def prepare(*argv: object) -> subprocess.CompletedProcess[str]:
    """The script, without the seconds that a process of its own takes to start."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = prepare_data.main([str(word) for word in argv])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
            err.write(stop.code if isinstance(stop.code, str) else "")
    return subprocess.CompletedProcess(argv, status, out.getvalue(), err.getvalue())


@pytest.mark.parametrize(
    ("length", "expected"), [(40, [0]), (64, [0]), (65, [0, 1]), (96, [0, 32]), (100, [0, 32, 36]), (128, [0, 32, 64])]
)
def test_positions_reach_the_end(length: int, expected: list[int]) -> None:
    assert positions(length, 64, 32) == expected


def test_sub_images_cover_every_pixel_and_keep_their_pairs(root: Path, tmp_path: Path) -> None:
    high, low = noise(103, 150), noise(25, 37, 1)
    (tmp_path / "HR").mkdir()
    (tmp_path / "LR").mkdir()
    write_png(tmp_path / "HR" / "a.png", high)
    write_png(tmp_path / "LR" / "ax4.png", low)
    argv = [tmp_path / "HR", "--out", tmp_path / "sub", "--lr", tmp_path / "LR", "--out_lr", tmp_path / "sub_lr"]
    done = prepare("sub-images", *argv, "--side", 64, "--step", 32)
    assert done.returncode == 0 and "12 sub-images" in done.stdout, done.stderr
    tops, lefts = [0, 32, 36], [0, 32, 64, 84]  # of 100x148 pixels, which are multiples of four
    covered = np.zeros((100, 148), bool)
    for number, (top, left) in enumerate(((top, left) for top in tops for left in lefts), start=1):
        name = f"a_s{number:03}.png"
        np.testing.assert_array_equal(read_rgb(tmp_path / "sub" / name), high[top : top + 64, left : left + 64])
        y, x = top // 4, left // 4
        np.testing.assert_array_equal(read_rgb(tmp_path / "sub_lr" / name), low[y : y + 16, x : x + 16])
        covered[top : top + 64, left : left + 64] = True
    assert covered.all() and len(list((tmp_path / "sub").glob("*.png"))) == 12


@pytest.mark.slow
def test_a_killed_cut_resumes_to_the_same_files(root: Path, tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    for number in range(24):
        write_png(tmp_path / "HR" / f"{number:02}.png", noise(400, 400, number))
    argv = ["sub-images", tmp_path / "HR", "--side", 64, "--step", 32]
    assert prepare(*argv, "--out", tmp_path / "whole").returncode == 0
    torn = tmp_path / "torn"
    program = [sys.executable, "-m", "scripts.prepare_data", *map(str, argv), "--out", str(torn)]
    command = ["nice", "-n", "19", *program]  # so that it is not done before this process sees its first file
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True, cwd=root)
    while not list(torn.glob("*_s*.png")):
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()
    wait_until_all_left(process.pid)
    whole = contents(tmp_path / "whole")
    begun = len(contents(torn))
    (torn / f"{TEMPORARY}abc-{HOST}-999999999").write_bytes(b"cut off")
    assert 0 < begun < len(whole) == 24 * 144
    assert prepare(*argv, "--out", torn).returncode == 0
    resumed = contents(torn)
    assert resumed.keys() == whole.keys()
    assert all(resumed[name] == whole[name] for name in whole)


def wait_until_all_left(session: int) -> None:
    """A killed process's workers leave with it, or they would write under the next start's hands."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(session, signal.SIGKILL)
    pytest.fail("workers stayed after their parent was killed")


def test_lists_leave_small_images_out_and_open_from_anywhere(root: Path, tmp_path: Path) -> None:
    for number, (h, w) in enumerate([(64, 64), (63, 200), (90, 70)]):
        (tmp_path / "tree" / f"n{number}").mkdir(parents=True)
        write_png(tmp_path / "tree" / f"n{number}" / "x.png", noise(h, w, number))
    out = tmp_path / "lists" / "train.txt"
    done = prepare("list", f"{tmp_path}/tree/**", "--min_side", 64, "--out", out, "--expect", 84991)
    assert done.returncode == 0, done.stderr
    assert "84,991" in done.stderr and f"2 images listed in {out}, 1 left out" in done.stdout
    assert out.read_text().splitlines()[1:] == ["../tree/n0/x.png", "../tree/n2/x.png"]
    for image, expected in zip(expand(str(out)), [noise(64, 64, 0), noise(90, 70, 2)], strict=True):
        np.testing.assert_array_equal(image.read_rgb(), expected)


def test_a_list_of_a_shard_opens_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "s.tar", "w") as shard:
        for number, side in enumerate((20, 40)):
            write_png(tmp_path / "images" / f"{number}.png", noise(side, side, number))
            shard.add(tmp_path / "images" / f"{number}.png", f"{number}.png")
    monkeypatch.chdir(tmp_path)
    assert prepare("list", "set/s.tar", "--min_side", 30, "--out", "lists/large.txt").returncode == 0
    monkeypatch.chdir("/")
    assert (tmp_path / "lists/large.txt").read_text().splitlines()[1:] == ["../set/s.tar::1.png"]
    np.testing.assert_array_equal(expand(str(tmp_path / "lists/large.txt"))[0].read_rgb(), noise(40, 40, 1))
    write_png(tmp_path / "images" / "#2.png", noise(40, 40))
    odd = prepare("list", tmp_path / "images", "--min_side", 30, "--out", tmp_path / "images" / "l.txt")
    assert odd.returncode == 1 and "#2.png" in odd.stderr
    assert prepare("list", tmp_path / "images", "--min_side", 50, "--out", tmp_path / "l.txt").returncode == 1


def test_unreadable_images_are_named_and_left_out_only_when_asked_to(root: Path, tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    write_png(tmp_path / "HR" / "good.png", noise(64, 64))
    (tmp_path / "HR" / "bad.png").write_bytes(b"")
    for command, out in (("sub-images", "sub"), ("list", "list.txt")):
        argv = [command, tmp_path / "HR", "--out", tmp_path / out, *(["--min_side", 8] if command == "list" else [])]
        refused = prepare(*argv)
        assert refused.returncode == 1 and "bad.png" in refused.stderr
        skipped = prepare(*argv, "--bad_images", "skip")
        assert skipped.returncode == 0 and "bad.png" in skipped.stderr
    assert [image.stem for image in expand(str(tmp_path / "list.txt"))] == ["good"]
    assert "step must be" in prepare("sub-images", "x", "--out", "y", "--step", 30).stderr
    missing = prepare("list", tmp_path / "none", "--out", tmp_path / "l.txt")
    assert missing.returncode == 1 and str(tmp_path / "none") in missing.stderr


@pytest.mark.slow
def test_the_shell_script_prepares_df2k(root: Path, tmp_path: Path) -> None:
    for name in ("DIV2K/DIV2K_train_HR", "Flickr2K/Flickr2K_HR"):
        (tmp_path / name).mkdir(parents=True)
        write_png(tmp_path / name / f"{name[0]}.png", noise(72, 64))
    environment = {**os.environ, "DATA": str(tmp_path), "PYTHON": sys.executable}
    script = ["bash", str(root / "scripts" / "prepare_data.sh")]
    done = subprocess.run([*script, "df2k"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "3,450" in done.stderr
    assert sorted(path.name for path in (tmp_path / "DF2K_sub").glob("*.png")) == ["D_s001.png", "F_s001.png"]
    unknown = subprocess.run([*script, "df3k"], env=environment, capture_output=True, text=True)
    assert unknown.returncode == 1 and "name a set to prepare" in unknown.stderr
