"""benchmarks/speed.py: what they count and measure, on the smallest inputs."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import speed
from benchmarks.common import CPU, in_child
from benchmarks.speed import pass_peak
from factsheet.tables import read_result
from models.team08_HATFreq import PRESETS, override
from models.team08_HATFreq.image_io import write_png

pytestmark = pytest.mark.usefixtures("one_thread")


def test_parameters_and_multiply_accumulates_are_counted() -> None:
    (row,) = speed.measure_count(argparse.Namespace(presets=["light"]))
    assert list(row.values()) == ["light", "413,070", "435,510", "5.4%", "1.9", "2.0", "0.9%"]


def test_a_convolution_is_counted_exactly() -> None:
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert speed.flops(conv, torch.zeros(1, 3, 8, 8)) == 2 * 8 * 8 * 3 * 3 * 3 * 5


def test_every_kind_of_pass_with_its_upsampler_equals_the_reference() -> None:
    pytest.importorskip("spandrel.architectures.HAT")
    kinds = list(speed.KINDS)
    taken, difference, floor = speed.forward_times("light", "16x24", "fp32", CPU, 1, kinds, 1)
    assert list(taken) == kinds and min(taken.values()) > 0 < floor
    assert all(value < 1e-5 for kind, value in difference.items() if not kind.startswith("own"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "argv", "rows"),
    [
        ("forward", ["--presets", "light", "--sizes", "16x16"], 6),
        ("step", ["--presets", "light", "--patch", "8", "--steps", "1"], 5),
        ("memory", ["--presets", "small"], 6),
        ("times", [], 6),
        ("folder", ["--bench", "BENCH"], 3),
    ],
)
def test_a_measure_publishes_its_table(
    tmp_path: Path, what: str, argv: list[str], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("spandrel.architectures.HAT")
    monkeypatch.setattr(speed, "SIDES", {"small": (16, 24, 32)})
    monkeypatch.setattr(speed, "IMAGE_SIDES", (32, 48, 64))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(speed, "in_child", lambda function, *args: function(*args))  # a process takes seconds to start
    bench = tmp_path / "bench"
    for kind, side, name in (("HR", 32, "a.png"), ("LRbicx4", 8, "ax4.png")):
        (bench / "Tiny" / kind).mkdir(parents=True)
        write_png(bench / "Tiny" / kind / name, np.zeros((side, side, 3), np.uint8))
    argv = [str(bench) if word == "BENCH" else word for word in argv]
    speed.main(["--what", what, "--rounds", "1", "--out", str(tmp_path / "r.md"), *argv])
    result = read_result(tmp_path / "r.md")
    assert len(result.tables[""]) == rows + 1 and "commit" in result.setting


def test_an_upsampler_of_its_own_leaves_the_rest_the_reference() -> None:
    pytest.importorskip("spandrel.architectures.HAT")
    first, own = (speed.network("light", kind, CPU) for kind in ("reference HAT", "own upsampler"))
    assert torch.equal(first.conv_after_body.weight, own.conv_after_body.weight)
    assert own.config == override(PRESETS["light"], {"frequency": "none"})


@pytest.mark.slow
def test_a_pass_takes_more_memory_for_more_pixels() -> None:
    assert in_child(pass_peak, "light", "fp32", CPU, 64) > 64 * 64 * 16 * 3 * 4  # the result alone, as fp32
