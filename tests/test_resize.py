"""MATLAB's bicubic: golden samples, every published pair, both border rules, both directions."""

import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from utils.resize import imresize


def read(path: Path) -> np.ndarray:
    """Samples as the file holds them; the channel order does not matter to a resize."""
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("name", ["Set5", "Set14", "BSD100"])
def test_equals_matlab_on_every_classic_pair(shared: Path, name: str) -> None:
    folder = shared / "data" / "bench" / name
    pairs = sorted((folder / "HR").glob("*.png"))
    assert len(pairs) == {"Set5": 5, "Set14": 14, "BSD100": 100}[name]
    for gt_path in pairs:
        lq = read(folder / "LRbicx4" / f"{gt_path.stem}x4.png")
        np.testing.assert_array_equal(imresize(read(gt_path), 0.25, border="clamp"), lq, err_msg=gt_path.name)


def test_equals_newer_matlab_on_mirrored_set5(shared: Path) -> None:
    folder = shared / "data" / "bench" / "Set5"
    for gt_path in sorted((folder / "HR").glob("*.png")):
        lq = read(folder / "LRbicx4_mirror" / f"{gt_path.stem}x4.png")
        np.testing.assert_array_equal(imresize(read(gt_path), 0.25, border="mirror"), lq, err_msg=gt_path.name)


def test_golden_step_edge() -> None:
    # Columns 0..15 black, 16..31 white: an LR sample is the sum of the stretched kernel's weights on the white side.
    row = np.repeat([0, 255], 16).astype(np.uint8)
    image = np.tile(row, (32, 1))
    taps = np.arange(16) - 7.5
    x = np.abs(taps) / 4
    weight = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
    weight /= weight.sum()
    expected = [
        int(np.clip(np.floor(255 * weight[np.clip(np.arange(16) + 4 * j - 6, 0, 31) >= 16].sum() + 0.5), 0, 255))
        for j in range(8)
    ]
    np.testing.assert_array_equal(imresize(image, 0.25), np.tile(expected, (8, 1)))
    assert expected == [0, 0, 0, 20, 235, 255, 255, 255]  # over- and undershoot are clipped to uint8


def test_golden_ramp_and_rounding_between_the_passes() -> None:
    ramp = np.arange(0, 256, 4, dtype=np.uint8)[None].repeat(64, 0)
    inner = imresize(ramp, 0.25)[8, 2:-2]
    np.testing.assert_array_equal(inner, (ramp[8].reshape(-1, 4).mean(1) + 0.5).astype(np.uint8)[2:-2])


@pytest.mark.parametrize("border", ["mirror", "clamp"])
@pytest.mark.parametrize("scale", [0.25, 1 / 3, 0.5, 1.0, 2.0, 3.0, 4.0])
def test_a_flat_image_stays_flat_and_sizes_round_up(border: str, scale: float) -> None:
    image = np.full((13, 18, 3), 77, np.uint8)
    resized = imresize(image, scale, border)
    assert resized.shape == (int(np.ceil(13 * scale)), int(np.ceil(18 * scale)), 3)
    assert (resized == 77).all()


def test_scale_one_is_the_identity() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    np.testing.assert_array_equal(imresize(image, 1.0), image)


def test_upscaling_golden_samples() -> None:
    # Output sample 4 lies at 5/8 of the source grid: weights 0.7275 on 100 and -0.0732 on 200 give 58.1, by Keys'
    # formula.
    column = np.array([[0], [100], [200]], np.uint8)
    up = imresize(column, 4.0, border="clamp")[:, 0]
    np.testing.assert_array_equal(up, [0, 0, 8, 30, 58, 87, 113, 142, 170, 192, 205, 207])


def test_grey_equals_each_channel() -> None:
    image = np.random.default_rng(1).integers(0, 256, (40, 28, 3), dtype=np.uint8)
    colour = imresize(image, 0.25)
    for channel in range(3):
        np.testing.assert_array_equal(imresize(image[..., channel], 0.25), colour[..., channel])


def test_borders_differ_in_the_outer_two_pixels_only() -> None:
    image = np.random.default_rng(2).integers(0, 256, (80, 64, 3), dtype=np.uint8)
    mirror, clamp = imresize(image, 0.25, "mirror"), imresize(image, 0.25, "clamp")
    np.testing.assert_array_equal(mirror[2:-2, 2:-2], clamp[2:-2, 2:-2])
    assert (mirror != clamp).any()


def test_a_grown_crop_equals_the_whole_image() -> None:
    # What the trainer relies on: 8 px of margin hold the kernel's whole support.
    image = np.random.default_rng(3).integers(0, 256, (160, 200, 3), dtype=np.uint8)
    whole = imresize(image, 0.25)
    crop = imresize(image[24:104, 40:136], 0.25)
    np.testing.assert_array_equal(crop[2:-2, 2:-2], whole[8:24, 12:32])


def test_smaller_than_the_kernel() -> None:
    image = np.random.default_rng(4).integers(0, 256, (1, 3, 3), dtype=np.uint8)
    assert imresize(image, 0.25).shape == (1, 1, 3)
    assert imresize(image, 4.0).shape == (4, 12, 3)


def test_fast_on_a_2k_image() -> None:
    image = np.random.default_rng(5).integers(0, 256, (1356, 2040, 3), dtype=np.uint8)
    imresize(image, 0.25)
    start = time.process_time()
    imresize(image, 0.25)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    ("image", "scale", "border", "error", "text"),
    [
        (np.zeros((8, 8)), 0.25, "mirror", TypeError, "uint8"),
        (np.zeros((0, 8), np.uint8), 0.25, "mirror", ValueError, "non-empty"),
        (np.zeros(8, np.uint8), 0.25, "mirror", ValueError, "shape"),
        (np.zeros((8, 8), np.uint8), 0.0, "mirror", ValueError, "positive"),
        (np.zeros((8, 8), np.uint8), 0.25, "wrap", ValueError, "border"),
    ],
)
def test_bad_input_is_named(image: np.ndarray, scale: float, border: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        imresize(image, scale, border)
