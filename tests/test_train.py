"""The real trainer, end to end, with a tiny network on small images: resume, kills, signals, what it refuses."""

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
from models.team08_HATFreq.weights import read_state_dict
from tests.training_run import assert_equal_runs, checkpoint, contents, log_rows
from training.config import model_config, parse_arguments
from training.data import Batch

pytestmark = pytest.mark.usefixtures("one_thread")
PAUSE = ["--max_minutes", "1e-9"]  # one step


def with_value(argv: list[str], option: str, value: str) -> list[str]:
    position = argv.index(option)
    return [*argv[: position + 1], value, *argv[position + 2 :]]


# Resuming


@pytest.mark.parametrize("workers", ["0", "2"])
def test_six_steps_equal_one_and_five_whatever_the_workers(command, tmp_path, workers):
    assert train.main(command("whole", "--steps", "6")) == 0
    assert train.main(command("parts", "--steps", "6", *PAUSE)) == 0
    assert checkpoint(tmp_path / "parts")["step"] == 1
    assert train.main(command("parts", "--steps", "6", "--workers", workers)) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_killed_run_resumes_exactly(server, command, tmp_path):
    argv = ["--steps", "18", "--save_every", "3"]
    assert train.main(command("whole", *argv)) == 0
    run = server.start(command("killed", *argv))
    run.wait_for("step 8/")
    os.kill(run.pids[0], signal.SIGKILL)
    run.wait()
    assert 6 <= checkpoint(tmp_path / "killed")["step"] < 18, "the kill came too late to test anything"
    assert train.main(command("killed", *argv)) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


def test_a_truncated_checkpoint_falls_back_to_the_one_before(command, tmp_path, capsys):
    for name in ("whole", "torn"):
        assert train.main(command(name, "--steps", "6", "--save_every", "2")) == 0
    os.truncate(tmp_path / "torn" / "checkpoint.pt", 5000)
    capsys.readouterr()
    assert train.main(command("torn", "--steps", "6", "--save_every", "2")) == 0
    assert "checkpoint.previous.pt, step 4" in capsys.readouterr().out
    assert_equal_runs(tmp_path / "whole", tmp_path / "torn")


def test_network_seed_batch_patch_and_data_stay_and_the_rest_may_be_given_anew(command, photos, tmp_path, capsys):
    assert train.main(command("run", "--steps", "9", *PAUSE)) == 0
    for argv in (["--seed", "5"], ["--batch", "4"], ["--patch", "8"], ["--frequency", "none"]):
        with pytest.raises(SystemExit, match=f"{argv[0][2:]} was"):
            train.main(command("run", "--steps", "9", *argv))
    (tmp_path / "other").mkdir()
    for path in list((photos / "train").iterdir())[:3]:
        (tmp_path / "other" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SystemExit, match="--data"):
        train.main(with_value(command("run", "--steps", "9"), "--data", str(tmp_path / "other")))
    capsys.readouterr()
    assert train.main(command("run", "--steps", "7", *PAUSE, "--lr", "5e-4")) == 0
    assert "lr 0.0005 (was 0.001)" in capsys.readouterr().out
    group = checkpoint(tmp_path / "run")["optimiser"]["param_groups"][0]
    assert group["lr"] <= 5e-4
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert starts[1]["changes"]["steps"] == [9, 7]


def test_a_finished_run_is_left_alone(command, tmp_path, capsys):
    assert train.main(command("run", "--steps", "2")) == 0
    before = contents(tmp_path / "run")
    capsys.readouterr()
    assert train.main(command("run", "--steps", "2", "--save_every", "9", "--finish_in", "3")) == 0
    assert "finished: " in capsys.readouterr().out and contents(tmp_path / "run") == before


def test_finish_in_cools_down_from_where_the_run_stands_and_outlives_a_restart(command, tmp_path):
    with pytest.raises(SystemExit, match="finish_in"):
        train.main(command("run", "--steps", "1000", "--finish_in", "4"))
    for more in ([], ["--finish_in", "4"], ["--finish_in", "4"]):
        assert train.main(command("run", "--steps", "1000", *PAUSE, *more)) == 0
    assert train.main(command("run", "--steps", "1000")) == 0
    state = checkpoint(tmp_path / "run")
    assert state["step"] == state["schedule"]["last"] == 5 and state["schedule"]["cool_from"] == 1
    assert state["optimiser"]["param_groups"][0]["lr"] == pytest.approx(1e-6, rel=1e-9)


