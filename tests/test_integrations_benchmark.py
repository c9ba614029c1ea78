"""benchmarks/integrations.py: every way is scored beside the first."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import integrations
from image_data.pairs import Pair


def test_every_way_is_scored_beside_the_first() -> None:
    hr = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)

    def brighter(by: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda lq: lq.mul(0.5).add(by).repeat_interleave(4, 2).repeat_interleave(4, 3)

    ways = {name: brighter(index / 100) for index, name in enumerate(integrations.WAYS)}
    rows = integrations.compare(ways, "Noise", [Pair("a", np.ascontiguousarray(hr[::4, ::4]), hr)], 1)
    assert [row["way"] for row in rows] == list(integrations.WAYS)
    assert [row["difference"] for row in rows] == pytest.approx([0, 0.01, 0.02, 0.03], abs=1e-6)
    assert all(row["seconds"] > 0 and 0 < row["psnr"] < 30 for row in rows)


def test_peaks_are_those_of_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.setattr(integrations, "added_memory", lambda device, work: work() or 3500)
    seen: list[torch.Size] = []
    monkeypatch.setattr(integrations, "way_of", lambda name, onnx: lambda lq: seen.append(lq.shape) or lq)
    assert integrations.peak_bytes("PyTorch", tmp_path, 24) == 3500
    assert [size[-1] for size in seen] == [16] + [24] * integrations.PASSES


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"absent\.onnx.*export_onnx\.py"):
        integrations.main(["--onnx", str(tmp_path / "absent.onnx")])
