"""What the trainer offers beyond the plain run, each switched on in a real one and checked in what it leaves behind."""

import io
import math
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from models.team08_HATFreq import HATFreq
from models.team08_HATFreq.image_io import read_rgb, write_png
from tests.training_run import assert_equal_runs, checkpoint, log_rows
from training.config import model_config, parse_arguments
from utils.resize import imresize

pytestmark = pytest.mark.usefixtures("one_thread")


def with_data(words: list[str], *data: str) -> list[str]:
    """A command line with other training images."""
    place = words.index("--data")
    return [*words[: place + 1], *data, *words[place + 2 :]]


def test_folders_lists_shards_and_pairs_of_the_same_images_train_alike(command, photos, tmp_path):
    images = sorted((photos / "train").iterdir())
    (tmp_path / "list.txt").write_text("# mine\n" + "".join(f"{path}\n" for path in images))
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for path in images:
            info = tarfile.TarInfo(path.name)
            info.size = path.stat().st_size
            shard.addfile(info, io.BytesIO(path.read_bytes()))
    assert train.main(command("folder", "--steps", "4")) == 0
    for name, word, more in (
        ("list", "list.txt", []),
        ("shard", "shard.tar", ["--workers", "2", "--cache_gb", "0"]),
    ):
        assert train.main(with_data(command(name, "--steps", "4", *more), str(tmp_path / word))) == 0
        assert_equal_runs(tmp_path / "folder", tmp_path / name)


def test_official_low_resolution_images_are_what_is_trained_on(command, photos, tmp_path):
    """Where they are MATLAB's, a transposed photograph alone differs: its rows and columns are rounded in turn."""
    (tmp_path / "same").mkdir()
    (tmp_path / "other").mkdir()
    for path in sorted((photos / "train").iterdir()):
        lq = imresize(read_rgb(path), 0.25)
        write_png(tmp_path / "same" / f"{path.stem}x4.png", lq)
        write_png(tmp_path / "other" / path.name, 255 - lq)
    assert train.main(command("made", "--steps", "1")) == 0
    for name in ("same", "other"):
        word = f"hr={photos / 'train'},lr={tmp_path / name}"
        assert train.main(with_data(command(name, "--steps", "1"), word)) == 0
    made, same, other = (float(log_rows(tmp_path / name)[-1]["loss"]) for name in ("made", "same", "other"))
    assert same == pytest.approx(made, rel=0.001)
    assert other > 10 * made


def test_a_missing_tensorboard_is_told_at_once(command, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"tensorboard is not installed: .* or --no-tensorboard"):
        train.main(command("run", "--tensorboard"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_several_sets_samples_curves_and_tensorboard(command, photos, tmp_path, curves):
    (tmp_path / "second" / "HR").mkdir(parents=True)
    write_png(tmp_path / "second" / "HR" / "a.png", read_rgb(photos / "valid" / "cat.png")[:96, :80])
    sets = ["--valid_hr", str(photos / "valid"), str(tmp_path / "second" / "HR"), "--valid_tile", "24"]
    more = ["--tensorboard", "--sample_images", "2", "--steps", "8"]
    assert train.main(command("run", *more, *sets)) == 0
    rows = log_rows(tmp_path / "run")
    assert [row["step"] for row in rows] == ["4", "8"]
    for row in rows:
        each = [float(row["psnr_valid"]), float(row["psnr_second"])]
        assert float(row["psnr"]) == pytest.approx(np.mean(each), abs=1e-3) and each[0] != each[1]
    assert checkpoint(tmp_path / "run")["best_psnr"] == pytest.approx(max(float(row["psnr"]) for row in rows), abs=1e-3)
    pictures = sorted((tmp_path / "run" / "samples").iterdir())
    assert [path.name for path in pictures] == ["step_0000004.png", "step_0000008.png"]
    assert read_rgb(pictures[0]).shape == (160 + 8 + 96, 3 * 160 + 16, 3)
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))
    assert read_rgb(tmp_path / "run" / "curves.png").shape[1] > 1000


@pytest.mark.slow
def test_ninety_minutes_are_kept(command, tmp_path):
    """Here six seconds: the run ends with them, its rate fully decayed, without knowing its speed beforehand."""
    began = time.monotonic()
    assert train.main(command("run", "--steps", "1000000", "--finish_in", "0.1min", "--valid_every", "100")) == 0
    took = time.monotonic() - began
    state = checkpoint(tmp_path / "run")
    assert 3.5 < state["seconds"] < 9 and took < 15  # the last validation comes on top
    assert state["step"] == state["schedule"]["end"] > 25
    assert state["optimiser"]["param_groups"][0]["lr"] == pytest.approx(1e-6, rel=1e-6)


