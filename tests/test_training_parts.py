"""The trainer's parts, each against a golden value, a whole-image reference or an injected fault."""

import io
import math
import os
import re
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from models.team08_HATFreq import PRESETS
from models.team08_HATFreq.images import write_png
from training import checkpoint as checkpoints
from training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.config import (
    ConfigError,
    TrainConfig,
    check_same,
    check_same_network,
    config_dict,
    model_config,
    parse_arguments,
)
from training.data import (
    DataError,
    Patches,
    Photograph,
    StepBatches,
    audit,
    cut_pair,
    digest,
    fingerprint,
    make_loader,
    orient,
    read_cropped,
)
from training.ema import ExponentialMovingAverage
from training.progress import Losses, NonFiniteError, Progress
from training.schedule import planned, resumed
from training.validation import append_log, load_pairs, restore, start_log, validate
from utils.resize import imresize

GOLDEN_CROPS = [("0.png", 6, 32, 8), ("0.png", 0, 32, 20), ("3.png", 7, 8, 32)]
CONFIG = TrainConfig(data=("photographs",), out="runs/x")


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Random uint8 `h w 3`: every border and rounding error of a resize shows in it."""
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def photograph(image: np.ndarray, name: str = "a.png") -> Photograph:
    return Photograph(Path(name), image.shape[0], image.shape[1], digest(image), image)


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
    branch = plan.finishing(step, 50)
    assert branch.lr_at(step) == pytest.approx(plan.lr_at(step), rel=1e-12)
    assert branch.end == step + 50
    assert branch.lr_at(step + 49) == pytest.approx(1e-6, rel=1e-12)
    rates = [branch.lr_at(s) for s in range(step, step + 50)]
    assert rates == sorted(rates, reverse=True)


def test_reshaped_schedule_outlives_restarts():
    plan = planned(1e-3, 1e-6, 10, 1000)
    branch = resumed(plan, plan.state(), step=200, finish_in=50)
    assert branch == plan.finishing(200, 50)
    assert resumed(plan, branch.state(), 220, finish_in=50) == branch
    assert resumed(plan, branch.state(), 220, finish_in=0) == branch
    assert resumed(plan, branch.state(), 220, finish_in=10) == branch.finishing(220, 10)
    assert resumed(plan, branch.state(), 250, finish_in=10) == branch, "a run that has ended stays ended"


def test_resume_takes_more_steps_from_the_command_line():
    longer = planned(1e-3, 1e-6, 10, 2000)
    assert resumed(longer, planned(1e-3, 1e-6, 10, 1000).state(), 500, 0) == longer


# Moving average


def test_ema_follows_its_formula_with_a_rising_decay():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 1.0)
    ema = ExponentialMovingAverage(network, 0.999)
    nn.init.constant_(network.weight, 2.0)
    ema.update(network, step=0)  # decay 1/10
    assert ema.model.weight.item() == pytest.approx(0.1 * 1 + 0.9 * 2)
    ema.update(network, step=1)  # decay 2/11
    assert ema.model.weight.item() == pytest.approx(1.9 * 2 / 11 + 2 * 9 / 11)
    assert ema.decay_at(89) == pytest.approx(90 / 99)
    assert ema.decay_at(100_000) == 0.999
    assert not ema.model.training and not ema.model.weight.requires_grad


# Data


def test_pair_equals_the_whole_images_lr_everywhere_borders_included():
    image = noise(96, 80)
    whole = imresize(image, 0.25)
    for y in range(24 - 8 + 1):
        for x in range(20 - 8 + 1):
            lq, gt = cut_pair(image, 4 * y, 4 * x, 8)
            np.testing.assert_array_equal(lq, whole[y : y + 8, x : x + 8])
            np.testing.assert_array_equal(gt, image[4 * y : 4 * y + 32, 4 * x : 4 * x + 32])


def test_sampled_pairs_equal_the_oriented_photographs_lr():
    image = noise(64, 48)
    patches = Patches([photograph(image)], patch=8, seed=1)
    seen = set()
    for step in range(64):
        crop = patches.crop_at(step, 0)
        lq, gt = patches[(step, 0)]
        turned = orient(image, crop.orientation)
        y, x = crop.top // 4, crop.left // 4
        np.testing.assert_array_equal(lq, imresize(turned, 0.25)[y : y + 8, x : x + 8])
        np.testing.assert_array_equal(gt, turned[crop.top : crop.top + 32, crop.left : crop.left + 32])
        seen.add(crop.orientation)
    assert seen == set(range(8))


def test_orientations_are_the_eight_symmetries():
    image = noise(5, 5)
    ours = {orient(image, number).tobytes() for number in range(8)}
    symmetries = {np.rot90(side, turns).tobytes() for side in (image, image[:, ::-1]) for turns in range(4)}
    assert ours == symmetries and len(ours) == 8


def test_sample_order_is_a_pure_function_that_never_changes():
    photographs = [photograph(noise(64, 64, n), f"{n}.png") for n in range(4)]
    patches = Patches(photographs, patch=8, seed=7)
    crops = [patches.crop_at(step, index) for step, index in ((0, 0), (0, 1), (123456, 5))]
    # Golden: a change here would make old checkpoints go on with other batches.
    assert [(c.photograph.path.name, c.orientation, c.top, c.left) for c in crops] == GOLDEN_CROPS
    assert Patches(photographs, patch=8, seed=7).crop_at(123456, 5) == crops[2]
    assert Patches(photographs, patch=8, seed=8).crop_at(123456, 5) != crops[2]


def test_photographs_are_drawn_in_proportion_to_their_area():
    small, large = photograph(noise(32, 32), "small"), photograph(noise(64, 96), "large")  # 1 : 6
    patches = Patches([small, large], patch=8, seed=0)
    drawn = sum(patches.crop_at(step, 0).photograph is small for step in range(7000))
    assert drawn == pytest.approx(1000, abs=100)  # standard deviation 29


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_steps_in_order(workers):
    patches = Patches([photograph(noise(64, 64))], patch=8, seed=3)
    batches = list(make_loader(patches, StepBatches(5, 9, 2), workers, pin_memory=False))
    assert len(batches) == 4
    for step, (lq, gt) in enumerate(batches, start=5):
        assert lq.dtype == gt.dtype == torch.uint8
        for index in range(2):
            np.testing.assert_array_equal(lq[index].numpy(), patches[(step, index)][0])
            np.testing.assert_array_equal(gt[index].numpy(), patches[(step, index)][1])


def test_audit_names_every_kind_of_unusable_image(tmp_path):
    target = noise(40, 40, 9)
    write_png(tmp_path / "good.png", noise(40, 40))
    write_png(tmp_path / "evaluation.png", target)
    write_png(tmp_path / "narrow.png", noise(40, 31))
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    with pytest.raises(DataError) as error:
        audit((str(tmp_path),), 8, {digest(target): "0901.png"}, 1.0)
    message = str(error.value)
    assert message.startswith("4 of 5 training images cannot be used")
    assert "evaluation.png: equals the evaluation image 0901.png" in message
    assert "narrow.png: 28x40 pixels, smaller than the 32 that a patch of 8 needs" in message
    assert "truncated.png is damaged or truncated" in message and "text.jpg is no image" in message
    assert "good.png" not in message


def test_audit_names_the_first_ten_and_counts_the_rest(tmp_path):
    for number in range(12):
        write_png(tmp_path / f"{number:02}.png", noise(8, 8))
    with pytest.raises(DataError, match="12 of 12") as error:
        audit((str(tmp_path),), 8, {}, 1.0)
    assert "09.png" in str(error.value) and "10.png" not in str(error.value)
    assert str(error.value).endswith("and 2 more")


def test_audit_refuses_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match="is not a folder"):
        audit((str(tmp_path / "none"),), 8, {}, 1.0)
    with pytest.raises(DataError, match="holds no images"):
        audit((str(tmp_path),), 8, {}, 1.0)


def test_cache_budget_decides_what_is_kept_and_nothing_else(tmp_path):
    for number in range(3):
        write_png(tmp_path / f"{number}.png", noise(43, 50, number))
    size = 40 * 48 * 3
    some = audit((str(tmp_path),), 8, {}, 2 * size / 1e9)
    none = audit((str(tmp_path),), 8, {}, 0)
    assert [item.pixels is not None for item in some] == [True, True, False]
    assert [item.pixels for item in none] == [None] * 3
    assert fingerprint(some) == fingerprint(none)
    for step in range(10):
        for kept, read in zip(Patches(some, 8, 0)[(step, 0)], Patches(none, 8, 0)[(step, 0)], strict=True):
            np.testing.assert_array_equal(kept, read)


def test_fingerprint_knows_pixels_and_order():
    a, b = photograph(noise(8, 8, 0)), photograph(noise(8, 8, 1))
    assert len({fingerprint([a, b]), fingerprint([b, a]), fingerprint([a])}) == 3


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
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(tmp_path)
    assert (tmp_path / checkpoints.LAST).exists() and (tmp_path / checkpoints.PREVIOUS).exists()


def test_one_damaged_checkpoint_alone_says_what_to_do(tmp_path):
    (tmp_path / checkpoints.LAST).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="delete it to start anew"):
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
    words = ["--data", "a", "b", "--out", "o", "--lr", "2e-4", "--betas", "0.8", "0.95", "--steps", "7"]
    words += ["--preset", "base", "--precision", "bf16"]
    expected = replace(
        CONFIG, data=("a", "b"), out="o", lr=2e-4, betas=(0.8, 0.95), steps=7, preset="base", precision="bf16"
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
        ("--valid_lr x", "give valid_hr too"),
        ("--embed_dim 12", "unrecognized arguments"),
        ("--step 12", "unrecognized arguments"),
        ("--max_minutes -1", "max_minutes must not be negative"),
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
    ],
)
def test_unusable_model_overrides_are_explained(item, message):
    with pytest.raises(ConfigError) as error:
        model_config(replace(CONFIG, model_overrides=(item,)))
    assert message in str(error.value)


def test_resuming_with_other_settings_names_what_differs():
    saved = config_dict(CONFIG)
    with pytest.raises(ConfigError) as error:
        check_same(saved, replace(CONFIG, lr=5e-4, batch=8, steps=7))
    assert "batch was 16 and is now 8; lr was 0.001 and is now 0.0005." in str(error.value)
    assert "steps" not in str(error.value)


def test_resuming_after_a_preset_changed_names_the_fields():
    began = asdict(PRESETS["light"])
    with pytest.raises(ConfigError, match="embed_dim was 7 and is now"):
        check_same_network({**began, "embed_dim": 7}, PRESETS["light"])
    check_same_network({**began, "fused_attention": False}, replace(PRESETS["light"], checkpointing=True))
    check_same_network({}, PRESETS["light"])


def test_settings_that_decide_no_result_are_free_to_change():
    free = {f.name for f in fields(TrainConfig) if f.metadata.get("free")}
    assert free == {
        *("out", "steps", "micro_batch", "valid_every", "save_every", "log_every", "max_minutes", "finish_in"),
        *("threads", "workers", "cache_gb"),
    }
    check_same(config_dict(CONFIG), replace(CONFIG, steps=7, workers=0, threads=1, valid_every=9, save_every=9))


def test_checkpoints_that_lack_a_later_setting_are_read_with_its_default():
    saved = config_dict(CONFIG)
    del saved["grad_clip"], saved["betas"]
    check_same(saved, CONFIG)
    with pytest.raises(ConfigError, match=r"grad_clip was 0\.0 and is now 1\.0"):
        check_same(saved, replace(CONFIG, grad_clip=1.0))


# Losses and progress


def test_losses_are_read_late_on_a_gpu_and_checked_before_use():
    values: list[float] = []
    losses = Losses(values, lambda step: f"lr {step}e-3, files a.png", lazy=True)
    for step, value in ((5, 0.5), (6, 0.25)):
        losses.add(step, torch.tensor(value))
    assert values == []
    assert losses.take_mean() == 0.375 and math.isnan(losses.take_mean())
    losses.add(7, torch.tensor(1.0))
    losses.add(8, torch.tensor(math.inf))
    losses.add(9, torch.tensor(math.nan))
    with pytest.raises(NonFiniteError, match=r"loss is inf at step 8, lr 8e-3, files a\.png"):
        losses.read()


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(monkeypatch, capsys):
    with Progress(step=10, end=14, batch=4, log_every=2) as progress:
        for _ in range(4):
            progress.show(seconds=0.5, loss=0.125, lr=1e-3)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 12/14  loss 0.12500  lr 1.00e-03  8.0 images/s  00:01 left",
        "step 14/14  loss 0.12500  lr 1.00e-03  8.0 images/s  00:00 left",
    ]

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress(step=10, end=11, batch=4, log_every=1) as progress:
        progress.show(seconds=0.5, loss=0.125, lr=1e-3)
        assert "loss 0.1250, lr 1.0e-03, 8.0 images/s" in str(progress.bar)
    assert capsys.readouterr().out == ""


# Validation


class Brighter(nn.Module):
    """Nearest-neighbour enlargement plus five grey levels."""

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(lq, scale_factor=4, mode="nearest") + 5 / 255


def test_validation_is_the_mean_of_golden_values(tmp_path):
    write_png(tmp_path / "a.png", np.full((33, 34, 3), 100, np.uint8))
    write_png(tmp_path / "b.png", np.full((32, 32, 3), 253, np.uint8))  # 258 is clamped to 255: two levels too bright
    pairs = load_pairs(str(tmp_path), "")
    assert [pair.gt.shape for pair in pairs] == [(32, 32, 3), (32, 32, 3)]
    per_level = 219 / 255  # a grey level's step in Y
    expected = np.mean([20 * math.log10(255 / (5 * per_level)), 20 * math.log10(255 / (2 * per_level))])
    assert validate(Brighter(), pairs, torch.device("cpu")) == pytest.approx(expected, abs=1e-6)


def test_restored_samples_are_rounded_to_the_nearest():
    class Half(nn.Module):
        def forward(self, lq: torch.Tensor) -> torch.Tensor:
            return (
                nn.functional.interpolate(lq, scale_factor=4, mode="nearest")
                + torch.tensor([0.6, 0.4, -0.6]).view(3, 1, 1) / 255
            )

    sr = restore(Half(), np.full((2, 3, 3), 100, np.uint8), torch.device("cpu"))
    assert sr.shape == (8, 12, 3) and (sr == np.array([101, 100, 99])).all()


@pytest.mark.parametrize("name", ["img_001x4.png", "img_001.png"])
def test_validation_pairs_are_found_by_either_name(tmp_path, name):
    hr, lr = tmp_path / "HR", tmp_path / "LR"
    hr.mkdir()
    lr.mkdir()
    write_png(hr / "img_001.png", noise(32, 36))
    write_png(lr / name, noise(8, 9, 1))
    (pair,) = load_pairs(str(hr), str(lr))
    np.testing.assert_array_equal(pair.lq, noise(8, 9, 1))
    write_png(lr / name, noise(8, 8))
    with pytest.raises(DataError, match=r"is 8x8, .*img_001\.png needs 9x8"):
        load_pairs(str(hr), str(lr))
    write_png(hr / "img_002.png", noise(32, 36))
    with pytest.raises(DataError, match=r"lacks the low-resolution images of 1 targets .*img_002\.png"):
        load_pairs(str(hr), str(lr))


def test_log_drops_rows_that_are_made_anew_and_a_torn_one(tmp_path):
    path = tmp_path / "log.csv"
    start_log(path, 0)
    for step in (500, 1_000_000, 1_000_500):
        append_log(path, {"step": step, "loss": 0.1, "lr": 1e-3, "psnr": 30.123456, "images_per_s": 9, "seconds": 7.0})
    with path.open("a") as file:
        file.write("1000750,0.1,0.0")
    start_log(path, 1_000_000)
    assert path.read_text().splitlines() == [
        "step,loss,lr,psnr,images_per_s,seconds",
        "500,0.1,0.001,30.1235,9,7",
        "1000000,0.1,0.001,30.1235,9,7",
    ]


def test_read_cropped_cuts_to_the_grid(tmp_path):
    image = noise(35, 39)
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read_cropped(tmp_path / "a.png"), image[:32, :36])
