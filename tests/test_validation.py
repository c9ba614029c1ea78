"""Validation, the log and the sample pictures: golden values, names, restarts."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from evaluation.score import restore_uint8
from image_data.sources import DataError
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.system import World
from training.lifetime import FolderError
from training.run_log import Log, draw_samples, read_rows
from training.validation import identity, open_sets, set_names, shares, validate

ALONE = World(0, 1, torch.device("cpu"))


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


class Brighter(nn.Module):
    """Nearest-neighbour enlargement plus five grey levels."""

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(lq, scale_factor=4, mode="nearest") + 5 / 255


def test_validation_is_the_mean_of_golden_values(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write_png(tmp_path / "one" / "a.png", np.full((33, 34, 3), 100, np.uint8))
    write_png(tmp_path / "one" / "b.png", np.full((32, 32, 3), 253, np.uint8))  # 258 is clamped to 255: two levels off
    write_png(tmp_path / "two" / "c.png", np.full((32, 32, 3), 200, np.uint8))
    sets = open_sets((str(tmp_path / "one"), str(tmp_path / "two")), ())
    assert [pair.target.shape for pair in sets[0]] == [(32, 32, 3), (32, 32, 3)]
    five, two = (20 * math.log10(255 / (levels * 219 / 255)) for levels in (5, 2))  # a grey level is 219 / 255 in Y
    expected = {"one": pytest.approx((five + two) / 2, abs=1e-6), "two": pytest.approx(five, abs=1e-6)}
    for tile in (0, 3):
        assert validate(Brighter(), sets, ALONE, tile) == expected
    assert validate(Brighter(), [], ALONE, 0) == {}


def test_each_process_reads_its_share_and_a_signal_ends_a_validation(tmp_path):
    for number in range(3):
        write_png(tmp_path / f"{number}.png", noise(32, 32, number))
    sets = open_sets((str(tmp_path),), ())
    share = World(1, 2, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(World, "sum", lambda self, values: values)
        assert [(number, index) for number, _, index in shares(sets, share)] == [(1, 1)]
        assert validate(Brighter(), sets, share, 0, lambda: True) is None
    assert validate(Brighter(), sets, ALONE, 0, lambda: True) is None


def test_sets_are_known_by_what_they_hold(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "HR").mkdir(parents=True)
    write_png(tmp_path / "one" / "HR" / "a.png", noise(32, 36))
    write_png(tmp_path / "two" / "HR" / "a.png", noise(32, 36, 1))
    word = str(tmp_path / "one" / "HR")
    before = identity(open_sets((word,), ()))
    (tmp_path / "moved").mkdir()
    (tmp_path / "one").rename(tmp_path / "moved" / "one")
    assert identity(open_sets((f"{tmp_path}/moved/one/HR",), ())) == before
    assert identity(open_sets((f"{tmp_path}/two/HR",), ())) != before


def test_a_target_without_an_inside_is_named_at_the_start(tmp_path):
    write_png(tmp_path / "a.png", noise(12, 12))
    write_png(tmp_path / "tiny.png", noise(11, 40))
    with pytest.raises(DataError, match=r"tiny\.png"):
        list(open_sets((str(tmp_path),), ())[0])


def test_restored_samples_are_rounded_to_the_nearest():
    class Half(nn.Module):
        def forward(self, lq: torch.Tensor) -> torch.Tensor:
            return (
                nn.functional.interpolate(lq, scale_factor=4, mode="nearest")
                + torch.tensor([0.6, 0.4, -0.6]).view(3, 1, 1) / 255
            )

    sr = restore_uint8(Half(), np.full((2, 3, 3), 100, np.uint8), torch.device("cpu"))
    assert sr.shape == (8, 12, 3) and (sr == np.array([101, 100, 99])).all()


@pytest.mark.parametrize("name", ["img_001x4.png", "img_001.png"])
def test_validation_pairs_are_found_by_either_name(tmp_path, name):
    hr, lr = tmp_path / "HR", tmp_path / "LR"
    hr.mkdir()
    lr.mkdir()
    argv = (str(hr),), (str(lr),)
    write_png(hr / "img_001.png", noise(32, 36))
    write_png(lr / name, noise(8, 9, 1))
    np.testing.assert_array_equal(open_sets(*argv)[0][0].lq, noise(8, 9, 1))
    write_png(lr / name, noise(8, 8))
    with pytest.raises(DataError, match=r"is 8x8, .*img_001\.png needs 9x8"):
        list(open_sets(*argv)[0])
    write_png(hr / "img_002.png", noise(32, 36))
    with pytest.raises(DataError, match=r"lacks the low-resolution images of 1 targets: .*img_002\.png"):
        open_sets(*argv)


def test_sets_are_called_by_what_tells_them_apart():
    assert set_names(("bench/Set5/HR", "bench/Set14/HR", "DIV2K_valid_HR", "lists/mine.txt", "photos/**")) == [
        "Set5", "Set14", "DIV2K_valid_HR", "mine", "photos"
    ]  # fmt: skip
    assert set_names(("a/x/HR", "b/x/HR", "HR")) == ["a/x/HR", "b/x/HR", "HR"]


def row(step: int) -> dict[str, float]:
    return {"step": step, "loss": 0.1, "lr": 1e-3, "psnr": 30.123456, "images_per_s": 9, "seconds": 7.0}


def test_log_drops_rows_that_are_made_again_and_a_torn_one(tmp_path):
    log = Log(tmp_path, 0, ["Set5"])
    for step in (500, 1_000_000, 1_000_500):
        log.add(row(step), {"Set5": 30.123456})
    with log.path.open("a") as file:
        file.write("1000750,0.1,0.0")
    Log(tmp_path, 1_000_000, ["Set5"])
    assert log.path.read_text().splitlines() == [
        "step,loss,lr,psnr,images_per_s,seconds",
        "500,0.1,0.001,30.1235,9,7",
        "1000000,0.1,0.001,30.1235,9,7",
    ]


@pytest.mark.parametrize("line", ["x50,0.1,0.001,30,9,7", "500,0.1,0.O01,30,9,7", "500,0.1,0.001,30,9,7,8"])
def test_a_damaged_log_is_named(tmp_path, line):
    Log(tmp_path, 0, []).add(row(250), {})
    with (tmp_path / "log.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(FolderError, match=r"log\.csv is damaged .*: mend it or move it away, and start again"):
        Log(tmp_path, 1000, [])


@pytest.mark.parametrize("torn", ["500,0.1,0.001,30,9,1.5e+", "500,0.1,0.001,30,9,n", "5"])
def test_a_line_that_a_kill_has_cut_is_left_out(tmp_path, torn):
    Log(tmp_path, 0, []).add(row(250), {})
    with (tmp_path / "log.csv").open("a") as file:
        file.write(torn)
    assert [one["step"] for one in read_rows(tmp_path / "log.csv")] == ["250"]
    Log(tmp_path, 250, []).add(row(500), {})
    assert [one["step"] for one in read_rows(tmp_path / "log.csv")] == ["250", "500"]


def test_other_sets_get_columns_and_the_earlier_ones_keep_theirs(tmp_path):
    Log(tmp_path, 0, ["Set5", "Set14"]).add(row(500), {"Set5": 31.0, "Set14": 29.0})
    Log(tmp_path, 500, ["Set14", "BSD100"]).add(row(1000), {"Set14": 29.5, "BSD100": 27.5})
    Log(tmp_path, 1000, []).add(row(1500), {})
    assert (tmp_path / "log.csv").read_text().splitlines() == [
        "step,loss,lr,psnr,images_per_s,seconds,psnr_Set14,psnr_BSD100,psnr_Set5",
        "500,0.1,0.001,30.1235,9,7,29,nan,31",
        "1000,0.1,0.001,30.1235,9,7,29.5,27.5,nan",
        "1500,0.1,0.001,30.1235,9,7,nan,nan,nan",
    ]


def test_several_sets_have_columns_and_tensorboard_has_them_all(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for step in (500, 1000, 1000):  # the second start makes step 1000 again
        log = Log(tmp_path, 500 if step > 500 else 0, ["Set5", "Set14"], tensorboard=True)
        log.add(row(step), {"Set5": 31.0, "Set14": 29.25})
    assert log.path.read_text().splitlines() == [
        "step,loss,lr,psnr,images_per_s,seconds,psnr_Set5,psnr_Set14",
        "500,0.1,0.001,30.1235,9,7,31,29.25",
        "1000,0.1,0.001,30.1235,9,7,31,29.25",
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("psnr_Set14")] == [(500, 29.25), (1000, 29.25)]
    assert set(events.Tags()["scalars"]) == {
        "loss", "lr", "psnr", "images_per_s", "seconds", "psnr_Set5", "psnr_Set14"
    }  # fmt: skip


def test_samples_show_enlarged_restored_and_target(tmp_path):
    for name, (h, w) in {"one": (400, 300), "two": (40, 48)}.items():
        (tmp_path / name).mkdir()
        write_png(tmp_path / name / "a.png", noise(h, w))
    sets = open_sets((str(tmp_path / "one"), str(tmp_path / "two")), ())
    draw_samples(lambda lq: restore_uint8(Brighter(), lq, torch.device("cpu")), sets, tmp_path / "samples" / "s.png")
    sheet = read_rgb(tmp_path / "samples" / "s.png")
    assert sheet.shape == (2 * 256 + 3 * 8, 3 * 256 + 4 * 8, 3)
    gt = noise(400, 300)[72:328, 20:276]  # the middle: 64x64 of 100x75 LR pixels, from (18, 5)
    np.testing.assert_array_equal(sheet[8:264, 536:792], gt)
    np.testing.assert_array_equal(sheet[272:312, 536:584], noise(40, 48))
    lq = sets[0][0].lq[18:82, 5:69]
    np.testing.assert_array_equal(sheet[8:264, 272:528], restore_uint8(Brighter(), lq, torch.device("cpu")))
