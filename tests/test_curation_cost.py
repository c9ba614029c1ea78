"""The calculated cost of curation: powers by hand."""

import pytest

from benchmarks.tables import curation_cost, growth_of


def row(step: str, count: int, seconds: float, peak: int | None = None) -> dict:
    return {"step": step, "count": count, "cpu_seconds": seconds, "peak_bytes": peak}


def test_a_power_is_fitted_and_carried_on():
    rows = [row(f"near hashes in {n:,}", n, 36e-6 * n**1.5 / 1e3, 2**30 + 1024 * n) for n in (10**4, 10**5, 10**6)]
    # 10^6: 36 s are 0.01 hours; 10^8: a thousand times as many; 2^30 bytes and 1024 an image.
    found = growth_of("near hashes", rows)
    assert found == ["near hashes", "n^1.50", "0.0", "0.3", "10.0", "0.0", "96"]
    assert growth_of("near embeddings", rows) == []


def test_what_was_measured_once_grows_in_proportion():
    found = growth_of("an image of the pool decoded", [row("an image of the pool decoded and measured", 100, 3.6)])
    assert found[1:] == ["n^1.00", "10.0", "100.0", "1,000.0", "0.7", ""]


@pytest.mark.parametrize(("recall", "words"), [(0.9951, "99.51%"), (1, "100.00%")])
def test_recall_and_disk_are_shown(recall, words):
    rows = [row("near embeddings in 1,000", 1000, 1, 2**30) | {"recall": recall, "disk_bytes": 2**30 / 1e6}]
    measured, growth, disk = curation_cost({"rows": rows})
    assert measured.rows == [["near embeddings in 1,000", "1,000", "1.00", "1.00", words]]
    assert growth.rows[0][0] == "near embeddings" and disk.rows[-1] == ["100,000,000", "100"]
