"""The real trainer, end to end, with a tiny network on small photographs: resume, kills, signals, faults."""

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

import train
from models.team08_HATFreq import HATFreq
from models.team08_HATFreq.weights import load_weights, read_state_dict
from tests.training_run import assert_equal_runs, checkpoint, contents, log_rows
from training.config import model_config, parse_arguments
from training.data import Batch
from training.distributed import World
from training.validation import open_sets, validate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_six_steps_equal_one_and_five_whatever_the_workers(command, tmp_path, workers):
    assert train.main(command("whole", "--steps", "6")) == 0
    assert train.main(command("parts", "--steps", "6", "--max_minutes", "1e-9")) == 0
    assert checkpoint(tmp_path / "parts")["step"] == 1
    assert train.main(command("parts", "--steps", "6", "--workers", workers)) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_killed_run_resumes_exactly(server, command, tmp_path):
    words = ["--steps", "18", "--save_every", "3"]
    assert train.main(command("whole", *words)) == 0
    run = server.start(command("killed", *words))
    run.wait_for("step 8/")
    os.kill(run.pids[0], signal.SIGKILL)
    run.wait()
    assert 6 <= checkpoint(tmp_path / "killed")["step"] < 18, "the kill came too late to test anything"
    assert train.main(command("killed", *words)) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


def test_a_truncated_checkpoint_falls_back_to_the_one_before(command, tmp_path, capsys):
    assert train.main(command("whole", "--steps", "6", "--save_every", "2")) == 0
    assert train.main(command("torn", "--steps", "6", "--save_every", "2")) == 0
    os.truncate(tmp_path / "torn" / "checkpoint.pt", 5000)
    capsys.readouterr()
    assert train.main(command("torn", "--steps", "6", "--save_every", "2")) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line]
    assert len(lines) == 1 and lines[0].endswith("checkpoint.previous.pt, step 4")
    assert_equal_runs(tmp_path / "whole", tmp_path / "torn")


def test_another_configuration_is_refused_and_a_finished_run_is_left_alone(command, tmp_path, capsys):
    assert train.main(command("run", "--steps", "2")) == 0
    before = contents(tmp_path / "run")
    with pytest.raises(SystemExit, match=r"holds another run: seed was 0 and is now 5"):
        train.main(command("run", "--steps", "2", "--seed", "5"))
    capsys.readouterr()
    assert train.main(command("run", "--steps", "2", "--save_every", "9", "--threads", "1")) == 0
    assert f"finished: {tmp_path / 'run'} stands at step 2 of 2" in capsys.readouterr().out
    assert contents(tmp_path / "run") == before


