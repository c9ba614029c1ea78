"""The loader's benchmark runs, and writes what it says."""

import csv
from pathlib import Path

import pytest

from benchmarks import loader


def test_every_row_is_measured(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "HEIGHT", 600)
    monkeypatch.setattr(loader, "WIDTH", 840)
    words = ["--count", "1", "--rounds", "2", "--seconds", "0.05", "--warmup", "1", "--workers", "0", "--batch", "2"]
    loader.main(["--images", str(photos / "train"), "--out", str(tmp_path / "new" / "table.md"), *words])
    lines = (tmp_path / "new" / "table.md").read_text().splitlines()
    assert len([line for line in lines if line.startswith("|")]) == 2 + 10
    assert lines[2].startswith("| 2K PNG | plain |") and lines[2].endswith("| 1.0x |")
    with (tmp_path / "new" / "table.csv").open() as file:
        found = list(csv.DictReader(file))
    assert len(found) == 20 and all(float(row["samples_per_second"]) > 0 for row in found)
