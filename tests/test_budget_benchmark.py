"""benchmarks/budget.py: equal CPU time, paired seeds, runs that are kept."""

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from benchmarks import budget, short_runs
from benchmarks.common import open_network, restorer
from benchmarks.tables import ARMS
from image_data.geometry import cut_to_scale
from models.team08_HATFreq import PRESETS, HATFreq, override
from models.team08_HATFreq.folder import RECORD
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.weights import save_weights
from utils.metrics import psnr_y
from utils.resize import imresize

SECONDS = {"base": 2.0, "batch16": 4.0, "teacher": 2.5}


@pytest.fixture
def words(tmp_path: Path, photos: Path) -> list[str]:
    """The command for a tiny network, a set of one image and a teacher."""
    torch.manual_seed(0)
    model = HATFreq(override(PRESETS["light"], {"embed_dim": 8, "depths": (1,), "num_heads": (1,)}))
    save_weights(model, tmp_path / "start.safetensors", {})
    gt = read_rgb(photos / "valid" / "cat.png")[:64, :64]
    for kind, image in (("HR", gt), ("LRbicx4", imresize(gt, 0.25))):
        (tmp_path / "bench" / "Cat" / kind).mkdir(parents=True)
        write_png(tmp_path / "bench" / "Cat" / kind / f"cat{'x4' if kind != 'HR' else ''}.png", image)
    (tmp_path / "teacher").mkdir()
    for path in (photos / "train").iterdir():
        write_png(tmp_path / "teacher" / path.name, imresize(imresize(read_rgb(path), 0.25), 4))
    record = {"settings": {"teacher": "t.pth", "teacher_sha256": "0" * 64}}
    (tmp_path / "teacher" / RECORD).write_text(json.dumps(record) + "\n")
    found = ["--data", str(photos / "train"), "--teacher", str(tmp_path / "teacher"), "--work", str(tmp_path / "work")]
    found += ["--bench", str(tmp_path / "bench"), "--init", str(tmp_path / "start.safetensors"), "--seeds", "0", "1"]
    return [*found, "--patch", "16", "--batch", "1", "--out", str(tmp_path / "budget.json")]


def test_steps_are_what_the_budget_pays_for(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "step_seconds", lambda args, arm: SECONDS[arm])
    args = budget.arguments([*words, "--minutes", "2"])
    found = {arm: budget.steps_of(args, arm) for arm in ("base", "batch16", "teacher", "easier", "mse_end")}
    assert found == {"base": [60], "batch16": [30], "teacher": [60], "easier": [60], "mse_end": [51, 9]}
    last = budget.stage_words(args, "mse_end", 1, 3, 9)
    assert last[-2:] == ["--loss", "mse=1"] and last[last.index("--lr") + 1] == "5e-05"


