"""The trainer's parts, each against a golden value, a whole-image reference or an injected fault."""

import io
import math
import os
import re
import sys
from dataclasses import asdict, fields, replace

import pytest
import torch
from torch import nn

import train
from models.team08_HATFreq import PRESETS
from training import checkpoint as checkpoints
from training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.config import ConfigError, TrainConfig, config_dict, model_config, parse_arguments
from training.run_log import Losses, NonFiniteError, Progress
from training.run_record import check_resume
from training.schedule import parse_finish_in, planned, resumed

CONFIG = TrainConfig(data=("photographs",), out="runs/x")


# Schedule


def test_schedule_warms_up_linearly_and_decays_to_min_lr_at_the_last_step():
    plan = planned(lr=1e-3, min_lr=1e-6, warmup=100, steps=1101)
    assert plan.lr_at(0) == pytest.approx(1e-5)
    assert plan.lr_at(49) == pytest.approx(5e-4)
    assert plan.lr_at(99) == plan.lr_at(100) == 1e-3
    assert plan.lr_at(600) == pytest.approx((1e-3 + 1e-6) / 2)
    assert plan.lr_at(350) == pytest.approx(1e-6 + 0.999e-3 * (1 + math.sqrt(0.5)) / 2)
    assert plan.lr_at(1100) == pytest.approx(1e-6, rel=1e-12)


@pytest.mark.parametrize("step", [0, 30, 100, 700])
def test_reshaped_schedule_starts_at_the_branch_rate_and_ends_at_min_lr(step):
    plan = planned(1e-3, 1e-6, 100, 1000)
    branch = plan.finishing(step, "50", 0.0)
    assert branch.lr_at(step) == pytest.approx(plan.lr_at(step), rel=1e-12)
    assert branch.end == step + 50
    assert branch.lr_at(step + 49) == pytest.approx(1e-6, rel=1e-12)
    rates = [branch.lr_at(s) for s in range(step, step + 50)]
    assert rates == sorted(rates, reverse=True)


def test_reshaped_schedule_outlives_restarts():
    plan = planned(1e-3, 1e-6, 10, 1000)
    branch = resumed(plan, plan.state(), step=200, finish_in="50", seconds=9.0)
    assert branch == plan.finishing(200, "50", 9.0)
    assert resumed(plan, branch.state(), 220, "50", 10.0) == branch
    assert resumed(plan, branch.state(), 220, "", 10.0) == branch
    assert resumed(plan, branch.state(), 220, "10", 10.0) == branch.finishing(220, "10", 10.0)
    assert resumed(plan, branch.state(), 250, "10", 10.0) == branch, "a run that has ended stays ended"
    timed = resumed(plan, branch.state(), 220, "2min", 10.0)
    assert timed.deadline == 130.0 and resumed(plan, timed.state(), 225, "2min", 60.0) == timed


def test_resume_takes_more_steps_from_the_command_line():
    longer = planned(1e-3, 1e-6, 10, 2000)
    assert resumed(longer, planned(1e-3, 1e-6, 10, 1000).state(), 500, "", 0.0) == longer


def test_milestones_halve_the_rate():
    plan = planned(2e-4, 0.0, 10, 100, milestones=(50, 80, 90))
    assert [plan.lr_at(step) for step in (4, 9, 49, 50, 79, 80, 99)] == pytest.approx(
        [1e-4, 2e-4, 2e-4, 1e-4, 1e-4, 5e-5, 2.5e-5]
    )
    finishing = plan.finishing(60, "20", 0.0)
    assert finishing.lr_at(60) == 1e-4 and finishing.end == 80 and finishing.lr_at(79) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("seconds_per_step", [0.5, 2.0, 8.0])
