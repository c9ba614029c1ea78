"""What comes into the model zoo: finished runs only, better ones only, with a card that tells their whole training."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import train
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.weights import read_state_dict
from tests.test_scripts import script
from utils.resize import imresize

NAME = "hatfreq_light_x4"


@pytest.fixture
def release(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with an empty model zoo of its own."""
    module = script(root, "release_weights")
    (tmp_path / "zoo").mkdir()
    monkeypatch.setattr(module, "ZOO", tmp_path / "zoo")
    return module


@pytest.fixture
def bench(photos: Path, tmp_path: Path) -> Path:
    """One set of one pair, its images named as the evaluation sets name them."""
    target = read_rgb(photos / "valid" / "cat.png")[:96, :96]
    for name in ("HR", "LRbicx4"):
        (tmp_path / "bench" / "Cats" / name).mkdir(parents=True)
    write_png(tmp_path / "bench" / "Cats" / "HR" / "cat.png", target)
    write_png(tmp_path / "bench" / "Cats" / "LRbicx4" / "catx4.png", imresize(target, 0.25))
    return tmp_path / "bench"


@pytest.fixture
def arguments(bench: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    (tmp_path / "data.md").write_text("Data: half an astronaut.\n")
    return lambda run: ["--run", str(tmp_path / run), "--bench", str(bench), "--data", str(tmp_path / "data.md")]


def test_a_release_has_a_card_and_only_a_better_run_replaces_it(
    release: ModuleType,
    arguments: Callable[[str], list[str]],
    command: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    zoo, page = tmp_path / "zoo", tmp_path / "zoo" / f"{NAME}.md"
    assert train.main(command("first", "--steps", "4")) == 0
    assert release.main(arguments("first")) == 0
    weights = (zoo / f"{NAME}.safetensors").read_bytes()
    sha256 = hashlib.sha256(weights).hexdigest()
    assert (zoo / f"{NAME}.safetensors.sha256").read_text() == f"{sha256}  {NAME}.safetensors\n"
    card = page.read_text()
    assert f"| sha256 | `{sha256}` |" in card and "from scratch" in card and "Data: half an astronaut." in card
    assert "| seen | 8 patches of 16x16 LR pixels |" in card and "--finish_in" not in card
    assert str(tmp_path) not in card and "    --data $DATA/train \\\n" in card
    single = release.score(zoo / f"{NAME}.safetensors", tmp_path / "bench", 1)["Cats"]
    assert f"| Cats | {single[0]:.3f} / {single[1]:.4f} |" in card
    capsys.readouterr()

    assert release.main(arguments("first")) == 1  # equal is not better
    assert "not released: the weights in the zoo are at least as good" in capsys.readouterr().err
    assert (zoo / f"{NAME}.safetensors").read_bytes() == weights and page.read_text() == card

    init = ["--init", str(tmp_path / "first" / "last.safetensors")]  # the same tensors under another name
    assert train.main(command("second", "--steps", "9", "--max_minutes", "1e-9", *init)) == 0
    assert train.main(command("second", "--steps", "9", "--finish_in", "5", *init)) == 0
    scores = {"Cats": (30.0, 0.9)}  # whatever it scores
    last, data = tmp_path / "second" / "last.safetensors", "Data: the other half."
    release.release(last, zoo / f"{NAME}.safetensors", last.parent, data, scores, scores)
    second = page.read_text()
    assert f"    --init model_zoo/team08_HATFreq/{NAME}.safetensors \\\n" in second and str(tmp_path) not in second
    assert "The command of the last of 2 starts. `--finish_in`, not `--steps`, set the end of the schedule" in second
    section = second[second.index("## Earlier training") :]
    assert re.findall(r"^\| (\w+)", section, re.M) == ["sha256", "steps", "seen", "training", "machine"]
    assert f"| sha256 | `{sha256}` |" in section and section.count("python train.py") == 1
    state, trained = read_state_dict(zoo / f"{NAME}.safetensors"), read_state_dict(last)
    assert all(torch.equal(state[key], trained[key]) for key in trained)


def test_unfinished_runs_and_unknown_starts_are_refused(
    release: ModuleType, arguments: Callable[[str], list[str]], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert train.main(command("run", "--steps", "4", "--max_minutes", "1e-9")) == 0
    with pytest.raises(SystemExit, match="run is not finished"):
        release.main(arguments("run"))
    assert train.main(command("run", "--steps", "4")) == 0
    assert train.main(command("next", "--steps", "4", "--init", str(tmp_path / "run" / "last.safetensors"))) == 0
    with pytest.raises(SystemExit, match=r"started from .*last\.safetensors, not from hatfreq_light_x4\.safetensors"):
        release.main(arguments("next"))
    assert list((tmp_path / "zoo").iterdir()) == []
