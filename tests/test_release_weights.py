"""What enters the model zoo: finished runs, better on every set, with a record of their whole training."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import train
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.weights import read_state_dict
from scripts import release_weights
from scripts.release_weights import ZOO, card, main, teacher_of
from utils.resize import imresize

NAME = "hatfreq_light_x4"


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model zoo."""
    (tmp_path / "zoo").mkdir()
    monkeypatch.setattr(release_weights, "ZOO", tmp_path / "zoo")
    return tmp_path / "zoo"


@pytest.fixture
def argv(photos: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """The command line that releases a run folder; one set of one pair."""
    target = read_rgb(photos / "valid" / "cat.png")[:96, :96]
    for name, image in (("HR/cat", target), ("LRbicx4/catx4", imresize(target, 0.25))):
        (tmp_path / "bench" / "Cats" / name).parent.mkdir(parents=True)
        write_png(tmp_path / "bench" / "Cats" / f"{name}.png", image)
    (tmp_path / "data.md").write_text("Data: half an astronaut.\n")
    rest = ["--bench", str(tmp_path / "bench"), "--data", str(tmp_path / "data.md")]
    return lambda run: ["--run", str(tmp_path / run), *rest]


def record_of(zoo: Path) -> dict[str, Any]:
    return json.loads((zoo / f"{NAME}.json").read_text())


def test_a_run_is_released_once_and_its_successor_when_better(
    zoo: Path, argv: Callable[[str], list[str]], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert train.main(command("first", "--steps", "4")) == 0
    assert main(argv("first")) == 0
    weights, first = (zoo / f"{NAME}.safetensors").read_bytes(), record_of(zoo)
    sha256 = hashlib.sha256(weights).hexdigest()
    assert first["sha256"] == first["runs"][0]["sha256"] == sha256 and first["data"] == "Data: half an astronaut."
    assert (zoo / f"{NAME}.safetensors.sha256").read_text() == f"{sha256}  {NAME}.safetensors\n"
    assert (first["runs"][0]["patches"], first["runs"][0]["start_sha256"], first["runs"][0]["teacher"]) == (
        8,
        None,
        None,
    )
    text = (zoo / f"{NAME}.md").read_text()
    assert f"| Cats | {first['scores']['Cats']['single']['psnr']:.3f} /" in text and sha256 in text

    assert main(argv("first")) == 1  # equal is not better
    assert (zoo / f"{NAME}.safetensors").read_bytes() == weights and record_of(zoo) == first

    low = json.dumps({**first, "scores": {"Cats": {"single": {"psnr": 1.0}, "x8": {"psnr": 1.0}}}})
    (zoo / f"{NAME}.json").write_text(low)
    start = str(tmp_path / "first" / "last.safetensors")  # the zoo's tensors under another name
    assert train.main(command("second", "--steps", "4", "--init", start)) == 0
    assert main(argv("second")) == 0
    second = record_of(zoo)
    assert second["runs"][0] == first["runs"][0] and second["runs"][1]["start_sha256"] == sha256
    released, trained = map(read_state_dict, (zoo / f"{NAME}.safetensors", tmp_path / "second" / "last.safetensors"))
    assert all(torch.equal(released[key], trained[key]) for key in trained)


def test_unfinished_runs_unknown_starts_and_missing_sets_are_refused(
    zoo: Path, argv: Callable[[str], list[str]], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert train.main(command("run", "--steps", "4", "--max_minutes", "1e-9")) == 0
    with pytest.raises(SystemExit, match="run is not finished"):
        main(argv("run"))
    assert train.main(command("run", "--steps", "4")) == 0
    assert train.main(command("next", "--steps", "4", "--init", str(tmp_path / "run" / "last.safetensors"))) == 0
    with pytest.raises(SystemExit, match=r"next started from .*last\.safetensors"):
        main(argv("next"))
    assert list(zoo.iterdir()) == []
    assert main(argv("run")) == 0
    (zoo / f"{NAME}.json").write_text(json.dumps({**record_of(zoo), "scores": {"Dogs": {"single": {"psnr": 1.0}}}}))
    with pytest.raises(SystemExit, match="Dogs"):
        main(argv("next"))


def test_the_teacher_is_named_by_the_folder_of_its_results(tmp_path: Path) -> None:
    (tmp_path / "teacher.json").write_text(json.dumps({"name": "DAT", "sha256": "ab", "tile": 0}))
    assert teacher_of([f"hr={tmp_path},lr={tmp_path}/lr,weight=2"]) == {"name": "DAT", "sha256": "ab"}
    assert teacher_of([str(tmp_path / "images")]) is None


def test_the_card_begins_with_what_the_hub_reads() -> None:
    record = json.loads((ZOO / f"{NAME}.json").read_text())
    head = yaml.safe_load(card(record).split("---\n")[1])
    assert head["license"] == "mit" and head["pipeline_tag"] == "image-to-image"
    results = {result["dataset"]["name"]: result["metrics"][0] for result in head["model-index"][0]["results"]}
    assert {name: metric["value"] for name, metric in results.items()} == {
        name: round(values["single"]["psnr"], 3) for name, values in record["scores"].items()
    }


@pytest.mark.artefacts
def test_the_committed_card_is_rendered_from_the_record() -> None:
    record = json.loads((ZOO / f"{NAME}.json").read_text())
    assert card(record) == (ZOO / f"{NAME}.md").read_text()