def test_a_deadline_moves_the_end_and_never_the_rate(seconds_per_step):
    """A run of unknown speed, given 20 minutes: decayed and over within them, without a jump of the rate."""
    schedule, seconds, step = planned(1e-3, 1e-6, 5, 10_000).finishing(0, "20min", 0.0), 0.0, 0
    replan, rates = 20, []
    while step < schedule.end:
        rates.append(schedule.lr_at(step))
        step, seconds = step + 1, seconds + seconds_per_step * (1.5 if step < 30 else 1.0)  # slow at first
        if step == replan:
            before = schedule.lr_at(step)
            schedule = schedule.replanned(step, seconds, seconds / step)
            assert schedule.lr_at(step) == pytest.approx(before, rel=1e-9)
            replan = step + max(20, (schedule.end - step) // 10)
    assert rates[4] == 1e-3 and rates[-1] == pytest.approx(1e-6, rel=1e-6)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0.85 * 1200 < seconds <= 1200


def test_a_run_too_short_for_its_warm_up_still_decays():
    schedule = planned(1e-3, 1e-6, 500, 10_000).finishing(0, "1min", 0.0).replanned(20, 20.0, 1.0)
    assert schedule.end == 20 + 38 and schedule.lr_at(20) == 1e-3
    assert schedule.lr_at(schedule.end - 1) == pytest.approx(1e-6)


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
@pytest.mark.parametrize("left", [-5.0, 0.0, 1.0, 30.0])
def test_a_plan_made_near_the_end_keeps_its_decay(ahead, left):
    """`ahead` steps are due and `left` seconds remain, at a second a step: the last step is made at the lowest rate."""
    before = replace(planned(1e-3, 1e-6, 5, 100), finish_in="2min", deadline=120.0)
    step = before.end - ahead
    after = before.replanned(step, 120.0 - left, 1.0)
    assert [after.lr_at(after.end - 1), after.lr_at(step)] == pytest.approx([1e-6, before.lr_at(step)], rel=1e-6)
    if ahead < 2:  # the rate has arrived: nothing to stretch, however much time is left
        assert after == before
    else:
        assert after.end - step == max(2, int(0.97 * left))


@pytest.mark.parametrize("text", ["0", "-5", "1.5", "0min", "min", "infmin", "5h"])
def test_unusable_ends_are_refused(text):
    with pytest.raises(ValueError, match="finish_in takes steps, as 500, or minutes, as 90min"):
        parse_finish_in(text)


# Moving average


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
    state, message = load_checkpoint(tmp_path)
    assert state["step"] == 3 and torch.equal(state["model"]["w"], torch.full((99,), 3))
    assert message == f"resuming {tmp_path / 'checkpoint.pt'} at step 3"
    (tmp_path / checkpoints.LAST).unlink()  # as a kill between the two renames leaves it
    state, message = load_checkpoint(tmp_path)
    assert state["step"] == 2 and "is missing" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoints.PREVIOUS]


def test_flipped_bit_in_a_checkpoint_is_noticed(tmp_path):
    save_checkpoint(tmp_path, state_at(1))
    save_checkpoint(tmp_path, state_at(2))
    last = tmp_path / checkpoints.LAST
    content = bytearray(last.read_bytes())
    content[content.index(torch.full((99,), 2).numpy().tobytes()) + 100] ^= 1
    last.write_bytes(content)
    state, message = load_checkpoint(tmp_path)
    assert state["step"] == 1 and "wrong checksum" in message


def test_no_flipped_bit_of_the_directory_is_fatal(tmp_path):
    """The names and sizes at the end of the file, of which each reader makes something else."""
    save_checkpoint(tmp_path, state_at(1))
    save_checkpoint(tmp_path, state_at(2))
    last, previous = ((tmp_path / name).read_bytes() for name in (checkpoints.LAST, checkpoints.PREVIOUS))
    directory, fell_back = last.index(b"PK\x01\x02"), 0
    for place in range(directory, len(last), 7):
        (tmp_path / checkpoints.PREVIOUS).write_bytes(previous)
        flipped = bytearray(last)
        flipped[place] ^= 1 << place % 8
        (tmp_path / checkpoints.LAST).write_bytes(flipped)
        state, _ = load_checkpoint(tmp_path)
        assert torch.equal(state["model"]["w"], torch.full((99,), state["step"]))
        fell_back += state["step"] == 1
    assert fell_back > 20


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_truncated_checkpoint_is_set_aside_for_the_one_before(tmp_path, keep):
    save_checkpoint(tmp_path, state_at(1))
    save_checkpoint(tmp_path, state_at(2))
    last = tmp_path / checkpoints.LAST
    os.truncate(last, int(keep * last.stat().st_size) if keep < 1 else keep)
    state, message = load_checkpoint(tmp_path)
    assert state["step"] == 1 and "is damaged" in message and len(message.splitlines()) == 1
    save_checkpoint(tmp_path, state_at(2))
    assert load_checkpoint(tmp_path)[0]["step"] == 2
    assert torch.load(tmp_path / checkpoints.PREVIOUS)["step"] == 1, "the good one was replaced by the damaged one"


