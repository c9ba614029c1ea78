"""The documentation's tables are the results files'."""

from pathlib import Path

import pytest

from scripts.update_docs import ROOT, documents, filled

MARKED = "before\n<!-- results: t -->\nold\n<!-- end of results -->\nafter\n"


def test_a_marked_place_is_filled(tmp_path: Path) -> None:
    (tmp_path / "t.md").write_text("| a |\n|---|\n| 1 |\n\n")
    new = filled(MARKED, tmp_path)
    assert new == "before\n<!-- results: t -->\n| a |\n|---|\n| 1 |\n<!-- end of results -->\nafter\n"
    assert filled(new, tmp_path) == new


def test_a_missing_file_or_mark_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"t\.md"):
        filled(MARKED, tmp_path)
    with pytest.raises(ValueError, match="needs an"):
        filled(MARKED.replace("<!-- end of results -->\n", ""), tmp_path)


def test_the_documents_hold_the_results_of_the_files() -> None:
    for path in documents(ROOT):
        text = path.read_text()
        assert filled(text, ROOT / "benchmarks" / "results") == text, f"{path.name}: run scripts/update_docs.py"
