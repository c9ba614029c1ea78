"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Evaluation pairs and peers' weights that are no part of the project: `HATFREQ_SHARED`, or `../shared`."""
    folder = Path(os.environ.get("HATFREQ_SHARED", ROOT.parent / "shared"))
    if not (folder / "data" / "bench").is_dir():
        pytest.skip(f"no evaluation data at {folder} (set HATFREQ_SHARED to a folder that holds data/bench)")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs CUDA where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