def test_two_damaged_checkpoints_are_an_error_that_deletes_nothing(tmp_path):
    for name in (checkpoints.LAST, checkpoints.PREVIOUS):
        (tmp_path / name).write_bytes(b"PK\x03\x04 torn")
    remedy = "delete what is damaged to start from the beginning, or choose another --out"
    with pytest.raises(CheckpointError, match=rf"checkpoint\.pt is damaged .*, and .*\.previous\.pt is .*: {remedy}"):
        load_checkpoint(tmp_path)
    assert (tmp_path / checkpoints.LAST).exists() and (tmp_path / checkpoints.PREVIOUS).exists()
    (tmp_path / checkpoints.LAST).unlink()
    with pytest.raises(CheckpointError, match=rf"checkpoint\.previous\.pt is damaged .*: {remedy}"):
        load_checkpoint(tmp_path)


def test_one_damaged_checkpoint_alone_says_what_to_do(tmp_path):
    (tmp_path / checkpoints.LAST).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="delete it to start from the beginning"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"), [({"params": {}}, "is not a checkpoint of this trainer"), (None, "has format 99")]
)
def test_foreign_checkpoint_is_an_error_even_with_a_good_one_before(tmp_path, content, message):
    save_checkpoint(tmp_path, state_at(1))
    save_checkpoint(tmp_path, state_at(2))
    torch.save(content or {**state_at(3), "format": 99}, tmp_path / checkpoints.LAST)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_failed_write_leaves_both_checkpoints(tmp_path, monkeypatch, error):
    save_checkpoint(tmp_path, state_at(1))
    save_checkpoint(tmp_path, state_at(2))

    def full_disk(_state, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="untouched"):
        save_checkpoint(tmp_path, state_at(3))
    assert load_checkpoint(tmp_path)[0]["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([checkpoints.LAST, checkpoints.PREVIOUS])


# Configuration


def test_command_line_has_the_dataclasss_defaults_and_types():
    assert parse_arguments(["--data", "photographs", "--out", "runs/x"]) == CONFIG
    words = ["--data", "a", "b", "--out", "o", "--lr", "2e-4", "--betas", "0.8", "0.95", "--steps", "700"]
    words += ["--preset", "base", "--precision", "bf16"]
    expected = replace(
        CONFIG, data=("a", "b"), out="o", lr=2e-4, betas=(0.8, 0.95), steps=700, preset="base", precision="bf16"
    )
    assert parse_arguments(words) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--betas 0.9", "betas must be two numbers"),
        ("--batch 0", "batch must be at least 1"),
        ("--lr 1e-7", "min_lr 1e-06 must lie between 0 and lr"),
        ("--ema 1", r"ema must lie in \[0, 1\)"),
        ("--precision fp16", "invalid choice: 'fp16'"),
        ("--valid_lr x", "valid_lr must name as many sets as valid_hr, or none: got 1 and 0"),
        ("--finish_in soon", "finish_in takes steps, as 500, or minutes, as 90min"),
        ("--milestones 20 10", "milestones must rise from 1 on, got 20 10"),
        ("--fusion_lr_scale 0", "fusion_lr_scale must be positive"),
        ("--data hr=a,weight=1 b", "'b' has no weight"),
        ("--embed_dim 12", "unrecognized arguments"),
        ("--step 12", "unrecognized arguments"),
        ("--max_minutes -1", "max_minutes must be at least 0"),
        ("--lr inf", "lr must be a finite number"),
        ("--grad_clip nan", "grad_clip must be a finite number"),
        ("--steps 50", "warmup 100 lies beyond the 50 steps: set a lower --warmup"),
        ("--steps 300 --milestones 100 400", "milestones 400 lies beyond the 300 steps"),
        ("--loss l1=1 l1=2", "loss l1 stands twice"),
        (f"--seed {2**64}", "seed must be at most"),
        ("--change frequency", "change takes"),
    ],
)
def test_unusable_arguments_are_refused_with_status_2(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--data", "a", "--out", "b", *words.split()])
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_model_overrides_change_the_preset():
    config = replace(CONFIG, frequency="none", model_overrides=("embed_dim=24", "depths=2,", "num_heads=2,"))
    assert model_config(config) == replace(
        PRESETS["light"], frequency="none", embed_dim=24, depths=(2,), num_heads=(2,)
    )
    assert model_config(replace(CONFIG, model_overrides=("depths=2", "num_heads=1", "conv_scale=1"))).depths == (2,)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("embed_dims=24", "unknown key 'embed_dims': did you mean 'embed_dim'?"),
        ("embed_dim=wide", f"embed_dim takes a value such as {PRESETS['light'].embed_dim}, got 'wide'"),
        ("embed_dim", "takes key=value"),
        ("frequency=none", "use --frequency"),
        ("scale=2", "the trainer makes pairs at x4"),
        ("window_size=15", "window_size must be even"),
        ("window_size=0", "window_size must lie between 1 and"),
        ("window_size=-8", "window_size must lie between 1 and"),
        ("num_heads=2,0,2", "num_heads must lie between 1 and"),
        ("mlp_ratio=0.001", "mlp_ratio must lie between 0.1 and"),
        ("overlap_ratio=-1", "overlap_ratio must lie between 0 and 1"),
        ("drop_path_rate=5", "drop_path_rate must lie between 0 and 0.99"),
        ("drop_path_rate=-1", "drop_path_rate must lie between"),
        ("conv_scale=nan", "conv_scale takes a value such as"),
    ],
)
def test_unusable_model_overrides_are_explained(item, message):
    with pytest.raises(ConfigError) as error:
        model_config(replace(CONFIG, model_overrides=(item,)))
    assert message in str(error.value)


