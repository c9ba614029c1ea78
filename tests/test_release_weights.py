"""What comes into the model zoo: finished runs only, better ones only, with facts that tell their whole training."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import train
from benchmarks.render import BLUE, GREEN
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.weights import load, read_state_dict, save_weights
from scripts import draw_curve, release_weights
from scripts.release_weights import ZOO, card, main, standing_scores, training_command, worse_sets
from utils.resize import imresize

NAME = "hatfreq_light_x4"


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty model zoo."""
    (tmp_path / "zoo").mkdir()
    monkeypatch.setattr(release_weights, "ZOO", tmp_path / "zoo")
    return tmp_path / "zoo"


@pytest.fixture
def words(photos: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """A release's command line for some run folders; one set of one pair."""
    target = read_rgb(photos / "valid" / "cat.png")[:96, :96]
    for name, image in (("HR/cat", target), ("LRbicx4/catx4", imresize(target, 0.25))):
        (tmp_path / "bench" / "Cats" / name).parent.mkdir(parents=True)
        write_png(tmp_path / "bench" / "Cats" / f"{name}.png", image)
    (tmp_path / "data.md").write_text("Data: half an astronaut.\n")
    rest = ["--bench", str(tmp_path / "bench"), "--data", str(tmp_path / "data.md")]
    return lambda *runs: ["--run", *(str(tmp_path / run) for run in runs), *rest]


def facts_of(zoo: Path) -> dict[str, Any]:
    return json.loads((zoo / f"{NAME}.json").read_text())


def test_only_a_better_run_is_released(
    zoo: Path, words: Callable[..., list[str]], command: Callable[..., list[str]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert train.main(command("first", "--steps", "4")) == 0
    assert main(words("first")) == 0
    weights, facts = (zoo / f"{NAME}.safetensors").read_bytes(), facts_of(zoo)
    sha256 = hashlib.sha256(weights).hexdigest()
    assert facts["sha256"] == facts["runs"][0]["sha256"] == sha256 and facts["data"] == "Data: half an astronaut."
    assert (zoo / f"{NAME}.safetensors.sha256").read_text() == f"{sha256}  {NAME}.safetensors\n"
    assert facts["config"]["embed_dim"] == 12 and facts["runs"][0]["patches"] == 8
    assert (facts["runs"][0]["start_sha256"], facts["runs"][0]["teacher"]) == (None, None)
    text = (zoo / f"{NAME}.md").read_text()
    psnr = facts["scores"]["Cats"]["single"]["psnr"]
    assert f"| Cats | {psnr:.3f} /" in text and sha256 in text and "| started from | scratch |" in text
    assert str(tmp_path) not in text + json.dumps(facts) and "    --data $DATA/train \\\n" in text
    capsys.readouterr()

    assert main(words("first")) == 1  # equal is not better
    assert "at least as good on Cats" in capsys.readouterr().err
    assert (zoo / f"{NAME}.safetensors").read_bytes() == weights and facts_of(zoo) == facts


def test_the_facts_tell_every_run_and_its_teacher(
    zoo: Path, words: Callable[..., list[str]], command: Callable[..., list[str]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert train.main(command("first", "--steps", "2")) == 0
    assert main(words("first")) == 0
    first = facts_of(zoo)
    start = str(tmp_path / "first" / "last.safetensors")  # the zoo's tensors under another name
    assert train.main(command("second", "--steps", "9", "--max_minutes", "1e-9", "--init", start)) == 0  # unfinished
    start = str(tmp_path / "second" / "last.safetensors")
    assert train.main(command("third", "--steps", "2", "--init", start)) == 0
    monkeypatch.setattr(release_weights, "worse_sets", lambda *scores: [])  # whatever it scores
    (tmp_path / "DAT.pth").write_bytes(b"teacher")
    assert main([*words("second", "third"), "--teacher", str(tmp_path / "DAT.pth")]) == 0
    facts = facts_of(zoo)
    assert facts["runs"][0] == first["runs"][0] and len(facts["runs"]) == 3
    for before, run in zip(facts["runs"], facts["runs"][1:], strict=False):
        assert run["start_sha256"] == before["sha256"]
        assert run["teacher"] == {"name": "DAT", "sha256": hashlib.sha256(b"teacher").hexdigest()}
    assert facts["runs"][1]["scores"] is None and list(facts["runs"][2]["scores"]) == ["Cats"]
    text = (zoo / f"{NAME}.md").read_text()
    assert text.count("python train.py") == 3 and "| teacher | DAT |" in text and str(tmp_path) not in text
    state, trained = (
        read_state_dict(path) for path in (zoo / f"{NAME}.safetensors", tmp_path / "third/last.safetensors")
    )
    assert all(torch.equal(state[key], trained[key]) for key in trained)


def test_a_start_that_was_changed_is_told(
    zoo: Path, words: Callable[..., list[str]], command: Callable[..., list[str]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert train.main(command("first", "--steps", "2")) == 0
    assert main(words("first")) == 0
    first = load(zoo / f"{NAME}.safetensors")
    start = {name: tensor * (0.5 if name.endswith("conv.weight") else 1) for name, tensor in first.state.items()}
    monkeypatch.setattr(release_weights, "worse_sets", lambda *scores: [])  # whatever it scores
    for run, source in (("second", first.sha256), ("third", "ab")):
        about = {**first.metadata, "changed_from": source, "changed": "all halved"}
        save_weights(start, tmp_path / f"{run}.safetensors", about)
        assert train.main(command(run, "--steps", "2", "--init", str(tmp_path / f"{run}.safetensors"))) == 0
    with pytest.raises(SystemExit, match=r"started from .*third\.safetensors, not from hatfreq_light_x4"):
        main(words("third"))
    assert main(words("second")) == 0
    run = facts_of(zoo)["runs"][1]
    assert (run["start_sha256"], run["start_changed"]) == (first.sha256, "all halved")
    assert f"| started from | `{first.sha256[:12]}`; all halved |" in (zoo / f"{NAME}.md").read_text()


def test_the_card_tells_where_the_goals_would_be_reached() -> None:
    teacher = {"name": "DAT", "sha256": ""}
    runs = [
        {"minutes": 60 * hours, "teacher": None, "scores": {"Set5": psnr}}
        for hours, psnr in ((1, 30.0), (1, 31.0), (2, 31.25), (4, 31.5))
    ]  # +0.25 dB each time the hours are doubled
    runs += [{"minutes": 240, "teacher": teacher, "scores": None},
             {"minutes": 240, "teacher": teacher, "scores": {"Set5": 31.75}}]  # fmt: skip
    text = release_weights.progress(runs)
    assert "| 1.0 | 30.000 | the photographs |" in text and "| 16.0 | 31.750 | DAT |" in text
    assert "the last 4 points" in text and "32.25 dB on Set5 after 64 hours." in text
    assert "would reach" not in release_weights.progress(runs[:2])


def test_the_curve_is_drawn_from_the_facts(tmp_path: Path) -> None:
    """The card of the test above: 0.25 dB a doubling, so that Set5 lies 0.5 dB below its goal after 16 hours."""
    runs = [
        {"minutes": 60 * hours, "teacher": {"name": "DAT"} if hours == 8 else None,
         "scores": {"Set5": psnr, "Set14": psnr - 3.59, "BSD100": 28.0}}
        for hours, psnr in ((1, 30.75), (1, 31.0), (2, 31.25), (4, 31.5), (8, 31.75))
    ]  # fmt: skip
    (axes,) = draw_curve.draw({"runs": runs}).axes
    drawn = {(line.get_color(), line.get_linestyle()): line.get_xydata() for line in axes.lines}
    assert np.allclose(drawn[BLUE, "-"][:, 0], [1, 2, 4, 8, 16]) and drawn[BLUE, "-"][-1, 1] == pytest.approx(-0.5)
    assert np.allclose(drawn[BLUE, ":"], [[16, -0.5], [64, 0]], atol=1e-6)
    assert (GREEN, ":") not in drawn, "BSD100 is above its goal"
    discs = [line.get_xydata() for line in axes.lines if line.get_marker() == "o"]
    assert [len(found) for found in discs] == [1, 1, 1] and discs[0][0, 0] == 16
    (tmp_path / "facts.json").write_text(json.dumps({"runs": runs}))
    draw_curve.main([str(tmp_path / "curve.png"), "--facts", str(tmp_path / "facts.json")])
    assert read_rgb(tmp_path / "curve.png").shape == (520, 832, 3)


def test_unfinished_runs_and_unknown_starts_are_refused(
    zoo: Path, words: Callable[..., list[str]], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert train.main(command("run", "--steps", "4", "--max_minutes", "1e-9")) == 0
    with pytest.raises(SystemExit, match="run is not finished"):
        main(words("run"))
    assert train.main(command("run", "--steps", "4")) == 0
    assert train.main(command("next", "--steps", "4", "--init", str(tmp_path / "run" / "last.safetensors"))) == 0
    with pytest.raises(SystemExit, match=r"started from .*last\.safetensors, not from hatfreq_light_x4"):
        main(words("next"))
    assert train.main(command("other", "--steps", "4")) == 0
    with pytest.raises(SystemExit, match="in their order"):
        main(words("next", "other"))
    assert list(zoo.iterdir()) == []


def test_a_teacher_is_told_as_a_file_or_as_facts(tmp_path: Path) -> None:
    told = {"name": "DAT", "sha256": "ab"}
    assert release_weights.teacher_facts({**told, "more": "x"}) == told and release_weights.teacher_facts("") is None
    assert release_weights.teacher_facts(tmp_path / "gone.pth") == {"name": "gone", "sha256": "not at hand"}


def test_weights_must_be_better_on_every_set() -> None:
    standing = {"A": {"psnr": 30.0}, "B": {"psnr": 28.0}}
    assert worse_sets({"A": {"psnr": 30.1}, "B": {"psnr": 28.1}}, standing) == []
    assert worse_sets({"A": {"psnr": 31.0}, "B": {"psnr": 28.0}}, standing) == ["B 28.0000 against 28.0000 dB"]
    assert worse_sets({"A": {"psnr": 31.0}, "C": {"psnr": 20.0}}, standing) == []  # C was not scored before


def test_weights_are_compared_on_one_set_at_least(tmp_path: Path) -> None:
    target = tmp_path / "hatfreq_light_x4.safetensors"
    with pytest.raises(SystemExit, match=r"hatfreq_light_x4\.json"):
        standing_scores(target, {"A": []})
    scores = {"A": {"single": {"psnr": 30.0}, "x8": {"psnr": 31.0}}, "B": {"single": {"psnr": 28.0}}}
    target.with_suffix(".json").write_text(json.dumps({"scores": scores}))
    assert standing_scores(target, {"A": [], "C": []}) == {"A": {"psnr": 30.0}}
    with pytest.raises(SystemExit, match="no score of C: --bench must hold one of A, B"):
        standing_scores(target, {"C": []})


def test_a_command_names_no_folder_of_the_machine() -> None:
    training = {"data": ["hr=/m/d/train/a,lr=/m/d/lr/a,weight=2", "/m/d/train/b"], "valid_hr": ["/m/d/bench/HR"]}
    training |= {"valid_lr": [], "init": "/elsewhere/runs/first/last.safetensors", "tensorboard": False, "lr": 0.5}
    found = training_command({**training, "seed": 0, "out": "/m/runs/x"})
    assert "--data hr=$DATA/train/a,lr=$DATA/lr/a,weight=2 $DATA/train/b --valid_hr $DATA/bench/HR" in found
    assert "--init first/last.safetensors --no-tensorboard --lr 0.5 --out runs/light" in found


def test_the_card_begins_with_what_the_hub_reads() -> None:
    facts = json.loads((ZOO / f"{NAME}.json").read_text())
    head = yaml.safe_load(card(facts).split("---\n")[1])
    assert head["license"] == "mit" and head["pipeline_tag"] == "image-to-image"
    results = head["model-index"][0]["results"]
    assert [one["dataset"]["name"] for one in results] == list(facts["scores"])
    value = results[0]["metrics"][0]
    assert value["type"] == "psnr" and value["value"] == round(facts["scores"]["Set5"]["single"]["psnr"], 3)


@pytest.mark.artefacts
def test_the_committed_card_is_rendered_from_the_facts() -> None:
    facts = json.loads((ZOO / f"{NAME}.json").read_text())
    assert card(facts) == (ZOO / f"{NAME}.md").read_text()