def test_a_steps_time_is_measured_once(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """5 s of CPU for the start and 0.5 s a step."""
    calls = []

    def timed(*found: object) -> object:
        calls.append(steps := int(found[found.index("--steps") + 1]))
        return type("Process", (), {"cpu_seconds": 5 + 0.5 * steps})

    monkeypatch.setattr(budget, "run_script", timed)
    args = budget.arguments(words)
    args.work.mkdir()
    assert [budget.step_seconds(args, "base") for _ in range(2)] == [0.5, 0.5] and calls == [20, 60]
    assert budget.step_seconds(args, "teacher") == 0.5 and len(calls) == 4


def test_every_arm_is_one_of_the_tables() -> None:
    assert [*budget.WORDS, *budget.SHAPES] == list(ARMS)


def test_the_shapes_learn_the_teachers_restorations_from_scratch(
    words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def call(*found: object) -> None:
        calls.append([str(one) for one in found])
        Path(calls[-1][-1]).mkdir(parents=True)

    monkeypatch.setattr(short_runs, "call", call)
    monkeypatch.setattr(budget, "step_seconds", lambda args, arm: {"light": 1.0, "wider": 1.5}[arm])
    place = words.index("--init")
    args = budget.arguments([*words[:place], *words[place + 2 :], "--shapes", "--minutes", "1"])
    assert args.arms == ["light", "without_fusion", "groups_of_six", "wider"] and args.init is None
    monkeypatch.setattr(budget, "psnr", lambda weights, pairs: 30.0)
    budget.run(args, "light", 0, {})
    budget.run(args, "wider", 0, {})
    (script, *light), (_, *wider) = calls
    assert script == "train.py" and "--init" not in light and f"teacher={tmp_path / 'teacher'}" in light[1]
    assert [found[found.index("--steps") + 1] for found in (light, wider)] == ["60", "40"]
    assert wider[wider.index("--model_overrides") + 1 :][:2] == ["embed_dim=48", "depths=2,2,2"]


def test_the_hardest_photographs_are_left_out(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    args = budget.arguments(words)
    args.work.mkdir()
    monkeypatch.setattr(budget, "HARDEST", 0.4)
    names = [path for folder in args.data for path in sorted(folder.iterdir())]
    restore = restorer(open_network(args.init))
    psnr = {path: psnr_y(restore(imresize(cut_to_scale(read_rgb(path)), 0.25)), cut_to_scale(read_rgb(path)))
            for path in names}  # fmt: skip
    kept = budget.easier(args).read_text().splitlines()
    left_out = set(map(str, names)) - set(kept)
    assert len(left_out) == round(0.4 * len(names)) > 0 and kept == sorted(kept)
    assert max(psnr[Path(name)] for name in left_out) <= min(psnr[Path(name)] for name in kept)
    assert budget.data_words(args, "easier") == ["--data", str((args.work / "easier.txt").resolve())]


@pytest.mark.parametrize(
    "more",
    [
        ["--steps", "5"],
        ["--seeds", "1"],
        ["--teacher", "a", "b"],
        ["--teacher", "--arms", "teacher"],
        ["--arms", "features"],
        ["--shapes"],  # with --init
    ],
)
def test_unusable_arguments_are_refused(words: list[str], more: list[str], tmp_path: Path) -> None:
    if more[0] == "--teacher" and "--arms" in more:
        place = words.index("--teacher")
        words, more = [*words[:place], *words[place + 2 :]], more[1:]
    with pytest.raises(SystemExit):
        budget.arguments([*words, *more])


@pytest.mark.slow
def test_a_comparison_is_one_command_that_resumes(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "step_seconds", lambda args, arm: 1.0)
    monkeypatch.setattr(short_runs, "call", lambda script, *more: train.main([str(word) for word in more]))
    words += ["--minutes", "0.05", "--arms", "teacher", "mse_end"]
    budget.main(words)
    result = json.loads((tmp_path / "budget.json").read_text())
    assert [(row["variant"], row["seed"]) for row in result["rows"]] == [
        (arm, seed) for seed in (0, 1) for arm in ("base", "teacher", "mse_end")
    ]
    assert {row["steps"] for row in result["rows"]} == {3}
    psnr = {(row["variant"], row["seed"]): row["psnr"] for row in result["rows"]}
    assert len(set(psnr.values())) == 6
    mean = statistics.fmean(psnr["teacher", seed] - psnr["base", seed] for seed in (0, 1))
    assert f"| teacher less base | {mean:+.4f} [" in (tmp_path / "budget.md").read_text()
    (first,) = (tmp_path / "work").glob("mse_end_1_0_*")
    (second,) = (tmp_path / "work").glob("mse_end_1_1_*")
    config = json.loads((second / "config.json").read_text())["training"]
    assert config["init"] == str(first / "last.safetensors") and config["loss"] == ["mse=1"]
    monkeypatch.setattr(short_runs, "call", lambda *words: pytest.fail("a finished run was trained again"))
    budget.main(words)
    assert json.loads((tmp_path / "budget.json").read_text())["rows"] == result["rows"]
    assert np.isfinite(list(psnr.values())).all()
