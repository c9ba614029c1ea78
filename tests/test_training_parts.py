"""The trainer's parts alone: schedule, moving average, checkpoints, settings, losses."""

import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from models.team08_HATFreq import PRESETS
from tests.test_train import with_value
from training import checkpoint as checkpoints
from training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.config import ConfigError, TrainConfig, model_config, parse_arguments, settings_words
from training.losses import LOSSES, parse_loss, total_loss
from training.schedule import Schedule

NEEDED = ["--data", "images", "--out", "runs/x"]


# Schedule


def test_cosine_milestones_and_constant_follow_their_formulas():
    plan = Schedule("cosine", lr=1e-3, min_lr=1e-6, warmup=100, end=1101)
    assert [plan.lr_at(step) for step in (0, 49)] == pytest.approx([1e-5, 5e-4])
    assert plan.lr_at(99) == plan.lr_at(100) == 1e-3
    for step in (350, 600, 1100):
        expected = 1e-6 + 0.999e-3 * (1 + math.cos(math.pi * (step - 100) / 1000)) / 2
        assert plan.lr_at(step) == pytest.approx(expected, rel=1e-12)
    halved = Schedule("milestones", 2e-4, 0.0, 10, 100, milestones=(50, 80, 90))
    rates = [halved.lr_at(step) for step in (4, 9, 49, 50, 79, 80, 99)]
    assert rates == pytest.approx([1e-4, 2e-4, 2e-4, 1e-4, 1e-4, 5e-5, 2.5e-5])
    assert {Schedule("constant", 1e-3, 0.0, 10, 100).lr_at(step) for step in range(9, 100)} == {1e-3}


@pytest.mark.parametrize("step", [0, 30, 100, 700])
def test_a_cool_down_begins_at_the_rate_where_it_branches_and_ends_at_min_lr(step):
    plan = Schedule("cosine", 1e-3, 1e-6, 100, 1000)
    branch = plan.continued(step, 0, 0, finish_in=50)
    assert branch.last == step + 50 and branch.lr_at(step) == pytest.approx(plan.lr_at(step))
    for more in range(50):
        expected = 1e-6 + (plan.lr_at(step) - 1e-6) * (1 - math.sqrt(more / 49))
        assert branch.lr_at(step + more) == pytest.approx(expected, rel=1e-9)
    for same in (0, 50):
        assert plan.continued(step + 20, step, 50, finish_in=same) == branch
    assert plan.continued(step + 20, step, 50, finish_in=10).last == step + 30


def test_ema_follows_its_formula_with_a_rising_decay():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    ema = train.moving_average(network, 0.999)
    nn.init.constant_(network.weight, 2.0)
    ema.update_parameters(network)  # decay 1/10
    assert ema.module.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    ema.update_parameters(network)  # decay 2/11
    assert ema.module.weight.item() == pytest.approx(1.9 * 2 / 11 + 2 * 9 / 11)
    for step, decay in ((89, 90 / 99), (100_000, 0.999)):
        nn.init.constant_(ema.module.weight, 1.0)
        ema.n_averaged.fill_(step + 1)
        ema.update_parameters(network)
        assert ema.module.weight.item() == pytest.approx(decay + 2 * (1 - decay), abs=1e-6)
    assert not ema.module.training and not ema.module.weight.requires_grad


# Checkpoints


def state_at(step: int) -> dict:
    return {key: {} for key in checkpoints.KEYS - {"format"}} | {"step": step, "model": {"w": torch.full((99,), step)}}


def test_checkpoint_round_trip_keeps_the_one_before(tmp_path):
    assert load_checkpoint(tmp_path) == (None, "")
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, state_at(step))
    assert torch.equal(load_checkpoint(tmp_path)[0]["model"]["w"], torch.full((99,), 3))
    (tmp_path / checkpoints.LAST).unlink()  # as a kill between the two renames leaves it
    assert load_checkpoint(tmp_path)[0]["step"] == 2


def test_no_flipped_bit_is_fatal(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, state_at(step))
    last, previous = ((tmp_path / name).read_bytes() for name in (checkpoints.LAST, checkpoints.PREVIOUS))
    directory, fell_back = last.index(b"PK\x01\x02"), 0
    weights = last.index(torch.full((99,), 2).numpy().tobytes())
    for position in [weights + 100, *range(directory, len(last), 7)]:
        (tmp_path / checkpoints.PREVIOUS).write_bytes(previous)
        flipped = bytearray(last)
        flipped[position] ^= 1 << position % 8
        (tmp_path / checkpoints.LAST).write_bytes(flipped)
        state, _ = load_checkpoint(tmp_path)
        assert torch.equal(state["model"]["w"], torch.full((99,), state["step"]))
        assert position != weights + 100 or state["step"] == 1
        fell_back += state["step"] == 1
    assert fell_back > 20


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_checkpoint_is_set_aside_for_the_one_before(tmp_path, keep):
    for step in (1, 2):
        save_checkpoint(tmp_path, state_at(step))
    last = tmp_path / checkpoints.LAST
    os.truncate(last, int(keep * last.stat().st_size) if keep < 1 else keep)
    assert load_checkpoint(tmp_path)[0]["step"] == 1
    save_checkpoint(tmp_path, state_at(2))
    assert torch.load(tmp_path / checkpoints.PREVIOUS)["step"] == 1, "the good one was replaced by the damaged one"


