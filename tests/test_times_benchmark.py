"""benchmarks/times.py: the table of docs/restoring.md."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import times


@pytest.mark.usefixtures("one_thread")
def test_a_row_for_each_size_and_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage.data")
    monkeypatch.setattr(times, "in_child", lambda function, *args: function(*args))
    monkeypatch.setattr(times, "WARM_UP", 8)
    words = ["--sizes", "8", "16", "--threads", "1", "--rounds", "1", "--notes", "AVX2"]
    times.main([*words, "--out", str(tmp_path / "times.json")])
    result: dict[str, Any] = json.loads((tmp_path / "times.json").read_text())
    assert [(row["side"], row["threads"]) for row in result["rows"]] == [(8, 1), (16, 1)]
    assert all(row["seconds"] > 0 and row["cpu_seconds"] > 0 for row in result["rows"])
    table = (tmp_path / "times.md").read_text()
    assert "| 16x16 | 64x64 | 1 |" in table and "- AVX2\n" in table and "- load: " in table
