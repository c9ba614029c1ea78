"""benchmarks/selection_effect.py: what is compared, on small images and with few steps; and the statistics under it."""

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import train
from benchmarks import selection_choices, selection_effect
from benchmarks.paired import Difference, paired, verdict
from benchmarks.selection_choices import middle, pool_losses
from data_curation import deduplicate, embed, select
from models.team08_HATFreq import HATFreq, override
from models.team08_HATFreq.image_io import write_png
from models.team08_HATFreq.network import PRESETS
from models.team08_HATFreq.weights import save_weights
from utils.resize import imresize

MODULES = {"data_curation.embed": embed, "data_curation.deduplicate": deduplicate, "data_curation.select": select}
CALL = selection_choices.call
TINY = {"embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2), "squeeze_factor": 6}


def test_paired_differences_have_students_interval() -> None:
    found = paired([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert found.values == (1.0, 2.0, 3.0) and found.mean == 2.0
    assert found.half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)  # t of 2 degrees of freedom at 0.975
    assert found.direction == 0 and paired([2.0, 2.1], [1.0, 1.0]).direction == 1
    with pytest.raises(ValueError, match="two pairs or more, got 1 and 1"):
        paired([1.0], [1.0])


def test_the_sentence_follows_the_interval() -> None:
    assert verdict("A", "B", Difference((-1.0, 2.0), 1.0)).startswith("A against B: no effect, +0.500 dB")
    assert verdict("A", "B", Difference((1.0, 2.0), 1.0)).startswith(
        "A against B: better, +1.500 dB (95% interval +0.500"
    )
    assert verdict("A", "B", Difference((-1.0, -2.0), 1.0)).startswith("A against B: worse, -1.500 dB")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A pool of noisy and smooth pictures, an evaluation set of smooth ones, an encoder and a network."""
    draw = np.random.default_rng(0)
    for name, count, side in (("pool", 8, 96), ("set/HR", 4, 64)):
        (tmp_path / name).mkdir(parents=True)
        for number in range(count):
            smooth = imresize(draw.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8), 16.0)
            noisy = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
            write_png(tmp_path / name / f"{number}.png", noisy if name == "pool" and number >= 4 else smooth)
    (tmp_path / "set" / "LRbicx4").mkdir()
    for path in (tmp_path / "set" / "HR").iterdir():
        write_png(tmp_path / "set" / "LRbicx4" / f"{path.stem}x4.png", imresize(selection_effect.read_rgb(path), 0.25))
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

    monkeypatch.setattr(selection_effect, "call", call)
    monkeypatch.setattr(selection_choices, "call", call)
    return called


def run(folders: Path) -> list[dict[str, str]]:
    words = ["--pool", str(folders / "pool"), "--queries", str(folders / "set"), "--work", str(folders / "work")]
    words += [
        "--encoder",
        f"--backbone alexnet --weights {folders / 'encoder.safetensors'}",
        "--k",
        "2",
        "--steps",
        "2",
    ]
    words += ["--batch", "2", "--patch", "8", "--lr", "0.01", "--init", str(folders / "start.safetensors")]
    selection_effect.main([*words, "--seeds", "0", "1", "--precision", "fp32", "--out", str(folders / "out" / "s.md")])
    with (folders / "out" / "s.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_every_choice_is_trained_on_and_scored(folders: Path, calls: list[list[str]]) -> None:
    rows = run(folders)
    assert [row["trained_on"] for row in rows] == ["start", "similar", "random", "hardest", "dissimilar"] * 2
    assert len({row["psnr_y"] for row in rows}) > 4 and all(10 < float(row["psnr_y"]) < 60 for row in rows)
    lists = {
        path.parent.name.split("_")[0]: path.read_text().split() for path in folders.glob("work/runs/*/images.txt")
    }
    assert {Path(name).stem for name in lists["hardest"]} <= {"4", "5", "6", "7"}  # noise cannot be restored
    assert not set(lists["similar"]) & set(lists["dissimilar"])
    trained = [words for words in calls if words[0] == "train.py"]
    assert len(trained) == 8
    settings = {tuple(words[words.index("--init") + 2 :]) for words in trained}
    assert len(settings) == 2  # the seeds: nothing else differs but the images
    for seed in (0, 1):
        seen = (folders / "work" / f"seed_{seed}" / "queries.txt").read_text()
        scored = selection_choices.Curation(
            (), folders / "set" / "LRbicx4", folders / "set" / "HR", (), folders / "work", 1
        ).split(seed)
        assert len(scored.queries) == len(scored.scored) == 2
        assert all(pair.name not in seen for pair in scored.scored)
    text = (folders / "out" / "s.md").read_text()
    assert "no result here is with CLIP" in text and text.count(" against random ones: ") == 3
    assert (folders / "out" / "s.png").stat().st_size > 3_000
    flow = dict(row.split(",") for row in (folders / "out" / "s_flow.csv").read_text().splitlines()[1:])
    assert flow["pool"] == "8" and flow["queries"] == "2" and int(flow["chosen"]) == len(lists["similar"])
    calls.clear()
    assert run(folders) == rows and not [words for words in calls if words[0] == "train.py"]


def test_losses_go_on_where_they_stopped(folders: Path) -> None:
    names = [str(path) for path in sorted((folders / "pool").iterdir())]
    found = pool_losses(names[:3], folders / "start.safetensors", 32, folders / "l.csv")
    text = (folders / "l.csv").read_text().replace(repr(found[names[0]]), "0.25")
    (folders / "l.csv").write_text(text)
    again = pool_losses(names, folders / "start.safetensors", 32, folders / "l.csv")
    assert again[names[0]] == 0.25 and len(again) == 8 and again[names[7]] > 3 * again[names[1]]
    assert middle(np.zeros((50, 31, 3), np.uint8), 32).shape == (32, 28, 3)


def test_a_command_that_fails_ends_the_run(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*words: object) -> None:
        raise subprocess.CalledProcessError(3, [str(word) for word in words])

    monkeypatch.setattr(selection_choices, "call", fails)
    with pytest.raises(SystemExit, match=r"selection_effect\.py: -m data_curation\.embed .* ended with status 3"):
        run(folders)
    with pytest.raises(subprocess.CalledProcessError):
        CALL("-c", "raise SystemExit(3)")
