"""Training sets made ready: every pixel covered, pairs kept, the same bytes after a stop, faults named."""

import importlib.util
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from models.team08_HATFreq.images import read_rgb, write_png
from tests.training_run import TINY, checkpoint, contents
from training.sub_images import positions
from training.sources import expand


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def prepare(root: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The script, without the seconds that a process of its own takes to start."""
    spec = importlib.util.spec_from_file_location("prepare_data", root / "scripts" / "prepare_data.py")
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out, err, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = script.main([str(word) for word in words])
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
            err.write(stop.code if isinstance(stop.code, str) else "")
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


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
    words = [tmp_path / "HR", "--out", tmp_path / "sub", "--lr", tmp_path / "LR", "--out_lr", tmp_path / "sub_lr"]
    done = prepare(root, "sub-images", *words, "--side", 64, "--step", 32)
    assert done.returncode == 0 and "12 sub-images" in done.stdout, done.stderr
    tops, lefts = [0, 32, 36], [0, 32, 64, 84]  # of 100x148 pixels, which are multiples of four
    covered = np.zeros((100, 148), bool)
    for number, (top, left) in enumerate(((top, left) for top in tops for left in lefts), start=1):
        name = f"a_s{number:03}.png"
        np.testing.assert_array_equal(read_rgb(tmp_path / "sub" / name), high[top : top + 64, left : left + 64])
        y, x = top // 4, left // 4
        np.testing.assert_array_equal(read_rgb(tmp_path / "sub_lr" / name), low[y : y + 16, x : x + 16])
        covered[top : top + 64, left : left + 64] = True
    assert covered.all() and len(list((tmp_path / "sub").iterdir())) == 12


def test_a_stopped_cut_goes_on_to_the_same_files(root: Path, tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    for number in range(3):
        write_png(tmp_path / "HR" / f"{number}.png", noise(70, 70, number))
    words = ["sub-images", tmp_path / "HR", "--side", 64, "--step", 32]
    assert prepare(root, *words, "--out", tmp_path / "whole").returncode == 0
    assert prepare(root, *words, "--out", tmp_path / "torn").returncode == 0
    untouched = tmp_path / "torn" / "0_s001.png"
    before = untouched.stat().st_mtime_ns
    for name in ("1_s003.png", "1_s004.png", "2_s002.png", "2_s003.png", "2_s004.png"):  # as a kill leaves them
        (tmp_path / "torn" / name).unlink()
    assert prepare(root, *words, "--out", tmp_path / "torn").returncode == 0
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole") and len(contents(tmp_path / "torn")) == 12
    assert untouched.stat().st_mtime_ns == before


def test_lists_leave_small_images_out_and_open_from_anywhere(root: Path, tmp_path: Path) -> None:
    for number, (h, w) in enumerate([(64, 64), (63, 200), (90, 70)]):
        (tmp_path / "tree" / f"n{number}").mkdir(parents=True)
        write_png(tmp_path / "tree" / f"n{number}" / "x.png", noise(h, w, number))
    out = tmp_path / "lists" / "train.txt"
    done = prepare(root, "list", f"{tmp_path}/tree/**", "--min_side", 64, "--out", out, "--expect", "lsdir")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "warning: lsdir has 84,991 images, 3 were found\n"
    assert done.stdout.startswith(f"2 images listed in {out}, 1 left out as smaller than 64 pixels; 3 images in ")
    assert out.read_text().splitlines()[1:] == ["../tree/n0/x.png", "../tree/n2/x.png"]
    for image, expected in zip(expand(str(out)), [noise(64, 64, 0), noise(90, 70, 2)], strict=True):
        np.testing.assert_array_equal(image.read_rgb(), expected)


def test_shards_hold_the_same_bytes_whenever_they_are_made(root: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    files = {}
    for number in range(5):
        write_png(tmp_path / "images" / f"{number}.png", noise(20, 20, number))
        files[f"images/{number}.png"] = (tmp_path / "images" / f"{number}.png").read_bytes()
    size = 2.5 * len(files["images/0.png"]) / 1e9
    words = ["shards", tmp_path / "images", "--shard_gb", f"{size:.9f}"]
    done = prepare(root, *words, "--out", tmp_path / "one" / "set")
    assert done.returncode == 0 and "5 images in 3 shards" in done.stdout, done.stderr
    images = expand(str(tmp_path / "one" / "set" / "shards.txt"))
    assert {image.member: image.content() for image in images} == files
    (tmp_path / "images" / "0.png").touch()
    assert prepare(root, *words, "--out", tmp_path / "two" / "set").returncode == 0
    shard = tmp_path / "two" / "set" / "set-00001.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    assert prepare(root, *words, "--out", tmp_path / "two" / "set").returncode == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_unreadable_images_are_named_and_left_out_only_when_asked_to(root: Path, tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    write_png(tmp_path / "HR" / "good.png", noise(64, 64))
    (tmp_path / "HR" / "bad.png").write_bytes(b"")
    for command, out in (("sub-images", "sub"), ("list", "list.txt")):
        words = [command, tmp_path / "HR", "--out", tmp_path / out, *(["--min_side", 8] if command == "list" else [])]
        refused = prepare(root, *words)
        assert refused.returncode == 1 and "1 images cannot be read" in refused.stderr
        assert "bad.png is empty" in refused.stderr
        skipped = prepare(root, *words, "--bad_images", "skip")
        assert skipped.returncode == 0, skipped.stderr
        assert "bad.png is empty" in (tmp_path / f"{out}.unreadable.txt").read_text()
    assert [image.stem for image in expand(str(tmp_path / "list.txt"))] == ["good"]
    assert "step must be" in prepare(root, "sub-images", "x", "--out", "y", "--step", 30).stderr
    missing = prepare(root, "list", tmp_path / "none", "--out", tmp_path / "l.txt")
    assert missing.returncode == 1 and missing.stderr.startswith("error: ") and "does not exist" in missing.stderr


def test_the_shell_script_prepares_df2k(root: Path, tmp_path: Path) -> None:
    for name in ("DIV2K/DIV2K_train_HR", "Flickr2K/Flickr2K_HR"):
        (tmp_path / name).mkdir(parents=True)
        write_png(tmp_path / name / f"{name[0]}.png", noise(72, 64))
    environment = {**os.environ, "DATA": str(tmp_path), "PYTHON": sys.executable}
    script = ["bash", str(root / "scripts" / "prepare_data.sh")]
    done = subprocess.run([*script, "df2k"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "df2k has 3,450 images, 2 were found" in done.stderr
    assert sorted(path.name for path in (tmp_path / "DF2K_sub").iterdir()) == ["D_s001.png", "F_s001.png"]
    unknown = subprocess.run([*script, "df3k"], env=environment, capture_output=True, text=True)
    assert unknown.returncode == 1 and "name a set to prepare" in unknown.stderr


def test_slurm_starts_the_trainer_on_its_nodes(root: Path, photos: Path, tmp_path: Path) -> None:
    """One node of two CPU processes, with stand-ins for SLURM's two commands."""
    (tmp_path / "bin").mkdir()
    for name, text in (("srun", 'shift\nexec "$@"'), ("scontrol", "echo localhost")):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7", "GPUS": "2"}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, **slurm, "PATH": path, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment |= {"SLURM_SUBMIT_DIR": str(root), "RDZV_PORT": "29641"}
    words = ["--data", photos / "train", "--out", tmp_path / "run", "--device", "cpu", "--steps", "2", "--batch", "2"]
    words += ["--patch", "16", "--workers", "0", "--no-tensorboard", "--model_overrides", *TINY]
    command = ["bash", str(root / "scripts" / "train_slurm.sh"), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "a step: 2 patches = 2 process(es) x 1 pass(es) x 1" in done.stdout
    assert checkpoint(tmp_path / "run")["step"] == 2