def test_other_validation_sets_begin_a_new_best(command, photos, tmp_path, monkeypatch):
    scores = iter([30.0, 29.0])
    monkeypatch.setattr(train, "validate", lambda *_: {"valid": next(scores)})
    assert train.main(command("run", "--steps", "2", "--valid_every", "1", *PAUSE)) == 0
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "dog.png").write_bytes((photos / "valid" / "cat.png").read_bytes())
    assert train.main(with_value(command("run", "--steps", "2"), "--valid_hr", str(tmp_path / "valid"))) == 0
    assert checkpoint(tmp_path / "run")["best"] == 29.0


def test_a_validation_that_is_owed_is_logged_once(command, tmp_path):
    """Stopped in the validation of step 4, then killed between its row and the next checkpoint."""
    argv = ["--steps", "8", "--save_every", "3"]
    assert train.main(command("whole", *argv)) == 0
    for attempt in range(2):
        with pytest.MonkeyPatch.context() as patch:
            if attempt == 0:

                def interrupted(*arguments: object) -> None:
                    os.kill(os.getpid(), signal.SIGTERM)

                patch.setattr(train, "validate", interrupted)
                assert train.main(command("run", *argv)) == 143
            else:
                patch.setattr(train, "train_step", lambda *_: exec("raise KeyboardInterrupt"))
                assert train.main(command("run", *argv)) == 130
    assert [row["step"] for row in log_rows(tmp_path / "run")] == ["4"]
    assert train.main(command("run", *argv)) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


# Numbers


def test_a_run_that_diverges_stops(command, tmp_path, monkeypatch):
    monkeypatch.setattr("training.config._require", lambda *_: None)
    with pytest.raises(SystemExit, match=r"step 1.*files .*png"):
        train.main(
            command("run", "--lr", "1e20", "--grad_clip", "0", "--warmup", "0", "--steps", "9", "--save_every", "1")
        )
    assert checkpoint(tmp_path / "run")["step"] == 1


