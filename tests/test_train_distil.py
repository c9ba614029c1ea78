"""Distillation: targets that are a teacher's restorations, the truth or a mix of both."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from image_data.geometry import orient
from image_data.mixture import check_mixture, open_source, open_sources
from image_data.sources import DataError
from models.team08_HATFreq.folder import RECORD
from models.team08_HATFreq.image_io import read_rgb, write_png
from scripts.release_weights import teacher_facts
from tests.training_run import assert_equal_runs, checkpoint
from training.audit import audit
from training.data import Batch, Patches, collate, to_pair
from training.photographs import Photographs
from utils.resize import imresize

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
PAUSE = ["--steps", "6", "--max_minutes", "1e-9"]
KILLED = """
import os, signal, sys, train
honest = train.save

def save(run):
    honest(run)
    os.kill(os.getpid(), signal.SIGKILL)

train.save = save
train.main(sys.argv[1:])
"""
FACTS = {"name": "DAT_light_x4", "sha256": "c0ffee" * 10}


def write_record(folder: Path, name: str = "DAT_light_x4.pth", sha256: str = FACTS["sha256"]) -> None:
    """The first line of what scripts.make_teacher writes, and one of an image."""
    settings = {"teacher": name, "teacher_sha256": sha256, "architecture": "DAT", "tile": 0}
    lines = [{"settings": settings}, {"name": "0.png", "bytes": 1}]
    (folder / RECORD).write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def taught(photos: Path, tmp_path: Path) -> Path:
    """Restorations of the training photographs, and their low-resolution images in `lr`."""
    for name in ("teacher", "lr"):
        (tmp_path / name).mkdir()
    for path in sorted((photos / "train").iterdir()):
        lq = imresize(read_rgb(path), 0.25)
        write_png(tmp_path / "lr" / path.name, lq)
        write_png(tmp_path / "teacher" / path.name, imresize(lq, 4))
    write_record(tmp_path / "teacher")
    return tmp_path / "teacher"


def run(command, name: str, data: str, *more: str) -> int:
    words = command(name, *more)
    words[words.index("--data") + 1] = data
    return train.main(words)


def same_weights(a: Path, b: Path) -> bool:
    one, two = checkpoint(a), checkpoint(b)
    return all(torch.equal(one[key][name], two[key][name]) for key in ("model", "ema") for name in one[key])


def patches_of(word: str, teacher_decay: int = 0) -> Patches:
    found = audit([open_source(word)], 8, {}, False, None)
    return Patches(found.photographs, 8, seed=0, teacher_decay=teacher_decay)


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def pair_of_folders(tmp_path: Path, hr: np.ndarray, restored: np.ndarray) -> str:
    for name, image in (("hr", hr), ("t", restored)):
        (tmp_path / name).mkdir(exist_ok=True)
        write_png(tmp_path / name / "a.png", image)
    write_record(tmp_path / "t")
    return f"hr={tmp_path}/hr,teacher={tmp_path}/t"


# Targets


def test_the_target_is_the_mix_and_both_are_oriented_alike(tmp_path):
    """A photograph of 50x43 pixels, restored in 48x40, at all eight orientations; from memory and from the disk."""
    hr = noise(50, 43)
    restored = hr[:48, :40] // 2 + 60
    word = pair_of_folders(tmp_path, hr, restored)
    patches, kept = (patches_of(f"{word},teacher_weight=0.25") for _ in range(2))
    assert kept.keep_decoded(2 * 48 * 40 * 3 / 1e9 * 0.99) == 0, "both images must fit into memory"
    assert kept.keep_decoded(2 * 48 * 40 * 3 / 1e9) == 1
    seen = set()
    for step in range(60):
        crop, (lq, gt) = patches.crop_at(step, 0), to_pair(collate([patches[step, 0]]), CPU)
        window = slice(crop.top, crop.top + 32), slice(crop.left, crop.left + 32)
        truth, taught = (
            orient(image, crop.orientation)[window].astype(np.float64) for image in (hr[:48, :40], restored)
        )
        mixed = (0.75 * truth + 0.25 * taught).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(gt[0], mixed, atol=1e-6)
        small = imresize(np.ascontiguousarray(orient(hr[:48, :40], crop.orientation)), 0.25)
        y, x = crop.top // 4, crop.left // 4
        np.testing.assert_array_equal((lq[0] * 255).round().byte().permute(1, 2, 0), small[y : y + 8, x : x + 8])
        assert all(torch.equal(one, two) for one, two in zip((lq, gt), to_pair(kept[step, 0], CPU), strict=True))
        seen.add(crop.orientation)
    assert seen == set(range(8))


@pytest.mark.parametrize(("decay", "weights"), [(0, [0.8, 0.8, 0.8, 0.8]), (8, [0.8, 0.6, 0.0, 0.0])])
def test_the_teachers_part_falls_linearly_to_nothing(tmp_path, decay, weights):
    patches = patches_of(f"{pair_of_folders(tmp_path, noise(40, 40), noise(40, 40) ^ 1)},teacher_weight=0.8", decay)
    found = [float(patches[step, 0].teacher_weight) for step in (0, 2, 8, 50)]
    assert found == pytest.approx(weights)


def test_a_batch_may_mix_taught_and_other_images(tmp_path):
    word = pair_of_folders(tmp_path, noise(40, 40), noise(40, 40) ^ 1)
    write_png(tmp_path / "b.png", noise(40, 40, 1))
    found = audit(open_sources((word, str(tmp_path / "b.png"))), 8, {}, False, None)
    assert "2 training images, 0.0 megapixels, 1 of them with a restoration by DAT_light_x4" in found.summary()
    patches = Patches(found.photographs, 8, seed=0)
    batch: Batch = collate([patches[step, 0] for step in range(12)])
    taught = [patches.crop_at(step, 0).photograph == 0 for step in range(12)]
    assert set(taught) == {True, False} and batch.teacher_weight.tolist() == [float(one) for one in taught]
    _, gt = to_pair(batch, CPU)
    truth = batch.hr_region[:, 6:-6, 6:-6]
    for number, one in enumerate(taught):
        expected = truth[number] ^ 1 if one else truth[number]
        assert torch.equal((gt[number] * 255).round().byte().permute(1, 2, 0), expected)


# Runs


def test_a_teacher_alone_is_its_folder_as_the_photographs(command, photos, taught, tmp_path):
    given = f"lr={tmp_path / 'lr'}"
    assert run(command, "plain", f"hr={taught},{given}", "--steps", "3") == 0
    assert run(command, "taught", f"hr={photos / 'train'},{given},teacher={taught}", "--steps", "3") == 0
    assert same_weights(tmp_path / "plain", tmp_path / "taught")
    assert teacher_facts(json.loads((tmp_path / "taught" / "config.json").read_text())["teacher"]) == FACTS
    assert "teacher" not in json.loads((tmp_path / "plain" / "config.json").read_text())


def test_a_weight_of_nothing_is_the_plain_run(command, photos, taught, tmp_path):
    word = f"hr={photos / 'train'},teacher={taught}"
    assert run(command, "plain", f"{photos / 'train'}", "--steps", "3") == 0
    assert run(command, "none", f"{word},teacher_weight=0", "--steps", "3") == 0
    assert run(command, "some", f"{word},teacher_weight=0.5", "--steps", "3") == 0
    assert same_weights(tmp_path / "plain", tmp_path / "none")
    assert not same_weights(tmp_path / "plain", tmp_path / "some")


@pytest.mark.slow
def test_a_distillation_resumes_exactly(command, photos, taught, tmp_path, root):
    word = f"hr={photos / 'train'},teacher={taught},teacher_weight=0.7,weight=1"
    more = ["--save_every", "2", "--teacher_decay", "5", "--threads", "1"]
    assert run(command, "whole", word, "--steps", "6", *more) == 0
    words = command("killed", "--steps", "6", *more)
    words[words.index("--data") + 1] = word
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=root, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL and checkpoint(tmp_path / "killed")["step"] == 2, killed.stderr
    assert train.main(words) == 0
    assert_equal_runs(tmp_path / "whole", tmp_path / "killed")


def test_another_mix_or_other_restorations_are_another_run(command, photos, taught, tmp_path):
    word = f"hr={photos / 'train'},teacher={taught}"
    assert run(command, "run", f"{word},teacher_weight=0.5", *PAUSE) == 0
    with pytest.raises(SystemExit, match="the sources or their weights have changed since"):
        run(command, "run", f"{word},teacher_weight=0.6", *PAUSE)
    with pytest.raises(SystemExit, match=r"teacher_decay was 0 and is now 9.*--change teacher_decay"):
        run(command, "run", f"{word},teacher_weight=0.5", *PAUSE, "--teacher_decay", "9")
    write_png(taught / "0.png", read_rgb(taught / "0.png") ^ 1)
    with pytest.raises(SystemExit, match="the training images have changed since"):
        run(command, "run", f"{word},teacher_weight=0.5", *PAUSE)


def test_a_restoration_that_changes_during_a_run_is_noticed(tmp_path):
    patches = patches_of(pair_of_folders(tmp_path, noise(40, 40), noise(40, 40) ^ 1))
    os.utime(tmp_path / "t" / "a.png", (1, 1))
    assert not patches[0, 0].lost
    write_png(tmp_path / "t" / "a.png", noise(40, 40) ^ 2)
    sample = patches[0, 0]
    assert sample.lost and f"{tmp_path}/t/a.png has changed since the run began" in sample.faults[0]


def test_places_of_missing_photographs_are_kept_with_their_restorations(command, photos, taught, tmp_path):
    hr = tmp_path / "hr"
    hr.mkdir()
    for path in (photos / "train").iterdir():
        (hr / path.name).write_bytes(path.read_bytes())
    words = [*PAUSE, "--bad_images", "skip"]
    assert run(command, "run", f"hr={hr},teacher={taught}", *words) == 0
    (hr / "1.png").unlink()
    assert run(command, "run", f"hr={hr},teacher={taught}", *words) == 0
    kept = Photographs.load(tmp_path / "run" / "images.npz")
    assert kept is not None and len(kept) == 4 and kept[1].restoration.path == taught / "1.png"


# Errors


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("hr=a,teacher_weight=0.5", "has a teacher_weight and no teacher"),
        ("hr=a,teacher=b,teacher_weight=1.5", "must lie between 0 and 1, got '1.5'"),
        ("hr=a,teacher=b,teacher_weight=nan", "must lie between 0 and 1, got 'nan'"),
        ("hr=a,teacher=b,teacher_weight=half", "must lie between 0 and 1, got 'half'"),
        ("teacher=b", "names no high-resolution images"),
    ],
)
def test_unusable_teachers_are_explained(word, message):
    with pytest.raises(ValueError, match=message):
        check_mixture((word,))


def test_a_missing_restoration_is_named_with_the_remedy(photos, taught):
    (taught / "2.png").unlink()
    with pytest.raises(DataError, match=r"lacks the teacher's restorations of 1 targets: .*2\.png; .*make_teacher"):
        open_source(f"hr={photos / 'train'},teacher={taught}")


@pytest.mark.parametrize("record", [None, "", '{"settings": {"tile": 0}}\n', "[]\n"])
def test_a_folder_of_no_known_teacher_is_refused(photos, taught, record):
    (taught / RECORD).unlink()
    if record is not None:
        (taught / RECORD).write_text(record)
    with pytest.raises(DataError, match=rf"teacher/{RECORD} does not tell which teacher"):
        open_source(f"hr={photos / 'train'},teacher={taught}")


def test_two_teachers_are_refused(photos, taught, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for path in taught.glob("*.png"):
        (other / path.name).write_bytes(path.read_bytes())
    write_record(other, "HAT.pth", "0" * 64)
    words = tuple(f"hr={photos / 'train'},teacher={folder}" for folder in (taught, other))
    with pytest.raises(DataError, match="have different teachers: a run has one"):
        open_sources(words)


@pytest.mark.parametrize(
    ("restored", "message"),
    [
        (imresize(noise(12, 10), 4), r"wrong restoration: .*t/a\.png is 40x48, it needs 40x40: make it again"),
        (imresize(noise(10, 10, 5), 4), r"wrong restoration: .*t/a\.png does not show what it shows: delete it and"),
    ],
)
def test_restorations_of_another_size_or_photograph_are_named(tmp_path, restored, message):
    word = pair_of_folders(tmp_path, imresize(noise(10, 10), 4), restored)
    with pytest.raises(DataError, match=message):
        audit([open_source(word)], 8, {}, False, None)


def test_a_decay_needs_a_teacher(command):
    with pytest.raises(SystemExit, match="teacher_decay is set and no source has a teacher"):
        train.main(command("run", *PAUSE, "--teacher_decay", "5"))
