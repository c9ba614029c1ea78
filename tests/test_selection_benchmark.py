"""benchmarks/selection.py: what is compared, on small images and with few steps."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import train
from benchmarks import selection, short_runs
from benchmarks.selection import Curation, choose, halves
from data_curation import dedup, embed, select
from models.team08_HATFreq import HATFreq, override
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.network import PRESETS
from models.team08_HATFreq.weights import save_weights
from utils.resize import imresize

MODULES = {"data_curation.embed": embed, "data_curation.dedup": dedup, "data_curation.select": select}
TINY = {"embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2), "squeeze_factor": 6}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A pool of smooth (0 to 3) and noisy (4 to 7) pictures, an evaluation set of smooth ones, encoder and network."""
    draw = np.random.default_rng(0)
    for name, count, side in (("pool", 8, 96), ("set/HR", 4, 64)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(count):
            smooth = imresize(draw.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8), 16.0)
            noisy = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            write_png(tmp_path / name / f"{number}.png", noisy if name == "pool" and number >= 4 else smooth)
    (tmp_path / "set" / "LRbicx4").mkdir()
    for path in (tmp_path / "set" / "HR").iterdir():
        write_png(tmp_path / "set" / "LRbicx4" / f"{path.stem}x4.png", imresize(read_rgb(path), 0.25))
    torch.manual_seed(0)
    torchvision = pytest.importorskip("torchvision")
    features = torchvision.models.alexnet().features[:12].state_dict()
    save_file({f"features.{key}": value for key, value in features.items()}, tmp_path / "encoder.safetensors")
    save_weights(HATFreq(override(PRESETS["light"], TINY)), tmp_path / "start.safetensors", {})
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were called; they run in this process, which need not import torch a dozen times."""
    called: list[list[str]] = []

    def call(*words: object) -> None:
        called.append([str(word) for word in words])
        first, *rest = called[-1]
        main: Callable[[list[str]], object] = train.main if first == "train.py" else MODULES[rest[0]].main
        main(rest if first == "train.py" else rest[1:])

    monkeypatch.setattr(selection, "call", call)
    monkeypatch.setattr(short_runs, "call", call)
    return called


def run(folders: Path) -> list[dict[str, Any]]:
    words = ["--pool", str(folders / "pool"), "--queries", str(folders / "set"), "--work", str(folders / "work")]
    words += ["--encoder", f"--backbone alexnet --weights {folders / 'encoder.safetensors'}", "--k", "2"]
    words += [
        "--steps",
        "2",
        "--batch",
        "2",
        "--patch",
        "8",
        "--lr",
        "0.01",
        "--init",
        str(folders / "start.safetensors"),
    ]
    selection.main([*words, "--seeds", "0", "1", "--precision", "fp32", "--out", str(folders / "out" / "s.json")])
    return json.loads((folders / "out" / "s.json").read_text())["rows"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_every_choice_is_trained_on_and_scored(folders: Path, calls: list[list[str]]) -> None:
    rows = run(folders)
    assert [row["choice"] for row in rows] == ["start", "similar", "quota", "random", "dissimilar"] * 2
    assert len({row["psnr"] for row in rows}) > 4 and all(10 < row["psnr"] < 60 for row in rows)
    dealt = [words for words in calls if "--per_query" in words]
    assert len(dealt) == 2 and all(words[words.index("--per_query") + 1] == "1" for words in dealt)
    lists = {path.stem: path.read_text().split() for path in folders.glob("work/seed_0/*.txt")}
    assert all(len(lists[choice]) == 2 for choice in ("similar", "quota", "random", "dissimilar"))
    assert not set(lists["similar"]) & set(lists["dissimilar"])
    trained = [words[: words.index("--data")] for words in calls if words[0] == "train.py"]
    assert len(trained) == 8 and len({tuple(words) for words in trained}) == 2  # only the seeds' settings differ
    result = json.loads((folders / "out" / "s.json").read_text())
    assert result["flow"]["pool"] == 8 and result["flow"]["queries"] == 2 and result["flow"]["chosen"] == 2
    assert result["folders"]["random"] == {"pool": 1.0} and "alexnet" in result["setting"]["encoder"]
    assert (folders / "out" / "s.png").stat().st_size > 3_000
    calls.clear()
    assert run(folders) == rows and not [words for words in calls if words[0] == "train.py"]


def test_what_is_scored_was_not_seen(folders: Path) -> None:
    for seed in (0, 1):
        queries, scored = halves(folders / "set", seed)
        assert len(queries) == len(scored) == 2
        assert {Path(name).stem.removesuffix("x4") for name in queries} | {pair.name for pair in scored} == set("0123")
    assert halves(folders / "set", 0)[0] == halves(folders / "set", 0)[0]


def test_choices_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [str(n) for n in range(20)]

    def ranking(self: Curation, seed: int, name: str, count: int, *words: object) -> tuple[Any, Any]:
        return (["7", "8", "9"] if words == ("--per_query", 1) else names[:3]), names

    monkeypatch.setattr(Curation, "ranking", ranking)
    monkeypatch.setattr(Curation, "look", lambda self, seed, queries: None)
    curation = Curation((), Path(), (), Path(), 1)
    found = choose(curation, 0, ["a", "b"], 3)
    assert (found["similar"], found["quota"], found["dissimilar"]) == (names[:3], ["7", "8", "9"], names[-3:])
    again, other = (choose(curation, seed, ["a", "b"], 3)["random"] for seed in (0, 1))
    assert found["random"] == again != other and len(set(again)) == 3


def test_a_command_that_fails_ends_the_benchmark(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*words: object) -> None:
        raise subprocess.CalledProcessError(3, [str(word) for word in words])

    monkeypatch.setattr(selection, "call", fails)
    with pytest.raises(SystemExit, match=r"data_curation\.embed .* status 3"):
        run(folders)
