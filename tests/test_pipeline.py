"""Reading ahead and writing behind: the time it saves, what is in memory meanwhile, and errors in each stage."""

import time
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest

from models.team08_HATFreq import pipeline
from models.team08_HATFreq.image_io import ImageError, read_rgb, write_png
from models.team08_HATFreq.inference import restore_folder
from models.team08_HATFreq.record import RestorationError

STEP = 0.1  # seconds
COUNT = 6


class Enlarging:
    """Repeats pixels, slowly."""

    scale, settings = 4, {"model": "nearest"}

    def __call__(self, rgb: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        time.sleep(STEP)
        return rgb.repeat(4, 0).repeat(4, 1), {}


@pytest.fixture
def lq(tmp_path: Path) -> Path:
    (tmp_path / "LR").mkdir()
    for number in range(COUNT):
        write_png(tmp_path / "LR" / f"{number}.png", np.full((4, 5, 3), 10 * number, np.uint8))
    return tmp_path / "LR"


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Makes reading and writing take a step each; counts the images read or restored and not yet written, at most."""
    read, write, lock = pipeline.read_picture, pipeline.write_png, Lock()
    counts = {"now": 0, "most": 0}

    def slow_read(path: Path, content: bytes | None) -> pipeline.Picture:
        time.sleep(STEP)
        with lock:
            counts["now"] += 1
            counts["most"] = max(counts.values())
        return read(path, content)

    def slow_write(path: Path, samples: np.ndarray) -> None:
        time.sleep(STEP)
        write(path, samples)
        with lock:
            counts["now"] -= 1

    monkeypatch.setattr(pipeline, "read_picture", slow_read)
    monkeypatch.setattr(pipeline, "write_png", slow_write)
    return counts


def test_reading_and_writing_take_no_time_of_their_own(tmp_path: Path, lq: Path, slow: dict[str, int]) -> None:
    began = time.monotonic()
    record = restore_folder(Enlarging(), lq, tmp_path / "out")
    seconds = time.monotonic() - began
    assert (COUNT + 2) * STEP <= seconds < (COUNT + 2) * STEP + 0.8 < 3 * COUNT * STEP
    assert slow["now"] == 0 and 2 <= slow["most"] <= 3  # one written, one restored, one read
    assert list(record.content["images"]) == [f"{number}.png" for number in range(COUNT)]
    for number in range(COUNT):
        assert (read_rgb(tmp_path / "out" / f"{number}.png") == 10 * number).all()


def test_errors_of_every_stage_are_named_in_the_folders_order(
    tmp_path: Path, lq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lq / "1.png").write_bytes(b"cut")
    write, restorer = pipeline.write_png, Enlarging()

    def full_disk(path: Path, samples: np.ndarray) -> None:
        if path.name == "2.png":
            raise OSError(28, "No space left on device")
        write(path, samples)

    def refuse(self: Enlarging, rgb: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        if rgb[0, 0, 0] == 50:
            raise ImageError("a picture of this kind is refused")
        return rgb.repeat(4, 0).repeat(4, 1), {}

    monkeypatch.setattr(pipeline, "write_png", full_disk)
    monkeypatch.setattr(Enlarging, "__call__", refuse)
    with pytest.raises(RestorationError) as caught:
        restore_folder(restorer, lq, tmp_path / "out")
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 of 6 images could not be restored:"
    assert [
        text in line
        for text, line in zip(("1.png is no", "2.png: [Errno 28]", "5.png: a pict"), lines[1:], strict=True)
    ] == [True] * 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["0.png", "3.png", "4.png"]


def test_a_fault_of_the_program_ends_the_run_and_keeps_what_was_restored(
    tmp_path: Path, lq: Path, monkeypatch: pytest.MonkeyPatch, slow: dict[str, int]
) -> None:
    def breaks(self: Enlarging, rgb: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
        if rgb[0, 0, 0] == 20:
            raise RuntimeError("shapes do not match")
        return rgb.repeat(4, 0).repeat(4, 1), {}

    monkeypatch.setattr(Enlarging, "__call__", breaks)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        restore_folder(Enlarging(), lq, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["0.png", "1.png", "record.json"]
