"""A folder of images: read ahead and written behind, errors in each stage, the record, several processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from threading import Barrier, Lock
from typing import Any

import numpy as np
import pytest
import torch

from models.team08_HATFreq import PRESETS, HATFreq, folder, override
from models.team08_HATFreq.folder import (
    RECORD,
    Record,
    RestorationError,
    open_record,
    read_lines,
    restore_inputs,
    share_out,
)
from models.team08_HATFreq.image_io import ImageError, Picture, read_rgb, write_png
from models.team08_HATFreq.inference import HATFreqRestorer
from models.team08_HATFreq.weights import save_weights
from utils.files import HOST, TEMPORARY

COUNT = 6
SETTINGS = {"model": "some"}


class Enlarging:
    """Repeats pixels."""

    scale, settings, progress = 4, {"model": "nearest"}, None

    def __call__(self, rgb: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        return rgb.repeat(4, 0).repeat(4, 1), {}


@pytest.fixture
def lq(tmp_path: Path) -> Path:
    (tmp_path / "LR").mkdir()
    for number in range(COUNT):
        write_png(tmp_path / "LR" / f"{number}.png", np.full((4 + number, 5, 3), 10 * number, np.uint8))
    return tmp_path / "LR"


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def images_of(path: Path) -> dict[str, Any]:
    return {line["name"]: line for line in read_lines(path / RECORD) if "name" in line}


# ---------------------------------------------------------------------------------------------------------------------
# Stages
# ---------------------------------------------------------------------------------------------------------------------


def test_one_image_is_read_and_one_written_while_one_is_restored(
    tmp_path: Path, lq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts instead of seconds: three images are in memory at most, and the stages do overlap."""
    lock, now, most, overlaps = Lock(), {"read": 0, "restore": 0, "write": 0}, [0], set()
    alive = [0]

    def stage(name: str, function: Any, change: int) -> Any:
        def wrapped(*arguments: Any) -> Any:
            with lock:
                now[name] += 1
                overlaps.add(frozenset(kind for kind, count in now.items() if count))
            time.sleep(0.05)
            result = function(*arguments)
            with lock:
                now[name] -= 1
                alive[0] += change
                most[0] = max(most[0], alive[0])
            return result

        return wrapped

    monkeypatch.setattr(folder, "SMALL", 0)
    monkeypatch.setattr(folder, "read_picture", stage("read", folder.read_picture, 1))
    monkeypatch.setattr(folder, "write_picture", stage("write", folder.write_picture, -1))
    monkeypatch.setattr(Enlarging, "__call__", stage("restore", Enlarging.__call__, 0))
    restore_inputs(Enlarging(), lq, tmp_path / "out")
    assert alive[0] == 0 and 2 <= most[0] <= 3
    assert any({"read", "restore"} <= kinds for kinds in overlaps)
    assert any({"write", "restore"} <= kinds for kinds in overlaps)
    for number in range(COUNT):
        assert (read_rgb(tmp_path / "out" / f"{number}.png") == 10 * number).all()


