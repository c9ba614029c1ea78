"""Imports run one way, and what is told in one place is told there only."""

import ast
from pathlib import Path

# Room -> the rooms that it imports, each of them used. Tests may import all.
IMPORTS = {
    "utils": set(),
    "models/team08_HATFreq": set(),
    "models/team00_Bicubic": {"models", "utils"},
    "integrations": {"models"},
    "image_data": {"models", "utils"},
    "evaluation": {"image_data", "models", "utils"},
    "training": {"evaluation", "image_data", "models", "utils"},
    "data_curation": {"image_data", "models", "utils"},
    "test.py": {"models", "utils"},
    "eval.py": {"evaluation", "models", "utils"},
    "train.py": {"training", "evaluation", "image_data", "models", "utils"},
    "app.py": {"models", "utils"},
    "scripts": {"evaluation", "image_data", "integrations", "models", "utils"},
    "factsheet": {"utils"},
    "benchmarks": {"data_curation", "evaluation", "image_data", "models", "train", "training", "utils"},
}
ROOMS = {"utils", "models", "integrations", "image_data", "evaluation", "training", "data_curation", "benchmarks",
         "factsheet", "scripts", "tests", "test", "eval", "train", "app"}  # fmt: skip


def imported(path: Path) -> set[str]:
    """The rooms that a file imports; relative imports stay in their own."""
    result = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            result |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            result.add(str(node.module).split(".")[0])
    return result & ROOMS


def test_imports_run_one_way(root: Path) -> None:
    for room, allowed in IMPORTS.items():
        place, result = root / room, set()
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            beyond = (rooms := imported(path)) - allowed - ({room} if "/" not in room else set())
            assert not beyond, f"{path.relative_to(root)} imports {', '.join(sorted(beyond))}"
            result |= rooms
        assert allowed <= result, f"{room} does not import {', '.join(sorted(allowed - result))}"


def test_nobody_changes_the_search_path(root: Path) -> None:
    for path in root.rglob("*.py"):
        if not {".venv", "build", "tests"} & set(path.relative_to(root).parts):
            assert "sys.path.insert" not in path.read_text(), path


def test_every_preset_is_told_in_one_place(root: Path) -> None:
    """A preset's name stands in network.py and in the tile's constants; no other module of the core lists them."""
    from models.team08_HATFreq import PRESETS
    from models.team08_HATFreq.inference import BYTES_PER_PIXEL

    assert set(BYTES_PER_PIXEL) == set(PRESETS)
    for path in sorted((root / "models" / "team08_HATFreq").glob("*.py")):
        if path.name not in ("network.py", "inference.py", "__init__.py"):
            assert '"base"' not in path.read_text(), path.name
