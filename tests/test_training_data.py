"""What the trainer is fed: pairs against whole-image references, mixtures, the training set, bad images."""

import os
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from image_data.degradation import bicubic_downscale
from image_data.geometry import orient
from image_data.mixture import check_mixture, open_sources, parse_source
from image_data.sources import DataError, ImageFile, expand
from models.team08_HATFreq.image_io import write_png
from training import training_set
from training.data import LoaderError, Patches, StepBatches, collate, loading, report_faults, to_pair
from training.training_set import TrainingSet, open_training_set
from utils.resize import imresize

GOLDEN_CROPS = [("0.png", 6, 32, 8), ("0.png", 0, 32, 20), ("3.png", 7, 8, 32)]
CPU = torch.device("cpu")


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Random uint8 `h w 3`: every border and rounding error of a resize shows in it."""
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def opened(folder: Path, *words: str, evaluation: list[ImageFile] | None = None, skip: bool = False) -> TrainingSet:
    """The training set for patches of 8 pixels; the record goes to `folder`."""
    return open_training_set(open_sources(words), 8, evaluation or [], skip, folder)


def write_set(folder: Path, *shapes: tuple[int, int]) -> str:
    folder.mkdir(exist_ok=True)
    for number, (h, w) in enumerate(shapes):
        write_png(folder / f"{number}.png", noise(h, w, number))
    return str(folder)


def pair(patches: Patches, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What the network is given and its target, uint8 `h w 3`."""
    lq, gt = to_pair(collate([patches[key]]), CPU)
    return tuple((image[0] * 255).round().byte().permute(1, 2, 0).numpy() for image in (lq, gt))


# Pairs


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_downscaling_equals_matlabs_bicubic_bit_for_bit(device):
    for seed, (h, w) in enumerate([(32, 32), (64, 48), (200, 160)]):
        image = noise(h, w, seed)
        extreme = np.where(image > 127, 255, 0).astype(np.uint8)  # overshoots on both ends
        for whole in (image, extreme):
            padded = np.pad(whole, ((6, 6), (6, 6), (0, 0)), "symmetric")
            small = bicubic_downscale(torch.from_numpy(padded)[None].to(device))[0].cpu().numpy()
            np.testing.assert_array_equal(small, imresize(whole, 0.25))


def test_every_pair_equals_the_oriented_images_lr_borders_included(tmp_path):
    image = noise(48, 40)
    patches = Patches(opened(tmp_path, write_set(tmp_path / "a", (48, 40))), 8, 1)
    patches.keep_decoded(1.0)
    lr_images = [imresize(orient(image, orientation), 0.25) for orientation in range(8)]
    seen = set()
    for step in range(1500):
        crop = patches.crop_at(step, 0)
        lq, gt = pair(patches, (step, 0))
        turned = orient(image, crop.orientation)
        y, x = crop.top // 4, crop.left // 4
        np.testing.assert_array_equal(lq, lr_images[crop.orientation][y : y + 8, x : x + 8])
        np.testing.assert_array_equal(gt, turned[crop.top : crop.top + 32, crop.left : crop.left + 32])
        seen.add((crop.orientation, y, x))
    positions = {(o, y, x) for o in range(8) for y in range(3 + 2 * (o < 4)) for x in range(3 + 2 * (o >= 4))}
    assert seen == positions, "1500 draws meet all 8 x 15 places"


def test_orientations_are_the_eight_symmetries():
    image = noise(5, 5)
    symmetries = {np.rot90(side, turns).tobytes() for side in (image, image[:, ::-1]) for turns in range(4)}
    assert {orient(image, number).tobytes() for number in range(8)} == symmetries


def marked(image: np.ndarray, h: int, w: int) -> np.ndarray:
    """An image's low-resolution version of `h w`, each sample off by one: no resize makes it."""
    return imresize(np.pad(image, ((0, 4), (0, 4), (0, 0)), "edge"), 0.25)[:h, :w] ^ 1