def test_several_small_results_are_written_at_once(tmp_path: Path, lq: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressing them would else be what a GPU waits for; the record still holds a whole line for each."""
    meeting, write = Barrier(folder.WRITERS, timeout=60), folder.write_picture

    def together(path: Path, picture: Picture, quality: int) -> None:
        if int(path.stem) < folder.WRITERS:
            meeting.wait()
        write(path, picture, quality)

    monkeypatch.setattr(folder, "write_picture", together)
    restore_inputs(Enlarging(), lq, tmp_path / "out")
    assert sorted(images_of(tmp_path / "out")) == [f"{number}.png" for number in range(COUNT)]


def test_errors_of_every_stage_are_named_in_the_folders_order(
    tmp_path: Path, lq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lq / "1.png").write_bytes(b"cut")
    (lq / "4.png").unlink()
    (lq / "4.png").symlink_to(lq / "4.png")
    write = folder.write_picture

    def failing(path: Path, picture: Picture, quality: int) -> None:
        if path.name == "2.png":
            raise OSError(28, "No space left on device")
        if path.name == "3.png":
            raise MemoryError("Unable to allocate output buffer")
        write(path, picture, quality)

    def refuse(self: Enlarging, rgb: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        if rgb[0, 0, 0] == 50:
            raise ImageError("a picture of this kind is refused")
        return rgb.repeat(4, 0).repeat(4, 1), {}

    monkeypatch.setattr(folder, "write_picture", failing)
    monkeypatch.setattr(Enlarging, "__call__", refuse)
    with pytest.raises(RestorationError) as caught:
        restore_inputs(Enlarging(), lq, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 of 6 images could not be restored:"
    for name, text, line in zip(
        ("1.png", "2.png", "3.png", "4.png", "5.png"),
        ("not an image", "Errno 28", "out of memory", "symbolic links", "refused"),
        lines[1:],
        strict=True,
    ):
        assert name in line and text in line
    assert names_in(tmp_path / "out") == ["0.png", RECORD]


def test_a_fault_of_the_program_ends_the_run_and_keeps_what_was_restored(
    tmp_path: Path, lq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(self: Enlarging, rgb: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        if rgb[0, 0, 0] == 20:
            raise RuntimeError("shapes do not match")
        return rgb.repeat(4, 0).repeat(4, 1), {}

    monkeypatch.setattr(Enlarging, "__call__", breaks)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        restore_inputs(Enlarging(), lq, tmp_path / "out")
    assert names_in(tmp_path / "out") == ["0.png", "1.png", RECORD]


def test_what_is_passed_over_is_said(tmp_path: Path, lq: Path, capsys: pytest.CaptureFixture) -> None:
    (lq / "sub").mkdir()
    (lq / "movie.gif").touch()
    restore_inputs(Enlarging(), lq, tmp_path / "out")
    said = capsys.readouterr().out
    assert "1 folder(s) (sub)" in said and "1 file(s) of other formats (movie.gif)" in said


def test_files_instead_of_a_folder(tmp_path: Path, lq: Path) -> None:
    restore_inputs(Enlarging(), [lq / "1.png", str(lq / "3.png")], tmp_path / "two")
    restore_inputs(Enlarging(), lq / "2.png", tmp_path / "one")
    assert names_in(tmp_path / "two") == ["1.png", "3.png", RECORD] and names_in(tmp_path / "one") == ["2.png", RECORD]


def test_inputs_for_one_output_are_refused_all_at_once(tmp_path: Path, lq: Path) -> None:
    for name in ("1.bmp", "3.jpg"):
        (lq / name).touch()
    with pytest.raises(RestorationError, match=r"1\.bmp, 1\.png, 3\.jpg, 3\.png would share names"):
        restore_inputs(Enlarging(), lq, tmp_path / "out")


def test_a_results_folder_is_not_restored_into_itself(tmp_path: Path, lq: Path) -> None:
    restore_inputs(Enlarging(), lq, tmp_path / "out")
    for inputs in (tmp_path / "out", [tmp_path / "LR" / ".." / "out" / "3.png"]):
        with pytest.raises(RestorationError, match=r"\.png is an input, and a result would replace it"):
            restore_inputs(Enlarging(), inputs, tmp_path / "out", overwrite=True)
    assert read_rgb(tmp_path / "out" / "3.png").shape == (28, 20, 3)
    assert len(images_of(tmp_path / "out")) == COUNT  # its record, too


def test_what_is_begun_anew_is_not_mixed_with_what_was_there(tmp_path: Path, lq: Path) -> None:
    restore_inputs(Enlarging(), lq, tmp_path / "out")
    assert len(names_in(tmp_path / "out")) == COUNT + 1
    (tmp_path / "out" / "mine.png").write_bytes(b"mine")
    with (tmp_path / "out" / RECORD).open("a") as file:
        file.write('{"name": "../LR/1.png"}\n{"name": 3}\n')
    (lq / "3.png").write_bytes(b"damaged")
    with pytest.raises(RestorationError, match=r"3\.png"):
        restore_inputs(Enlarging(), [lq / "1.png", lq / "3.png"], tmp_path / "out", overwrite=True)
    assert names_in(tmp_path / "out") == ["1.png", "mine.png", RECORD] and (lq / "1.png").exists()


# ---------------------------------------------------------------------------------------------------------------------
# The record
# ---------------------------------------------------------------------------------------------------------------------


def test_a_record_grows_by_a_line_an_image(tmp_path: Path) -> None:
    record = open_record(tmp_path, SETTINGS, [], overwrite=False)
    sizes = [record.path.stat().st_size]
    for number in range(5):
        record.add({"name": f"{number}.png", "source_sha256": "x", "bytes": 1})
        sizes.append(record.path.stat().st_size)
    assert len(set(np.diff(sizes))) == 1  # whatever is in it already
    record.path.write_bytes(record.path.read_bytes()[:-9])  # a kill while the last line was written
    assert list(open_record(tmp_path, SETTINGS, [], overwrite=False).images) == [f"{n}.png" for n in range(4)]


def test_a_line_cut_by_a_kill_does_not_spoil_the_next(tmp_path: Path) -> None:
    record = open_record(tmp_path, SETTINGS, [], overwrite=False)
    record.add({"name": "a.png", "source_sha256": "a", "bytes": 1})
    record.path.write_bytes(record.path.read_bytes() + b'{"name": "b.pn')
    again = open_record(tmp_path, SETTINGS, [], overwrite=False)
    again.add({"name": "c.png", "source_sha256": "c", "bytes": 1})
    assert list(open_record(tmp_path, SETTINGS, [], overwrite=False).images) == ["a.png", "c.png"]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_line_cut_by_a_full_disk_does_not_spoil_the_next(tmp_path: Path, fresh: bool) -> None:
    resource = pytest.importorskip("resource")  # Unix
    record = Record(tmp_path, SETTINGS, {}) if fresh else open_record(tmp_path, SETTINGS, [], overwrite=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (record.path.stat().st_size + 9 if not fresh else 9, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write .*record\.jsonl .*make room on the disk"):
            record.add({"name": "a.png", "source_sha256": "a", "bytes": 1})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    record.add({"name": "b.png", "source_sha256": "b", "bytes": 1})
    assert list(open_record(tmp_path, SETTINGS, [], overwrite=False).images) == ["b.png"]


def test_only_whole_results_of_the_same_input_are_finished(tmp_path: Path) -> None:
    record = open_record(tmp_path, SETTINGS, [], overwrite=False)
    (tmp_path / "a.png").write_bytes(b"1234567")
    record.add({"name": "a.png", "source_sha256": "a", "bytes": 7})
    assert record.finished("a.png", "a") and not record.finished("a.png", "of other content")
    (tmp_path / "a.png").write_bytes(b"1234")
    assert not record.finished("a.png", "a")


def test_what_killed_processes_noted_is_kept(tmp_path: Path) -> None:
    open_record(tmp_path, SETTINGS, [], overwrite=False)
    for rank, name in enumerate(("b.png", "a.png"), start=1):
        Record(tmp_path, SETTINGS, {}, rank).add({"name": name, "source_sha256": name, "bytes": 0})
    assert set(open_record(tmp_path, SETTINGS, [], overwrite=False).images) == {"a.png", "b.png"}
    assert names_in(tmp_path) == [RECORD]
    Record(tmp_path, {"model": "other"}, {}, 1).add({"name": "c.png"})
    with pytest.raises(RestorationError, match="model was 'other' and is now 'some'"):
        open_record(tmp_path, SETTINGS, [], overwrite=False)
    assert open_record(tmp_path, SETTINGS, [], overwrite=True).images == {}
    assert names_in(tmp_path) == [RECORD]


@pytest.mark.parametrize(
    "content", [b"", b"garbage\n", b"[]\n", b'{"images": null}\n', b'{"settings": 3}\n', b"\xff\n"]
)
def test_what_is_not_a_record_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECORD).write_bytes(content)
    with pytest.raises(RestorationError, match=r"record\.jsonl is not a record .*use --overwrite"):
        open_record(tmp_path, SETTINGS, [], overwrite=False)


def test_leftovers_of_a_kill_go_and_those_of_a_running_process_stay(tmp_path: Path, lq: Path) -> None:
    (tmp_path / "out").mkdir()
    running, ended = os.getpid(), 2**22 + 1
    elsewhere = "0" * len(HOST)  # another machine's processes cannot be looked up
    writers = [f"{HOST}-{running}", f"{HOST}-{ended}", f"{elsewhere}-{ended}"]
    for writer in writers:
        (tmp_path / "out" / f"{TEMPORARY}abc-{writer}").touch()
    restore_inputs(Enlarging(), lq, tmp_path / "out")
    left = {name for name in names_in(tmp_path / "out") if name.startswith(TEMPORARY)}
    assert left == {f"{TEMPORARY}abc-{writers[0]}", f"{TEMPORARY}abc-{writers[2]}"}


# ---------------------------------------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------------------------------------


def test_pixels_are_shared_out_largest_first() -> None:
    pixels = {"a": 10, "b": 70, "c": 50, "d": 40, "e": 30, "f": 0}
    assert share_out(pixels, 2) == [["b", "e", "f"], ["a", "c", "d"]]  # 100 and 100 pixels, in the folder's order
    assert share_out(pixels, 1) == [list(pixels)]
    assert share_out({"a": 5}, 3) == [["a"], [], []]
    assert share_out({}, 2) == [[], []]


def test_shares_are_even_and_hold_every_image_once() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        count, processes = int(rng.integers(1, 120)), int(rng.integers(1, 9))
        pixels = {str(n): int(rng.integers(0, 300_000)) for n in range(count)}
        shares = share_out(pixels, processes)
        assert sorted(name for share in shares for name in share) == sorted(pixels)
        loads = [sum(pixels[name] for name in share) for share in shares]
        assert max(loads) - min(loads) <= max(pixels.values())
        assert max(loads) <= 4 / 3 * max(sum(loads) / processes, max(pixels.values())) + count


@pytest.mark.slow
def test_two_processes_make_what_one_makes(root: Path, tmp_path: Path, lq: Path) -> None:
    torch.manual_seed(0)
    model = HATFreq(override(PRESETS["light"], {"embed_dim": 8, "depths": (1,), "num_heads": (1,)})).eval()
    torch.nn.init.normal_(model.upsample[0].weight, std=0.05)
    save_weights(model, tmp_path / "w.safetensors", {})
    (lq / "3.png").write_bytes(b"cut")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    argv = ["--valid_dir", lq, "--test_dir", lq, "--save_dir", tmp_path / "out"]
    argv += ["--weights", tmp_path / "w.safetensors"]
    command = [*launch, str(root / "test.py"), *map(str, argv), "--device", "cpu", "--ensemble", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0 and "3.png" in done.stderr and "Connection closed" not in done.stderr
    assert done.stderr.count("1 of 6 images could not be restored") == done.stdout.count("5 images restored") == 2
    out, good = tmp_path / "out" / "08_HATFreq" / "test", ["0.png", "1.png", "2.png", "4.png", "5.png"]
    assert names_in(out) == [*good, RECORD] and sorted(images_of(out)) == good
    run = json.loads((out / RECORD).read_text().splitlines()[-1])["run"]
    assert run["processes"] == 2 and run["restored"] == 5
    (lq / "3.png").unlink()
    restore_inputs(HATFreqRestorer(model, torch.device("cpu"), ensemble=1), lq, tmp_path / "alone")
    for name in good:
        difference = read_rgb(out / name).astype(int) - read_rgb(tmp_path / "alone" / name)
        assert np.abs(difference).max() <= 1  # another number of threads
