"""The benchmark of a training step runs, and writes what it says."""

import csv
from pathlib import Path

import pytest

from benchmarks import train_step


def test_light_is_measured_beside_the_reference(tmp_path: Path) -> None:
    pytest.importorskip("spandrel.architectures.HAT")
    words = ["--presets", "light", "--patch", "8", "--threads", "1", "--steps", "1", "--rounds", "1"]
    train_step.main([*words, "--out", str(tmp_path / "table.md")])
    rows = [line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("| light")]
    assert len(rows) == 5 + 3
    for row in rows[5:]:
        total, products = map(float, row.split(" | ")[2:4])
        assert 0.1 * total < products < total
    assert rows[0].startswith("| light | reference HAT, fp32 | 8 of 8x8 |") and "| 1.00x |" in rows[0]
    with (tmp_path / "table.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [row["case"] for row in found][:2] == ["reference HAT, fp32", "the same network here, fp32"]
    assert all(float(row["seconds_per_step"]) > 0 and float(row["gigabytes"]) >= 0 for row in found)