def test_changed_training_images_are_refused_on_resume(command, photos, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (photos / "train").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    arguments = [str(copy) if word == str(photos / "train") else word for word in command("run", "--steps", "4")]
    assert train.main([*arguments, "--max_minutes", "1e-9"]) == 0
    (copy / "0.png").unlink()
    with pytest.raises(SystemExit, match="the training images have changed"):
        train.main(arguments)


def test_finish_in_decays_to_min_lr_and_outlives_a_restart(command, tmp_path):
    with pytest.raises(SystemExit, match=r"finish_in 4 reshapes a run that has begun, and .*/run holds none"):
        train.main(command("run", "--steps", "1000", "--finish_in", "4"))
    pause = ["--steps", "1000", "--max_minutes", "1e-9"]
    for more in ([], ["--finish_in", "4"], ["--finish_in", "4"]):
        assert train.main(command("run", *pause, *more)) == 0
    assert checkpoint(tmp_path / "run")["step"] == 3
    assert train.main(command("run", "--steps", "1000")) == 0
    state = checkpoint(tmp_path / "run")
    assert state["step"] == 5
    assert state["schedule"] | {"lr": 0} == {
        "lr": 0, "min_lr": 1e-6, "warmup": 0, "start": 1, "end": 5, "finish_in": "4", "milestones": (),
        "deadline": 0.0
    }  # fmt: skip
    assert state["schedule"]["lr"] == 1e-3  # of the branch: step 1 ends the warm-up
    assert state["optimiser"]["param_groups"][0]["lr"] == pytest.approx(1e-6, rel=1e-9)


def test_a_run_that_diverges_stops(command, tmp_path):
    arguments = ["--lr", "1e20", "--grad_clip", "0", "--warmup", "0", "--steps", "9", "--save_every", "1"]
    with pytest.raises(SystemExit, match=r"not finite after step 1, lr 9.*e\+19, files .*; .* a lower --lr"):
        train.main(command("run", *arguments))
    assert checkpoint(tmp_path / "run")["step"] == 1


def test_weights_that_are_not_finite_are_never_saved(command, tmp_path, monkeypatch):
    """A gradient can overflow under a finite loss: the next loss would tell, but a checkpoint may come before it."""
    assert train.main(command("run", "--steps", "5", "--max_minutes", "1e-9")) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")}
    honest = train.train_step

    def overflowing(run: train.Run, parts: list[Batch]) -> torch.Tensor:
        loss = honest(run, parts)
        next(run.ema.parameters()).view(-1)[0] = float("nan")
        return loss

    monkeypatch.setattr(train, "train_step", overflowing)
    with pytest.raises(SystemExit, match=r"weights are not finite after step 1, lr 0\.001, files .*/train/\d\.png"):
        train.main(command("run", "--steps", "5", "--save_every", "1"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")} == before


def test_a_nan_names_step_rate_and_files_and_saves_nothing(command, photos, tmp_path, monkeypatch):
    assert train.main(command("run", "--steps", "5", "--max_minutes", "1e-9")) == 0
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    honest = train.to_pair
    monkeypatch.setattr(train, "to_pair", lambda batch, device: [part * math.nan for part in honest(batch, device)])
    with pytest.raises(SystemExit) as stop:
        train.main(command("run", "--steps", "5", "--save_every", "1"))
    message = str(stop.value)
    assert message.startswith("train.py: loss is nan at step 1, lr 0.001, files ")
    files = message.split("files ")[1].split(";")[0].split(", ")
    assert len(files) == 2 and all(Path(file).parent == photos / "train" for file in files)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


@pytest.mark.slow
def test_training_beats_the_enlargement_it_starts_from(command, photos, tmp_path):
    """60 steps of a 0.02 M network gain about 1 dB over the nearest-neighbour enlargement of its first step."""
    assert train.main(command("run", "--steps", "60", "--valid_every", "20", "--lr", "3e-3")) == 0
    rows = log_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == ["20", "40", "60"]
    config = parse_arguments(command("run"))
    sets, alone = open_sets((str(photos / "valid"),), ()), World(0, 1, torch.device("cpu"))
    start = validate(HATFreq(model_config(config)).eval(), sets, alone, 0)["valid"]
    assert float(rows[-1]["psnr"]) > start + 0.5
    model = HATFreq(model_config(config)).eval()
    load_weights(model, tmp_path / "run" / "best.safetensors")
    best = max(float(row["psnr"]) for row in rows)
    assert validate(model, sets, alone, 0)["valid"] == pytest.approx(best, abs=1e-3)


def test_best_keeps_the_best_average_and_last_the_last(command, tmp_path, monkeypatch):
    scores = iter([30.0, 29.0, 29.5, 28.0, 27.0])
    monkeypatch.setattr(train, "validate", lambda *_: {"valid": next(scores)})
    for pause in (["--max_minutes", "1e-9"], []):
        assert train.main(command("run", "--steps", "5", "--valid_every", "1", *pause)) == 0
    steps = {}
    for name in ("best", "last"):
        with safe_open(tmp_path / "run" / f"{name}.safetensors", "pt") as file:
            steps[name] = file.metadata()["step"]
    assert steps == {"best": "1", "last": "5"}
    assert checkpoint(tmp_path / "run")["best_psnr"] == 30.0


def test_clipping_bounds_the_gradient(command, tmp_path):
    """Gradients clipped far below Adam's epsilon move nothing; without clipping every step moves by the rate."""
    arguments = ["--steps", "2", "--warmup", "0", "--lr", "1e-3"]
    for name, clip in (("clipped", "1e-14"), ("free", "0")):
        assert train.main(command(name, *arguments, "--grad_clip", clip)) == 0
    clipped, free = (checkpoint(tmp_path / name)["model"] for name in ("clipped", "free"))
    torch.manual_seed(0)
    start = HATFreq(model_config(parse_arguments(command("start")))).state_dict()
    assert all(torch.allclose(clipped[key], start[key], rtol=0, atol=1e-8) for key in start)
    assert max(float((free[key] - start[key]).abs().max()) for key in start) > 5e-4


def test_bf16_computes_in_bf16_and_stays_near_fp32(command, tmp_path):
    for precision in ("fp32", "bf16"):
        assert train.main(command(precision, "--steps", "4", "--precision", precision)) == 0
    (fp32,), (bf16,) = log_rows(tmp_path / "fp32"), log_rows(tmp_path / "bf16")
    assert fp32["loss"] != bf16["loss"]
    assert float(bf16["loss"]) == pytest.approx(float(fp32["loss"]), rel=0.02)
    assert {
        weight.dtype for weight in checkpoint(tmp_path / "bf16")["model"].values() if weight.is_floating_point()
    } == {torch.float32}


def test_init_starts_from_the_given_weights(command, tmp_path):
    assert train.main(command("first", "--steps", "3")) == 0
    weights = tmp_path / "first" / "last.safetensors"
    still = ["--lr", "0", "--min_lr", "0", "--seed", "9", "--init", str(weights)]
    assert train.main(command("second", "--steps", "1", *still)) == 0
    expected, found = read_state_dict(weights), read_state_dict(tmp_path / "second" / "last.safetensors")
    assert expected.keys() == found.keys()
    # The average of two equal tensors may round: (1 - d) w + d w.
    assert all(torch.allclose(expected[key].float(), found[key].float(), rtol=1e-6, atol=0) for key in expected)
    weights.unlink()
    assert train.main(command("second", "--steps", "2", *still)) == 0, "a resumed run needs its start no more"


def test_evaluation_images_in_the_training_set_stop_the_run_before_it_begins(command, photos, tmp_path):
    arguments = command("run", "--steps", "2")
    arguments[arguments.index("--valid_hr") + 1] = str(photos / "train")
    with pytest.raises(
        SystemExit, match=r"4 of 4 training images cannot be used(.|\n)*evaluation image: equals train/0"
    ):
        train.main(arguments)
    assert not (tmp_path / "run").exists()


def test_the_run_folder_records_settings_and_environment(command, tmp_path, capsys):
    assert train.main(command("run", "--steps", "2", "--max_minutes", "1e-9")) == 0
    assert train.main(command("run", "--steps", "2")) == 0
    folder = tmp_path / "run"
    settings = json.loads((folder / "config.json").read_text())
    assert settings["training"]["patch"] == 16 and settings["training"]["betas"] == [0.9, 0.99]
    assert settings["model"]["embed_dim"] == 12 and settings["model"]["conv_scale"] == 1.0
    starts = json.loads((folder / "environment.json").read_text())
    assert len(starts) == 2 and starts[0]["torch"] == torch.__version__ and starts[0]["numpy"] == np.__version__
    assert starts[0]["commit"] == "unknown" or len(starts[0]["commit"].removesuffix("-dirty")) == 40
    assert not list(folder.glob("*.tmp"))
    (folder / "environment.json").write_bytes(b"")
    assert train.main(command("run", "--steps", "3", "--change", "steps")) == 0
    assert "environment.json is damaged (Expecting value" in capsys.readouterr().out
    assert [start["step"] for start in json.loads((folder / "environment.json").read_text())] == [2]


def test_the_script_exits_non_zero_with_one_sentence(server, tmp_path):
    run = server.start(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")])
    assert run.wait() == {0: 1}
    remedy = "give a folder of images, a list of them or a tar shard"
    assert run.said.strip() == f"train.py: {tmp_path / 'none'} does not exist: {remedy}"


def test_a_run_without_validation_says_nothing_of_psnr(command, tmp_path, capsys):
    words = command("run", "--steps", "2")
    place = words.index("--valid_hr")
    assert train.main(words[:place] + words[place + 2 :]) == 0
    said = capsys.readouterr().out
    assert "step 2: loss 0." in said and "nan" not in said
    assert log_rows(tmp_path / "run")[0]["psnr"] == "nan" and not (tmp_path / "run" / "best.safetensors").exists()