def saved(config: TrainConfig, step: int = 50, **more: object) -> dict:
    """What a resumed run knows of the one before."""
    plan = planned(config.lr, config.min_lr, config.warmup, config.steps, config.milestones)
    return {"config": config_dict(config), "schedule": plan.state(), "step": step, "sampling": "x", **more}


def resume(state: dict, config: TrainConfig) -> dict:
    return check_resume(state, config, model_config(config))


def test_resuming_with_other_settings_names_what_differs():
    with pytest.raises(ConfigError, match=r"batch was 16 and is now 8; lr was 0.001 .*--change batch lr"):
        resume(saved(CONFIG), replace(CONFIG, lr=5e-4, batch=8, workers=7))
    with pytest.raises(ConfigError, match=r"preset was 'light' and is now 'small'\. .* --out$"):
        resume(saved(CONFIG), replace(CONFIG, preset="small"))


def test_settings_that_are_named_may_change():
    """What the message after a NaN advises."""
    changed = replace(CONFIG, lr=5e-4, grad_clip=1.0, seed=7, change=("lr", "grad_clip", "seed"))
    changes = resume(saved(CONFIG), changed)
    assert changes.pop("change") == [[], ["lr", "grad_clip", "seed"]]
    assert changes == {"lr": [1e-3, 5e-4], "grad_clip": [0.0, 1.0], "seed": [0, 7]}
    assert resume(saved(changed), changed) == {}
    with pytest.raises(ConfigError, match=r"change takes init, steps, .*; got 'preset'"):
        replace(CONFIG, change=("preset",))


def test_more_steps_are_refused_where_the_rate_would_jump():
    state = saved(replace(CONFIG, steps=16_000), step=15_990)
    with pytest.raises(ConfigError, match=r"steps was 16000 .* from 1e-06 to 0.000503 .*--finish_in.*--change"):
        resume(state, replace(CONFIG, steps=32_000))
    assert resume(state, replace(CONFIG, steps=32_000, change=("steps",)))["steps"] == [16_000, 32_000]
    assert resume(saved(CONFIG, step=200), replace(CONFIG, steps=20_001))  # where it hardly changes it may
    steady = replace(CONFIG, min_lr=1e-3)
    assert resume(saved(steady, step=9000), replace(steady, steps=40_000))


