"""PSNR and SSIM: golden values, scikit-image, and the published figures of bicubic."""

import math
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from models.team08_HATFreq.image_io import list_images, read_rgb
from utils.metrics import psnr_y, rgb_to_y, ssim_y
from utils.resize import imresize


def noisy_pair(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    gt = rng.integers(0, 256, (40, 52, 3))
    return np.clip(gt + rng.integers(-30, 31, gt.shape), 0, 255).astype(np.uint8), gt.astype(np.uint8)


@pytest.mark.parametrize(
    ("rgb", "y"),
    [((0, 0, 0), 16.0), ((255, 255, 255), 235.0), ((255, 0, 0), 81.481), ((0, 255, 0), 144.553), ((0, 0, 255), 40.966)],
)
def test_luma_of_pure_colours(rgb: tuple, y: float) -> None:
    assert rgb_to_y(np.full((1, 1, 3), rgb, np.uint8))[0, 0] == pytest.approx(y, abs=1e-9)


@pytest.mark.parametrize("offset", [1, 5, 20])
def test_psnr_of_an_offset(offset: int) -> None:
    gt = np.random.default_rng(0).integers(0, 200, (32, 32, 3), dtype=np.uint8)
    # Y has 219 of 255 levels, so an RGB offset k is an offset of k * 219 / 255 there.
    assert psnr_y(gt + np.uint8(offset), gt) == pytest.approx(20 * math.log10(255 / (offset * 219 / 255)))


def test_equal_images() -> None:
    gt = noisy_pair()[1]
    assert psnr_y(gt, gt) == math.inf
    assert ssim_y(gt, gt) == pytest.approx(1.0)


def test_the_border_is_left_out() -> None:
    sr, gt = noisy_pair()
    spoiled = sr.copy()
    spoiled[:4] = spoiled[-4:] = spoiled[:, :4] = spoiled[:, -4:] = 0
    assert psnr_y(spoiled, gt) == psnr_y(sr, gt)
    assert ssim_y(spoiled, gt) == ssim_y(sr, gt)
    assert psnr_y(spoiled, gt, border=3) < psnr_y(sr, gt, border=3)


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_scikit_image(seed: int) -> None:
    sr, gt = noisy_pair(seed)
    x, y = (rgb_to_y(image)[4:-4, 4:-4] for image in (sr, gt))
    assert psnr_y(sr, gt) == pytest.approx(peak_signal_noise_ratio(y, x, data_range=255), abs=1e-9)
    # truncate=5/1.5 gives scikit-image the same 11 taps; its map is cut to the windows that lie inside.
    _, ssim_map = structural_similarity(
        y, x, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
    )
    assert ssim_y(sr, gt) == pytest.approx(ssim_map[5:-5, 5:-5].mean(), abs=1e-9)


# "bicubic" of the benchmark table: enlarged from MATLAB's LR with the clamped border.
@pytest.mark.parametrize(
    ("name", "psnr", "ssim"),
    [
        ("Set5", 28.430, 0.8111),
        ("Set14", 26.091, 0.7048),
        pytest.param("BSD100", 25.962, 0.6681, marks=pytest.mark.slow),
    ],
)
def test_published_figures_of_bicubic(shared: Path, name: str, psnr: float, ssim: float) -> None:
    folder = shared / "data" / "bench" / name
    pairs = [(imresize(read_rgb(p.parents[1] / "LRbicx4" / f"{p.stem}x4.png"), 4, "clamp"), read_rgb(p))
             for p in list_images(folder / "HR")]  # fmt: skip
    assert np.mean([psnr_y(*pair) for pair in pairs]) == pytest.approx(psnr, abs=6e-4)
    assert np.mean([ssim_y(*pair) for pair in pairs]) == pytest.approx(ssim, abs=6e-5)


def test_bad_input_is_named() -> None:
    gt = np.zeros((30, 30, 3), np.uint8)
    with pytest.raises(ValueError, match="30x29 restored, 30x30 target"):
        psnr_y(gt[:29], gt)
    with pytest.raises(ValueError, match="uint8 `h w 3`, got float64"):
        psnr_y(gt / 255, gt / 255)
    with pytest.raises(ValueError, match="nothing is left of 8x8"):
        psnr_y(gt[:8, :8], gt[:8, :8])
    with pytest.raises(ValueError, match="SSIM needs 11 pixels a side inside the border, got 10x10"):
        ssim_y(gt[:18, :18], gt[:18, :18])
