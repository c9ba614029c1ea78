"""Fixtures that every test may use."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as test.py does, before PyTorch loads

import torch

from models.team08_HATFreq.image_io import write_png
from tests.training_run import TINY, Server, run_server

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


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train` and `valid`: tiles of photographs that scikit-image ships."""
    skimage_data = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("photos")
    for name in ("train", "valid"):
        (folder / name).mkdir()
    astronaut, cat = skimage_data.astronaut(), skimage_data.chelsea()
    for number in range(4):
        write_png(folder / "train" / f"{number}.png", astronaut[:, number * 128 : number * 128 + 128])
    write_png(folder / "valid" / "cat.png", cat[60:221, 100:261])
    return folder


@pytest.fixture
def command(photos: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Builds a command line: `command("name", "--steps", "6")` trains in the folder `name`."""

    def build(name: str, *more: str) -> list[str]:
        argv = ["--data", str(photos / "train"), "--out", str(tmp_path / name), "--valid_hr", str(photos / "valid")]
        argv += [
            "--batch",
            "2",
            "--patch",
            "16",
            "--warmup",
            "1",
            "--ema",
            "0.9",
            "--grad_clip",
            "1",
            "--workers",
            "0",
            "--device",
            "cpu",
        ]
        argv += ["--valid_every", "4", "--no-tensorboard"]
        return [*argv, "--model_overrides", *TINY, *more]

    return build


@pytest.fixture(scope="session")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts runs of train.py in processes of their own."""
    with run_server(root, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, as in the subprocesses: sums in another order would not be equal bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs CUDA where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
