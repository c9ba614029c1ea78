"""benchmarks/speed.py and memory.py: what they count and measure, on the smallest inputs."""

import argparse

import pytest
import torch

from benchmarks import speed
from benchmarks.common import CPU, in_child
from benchmarks.memory import pass_peak
from models.team08_HATFreq import PRESETS, override

pytestmark = pytest.mark.usefixtures("one_thread")


def test_parameters_and_multiply_accumulates_are_counted() -> None:
    plain, fused = speed.count(argparse.Namespace(presets=["light"]))
    assert (plain["frequency"], fused["frequency"]) == ("none", "bands")
    assert plain["parameters"] == 413_070 and fused["parameters"] > plain["parameters"]
    assert plain["macs"] == pytest.approx(1.93e9, rel=0.01) and fused["macs"] > plain["macs"]


def test_a_convolution_is_counted_exactly() -> None:
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert speed.flops(conv, torch.zeros(1, 3, 8, 8)) == 2 * 8 * 8 * 3 * 3 * 3 * 5


def test_every_kind_of_pass_with_its_upsampler_equals_the_reference() -> None:
    pytest.importorskip("spandrel.architectures.HAT")
    kinds = speed.asked(speed.KINDS, speed.arguments(["forward"]))
    assert set(speed.KINDS) - set(kinds) == {"with frequency blocks, compiled"}
    rows = speed.forward_rows("light", "16x24", "fp32", CPU, 1, kinds, 1)
    assert [row["kind"] for row in rows] == kinds
    assert all(row["seconds"] > 0 < row["floor_seconds"] for row in rows)
    own = [row["kind"] for row in rows if row["difference"] is None]
    assert own == ["own upsampler", "own upsampler, with frequency blocks"]
    assert all(row["difference"] < 1e-5 for row in rows if row["kind"] not in own)


def test_an_upsampler_of_its_own_leaves_the_rest_the_reference() -> None:
    pytest.importorskip("spandrel.architectures.HAT")
    first, own = (speed.network("light", kind, CPU) for kind in ("reference HAT", "own upsampler"))
    assert torch.equal(first.conv_after_body.weight, own.conv_after_body.weight)
    assert own.config == override(PRESETS["light"], {"frequency": "none"})


@pytest.mark.parametrize("case", ["reference HAT, fp32", "with fusion, as the preset is, fp32"])
@pytest.mark.slow
def test_a_step_is_measured(case: str) -> None:
    pytest.importorskip("spandrel.architectures.HAT")
    taken, peak = in_child(speed.step_cost, "light", case, 1, 8, CPU, 1, 1)
    assert taken > 0 and peak > 1e6


@pytest.mark.slow
def test_a_pass_takes_more_memory_for_more_pixels() -> None:
    assert in_child(pass_peak, "light", "fp32", CPU, 64) > 64 * 64 * 16 * 3 * 4  # the result alone, as fp32