def test_milestones_halve_the_rate(command, tmp_path):
    more = ["--steps", "8", "--milestones", "4", "6", "--valid_every", "1", "--warmup", "0"]
    assert train.main(command("run", *more)) == 0
    rates = [float(row["lr"]) for row in log_rows(tmp_path / "run")]
    assert rates == pytest.approx([1e-3] * 4 + [5e-4] * 2 + [2.5e-4] * 2)


def test_fusion_blocks_have_a_rate_of_their_own(command, tmp_path):
    more = ["--warmup", "0", "--grad_clip", "0", "--lr", "1e-4", "--min_lr", "1e-4", "--fusion_lr_scale", "10"]
    assert train.main(command("run", "--steps", "2", *more)) == 0
    torch.manual_seed(0)
    start = HATFreq(model_config(parse_arguments(command("start")))).state_dict()
    found = checkpoint(tmp_path / "run")["model"]
    moved = {name: float((found[name] - start[name]).abs().max()) for name in start}
    # The last convolution starts at zero, so that the others' first gradient comes with step 2, in which Adam moves a
    # weight by its rate times (0.1 / 0.19) / sqrt(0.01 / 0.0199).
    share = 0.1 / 0.19 / math.sqrt(0.01 / 0.0199)
    assert max(value for name, value in moved.items() if ".freq." in name) == pytest.approx(1e-3 * share, rel=0.01)
    assert moved["conv_first.weight"] == pytest.approx(1e-4 * share, rel=0.01)
    with pytest.raises(SystemExit, match="the network has no fusion blocks"):
        train.main(command("none", "--steps", "2", *more, "--frequency", "none"))


def test_checkpointing_changes_the_memory_and_not_the_result(command, tmp_path):
    assert train.main(command("plain", "--steps", "4")) == 0
    assert train.main(command("checkpointed", "--steps", "4", "--checkpointing", "--max_minutes", "1e-9")) == 0
    assert train.main(command("checkpointed", "--steps", "4")) == 0  # a restart may choose otherwise
    one, two = (checkpoint(tmp_path / name) for name in ("plain", "checkpointed"))
    assert all(torch.allclose(one["model"][key], two["model"][key], rtol=0, atol=1e-6) for key in one["model"])


def test_images_left_out_are_listed_in_the_run_folder(command, photos, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for path in (photos / "train").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    write_png(folder / "small.png", np.zeros((20, 90, 3), np.uint8))
    words = with_data(command("run", "--steps", "1", "--bad_images", "skip"), str(folder))
    assert train.main(words) == 0
    lines = (tmp_path / "run" / "left_out.csv").read_text().splitlines()
    assert lines == ["name,reason", f'{folder / "small.png"},"too small: 88x20 pixels, a patch of 16 needs 64"']


@pytest.mark.slow
def test_weights_of_sources_reach_the_batches(command, photos, tmp_path, monkeypatch):
    black = tmp_path / "black"
    black.mkdir()
    write_png(black / "b.png", np.zeros((128, 128, 3), np.uint8))
    seen: list[float] = []
    honest = train.train_step

    def look(run, parts):
        seen.extend((part.hr_region.amax((1, 2, 3)) == 0).float().mean().item() for part in parts)
        return honest(run, parts)

    monkeypatch.setattr(train, "train_step", look)
    data = [f"hr={black},weight=3", f"hr={photos / 'train'},weight=1"]
    assert train.main(with_data(command("run", "--steps", "25", "--batch", "8", "--valid_every", "99"), *data)) == 0
    assert math.fsum(seen) / len(seen) == pytest.approx(0.75, abs=0.15)  # standard deviation 0.031


@pytest.mark.parametrize("name", ["train/0.png", "none"])
def test_unusable_init_leaves_no_run_behind(command, photos: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(SystemExit, match=r"train\.py: "):
        train.main(command("run", "--steps", "1", "--init", str(photos / name)))
    assert not (tmp_path / "run").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_resumes_and_validates(command, tmp_path, precision):
    words = ["--device", "cuda", "--precision", precision, "--workers", "2", "--checkpointing"]
    assert train.main(command("run", "--steps", "12", "--save_every", "5", "--max_minutes", "1e-9", *words)) == 0
    assert train.main(command("run", "--steps", "12", *words)) == 0
    rows = log_rows(tmp_path / "run")
    assert checkpoint(tmp_path / "run")["step"] == 12 and [row["step"] for row in rows] == ["4", "8", "12"]
    assert all(math.isfinite(float(row["loss"])) and float(row["psnr"]) > 20 for row in rows)