def test_weights_that_are_not_finite_are_never_saved(command, tmp_path, monkeypatch):
    """A gradient can overflow under a finite loss: the next loss would tell, but a checkpoint may come before it."""
    assert train.main(command("run", "--steps", "5", *PAUSE)) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")}
    honest = train.train_step

    def overflowing(run: train.Run, parts: list[Batch]) -> torch.Tensor:
        loss = honest(run, parts)
        next(run.ema.parameters()).view(-1)[0] = float("nan")
        return loss

    monkeypatch.setattr(train, "train_step", overflowing)
    with pytest.raises(SystemExit, match=r"weights are not finite at step 1, lr 0\.001, files .*/train/\d\.png"):
        train.main(command("run", "--steps", "5", "--save_every", "1"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.pt")} == before


def test_a_nan_names_step_rate_and_files_and_saves_nothing(command, photos, tmp_path, monkeypatch):
    assert train.main(command("run", "--steps", "5", *PAUSE)) == 0
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    honest = train.to_pair
    monkeypatch.setattr(train, "to_pair", lambda batch, device: [part * math.nan for part in honest(batch, device)])
    with pytest.raises(SystemExit, match=r"nan at step 1, lr 0\.001, files ") as stop:
        train.main(command("run", "--steps", "5", "--save_every", "1"))
    files = str(stop.value).split("files ")[1].split(";")[0].split(", ")
    assert len(files) == 2 and all(Path(file).parent == photos / "train" for file in files)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_best_keeps_the_best_average_and_last_the_last(command, tmp_path, monkeypatch):
    scores = iter([30.0, 29.0, 29.5, 28.0, 27.0])
    monkeypatch.setattr(train, "validate", lambda *_: {"valid": next(scores)})
    for pause in (PAUSE, []):
        assert train.main(command("run", "--steps", "5", "--valid_every", "1", *pause)) == 0
    steps = {}
    for name in ("best", "last"):
        with safe_open(tmp_path / "run" / f"{name}.safetensors", "pt") as file:
            steps[name] = file.metadata()["step"]
    assert steps == {"best": "1", "last": "5"} and checkpoint(tmp_path / "run")["best"] == 30.0


def test_clipping_bounds_the_gradient(command, tmp_path):
    """Gradients clipped far below Adam's epsilon move nothing; without clipping every step moves by the rate."""
    for name, clip in (("clipped", "1e-14"), ("free", "0")):
        assert train.main(command(name, "--steps", "2", "--warmup", "0", "--lr", "1e-3", "--grad_clip", clip)) == 0
    clipped, free = (checkpoint(tmp_path / name)["model"] for name in ("clipped", "free"))
    torch.manual_seed(0)
    start = HATFreq(model_config(parse_arguments(command("start")))).state_dict()
    assert all(torch.allclose(clipped[key], start[key], rtol=0, atol=1e-8) for key in start)
    assert max(float((free[key] - start[key]).abs().max()) for key in start) > 5e-4


def test_bf16_and_checkpointing_stay_near_the_plain_step(command, tmp_path):
    for name, argv in (("fp32", []), ("bf16", ["--precision", "bf16"]), ("less", ["--checkpointing"])):
        assert train.main(command(name, "--steps", "4", *argv)) == 0
    fp32, bf16, less = (float(log_rows(tmp_path / name)[0]["loss"]) for name in ("fp32", "bf16", "less"))
    assert fp32 != bf16 and bf16 == pytest.approx(fp32, rel=0.02) and less == pytest.approx(fp32, rel=1e-6)
    assert {w.dtype for w in checkpoint(tmp_path / "bf16")["model"].values() if w.is_floating_point()} == {
        torch.float32
    }


# Beginning


def test_init_is_validated_first_and_is_a_candidate_for_best(command, tmp_path, capsys):
    assert train.main(command("first", "--steps", "3")) == 0
    start = tmp_path / "first" / "last.safetensors"
    still = ["--lr", "0", "--min_lr", "0", "--seed", "9", "--init", str(tmp_path / "first")]
    capsys.readouterr()
    assert train.main(command("second", "--steps", "1", *still)) == 0
    assert "against step 0" in capsys.readouterr().out
    assert [row["step"] for row in log_rows(tmp_path / "second")] == ["0", "1"]
    expected = read_state_dict(start)
    for name in ("best", "last"):
        result = read_state_dict(tmp_path / "second" / f"{name}.safetensors")
        # The average of two equal tensors may round: (1 - d) w + d w.
        assert all(torch.allclose(expected[key].float(), result[key].float(), rtol=1e-6, atol=0) for key in expected)
    assert train.main(command("third", "--steps", "9", *PAUSE)) == 0
    with pytest.raises(SystemExit, match="third stands at step 1 of 9"):
        train.main(command("fourth", "--steps", "1", "--init", str(tmp_path / "third")))
    with pytest.raises(SystemExit, match="fifth"):
        train.main(command("fourth", "--steps", "1", "--init", str(tmp_path / "fifth")))
    assert not (tmp_path / "fourth").exists()


def test_evaluation_images_in_the_training_set_stop_the_run_before_it_begins(command, photos, tmp_path):
    with pytest.raises(SystemExit, match=r"4 of 4 training images .*0\.png is the evaluation image"):
        train.main(with_value(command("run", "--steps", "2"), "--valid_hr", str(photos / "train")))
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_the_run_folder_records_settings_and_starts(command, tmp_path):
    for more in (PAUSE, []):
        assert train.main(command("run", "--steps", "2", *more)) == 0
    folder = tmp_path / "run"
    settings = json.loads((folder / "config.json").read_text())
    assert settings["training"]["patch"] == 16
    assert settings["model"]["embed_dim"] == 12
    starts = json.loads((folder / "environment.json").read_text())
    assert len(starts) == 2 and starts[0]["torch"] == torch.__version__ and starts[0]["numpy"] == np.__version__
    (folder / "environment.json").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"environment\.json is damaged"):
        train.main(command("run", "--steps", "3"))


def test_the_script_exits_non_zero_and_names_the_folder(server, tmp_path):
    run = server.start(["--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")])
    assert run.wait() == {0: 1}
    assert str(tmp_path / "none") in run.said and "Traceback" not in run.said


def test_a_run_without_validation_has_no_best(command, tmp_path):
    argv = command("run", "--steps", "2")
    position = argv.index("--valid_hr")
    assert train.main(argv[:position] + argv[position + 2 :]) == 0
    assert log_rows(tmp_path / "run")[0]["psnr"] == "nan" and not (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_resumes_and_validates(command, tmp_path, precision):
    argv = with_value(command("run", "--steps", "6", "--precision", precision, "--workers", "2"), "--device", "cuda")
    assert train.main([*argv, *PAUSE]) == 0 and train.main(argv) == 0
    assert checkpoint(tmp_path / "run")["step"] == 6
