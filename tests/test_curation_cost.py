"""The calculated cost of curation, with powers by hand, and what its searches within a large pool find."""

import json

import pytest

from benchmarks import curation
from benchmarks.tables import curation_cost, curation_recall, growth_of


def row(step: str, count: int, seconds: float, peak: int | None = None) -> dict:
    return {"step": step, "count": count, "cpu_seconds": seconds, "peak_bytes": peak}


def test_a_power_is_fitted_and_carried_on():
    rows = [row(f"near hashes in {n:,}", n, 36e-6 * n**1.5 / 1e3, 2**30 + 1024 * n) for n in (10**4, 10**5, 10**6)]
    # 10^6: 36 s are 0.01 hours; 10^8: a thousand times as many; 2^30 bytes and 1024 an image.
    found = growth_of("near hashes", rows)
    assert found == ["near hashes", "n^1.50", "0.0", "0.3", "10.0", "0.0", "96"]
    assert growth_of("near embeddings", rows) == []
    assert growth_of("near hashes", [row("near hashes in 10", 10, 1e-9), *rows[1:]]) == found  # the two largest count


def test_what_was_measured_once_grows_in_proportion():
    found = growth_of("an image of the pool decoded", [row("an image of the pool decoded and measured", 100, 3.6)])
    assert found[1:] == ["n^1.00", "10.0", "100.0", "1,000.0", "0.7", ""]


@pytest.mark.parametrize(("recall", "words"), [(0.9951, "99.51%"), (1, "100.00%")])
def test_recall_and_disk_are_shown(recall, words):
    rows = [row("near embeddings in 1,000", 1000, 1, 2**30) | {"recall": recall, "disk_bytes": 2**30 / 1e6}]
    measured, growth, disk = curation_cost({"rows": rows})
    assert measured.rows == [["near embeddings in 1,000", "1,000", "1.00", "1.00", words]]
    assert growth.rows[0][0] == "near embeddings" and disk.rows[-1] == ["100,000,000", "100"]


@pytest.mark.slow
def test_copies_are_found_by_the_ways_of_every_pool(shared, tmp_path, monkeypatch):
    """One copy of each of the 52 kinds: near to all that a comparison of all finds."""
    monkeypatch.setattr(curation, "BENCH", shared / "data" / "bench")
    curation.main(["recall", "--step", "100", "--count", "5", "--out", str(tmp_path / "recall.json")])
    rows = json.loads((tmp_path / "recall.json").read_text())["rows"]
    assert [row["bits"] for row in rows] == [21, 26, 30, 32]
    assert all(row["either"] >= 0.97 and row["keypoints"] >= 0.93 and row["phash"] >= 0.97 for row in rows)
    assert curation_recall({"rows": rows})[0].rows[3][:2] == ["100,000,000", "32"]
