"""What the trainer is fed: pairs against whole-image references, the audit, mixtures, decoded pixels, faults."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_data.degradation import shrink
from image_data.geometry import orient
from image_data.mixture import check_mixture, open_source, parse_source
from image_data.sources import DataError, ImageFile
from models.team08_HATFreq.image_io import write_png
from training import audit as audits
from training.audit import Audit, Photograph, audit, digest, fingerprint
from training.data import Patches, StepBatches, make_loader, masses, to_pair, together
from training.decoded import DecodedImages
from training.progress import Unreadable
from utils.resize import imresize

GOLDEN_CROPS = [("0.png", 6, 32, 8), ("0.png", 0, 32, 20), ("3.png", 7, 8, 32)]
CPU = torch.device("cpu")


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Random uint8 `h w 3`: every border and rounding error of a resize shows in it."""
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def photograph(image: np.ndarray, path: Path = Path("a.png"), source: int = 0) -> Photograph:
    return Photograph(ImageFile(path), image.shape[0], image.shape[1], digest(image), source=source)


def patches_of(image: np.ndarray, folder: Path, patch: int = 8, seed: int = 1) -> Patches:
    write_png(folder / "a.png", image)
    return Patches([photograph(image, folder / "a.png")], patch, seed)


def pair(patches: Patches, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What the network is given and its target, uint8 `h w 3`."""
    lq, gt = to_pair(together([patches[key]]), CPU)
    return tuple((image[0] * 255).round().byte().permute(1, 2, 0).numpy() for image in (lq, gt))


def check(words: list[str], excluded: dict | None = None, skip: bool = False, cache: Path | None = None) -> Audit:
    """The audit for patches of 8 pixels."""
    return audit([open_source(word) for word in words], 8, excluded or {}, skip, cache)


# Pairs


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_shrinking_equals_matlabs_bicubic_bit_for_bit(device):
    for seed, (h, w) in enumerate([(32, 32), (64, 48), (200, 160)]):
        image = noise(h, w, seed)
        extreme = np.where(image > 127, 255, 0).astype(np.uint8)  # overshoots on both ends
        for whole in (image, extreme):
            padded = np.pad(whole, ((6, 6), (6, 6), (0, 0)), "symmetric")
            small = shrink(torch.from_numpy(padded)[None].to(device))[0].cpu().numpy()
            np.testing.assert_array_equal(small, imresize(whole, 0.25))


def test_every_pair_equals_the_oriented_photographs_lr_borders_included(tmp_path):
    image = noise(48, 40)
    patches = patches_of(image, tmp_path)
    patches.images.keep(patches.photographs, 1.0)
    seen = set()
    for step in range(1500):
        crop = patches.crop_at(step, 0)
        lq, gt = pair(patches, (step, 0))
        turned = orient(image, crop.orientation)
        y, x = crop.top // 4, crop.left // 4
        np.testing.assert_array_equal(lq, imresize(turned, 0.25)[y : y + 8, x : x + 8])
        np.testing.assert_array_equal(gt, turned[crop.top : crop.top + 32, crop.left : crop.left + 32])
        seen.add((crop.orientation, y, x))
    positions = {(o, y, x) for o in range(8) for y in range(3 + 2 * (o < 4)) for x in range(3 + 2 * (o >= 4))}
    assert seen == positions, "1500 draws meet all 8 x 15 places"


def test_orientations_are_the_eight_symmetries():
    image = noise(5, 5)
    ours = {orient(image, number).tobytes() for number in range(8)}
    symmetries = {np.rot90(side, turns).tobytes() for side in (image, image[:, ::-1]) for turns in range(4)}
    assert ours == symmetries and len(ours) == 8


def test_official_low_resolution_images_are_taken_as_they_are(tmp_path):
    """Targets of 50x43 pixels: `low` has sides rounded down as DIV2K's are, `ceil` rounded up as MATLAB's imresize."""
    for name in ("high", "low", "ceil"):
        (tmp_path / name).mkdir()
    for number in range(2):
        write_png(tmp_path / "high" / f"{number}.png", noise(50, 43, number))
        write_png(tmp_path / "low" / f"{number}x4.png", noise(12, 10, 10 + number))
        write_png(tmp_path / "ceil" / f"{number}.png", noise(13, 11, 10 + number))
    write_png(tmp_path / "low" / "extra.png", noise(3, 3))
    for lows in ("low", "ceil"):
        found = check([f"hr={tmp_path}/high,lr={tmp_path}/{lows}"]).photographs
        patches = Patches(found, 8, seed=0)
        for step in range(40):
            crop = patches.crop_at(step, 0)
            number = int(crop.photograph.image.stem)
            low = noise(*((12, 10) if lows == "low" else (13, 11)), 10 + number)[:12, :10]
            lq, gt = pair(patches, (step, 0))
            y, x = crop.top // 4, crop.left // 4
            np.testing.assert_array_equal(lq, orient(low, crop.orientation)[y : y + 8, x : x + 8])
            high = orient(noise(50, 43, number)[:48, :40], crop.orientation)
            np.testing.assert_array_equal(gt, high[crop.top : crop.top + 32, crop.left : crop.left + 32])


def test_a_batch_may_mix_given_and_made_images(tmp_path):
    for name in ("high", "low", "alone"):
        (tmp_path / name).mkdir()
    write_png(tmp_path / "high" / "a.png", noise(32, 32))
    write_png(tmp_path / "low" / "a.png", np.full((8, 8, 3), 77, np.uint8))
    write_png(tmp_path / "alone" / "b.png", noise(32, 32, 1))
    found = check([f"hr={tmp_path}/high,lr={tmp_path}/low", f"{tmp_path}/alone"]).photographs
    patches = Patches(found, 8, seed=0)
    samples = [patches[(step, 0)] for step in range(12)]
    lq, _ = to_pair(together(samples), CPU)
    assert {sample.given for sample in samples} == {True, False}
    for sample, image in zip(samples, lq, strict=True):
        assert bool((image == 77 / 255).all()) == sample.given


def test_pairs_that_do_not_fit_are_named(tmp_path):
    for name in ("high", "low"):
        (tmp_path / name).mkdir()
    for number in range(12):
        write_png(tmp_path / "high" / f"{number:02}.png", noise(32, 32))
    with pytest.raises(DataError, match="low holds no images"):
        open_source(f"hr={tmp_path}/high,lr={tmp_path}/low")
    write_png(tmp_path / "low" / "00.png", noise(8, 9))
    with pytest.raises(DataError, match=r"lacks the low-resolution images of 11 targets: .*01\.png.*10\.png; they are"):
        open_source(f"hr={tmp_path}/high,lr={tmp_path}/low")
    for number in range(1, 12):
        (tmp_path / "high" / f"{number:02}.png").unlink()
    with pytest.raises(DataError, match=r"00\.png: wrong scale: .*low/00\.png is 9x8, it needs 8x8"):
        check([f"hr={tmp_path}/high,lr={tmp_path}/low"])


# Sample order


def test_sample_order_is_a_pure_function_that_never_changes():
    photographs = [photograph(noise(64, 64, n), Path(f"{n}.png")) for n in range(4)]
    patches = Patches(photographs, patch=8, seed=7)
    crops = [patches.crop_at(step, index) for step, index in ((0, 0), (0, 1), (123456, 5))]
    # Golden: a change here would make old checkpoints go on with other batches.
    assert [(c.photograph.image.path.name, c.orientation, c.top, c.left) for c in crops] == GOLDEN_CROPS
    assert Patches(photographs, patch=8, seed=7).crop_at(123456, 5) == crops[2]
    assert Patches(photographs, patch=8, seed=8).crop_at(123456, 5) != crops[2]


def test_photographs_are_drawn_in_proportion_to_their_area():
    small, large = photograph(noise(32, 32), Path("small")), photograph(noise(64, 96), Path("large"))  # 1 : 6
    patches = Patches([small, large], patch=8, seed=0)
    drawn = sum(patches.crop_at(step, 0).photograph is small for step in range(7000))
    assert drawn == pytest.approx(1000, abs=100)  # standard deviation 29


def test_weights_decide_between_sources_and_areas_within():
    areas = [(0, 32, 32), (0, 64, 96), (1, 64, 64), (2, 32, 32)]
    found = [photograph(noise(h, w), Path(str(n)), source) for n, (source, h, w) in enumerate(areas)]
    shares = masses(found, [3.0, 1.0, 4.0]) / masses(found, [3.0, 1.0, 4.0]).sum()
    assert shares == pytest.approx([3 / 8 / 7, 3 / 8 * 6 / 7, 1 / 8, 4 / 8])
    drawn = sum(Patches(found, 8, 0, [3, 1, 4]).crop_at(step, 0).photograph.source == 1 for step in range(4000))
    assert drawn == pytest.approx(500, abs=80)  # standard deviation 21
    assert (masses(found) == [1024, 6144, 4096, 1024]).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("hr=a,weight=2", "b"), "'b' has no weight and other sources have"),
        (("hr=a,weight=0",), "must be a positive number, got '0'"),
        (("hr=a,weight=much",), "must be a positive number, got 'much'"),
        (("lr=a",), "names no high-resolution images"),
        (("hr=a,hr=b",), "cannot read 'hr=b'"),
        (("hr=a,size=3",), "cannot read 'size=3'"),
        (("hr=a,lr=",), "cannot read 'lr='"),
    ],
)
def test_unusable_mixtures_are_explained(words, message):
    with pytest.raises(ValueError, match=message):
        check_mixture(words)


def test_a_folder_with_commas_is_a_folder():
    assert parse_source("photos, 2019") == {"hr": "photos, 2019"}
    assert parse_source("hr=a,lr=b,weight=2") == {"hr": "a", "lr": "b", "weight": "2"}


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_the_steps_in_order(tmp_path, workers):
    patches = patches_of(noise(64, 64), tmp_path, seed=3)
    loader = make_loader(patches, StepBatches(5, 2), workers, pin_memory=False)
    for step, batch in enumerate(islice(loader, 4), start=5):
        assert batch.region.dtype == batch.lq.dtype == torch.uint8 and not batch.lost and not batch.faults
        for index in range(2):
            np.testing.assert_array_equal(batch.region[index].numpy(), patches[(step, index)].region)


# Audit


def bad_set(folder: Path) -> np.ndarray:
    """One good image and one of each kind of unusable ones; returns the evaluation image among them."""
    target = noise(40, 40, 9)
    write_png(folder / "good.png", noise(40, 40))
    write_png(folder / "evaluation.png", target)
    write_png(folder / "narrow.png", noise(40, 31))
    write_png(folder / "grey.png", noise(40, 40)[..., 0])
    write_png(folder / "clear.png", np.dstack([noise(40, 40), noise(40, 40)[..., 0]]))
    Image.fromarray(np.dstack([noise(40, 40), noise(40, 40)[..., :1]]), "CMYK").save(folder / "print.jpg")
    whole = (folder / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("not an image")
    return target


REASONS = {
    "evaluation.png": "evaluation image: equals Set5/0901",
    "narrow.png": "too small: 28x40 pixels, a patch of 8 needs 32",
    "grey.png": "grey: ",
    "clear.png": "unreadable: .*partly transparent",
    "print.jpg": "unreadable: .*CMYK",
    "truncated.png": "unreadable: .*damaged or truncated",
    "empty.png": "unreadable: .*empty",
    "text.jpg": "unreadable: .*no image",
}


def test_audit_names_every_kind_of_unusable_image(tmp_path):
    target = bad_set(tmp_path)
    with pytest.raises(DataError, match=r"^8 of 9 training images cannot be used; .*--bad_images skip") as error:
        check([str(tmp_path)], excluded={digest(target): "Set5/0901"})
    for name, reason in REASONS.items():
        with pytest.raises(DataError, match=f"{name}: {reason}"):
            raise error.value
    assert "good.png" not in str(error.value)


def test_audit_leaves_unusable_images_out_when_asked_to(tmp_path):
    target = bad_set(tmp_path)
    found = check([str(tmp_path)], excluded={digest(target): "Set5/0901"}, skip=True)
    assert [Path(photograph.image.name).name for photograph in found.photographs] == ["good.png"]
    assert {Path(name).name for name, _ in found.left_out} == set(REASONS)
    assert found.summary() == (
        "1 training images, 0.0 megapixels, 1 left out (evaluation image), 1 left out (grey), 1 left out (too small), "
        "5 left out (unreadable)"
    )
    (tmp_path / "good.png").unlink()
    with pytest.raises(DataError, match="8 of 8"):
        check([str(tmp_path)], excluded={digest(target): "Set5/0901"}, skip=True)


def test_audit_names_the_first_ten_and_counts_the_rest(tmp_path):
    for number in range(12):
        write_png(tmp_path / f"{number:02}.png", noise(8, 8))
    with pytest.raises(DataError, match="12 of 12") as error:
        check([str(tmp_path)])
    assert "09.png" in str(error.value) and "10.png" not in str(error.value)
    assert str(error.value).endswith("and 2 more")


def test_audit_reads_again_only_what_is_new_or_changed(tmp_path, monkeypatch):
    images, cache = tmp_path / "images", tmp_path / "cache" / "audit.sqlite"
    images.mkdir()
    for number in range(4):
        write_png(images / f"{number}.png", noise(40, 40, number))
    looked: list[str] = []
    honest = audits._look
    monkeypatch.setattr(audits, "_look", lambda file: (looked.append(Path(file.name).name), honest(file))[1])
    first = check([str(images)], cache=cache)
    assert sorted(looked) == ["0.png", "1.png", "2.png", "3.png"]
    looked.clear()
    assert check([str(images)], cache=cache) == first and looked == []
    write_png(images / "2.png", noise(44, 40, 7))
    (images / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 of 4 .*\n.*3\.png"):
        check([str(images)], cache=cache)
    assert sorted(looked) == ["2.png", "3.png"]
    # Left out while it never was readable; kept in its place when it was, so that a run goes on with the same batches.
    found = check([str(images)], cache=cache, skip=True)
    assert [item.digest for item in found.photographs] == [
        first.photographs[0].digest, first.photographs[1].digest, digest(noise(44, 40, 7)), first.photographs[3].digest
    ]  # fmt: skip
    assert [Path(item.image.name).name for item in check([str(images)], skip=True).photographs] == [
        "0.png", "1.png", "2.png"
    ]  # fmt: skip


def test_a_file_that_is_no_database_is_refused(tmp_path):
    write_png(tmp_path / "a.png", noise(40, 40))
    (tmp_path / "cache").write_text("text " * 1000)
    with pytest.raises(DataError, match=r"cache cannot keep what the audit finds .*--audit_cache"):
        check([str(tmp_path)], cache=tmp_path / "cache")


def test_fingerprint_knows_pixels_and_order():
    a, b = photograph(noise(8, 8, 0)), photograph(noise(8, 8, 1))
    assert len({fingerprint([a, b]), fingerprint([b, a]), fingerprint([a])}) == 3


# Decoded pixels


def test_where_pixels_are_kept_decides_nothing_else(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(3):
        write_png(tmp_path / "images" / f"{number}.png", noise(43, 50, number))
    found = check([str(tmp_path / "images")]).photographs
    size = 40 * 48 * 3
    some, none, folder = DecodedImages(), DecodedImages(), DecodedImages(tmp_path / "decoded")
    assert some.keep(found, 2 * size / 1e9) == 2 and none.keep(found, 0) == 0
    plain = Patches(found, 8, 0, images=none)
    for images in (some, folder):
        patches = Patches(found, 8, 0, images=images)
        for step in range(10):
            np.testing.assert_array_equal(patches[(step, 0)].region, plain[(step, 0)].region)
    files = sorted((tmp_path / "decoded").iterdir())
    assert sorted(path.name for path in files) == sorted(f"{item.digest}.rgb" for item in found)
    assert all(path.stat().st_size == size for path in files)
    files[0].write_bytes(b"cut short")  # as a full disk of another program's making leaves it
    for item in found:
        np.testing.assert_array_equal(folder.pixels(item), none.pixels(item))


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    patches = patches_of(noise(32, 32), tmp_path)
    patches.images = DecodedImages(tmp_path / "decoded")
    (tmp_path / "decoded").rmdir()
    (tmp_path / "decoded").write_text("in the way")
    sample = patches[(0, 0)]
    with pytest.raises(DataError, match="decoded cannot keep decoded photographs"):
        Unreadable().take([together([sample])])


# Images that go bad in the middle of a run


def test_an_image_that_went_bad_stops_or_is_passed_over(tmp_path, capsys):
    images = [noise(40, 40, number) for number in range(2)]
    for number, image in enumerate(images):
        write_png(tmp_path / f"{number}.png", image)
    found = check([str(tmp_path)]).photographs
    (tmp_path / "1.png").write_bytes(b"")
    strict, lenient = Patches(found, 8, 0), Patches(found, 8, 0, skip=True)
    keys = [(step, 0) for step in range(30)]
    bad = [key for key in keys if strict.crop_at(*key).photograph is found[1]]
    assert 5 < len(bad) < 25
    counted = Unreadable()
    for key in keys:
        sample = lenient[key]
        counted.take([together([sample])])
        if key not in bad:
            np.testing.assert_array_equal(sample.region, strict[key].region)
            continue
        with pytest.raises(DataError, match=r"1\.png is empty.*start again: the last checkpoint is untouched"):
            Unreadable().take([together([strict[key]])])
        assert not sample.lost and len(sample.faults) >= 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and "unreadable image number 1" in errors[0] and "1.png" in errors[0]
    assert sum(counted.counts.values()) >= len(bad)


def test_an_image_that_changed_its_size_is_an_error(tmp_path):
    patches = patches_of(noise(40, 40), tmp_path)
    write_png(tmp_path / "a.png", noise(44, 40))
    assert "has changed since the run began: it is 40x44, it was 40x40" in patches[(0, 0)].faults[0]


def test_a_set_of_which_nothing_can_be_read_any_more_ends_the_run(tmp_path):
    patches = patches_of(noise(40, 40), tmp_path)
    (tmp_path / "a.png").unlink()
    patches = Patches([replace(patches.photographs[0])], 8, 0, skip=True)
    assert patches[(0, 0)].lost and len(patches[(0, 0)].faults) == 100
