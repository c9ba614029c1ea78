"""What a restart may change and what it may not: advice that can be followed, moved folders, memory, stages."""

import json
import math
from pathlib import Path

import pytest
import torch

import train
from models.team08_HATFreq.image_io import write_png
from tests.training_run import TINY, assert_equal_runs, checkpoint, contents, log_rows
from training import step_memory
from training.config import model_config, parse_arguments
from training.step_memory import OutOfMemoryError, explained, saved_bytes

pytestmark = pytest.mark.usefixtures("one_thread")
PAUSE = ["--steps", "6", "--max_minutes", "1e-9"]


def starts(folder: Path) -> list[dict]:
    return json.loads((folder / "environment.json").read_text())


def copied(photos: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for path in (photos / "train").iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_the_advice_after_a_nan_can_be_followed(command, tmp_path, monkeypatch):
    assert train.main(command("run", *PAUSE)) == 0
    with monkeypatch.context() as patch:
        honest = train.to_pair
        patch.setattr(train, "to_pair", lambda batch, device: [part * math.nan for part in honest(batch, device)])
        with pytest.raises(SystemExit, match=r"loss is nan at step 1, .*--change lr grad_clip"):
            train.main(command("run", "--steps", "6"))
    milder = ["--steps", "6", "--lr", "5e-4", "--grad_clip", "0.1"]
    with pytest.raises(SystemExit, match=r"lr was 0.001 and is now 0.0005; grad_clip was 1.0 and is now 0.1"):
        train.main(command("run", *milder))
    assert train.main(command("run", *milder, "--change", "lr", "grad_clip")) == 0
    assert starts(tmp_path / "run")[-1]["step"] == 1
    assert starts(tmp_path / "run")[-1]["changes"].items() >= {"lr": [1e-3, 5e-4], "grad_clip": [1.0, 0.1]}.items()
    assert float(log_rows(tmp_path / "run")[0]["lr"]) == pytest.approx((5e-4 + 1e-6) / 2)
    assert train.main(command("run", *milder)) == 0, "the change was not kept"


def test_a_changed_rate_reaches_a_schedule_that_was_reshaped(command, tmp_path):
    assert train.main(command("run", "--steps", "1000", "--max_minutes", "1e-9", "--finish_in", "9min")) == 0
    words = ["--steps", "1000", "--lr", "1e-4", "--change", "lr", "--finish_in", "3"]
    assert train.main(command("run", *words)) == 0
    assert checkpoint(tmp_path / "run")["schedule"]["lr"] == pytest.approx(1e-4, rel=1e-3)


def test_moved_folders_are_the_same_data_and_other_data_is_not(command, photos, tmp_path, capsys):
    words = command("run", *PAUSE)
    words[words.index("--data") + 1] = str(copied(photos, tmp_path / "was" / "photos"))
    assert train.main(words) == 0
    assert train.main(command("whole", "--steps", "6")) == 0
    (tmp_path / "was").rename(tmp_path / "now")
    (tmp_path / "valid").symlink_to(photos / "valid")
    words = command("run", "--steps", "6", "--valid_hr", str(tmp_path / "valid"))
    words[words.index("--data") + 1] = str(tmp_path / "now" / ".." / "now" / "photos")
    assert train.main(words) == 0
    assert_equal_runs(tmp_path / "run", tmp_path / "whole")
    assert "other validation sets" not in capsys.readouterr().out
    write_png(tmp_path / "now" / "photos" / "new.png", torch.zeros(128, 128, 3, dtype=torch.uint8).numpy())
    with pytest.raises(SystemExit, match="the training images have changed since"):
        train.main([*words, "--steps", "8", "--change", "steps"])


def test_changed_weights_of_sources_are_refused(command, photos, tmp_path):
    other = copied(photos, tmp_path / "other")
    (other / "0.png").unlink()

    def words(name: str, weight: int, *more: str) -> list[str]:
        found = command(name, *PAUSE, *more)
        found[found.index("--data") + 1] = f"hr={photos / 'train'},weight=1"
        return [*found[:2], f"hr={other},weight={weight}", *found[2:]]

    assert train.main(words("run", 2)) == 0
    with pytest.raises(SystemExit, match="the sources or their weights have changed since"):
        train.main(words("run", 3))
    assert train.main(words("run", 2)) == 0


def test_other_validation_sets_begin_a_new_best(command, photos, tmp_path, capsys):
    assert train.main(command("run", "--steps", "4")) == 0
    (tmp_path / "two" / "HR").mkdir(parents=True)
    write_png(tmp_path / "two" / "HR" / "a.png", torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy())
    more = ["--steps", "8", "--change", "steps", "--valid_hr", str(photos / "valid"), str(tmp_path / "two" / "HR")]
    assert train.main(command("run", *more)) == 0
    assert "other validation sets than before" in capsys.readouterr().out
    rows = log_rows(tmp_path / "run")
    assert rows[0]["psnr_two"] == "nan" and float(rows[1]["psnr_two"]) < 20
    assert checkpoint(tmp_path / "run")["best_psnr"] == pytest.approx(float(rows[1]["psnr"]), abs=1e-3)


def test_more_steps_than_planned_are_asked_for_on_purpose(command, tmp_path):
    assert train.main(command("run", "--steps", "2")) == 0
    before = contents(tmp_path / "run")
    with pytest.raises(SystemExit, match=r"steps was 2 and is now 6 \(the rate would jump .*--change steps"):
        train.main(command("run", "--steps", "6"))
    assert contents(tmp_path / "run") == before
    assert train.main(command("run", "--steps", "6", "--change", "steps")) == 0
    assert train.main(command("run", "--steps", "6")) == 0


def test_a_run_that_is_ended_where_it_stands_counts_as_finished(command, tmp_path):
    assert train.main(command("run", "--steps", "8", "--max_minutes", "1e-9", "--valid_every", "1")) == 0
    record = tmp_path / "run" / "config.json"
    content = json.dumps(json.loads(record.read_text()) | {"teacher": {"name": "DAT"}})
    record.write_text(content[:-9])
    with pytest.raises(SystemExit, match=r"config\.json is damaged .*: move it away, and start again"):
        train.main(command("run", "--steps", "1"))
    assert checkpoint(tmp_path / "run")["schedule"]["end"] == 8
    record.write_text(content)
    assert train.main(command("run", "--steps", "1")) == 0
    assert checkpoint(tmp_path / "run")["schedule"]["end"] == 1
    after = json.loads(record.read_text())
    assert after["training"]["steps"] == 1 and after["teacher"] == {"name": "DAT"}
    assert json.loads(record.with_name("environment.json").read_text())[-1]["changes"]["steps"] == [8, 1]
    assert train.main(command("next", *PAUSE, "--init", str(tmp_path / "run"))) == 0


def test_auto_precision_is_settled_by_the_first_start(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "slow_bf16", lambda device: False)
    assert train.main(command("run", *PAUSE, "--precision", "auto")) == 0
    monkeypatch.setattr(train, "slow_bf16", lambda device: True)
    assert train.main(command("run", *PAUSE, "--precision", "auto")) == 0
    assert "computes bf16 several times slower than fp32: give --precision fp32" in capsys.readouterr().out
    assert checkpoint(tmp_path / "run")["config"]["precision"] == "bf16"
    assert train.main(command("run", "--steps", "6", "--precision", "fp32", "--change", "precision")) == 0
    assert train.main(command("slow", *PAUSE, "--precision", "auto")) == 0
    assert checkpoint(tmp_path / "slow")["config"]["precision"] == "fp32"


def test_a_checkpoint_is_written_by_time_too(command, tmp_path, monkeypatch):
    saved: list[int] = []
    monkeypatch.setattr(train, "save", lambda run: saved.append(run.step))
    words = ["--steps", "4", "--save_every", "100", "--valid_every", "100"]
    assert train.main(command("run", *words, "--save_minutes", "1e-9")) == 0
    assert train.main(command("rare", *words)) == 0
    assert saved == [1, 2, 3, 4, 4]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage1", "stage.1"])
def test_a_run_folder_is_a_start_once_it_has_finished(command, tmp_path, name, capsys):
    init = ["--init", str(tmp_path / name)]
    if name == "stage1":
        with pytest.raises(SystemExit, match="stage1 holds no run: train that stage first"):
            train.main(command("stage2", *PAUSE, *init))
    assert train.main(command(name, *PAUSE)) == 0
    with pytest.raises(SystemExit, match=rf"{name} stands at step 1 of 6: let that stage finish first"):
        train.main(command("stage2", *PAUSE, *init))
    assert train.main(command(name, "--steps", "6")) == 0
    for _ in range(2):
        assert train.main(command("stage2", *PAUSE, *init)) == 0
    assert capsys.readouterr().out.count("last.safetensors: ") == 1
    config = json.loads((tmp_path / "stage2" / "config.json").read_text())["training"]
    assert config["init"] == str(tmp_path / name / "last.safetensors")


# Memory


def test_a_step_that_cannot_fit_is_refused_before_it_is_made(command, tmp_path, monkeypatch):
    one = saved_bytes(train.HATFreq(model_config(parse_arguments(command("run")))).train(), 16, False)
    monkeypatch.setattr(step_memory, "available_memory", lambda device: 5 * one)
    with pytest.raises(SystemExit, match=r"8 patches of 16x16 at once need about .* set --micro_batch 4, or --checkp"):
        train.main(command("run", *PAUSE, "--batch", "8"))
    assert train.main(command("run", *PAUSE, "--batch", "8", "--micro_batch", "4")) == 0
    monkeypatch.setattr(step_memory, "available_memory", lambda device: one // 2)
    with pytest.raises(SystemExit, match="set --checkpointing and --micro_batch 1, or a smaller --patch"):
        train.main(command("other", *PAUSE))


def test_the_estimate_is_what_a_step_keeps():
    """Twice the patches keep twice as much; recomputed activations are not kept."""
    config = parse_arguments(["--data", "x", "--out", "y", "--model_overrides", *TINY])
    model = train.HATFreq(model_config(config)).train()
    four, one = (saved_bytes(model, side, False) for side in (64, 32))
    assert four == pytest.approx(4 * one, rel=0.02)
    assert saved_bytes(model, 32, True) < 0.8 * one
    model.set_grad_checkpointing()
    assert saved_bytes(model, 32, False) < one / 2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_names_what_to_set(error):
    with pytest.raises(OutOfMemoryError, match="out of memory: set --micro_batch 4"), explained("--micro_batch 4"):
        raise error


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shape"), explained("--micro_batch 4"):
        raise RuntimeError("shape mismatch")
