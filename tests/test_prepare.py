"""Training sets made ready: every pixel covered, pairs kept, the same bytes after a stop, faults named."""

import errno
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
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from image_data import parquet
from image_data.sources import DataError, expand
from image_data.sub_images import positions
from models.team08_HATFreq.image_io import read_picture, read_rgb, write_png
from models.team08_HATFreq.system import HOST, TEMPORARY
from scripts import prepare_data
from tests.training_run import TINY, checkpoint, contents, wait_for_step


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def prepare(*words: object) -> subprocess.CompletedProcess[str]:
    """The script, without the seconds that a process of its own takes to start."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = prepare_data.main([str(word) for word in words])
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
    done = prepare("sub-images", *words, "--side", 64, "--step", 32)
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
    words = ["sub-images", tmp_path / "HR", "--side", 64, "--step", 32]
    assert prepare(*words, "--out", tmp_path / "whole").returncode == 0
    torn = tmp_path / "torn"
    program = [sys.executable, "-m", "scripts.prepare_data", *map(str, words), "--out", str(torn)]
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
    assert 0 < begun < len(whole) == 24 * 144 + 1
    assert prepare(*words, "--out", torn).returncode == 0
    resumed = contents(torn)
    assert resumed.keys() == whole.keys()
    assert all(resumed[name] == whole[name] for name in whole)


def encoded(suffix: str, seed: int) -> bytes:
    image = Image.fromarray(noise(20 + seed, 24, seed))
    buffer = io.BytesIO()
    image.save(buffer, suffix)
    return buffer.getvalue()


def test_parquet_of_both_layouts_becomes_shards_that_are_read(tmp_path: Path) -> None:
    source, out = tmp_path / "tables", tmp_path / "shards"
    source.mkdir()
    images = [encoded("jpeg", 1), encoded("png", 2), encoded("webp", 3)]
    hub = [{"image": {"bytes": one, "path": "x"}, "label": 1} for one in images]
    pq.write_table(pa.Table.from_pylist(hub), source / "hub-0.parquet", row_group_size=2)
    rows = [("00001", images[0]), ("00002", None), ("00003", b"GIF89a"), ("00004", images[1])]  # as img2dataset's
    pq.write_table(pa.table({"jpg": [one for _, one in rows], "key": [key for key, _ in rows]}), source / "b.parquet")
    done = prepare("parquet", source.as_uri(), "--out", out)
    assert done.returncode == 0 and "5 images in 2 shards" in done.stdout, done.stderr
    assert "2 rows hold no image of a known format" in done.stderr
    found = expand(str(out / "shards.txt"))
    assert [image.member for image in found] == [
        "b/00001.jpg", "b/00004.png", "hub-0/00000000.jpg", "hub-0/00000001.png", "hub-0/00000002.webp"]  # fmt: skip
    assert [image.content() for image in found] == [*images[:2], *images]
    assert [image.read_rgb().shape for image in found[2:]] == [(21, 24, 3), (22, 24, 3), (23, 24, 3)]

    first = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (out / "b.tar").unlink()
    again = prepare("parquet", source, "--out", out)  # by path, and only what is missing
    assert again.returncode == 0 and "5 images in 2 shards" in again.stdout
    now = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert now[out / "hub-0.tar"] == first[out / "hub-0.tar"] and now[out / "b.tar"] > first[out / "b.tar"]
    assert [image.content() for image in expand(str(out / "shards.txt"))] == [*images[:2], *images]


def test_parquet_with_repeated_keys_and_what_is_no_shard(tmp_path: Path) -> None:
    images, out = [encoded("png", number) for number in range(3)], tmp_path / "shards"
    pq.write_table(pa.table({"png": images, "key": ["a", "b", "a"]}), tmp_path / "x.parquet")
    for content in (b"", b"no tar", None):  # found in place of the shard
        assert prepare("parquet", tmp_path / "x.parquet", "--out", out).returncode == 0
        found = expand(str(out / "shards.txt"))
        assert [image.member for image in found] == ["x/a.png", "x/b.png", "x/a_00000002.png"]
        assert [image.content() for image in found] == images
        if content is not None:
            (out / "x.tar").write_bytes(content)


def test_a_connection_that_fails_is_no_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(word: str) -> None:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(parquet, "_open", unreachable)
    with pytest.raises(DataError, match=r"s3://b/x\.parquet cannot be read .*timed out\): check access and connection"):
        parquet._unpack(parquet.Table("s3://b/x.parquet", 0), tmp_path)
    assert not list(tmp_path.iterdir())


def test_parquet_without_images_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    pq.write_table(pa.table({"url": ["http://x"]}), tmp_path / "a.parquet")
    done = prepare("parquet", tmp_path / "a.parquet", "--out", tmp_path / "out")
    assert done.returncode == 1 and "a.parquet has no column of encoded images (url)" in done.stderr
    pq.write_table(pa.table({"jpg": pa.array([None, b"<html>"], pa.binary())}), tmp_path / "a.parquet")
    done = prepare("parquet", tmp_path / "a.parquet", "--out", tmp_path / "out")
    assert done.returncode == 1 and "holds no JPEG, PNG, WebP, BMP or TIFF in any of its 2 rows" in done.stderr
    (tmp_path / "a.parquet").write_bytes(b"PAR1 cut")
    done = prepare("parquet", tmp_path / "a.parquet", "--out", tmp_path / "out")
    assert done.returncode == 1 and "a.parquet cannot be read" in done.stderr and ": download it again" in done.stderr
    assert not list((tmp_path / "out").iterdir())
    done = prepare("parquet", tmp_path / "out", "--out", tmp_path / "out")
    assert done.returncode == 1 and "holds no Parquet files" in done.stderr
    done = prepare("parquet", tmp_path / "none", "--out", tmp_path / "out")
    assert done.returncode == 1 and "none holds no Parquet files" in done.stderr


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


@pytest.mark.slow
def test_finished_photographs_are_passed_over_and_changed_ones_cut_again(root: Path, tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    for number in range(2):
        write_png(tmp_path / "HR" / f"{number}.png", noise(96, 96, number))
    words = ["sub-images", tmp_path / "HR", "--side", 64, "--out", tmp_path / "sub"]
    assert "8 sub-images" in prepare(*words, "--step", 32).stdout
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "sub").glob("0_s*.png")}
    write_png(tmp_path / "HR" / "1.png", noise(96, 64, 2))  # narrower now: two sub-images are left
    assert "6 sub-images" in prepare(*words, "--step", 32).stdout
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "sub").glob("0_s*.png")}
    assert sorted(path.name for path in (tmp_path / "sub").glob("1_s*.png")) == ["1_s001.png", "1_s002.png"]
    np.testing.assert_array_equal(read_rgb(tmp_path / "sub" / "1_s002.png"), noise(96, 64, 2)[32:])
    otherwise = prepare(*words, "--step", 64)
    assert otherwise.returncode == 1
    assert "holds {'side': 64, 'step': 32}, this would be {'side': 64, 'step': 64}: name another" in otherwise.stderr
    (tmp_path / "HR" / "0.png").rename(tmp_path / "HR" / "5.png")
    assert "sub holds 4 images that are not of these photographs, as 0_s001.png" in prepare(*words, "--step", 32).stderr


def test_grey_photographs_stay_grey_and_deep_ones_are_rounded(root: Path, tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    write_png(tmp_path / "HR" / "grey.png", noise(64, 64)[..., 0])
    write_png(tmp_path / "HR" / "deep.png", np.minimum(noise(64, 64, 1) * 257.0 + 100, 65535).astype(np.uint16))
    assert prepare("sub-images", tmp_path / "HR", "--out", tmp_path / "sub").returncode == 0
    grey = read_picture(tmp_path / "sub" / "grey_s001.png")
    assert grey.grey and (grey.rgb == noise(64, 64)[..., :1]).all()  # the trainer's audit still finds it out
    np.testing.assert_array_equal(read_picture(tmp_path / "sub" / "deep_s001.png").rgb, noise(64, 64, 1))


def test_photographs_that_cannot_be_told_apart_or_paired_are_refused(root: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "LR"):
        (tmp_path / name).mkdir()
        write_png(tmp_path / name / "1.png", noise(64, 64))
    both = prepare("sub-images", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "sub")
    assert both.returncode == 1 and "several photographs are called 1, and sub-images are named" in both.stderr
    words = ["sub-images", tmp_path / "a", "--out", tmp_path / "sub", "--out_lr", tmp_path / "sub_lr"]
    paired = prepare(*words, "--lr", tmp_path / "LR")
    assert paired.returncode == 1 and "LR/1.png is 64x64, " in paired.stderr and "needs 16x16" in paired.stderr
    assert not list((tmp_path / "sub").glob("*.png"))
    (tmp_path / "link").symlink_to(tmp_path)
    one = prepare(*words[:-1], tmp_path / "link" / "sub", "--lr", tmp_path / "LR")
    assert one.returncode == 2 and "--out and --out_lr are one folder" in one.stderr
    write_png(tmp_path / "a" / "2.png", noise(3, 64))
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "b" / "1.png").read_bytes()[:2000])  # its header is whole
    small = prepare("sub-images", tmp_path / "a", "--out", tmp_path / "sub")
    assert small.returncode == 1 and "2 images cannot be read" in small.stderr
    assert "1.png is damaged or truncated" in small.stderr and "2.png has 64x3 pixels, less than" in small.stderr


def test_lists_leave_small_images_out_and_open_from_anywhere(root: Path, tmp_path: Path) -> None:
    for number, (h, w) in enumerate([(64, 64), (63, 200), (90, 70)]):
        (tmp_path / "tree" / f"n{number}").mkdir(parents=True)
        write_png(tmp_path / "tree" / f"n{number}" / "x.png", noise(h, w, number))
    out = tmp_path / "lists" / "train.txt"
    done = prepare("list", f"{tmp_path}/tree/**", "--min_side", 64, "--out", out, "--expect", "lsdir")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "warning: lsdir has 84,991 images, 3 were found\n"
    assert (
        f"2 images listed in {out}, 0.00 GB, 1 left out as smaller than 64 pixels; 3 of 84,991 images in" in done.stdout
    )
    assert out.read_text().splitlines()[1:] == ["../tree/n0/x.png", "../tree/n2/x.png"]
    for image, expected in zip(expand(str(out)), [noise(64, 64, 0), noise(90, 70, 2)], strict=True):
        np.testing.assert_array_equal(image.read_rgb(), expected)


def test_shards_hold_the_same_bytes_whenever_they_are_made(root: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    files = {}
    for number in range(5):
        write_png(tmp_path / "images" / f"{number}.png", noise(20, 20, number))
        files[f"images/{number}.png"] = (tmp_path / "images" / f"{number}.png").read_bytes()
    words = ["shards", tmp_path / "images", "--shard_gb", "0.000005"]  # each takes 512 + 1536 bytes: two a shard
    done = prepare(*words, "--out", tmp_path / "one" / "set")
    assert done.returncode == 0 and "5 images in 3 shards" in done.stdout, done.stderr
    images = expand(str(tmp_path / "one" / "set" / "shards.txt"))
    assert {image.member: image.content() for image in images} == files
    shards = [contents(tmp_path / "one" / "set")[f"set-0000{number}.tar"] for number in range(3)]
    assert [len(shard) for shard in shards] == [tarfile.RECORDSIZE] * 3
    assert prepare(*words, "--out", tmp_path / "two" / "set").returncode == 0
    shard, untouched = (tmp_path / "two" / "set" / f"set-0000{number}.tar" for number in (1, 2))
    shard.write_bytes(shard.read_bytes()[:1000])
    before = untouched.stat().st_mtime_ns
    assert prepare(*words, "--out", tmp_path / "two" / "set").returncode == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert untouched.stat().st_mtime_ns == before
    for name in (f"{TEMPORARY}set-00009.tar", f"{TEMPORARY}abc-{HOST}-999999999"):  # of killed processes
        (shard.parent / name).write_bytes(b"cut off")
    shard.unlink()
    assert prepare(*words, "--out", tmp_path / "two" / "set").returncode == 0
    (shard.parent / f"{TEMPORARY}set-00009.tar").unlink()
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_shards_follow_their_images(root: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        write_png(tmp_path / "images" / f"{number}.png", noise(20, 20, number))
    long = tmp_path / "images" / f"{'x' * 150}.png"
    write_png(long, noise(20, 20, 3))
    (tmp_path / "images" / "bad.jpg").write_bytes(b"no image")
    words = ["shards", tmp_path / "images", "--out", tmp_path / "set"]
    refused = prepare(*words)
    assert refused.returncode == 1 and "bad.jpg is not an image" in refused.stderr
    assert not list(tmp_path.glob("set/*"))
    assert prepare(*words, "--bad_images", "skip").returncode == 0
    assert "bad.jpg" in (tmp_path / "set.unreadable.csv").read_text().splitlines()[1]
    images = expand(str(tmp_path / "set" / "shards.txt"))
    assert [image.stem for image in images] == ["0", "1", "2", "x" * 150]
    for number, image in enumerate(images):
        np.testing.assert_array_equal(image.read_rgb(), noise(20, 20, number))
    (tmp_path / "images" / "bad.jpg").unlink()
    write_png(tmp_path / "images" / "1.png", noise(20, 20, 9))  # as long as before
    assert prepare(*words).returncode == 0
    np.testing.assert_array_equal(expand(str(tmp_path / "set" / "shards.txt"))[1].read_rgb(), noise(20, 20, 9))
    assert not (tmp_path / "set.unreadable.csv").exists()
    assert "1 shards" in prepare(*words).stdout
    assert prepare("shards", *words[1:-1], tmp_path / "small", "--shard_gb", "0.000002").returncode == 0
    fewer = prepare("shards", *words[1:-1], tmp_path / "small")
    assert fewer.returncode == 1 and "small holds 3 shards that these images do not fill" in fewer.stderr


def test_a_list_of_a_shard_opens_from_anywhere(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    for number, side in enumerate((20, 40)):
        write_png(tmp_path / "images" / f"{number}.png", noise(side, side, number))
    assert prepare("shards", tmp_path / "images", "--out", tmp_path / "set").returncode == 0
    monkeypatch.chdir(tmp_path)
    assert prepare("list", "set/shards.txt", "--min_side", 30, "--out", "lists/large.txt").returncode == 0
    monkeypatch.chdir("/")
    assert (tmp_path / "lists/large.txt").read_text().splitlines()[1:] == ["../set/set-00000.tar::images/1.png"]
    np.testing.assert_array_equal(expand(str(tmp_path / "lists/large.txt"))[0].read_rgb(), noise(40, 40, 1))
    write_png(tmp_path / "images" / "#2.png", noise(40, 40))
    odd = prepare("list", tmp_path / "images", "--min_side", 30, "--out", tmp_path / "images" / "l.txt")
    assert odd.returncode == 1 and "#2.png' cannot stand in a list" in odd.stderr
    (tmp_path / "images" / "#2.png").rename(tmp_path / "images" / "a\rb.png")
    odd = prepare("list", tmp_path / "images", "--min_side", 30, "--out", tmp_path / "l.txt")
    assert odd.returncode == 1 and "a\\rb.png' cannot stand in a list" in odd.stderr
    none = prepare("list", tmp_path / "images", "--min_side", 50, "--out", tmp_path / "l.txt")
    assert none.returncode == 1 and "no image is left to list" in none.stderr


def test_unreadable_images_are_named_and_left_out_only_when_asked_to(root: Path, tmp_path: Path) -> None:
    (tmp_path / "HR").mkdir()
    write_png(tmp_path / "HR" / "good.png", noise(64, 64))
    (tmp_path / "HR" / "bad.png").write_bytes(b"")
    for command, out in (("sub-images", "sub"), ("list", "list.txt")):
        words = [command, tmp_path / "HR", "--out", tmp_path / out, *(["--min_side", 8] if command == "list" else [])]
        refused = prepare(*words)
        assert refused.returncode == 1 and "1 images cannot be read" in refused.stderr
        assert "bad.png is empty" in refused.stderr
        skipped = prepare(*words, "--bad_images", "skip")
        assert skipped.returncode == 0, skipped.stderr
        assert "bad.png is empty" in (tmp_path / f"{out}.unreadable.csv").read_text()
    assert [image.stem for image in expand(str(tmp_path / "list.txt"))] == ["good"]
    assert "step must be" in prepare("sub-images", "x", "--out", "y", "--step", 30).stderr
    missing = prepare("list", tmp_path / "none", "--out", tmp_path / "l.txt")
    assert missing.returncode == 1 and missing.stderr.startswith("error: ") and "does not exist" in missing.stderr


def test_shards_into_the_folder_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "set").mkdir()
    write_png(tmp_path / "images" / "1.png", noise(20, 20))
    monkeypatch.chdir(tmp_path / "set")
    assert prepare("shards", tmp_path / "images", "--out", ".").returncode == 0
    assert sorted(path.name for path in (tmp_path / "set").iterdir()) == ["set-00000.tar", "shards.txt"]


@pytest.mark.slow
def test_the_shell_script_prepares_df2k(root: Path, tmp_path: Path) -> None:
    for name in ("DIV2K/DIV2K_train_HR", "Flickr2K/Flickr2K_HR"):
        (tmp_path / name).mkdir(parents=True)
        write_png(tmp_path / name / f"{name[0]}.png", noise(72, 64))
    environment = {**os.environ, "DATA": str(tmp_path), "PYTHON": sys.executable}
    script = ["bash", str(root / "scripts" / "prepare_data.sh")]
    done = subprocess.run([*script, "df2k"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "df2k has 3,450 images, 2 were found" in done.stderr
    assert sorted(path.name for path in (tmp_path / "DF2K_sub").glob("*.png")) == ["D_s001.png", "F_s001.png"]
    cut = ["sub-images", "DIV2K/DIV2K_train_HR", "--out", "here", "--side", "64", "--step", "64"]
    done = subprocess.run([*script, *cut], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and len(list((tmp_path / "here").glob("D_s*.png"))) == 2, done.stderr
    unknown = subprocess.run([*script, "df3k"], env=environment, capture_output=True, text=True)
    assert unknown.returncode == 1 and "name a set to prepare" in unknown.stderr


def test_slurm_tries_again_after_a_checkpoint(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    srun = f"[ ! -e {run}/checkpoint.pt ] || exit 0\ntouch {run}/checkpoint.pt\nexit 3"
    for name, text in (("srun", srun), ("scontrol", "echo localhost")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "n", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(root)}
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}", "GPUS": "1"}
    script = ["bash", str(root / "scripts" / "train_slurm.sh"), "--config", "x.yaml"]
    none = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert none.returncode == 1 and "name the run folder with --out" in none.stderr
    done = subprocess.run([*script, f"--out={run}"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "failed with status 3 after a checkpoint: trying again" in done.stdout


@pytest.mark.slow
def test_slurm_trains_on_its_nodes_stops_in_time_and_resumes(root: Path, photos: Path, tmp_path: Path) -> None:
    """One node of two CPU processes, with stand-ins for SLURM's two commands."""
    (tmp_path / "bin").mkdir()
    scontrol = f'[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path}/scontrol.log'
    for name, text in (("srun", 'shift\nexec "$@"'), ("scontrol", scontrol)):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_ID": "7", "GPUS": "2"}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, **slurm, "PATH": path, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment |= {"SLURM_SUBMIT_DIR": str(root), "RDZV_PORT": "29641", "PYTHONUNBUFFERED": "1"}
    words = [
        "--data",
        photos / "train",
        "--out",
        tmp_path / "run",
        "--device",
        "cpu",
        "--steps",
        "3000",
        "--batch",
        "2",
    ]
    words += ["--patch", "16", "--workers", "0", "--no-tensorboard", "--log_every", "1", "--model_overrides", *TINY]
    command = ["bash", str(root / "scripts" / "train_slurm.sh"), *map(str, words)]
    job = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    wait_for_step(job, 2)
    job.terminate()  # SLURM's signal before the time limit
    said = job.communicate(timeout=100)[0]
    assert job.returncode != 0 and "goes into the queue again" in said, said
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"
    step = checkpoint(tmp_path / "run")["step"]
    assert 2 <= step < 3000
    again = [*command, "--finish_in", "2"]
    done = subprocess.run(again, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "a step: 2 patches = 2 process(es) x 1 pass(es) x 1" in done.stdout
    assert checkpoint(tmp_path / "run")["step"] == step + 2
    assert (tmp_path / "scontrol.log").read_text() == "requeue 7\n"  # a run that has ended is not queued again
    wrong = [str(tmp_path / "none") if word == str(photos / "train") else word for word in command]
    failed = subprocess.run([*wrong, "--out", str(tmp_path / "other")], env=environment, capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.count("none does not exist") == 2, "each rank says so once"