def test_a_reshaped_schedule_takes_no_other_steps():
    state = saved(CONFIG)
    state["schedule"]["finish_in"] = "3"
    assert resume(state, replace(CONFIG, finish_in="4"))
    for change in ((), ("steps", "warmup")):
        with pytest.raises(ConfigError, match=r"steps was 20000 and is now 90 \(--finish_in 3 .*; warmup .*--out$"):
            resume(state, replace(CONFIG, steps=90, warmup=5, change=change))


def test_resuming_after_a_preset_changed_names_the_fields():
    began = asdict(PRESETS["light"])
    with pytest.raises(ConfigError, match="embed_dim was 7 and is now"):
        resume(saved(CONFIG, network={**began, "embed_dim": 7}), CONFIG)
    resume(saved(CONFIG, network={**began, "fused_attention": False, "checkpointing": True}), CONFIG)  # once fields


def test_settings_that_decide_no_result_are_free_to_change():
    free = {f.name for f in fields(TrainConfig) if f.metadata.get("free")}
    assert free == {
        *("out", "micro_batch", "valid_every", "save_every", "save_minutes", "log_every", "max_minutes", "finish_in"),
        *("threads", "workers", "cache_gb", "audit_cache", "bad_images", "checkpointing", "valid_tile", "device"),
        *("tensorboard", "sample_images", "timeout_minutes", "change", "data", "valid_hr", "valid_lr", "compile"),
    }


def test_checkpoints_that_lack_a_later_setting_are_read_with_its_default():
    state = saved(CONFIG)
    del state["config"]["grad_clip"], state["config"]["betas"], state["sampling"]
    assert resume(state, CONFIG) == {}
    with pytest.raises(ConfigError, match=r"grad_clip was 0\.0 and is now 1\.0"):
        resume(state, replace(CONFIG, grad_clip=1.0))
    with pytest.raises(ConfigError, match=r"data was \['photographs'\] and is now"):  # its weights are not known
        resume(state, replace(CONFIG, data=("hr=photographs,weight=2",)))


# Losses and progress


def test_losses_are_read_late_on_a_gpu_and_checked_before_use():
    values: list[float] = []
    losses = Losses(values, lambda step: f"lr {step}e-3, files a.png", lazy=True)
    for step, value in ((5, 0.5), (6, 0.25)):
        losses.add(step, torch.tensor(value))
    assert values == []
    losses.read()
    assert losses.mean == 0.375 and losses.latest == 0.25
    values.clear()
    assert math.isnan(losses.mean)
    losses.add(7, torch.tensor(1.0))
    losses.add(8, torch.tensor(math.inf))
    losses.add(9, torch.tensor(math.nan))
    with pytest.raises(NonFiniteError, match=r"loss is inf at step 8, lr 8e-3, files a\.png"):
        losses.read()


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, capsys):
    cpu = torch.device("cpu")
    with Progress(10, 14, batch=4, log_every=2, device=cpu) as progress:
        for _ in range(4):
            progress.show(seconds=0.5, waited=0.05, loss=0.125, lr=1e-3)
    lines = capsys.readouterr().out.splitlines()
    middle = "8.0 images/s, 10% waiting for data"
    assert [re.sub(r", \d+\.\d GB memory", "", line) for line in lines] == [
        f"step 12/14  loss 0.12500  lr 1.00e-03  {middle}  00:01 left",
        f"step 14/14  loss 0.12500  lr 1.00e-03  {middle}  00:00 left",
    ]

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(10, 11, batch=4, log_every=1, device=cpu) as progress:
        progress.show(seconds=0.5, waited=0.05, loss=0.125, lr=1e-3)
        assert f"loss 0.1250, lr 1.0e-03, {middle}" in str(progress.bar)
    assert capsys.readouterr().out == ""
