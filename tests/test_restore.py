"""Tiles, ensemble and quantisation, as pure functions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.team08_HATFreq import HATFreq, build_model, override
from models.team08_HATFreq.network import PRESETS
from models.team08_HATFreq.tiling import (
    restore_blocks,
    restore_samples,
    restore_tiled,
    self_ensemble,
    tile_starts,
    tile_weights,
    to_samples,
    to_tensor,
)


def nearest(lq: Tensor) -> Tensor:
    return F.interpolate(lq, scale_factor=4, mode="nearest")


def test_tiles_equal_the_whole_for_thirty_random_sizes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        h, w, tile = (int(n) for n in rng.integers(1, 70, 3))
        overlap = int(rng.integers(0, tile))
        lq = torch.rand(1, 3, h, w)
        torch.testing.assert_close(restore_tiled(nearest, lq, 4, tile, overlap), nearest(lq), rtol=0, atol=1e-6)


def test_every_tile_has_full_size_and_the_last_is_shifted_inward() -> None:
    assert tile_starts(10, 16, 4) == [0]
    assert tile_starts(16, 16, 4) == [0]
    assert tile_starts(17, 16, 4) == [0, 1]
    assert tile_starts(40, 16, 4) == [0, 12, 24]
    assert tile_starts(41, 16, 4) == [0, 12, 24, 25]
    seen = []
    restore_tiled(lambda lq: (seen.append(lq.shape[-2:]), nearest(lq))[1], torch.rand(1, 3, 41, 20), 4, 16, 4)
    assert set(seen) == {(16, 16)} and len(seen) == 4 * 2


def test_weights_sum_to_one_stay_positive_and_ramp_linearly() -> None:
    total = torch.zeros(28 * 2)
    tiles = list(tile_weights(28, 16, 4, scale=2))
    assert [start for start, _ in tiles] == [0, 12]
    for start, weight in tiles:
        assert weight.min() > 0
        total[start * 2 : start * 2 + 32] += weight
    torch.testing.assert_close(total, torch.ones(56))
    first = tiles[0][1]
    torch.testing.assert_close(first[:24], torch.ones(24))
    torch.testing.assert_close(first[24:], 1 - (torch.arange(8) + 0.5) / 8)


def test_a_seam_is_spread_over_the_overlap() -> None:
    count = iter(range(100))

    def different_each_time(lq: Tensor) -> Tensor:
        return torch.full((1, 3, 4 * lq.shape[2], 4 * lq.shape[3]), float(next(count)))

    row = restore_tiled(different_each_time, torch.zeros(1, 3, 16, 28), 4, 16, 4)[0, 0, 0]
    assert (row[:48] == 0).all() and (row[64:] == 1).all()
    steps = row[48:64].diff()
    torch.testing.assert_close(steps, torch.full((15,), 1 / 16))


@pytest.mark.parametrize(("tile", "overlap"), [(-1, 0), (16, 16), (16, -1)])
def test_tiles_out_of_range_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap lie in"):
        restore_tiled(nearest, torch.rand(1, 3, 32, 32), 4, tile, overlap)


def test_a_tile_that_holds_the_image_restores_it_whole() -> None:
    lq = torch.rand(1, 3, 20, 20)
    for tile in (0, 20, 64):
        calls = []
        restore_tiled(lambda x, calls=calls: (calls.append(x.shape), nearest(x))[1], lq, 4, tile, 0)
        assert calls == [lq.shape]


def test_the_ensemble_is_the_mean_of_eight_single_passes() -> None:
    torch.manual_seed(0)
    model = build_model("light").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    lq = torch.rand(1, 3, 9, 14)
    with torch.no_grad():
        passes = []
        for turns in range(4):
            for flip in (False, True):
                turned = torch.rot90(lq.flip(-1) if flip else lq, turns, (-2, -1))
                back = torch.rot90(model(turned), -turns, (-2, -1))
                passes.append(back.flip(-1) if flip else back)
        expected = torch.stack(passes).mean(0)
        assert (passes[0] - passes[1]).abs().max() > 1e-3  # the passes differ, so their mean means something
        torch.testing.assert_close(self_ensemble(model, lq), expected, rtol=0, atol=1e-6)


def test_the_ensemble_of_an_equivariant_function_is_the_function() -> None:
    lq = torch.rand(2, 3, 5, 8)
    torch.testing.assert_close(self_ensemble(nearest, lq), nearest(lq), rtol=0, atol=1e-6)


def test_tiles_of_the_network_come_close_to_the_whole() -> None:
    torch.manual_seed(0)
    model = HATFreq(override(PRESETS["light"], {"depths": (1,), "num_heads": (2,)})).eval()
    torch.nn.init.normal_(model.upsample[0].weight, std=0.02)
    lq = F.interpolate(torch.rand(1, 3, 12, 12), size=(64, 64), mode="bicubic").clamp(0, 1)
    with torch.no_grad():
        whole, tiled = model(lq), restore_tiled(model, lq, 4, 48, 16)
    assert (whole - tiled).abs().mean() < 0.002  # channel attention and the powers of the bands see the tile only
    assert (whole - nearest(lq)).abs().mean() > 0.005


def test_samples_to_tensor_and_back() -> None:
    for dtype, full in ((np.uint8, 255), (np.uint16, 65535)):
        samples = np.random.default_rng(0).integers(0, full + 1, (4, 5, 3)).astype(dtype)
        samples[0, 0], samples[0, 1] = 0, full
        tensor = to_tensor(samples)
        assert tensor.shape == (1, 3, 4, 5) and tensor.dtype == torch.float32
        assert tensor.min() == 0 and tensor.max() == 1
        np.testing.assert_array_equal(to_samples(tensor, np.dtype(dtype)), samples)


def test_quantisation_clamps_and_rounds() -> None:
    values = torch.tensor([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.3]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_samples(values, np.dtype(np.uint8))[0, :, 0].tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_written(bad: float) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        to_samples(torch.full((1, 3, 2, 2), bad), np.dtype(np.uint8))


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_tiles_in_batches_are_the_same_tiles(batch: int) -> None:
    seen, lq = [], torch.rand(2, 3, 41, 70)

    def noting(part: Tensor) -> Tensor:
        seen.append(len(part))
        return nearest(part)

    blocks = restore_blocks(noting, lq, 4, 16, 4, batch=batch)
    sr = torch.full((2, 3, 164, 280), float("nan"))
    for top, left, block in blocks:
        sr[..., top : top + block.shape[-2], left : left + block.shape[-1]] = block
    torch.testing.assert_close(sr, nearest(lq), rtol=0, atol=1e-6)
    columns = len(tile_starts(70, 16, 4))
    assert seen == [2 * min(batch, columns - start) for start in range(0, columns, batch)] * len(tile_starts(41, 16, 4))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_samples_come_back_whole_and_tiled(dtype: type) -> None:
    rgb = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (37, 50, 3)).astype(dtype)
    expected = rgb.repeat(4, 0).repeat(4, 1)
    for tile, batch in ((0, 1), (16, 1), (16, 3)):
        np.testing.assert_array_equal(restore_samples(nearest, rgb, 4, tile, 4, batch=batch), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_samples_from_a_gpu_are_the_cpus(dtype: type) -> None:
    rgb = np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, (37, 50, 3)).astype(dtype)
    for tile, batch in ((0, 1), (16, 3)):
        result = restore_samples(nearest, rgb, 4, tile, 4, torch.device("cuda"), batch)
        np.testing.assert_array_equal(result, rgb.repeat(4, 0).repeat(4, 1))
    with pytest.raises(FloatingPointError, match="not finite"):
        restore_samples(lambda lq: nearest(lq) / 0, rgb, 4, 16, 4, torch.device("cuda"))