def test_official_low_resolution_images_are_taken_as_they_are_beside_made_ones(tmp_path):
    """Targets of 50x43 pixels: `floor` has sides rounded down as DIV2K's are, `ceil` rounded up as imresize's."""
    high = write_set(tmp_path / "high", (50, 43), (50, 43))
    for name in ("floor", "ceil"):
        (tmp_path / name).mkdir()
    for number in range(2):
        write_png(tmp_path / "floor" / f"{number}x4.png", marked(noise(50, 43, number), 12, 10))
        write_png(tmp_path / "ceil" / f"{number}.png", marked(noise(50, 43, number), 13, 11))
    alone = write_set(tmp_path / "alone", (32, 32))
    for lr in ("floor", "ceil"):
        patches = Patches(opened(tmp_path, f"hr={high},lr={tmp_path}/{lr}", alone), 8, seed=0)
        batch = collate([patches[(step, 0)] for step in range(40)])
        lq, gt = to_pair(batch, CPU)
        assert set(batch.has_lq.tolist()) == {True, False}
        for step in range(40):
            crop = patches.crop_at(step, 0)
            if crop.number == 2:
                continue
            whole, (y, x) = noise(50, 43, crop.number), (crop.top // 4, crop.left // 4)
            official = orient(marked(whole, 12, 10), crop.orientation)[y : y + 8, x : x + 8]
            np.testing.assert_array_equal((lq[step] * 255).round().byte().permute(1, 2, 0), official)
            turned = orient(whole[:48, :40], crop.orientation)[crop.top : crop.top + 32, crop.left : crop.left + 32]
            np.testing.assert_array_equal((gt[step] * 255).round().byte().permute(1, 2, 0), turned)


def test_pairs_that_do_not_fit_are_named(tmp_path):
    high = write_set(tmp_path / "high", (32, 32), (32, 32))
    low = write_set(tmp_path / "low", (8, 10))
    with pytest.raises(DataError, match=r"1\.png"):
        open_sources((f"hr={high},lr={low}",))
    (tmp_path / "high" / "1.png").unlink()
    batch = Patches(opened(tmp_path, f"hr={high},lr={low}"), 8, 0)[(0, 0)]
    assert batch.lost
    with pytest.raises(DataError, match=r"low/0\.png"):
        report_faults([batch], set())


# Sample order


def test_sample_order_is_a_pure_function_that_never_changes(tmp_path):
    images = opened(tmp_path, write_set(tmp_path / "a", *[(64, 64)] * 4))
    patches = Patches(images, patch=8, seed=7)
    crops = [patches.crop_at(step, index) for step, index in ((0, 0), (0, 1), (123456, 5))]
    # Golden: a change here would make old checkpoints continue with other batches.
    assert [(images.images[c.number].path.name, *c[1:]) for c in crops] == GOLDEN_CROPS
    assert Patches(images, patch=8, seed=8).crop_at(123456, 5) != crops[2]


def test_images_are_drawn_by_area_their_weights_and_their_sources(tmp_path):
    first, second = write_set(tmp_path / "a", (32, 32), (64, 96)), write_set(tmp_path / "b", (64, 64))
    assert np.diff(opened(tmp_path, first, second).ends, prepend=0).tolist() == [1024, 6144, 4096]
    images, expected = opened(tmp_path, f"hr={first},weight=3", f"hr={second},weight=1"), [3 / 28, 18 / 28, 1 / 4]
    assert np.diff(images.ends, prepend=0) / images.ends[-1] == pytest.approx(expected)
    drawn = Counter(Patches(images, 8, 0).crop_at(step, 0).number for step in range(4000))
    assert [drawn[n] / 4000 for n in range(3)] == pytest.approx(expected, abs=0.04)  # 5 standard deviations


@pytest.mark.parametrize(
    "words",
    [("hr=a,weight=2", "b"), ("hr=a,weight=0",), ("hr=a,weight=much",), ("lr=a",), ("hr=a,hr=b",), ("hr=a,lr=",)],
)
def test_unusable_mixtures_are_refused(words):
    with pytest.raises(ValueError, match="data: "):
        check_mixture(words)


def test_a_folder_with_commas_is_a_folder():
    assert parse_source("photos, 2019") == {"hr": "photos, 2019"}
    assert parse_source("hr=a,lr=b,weight=2") == {"hr": "a", "lr": "b", "weight": "2"}


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_steps_in_order(tmp_path, workers):
    patches = Patches(opened(tmp_path, write_set(tmp_path / "a", (64, 64))), 8, 3)
    with loading(patches, StepBatches(5, 2), workers, 60) as steps:
        for step, (batch,) in enumerate(islice(steps, 4), start=5):
            for index in range(2):
                np.testing.assert_array_equal(batch.hr_region[index], patches[(step, index)].hr_region[0])


def test_a_worker_that_hangs_in_a_read_is_told(tmp_path, monkeypatch):
    patches = Patches(opened(tmp_path, write_set(tmp_path / "a", (64, 64))), 8, 3)
    monkeypatch.setattr(ImageFile, "content", lambda *_: os.read(os.pipe()[0], 1))
    with pytest.raises(LoaderError, match="disk"), loading(patches, StepBatches(0, 2), 1, 1) as steps:
        next(steps)
    for child in __import__("multiprocessing").active_children():
        child.kill()


# The training set


def bad_set(folder: Path) -> list[ImageFile]:
    """A good image and one of each kind of unusable ones; returns the evaluation image among them."""
    write_set(folder, (40, 40))
    write_png(folder / "evaluation.png", noise(40, 40, 9))
    write_png(folder / "narrow.png", noise(40, 31))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    os.mkfifo(folder / "pipe.png")
    (folder.parent / "target.png").write_bytes((folder / "evaluation.png").read_bytes())
    return list(expand(str(folder.parent / "target.png")))


def test_unusable_images_are_all_named_or_left_out_when_asked_to(tmp_path):
    target = bad_set(tmp_path / "a")
    with pytest.raises(DataError, match="5 of 6") as error:
        opened(tmp_path, str(tmp_path / "a"), evaluation=target)
    assert all(f"{name}" in str(error.value) for name in ("evaluation", "narrow", "empty", "text", "pipe"))
    for _ in range(2):  # from the headers, and from the record
        images = opened(tmp_path, str(tmp_path / "a"), evaluation=target, skip=True)
        assert [image.path.name for image in images.images] == ["0.png"] and images.left_out == 5
    assert (tmp_path / "left_out.csv").read_text().count("\n") == 6
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(DataError, match="5 of 5"):
        opened(tmp_path, str(tmp_path / "a"), evaluation=target, skip=True)


def test_a_restart_reads_no_headers_but_of_what_has_changed(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "a", *[(40, 40)] * 4)
    first, looked, honest = opened(tmp_path, folder), [], training_set.look
    monkeypatch.setattr(training_set, "look", lambda image: (looked.append(image.stem), honest(image))[1])
    assert opened(tmp_path, folder).fingerprint == first.fingerprint and not looked
    write_png(tmp_path / "a" / "2.png", noise(44, 40))
    assert opened(tmp_path, folder, skip=True).fingerprint == first.fingerprint and not looked
    assert opened(tmp_path, folder).fingerprint != first.fingerprint and looked == ["2"]
    (tmp_path / "images.npz").write_bytes(b"damaged")
    assert len(opened(tmp_path, folder)) == 4
    (tmp_path / "a").rename(tmp_path / "b")
    write_png(tmp_path / "b" / "2.png", noise(40, 40, 2))
    assert opened(tmp_path, str(tmp_path / "b")).fingerprint == first.fingerprint, "a folder may move"


def test_images_named_twice_are_refused(tmp_path):
    folder = write_set(tmp_path / "a", (40, 40), (40, 40))
    (tmp_path / "list.txt").write_text("a/0.png\na/1.png\na/0.png\n")
    with pytest.raises(DataError, match=r"list\.txt"):
        opened(tmp_path, str(tmp_path / "list.txt"))
    with pytest.raises(ValueError, match="once"):
        opened(tmp_path, folder, folder)
    (tmp_path / "some.txt").write_text("a/0.png\n")
    assert len(opened(tmp_path, str(tmp_path / "some.txt"), folder)) == 3  # a choice beside the set


def test_an_image_that_went_bad_stops_or_another_is_drawn(tmp_path, capsys):
    images = opened(tmp_path, write_set(tmp_path / "a", (40, 40), (40, 40)))
    (tmp_path / "a" / "1.png").write_bytes((tmp_path / "a" / "1.png").read_bytes()[:200])
    bad = next(step for step in range(99) if Patches(images, 8, 0).crop_at(step, 0).number == 1)
    assert Patches(images, 8, 0)[(bad, 0)].lost
    batch, told = Patches(images, 8, 0, skip=True)[(bad, 0)], set()
    report_faults([batch], told)
    report_faults([batch], told)
    assert not batch.lost and capsys.readouterr().out.count("1.png") == 1
    (tmp_path / "a" / "0.png").unlink()
    with pytest.raises(DataError, match=r"[01]\.png"):
        report_faults([Patches(images, 8, 0, skip=True)[(bad, 0)]], told)