def test_what_cannot_be_used_is_an_error_that_deletes_nothing(tmp_path, monkeypatch):
    for name in (checkpoints.LAST, checkpoints.PREVIOUS):
        (tmp_path / name).write_bytes(b"PK\x03\x04 torn")
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(tmp_path)
        assert (tmp_path / name).exists()
    for content in ({"params": {}}, {**state_at(3), "format": 99}):
        torch.save(content, tmp_path / checkpoints.LAST)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt"):
            load_checkpoint(tmp_path)

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(OSError, match=r"checkpoint\.pt .*the disk") as error:
        load_checkpoint(tmp_path)
    assert not isinstance(error.value, CheckpointError)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_failed_write_leaves_both_checkpoints(tmp_path, monkeypatch, error):
    for step in (1, 2):
        save_checkpoint(tmp_path, state_at(step))

    def full_disk(_state, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"checkpoint\.new\.pt"):
        save_checkpoint(tmp_path, state_at(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([checkpoints.LAST, checkpoints.PREVIOUS])


# Settings


def test_the_command_line_wins_over_the_file_and_both_over_the_defaults(tmp_path):
    assert parse_arguments(NEEDED) == TrainConfig(data=("images",), out="runs/x")
    file = tmp_path / "a.yaml"
    file.write_text("lr: 1e-4\nsteps: 700\nloss: [l1, mse=0.5]\ntensorboard: false\nmodel_overrides: {embed_dim: 24}\n")
    config = parse_arguments([*NEEDED, "--steps", "800", "--config", str(file), "--data", "a", "b"])
    assert (config.lr, config.steps, config.loss, config.tensorboard) == (1e-4, 800, ("l1", "mse=0.5"), False)
    assert config.data == ("a", "b") and model_config(config).embed_dim == 24


@pytest.mark.parametrize("text", ["lr: true", "steps: 1e3", "steps: 2.5", "lr:", "lr: [1, 2]",
                                  "learning_rate: 1", "lr: 1\nlr: 2", "- a", "a: ["])  # fmt: skip
def test_unusable_files_are_named(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        settings_words(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    "argv",
    ["--batch 0", "--lr 1e-7", "--lr 1e9", "--ema 1", "--valid_lr x", "--milestones 20 10", "--lr inf",
     "--schedule milestones", "--data hr=a,weight=1 b", "--max_minutes -1", "--grad_clip nan", "--steps 50",
     "--steps 99999999999999999999", "--loss l1=1 l1=2", f"--seed {2**64}", "--valid_hr a a",
     "--preset ligth"],
)  # fmt: skip
def test_unusable_values_are_refused_by_the_settings_name(argv):
    with pytest.raises(ValueError, match=argv.split()[0][2:].split("_")[0]):
        parse_arguments([*NEEDED, *argv.split()])


def test_the_home_folder_in_a_file_is_found(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("out: ~/run\ndata: ['hr=~/a,lr=~/b', 'a~/c']\n")
    argv = settings_words(file)
    assert argv == ["--out", f"{Path.home()}/run", "--data", f"hr={Path.home()}/a,lr={Path.home()}/b", "a~/c"]


def test_empty_words_are_refused():
    for option in ("--data", "--out"):
        with pytest.raises(ConfigError, match=option[2:]):
            parse_arguments(with_value(NEEDED, option, ""))


def test_unknown_options_name_the_nearest(capsys):
    for argv in ("--min_lrr 1", "--precision fp16"):
        with pytest.raises(SystemExit) as stop:
            parse_arguments([*NEEDED, *argv.split()])
        assert stop.value.code == 2
    assert "--min_lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    "item", ["embed_dims=24", "embed_dim=wide", "embed_dim", "frequency=none", "scale=2", "window_size=15"]
)
def test_unusable_model_overrides_are_refused(item):
    with pytest.raises(ConfigError, match=item.partition("=")[0]):
        model_config(TrainConfig(data=("a",), out="b", model_overrides=(item,)))


@pytest.mark.parametrize(("name", "expected"), [
    ("stage1_imagenet", (70_000, 256, 64)), ("stage2_df2k", (50_000, 128, 96)),
    ("stage3_ldcc", (20_000, 64, 112))])  # fmt: skip
def test_configurations_hold_the_factsheets_values(root, name, expected):
    config = parse_arguments([*NEEDED, "--config", str(root / "configs" / f"{name}.yaml")])
    assert (config.steps, config.batch, config.patch, config.preset) == (*expected, "large")
    assert model_config(config) == PRESETS["large"]


@pytest.mark.parametrize("name", ["light", "finetune"])
def test_the_files_that_ship_are_usable(root, name):
    assert parse_arguments([*NEEDED, "--config", str(root / "configs" / f"{name}.yaml")]).preset == "light"


# Losses


def test_losses_by_hand_and_mixed():
    gt = torch.zeros(1, 3, 4, 4)
    sr = torch.full_like(gt, 0.3)
    # A constant has one coefficient, its mean times sqrt(16), among the 4 x 3 of the half spectrum.
    expected = {"l1": 0.3, "mse": 0.09, "charbonnier": math.sqrt(0.09 + 1e-6), "frequency": 0.3 * 4 / 12}
    assert {name: LOSSES[name](sr, gt).item() for name in LOSSES} == pytest.approx(expected)
    weights = parse_loss(("l1", "mse=0.5"))
    assert weights == {"l1": 1.0, "mse": 0.5}
    assert total_loss(weights, sr, gt).item() == pytest.approx(0.3 + 0.045)
    for items in (("l1=0",), ("l1=x",), (), ("l1=inf",)):
        with pytest.raises(ValueError, match="loss"):
            parse_loss(items)
