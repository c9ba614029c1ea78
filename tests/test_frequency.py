"""The frequency block: its bands, its gates, the fp32 island, independence of size and place."""

import pytest
import torch
from torch import Tensor

from models.team08_HATFreq.fourier import rfft2
from models.team08_HATFreq.frequency import RINGS, FrequencyFusion, band_power, power, ring_bands, weigh


def awake(dim: int = 8) -> FrequencyFusion:
    """A block whose gates are not zero any more."""
    torch.manual_seed(0)
    block = FrequencyFusion(dim)
    torch.nn.init.normal_(block.gates.weight, std=0.5)
    torch.nn.init.normal_(block.gates.bias, std=0.5)
    return block


def inputs(*size: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, dim, *size, generator=generator), torch.randn(2, dim, *size, generator=generator)


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, bool]]:
    """The dtype of every transform's input, and whether autocast was on."""
    calls = []

    def spy(u: Tensor) -> Tensor:
        calls.append((u.dtype, torch.is_autocast_enabled(u.device.type)))
        return rfft2(u)

    monkeypatch.setattr("models.team08_HATFreq.frequency.rfft2", spy)
    return calls


def test_ring_bands_by_hand() -> None:
    bands = ring_bands(torch.empty(4, 4)).view(RINGS, 4, 3)
    torch.testing.assert_close(bands.sum(0), torch.ones(4, 3))
    assert bands[0, 0, 0] == 1  # the mean is in the first ring
    torch.testing.assert_close(bands[RINGS - 1, 2, 2], torch.tensor(1.0))  # the corner, sqrt(1/2), in the last
    # 1/4 cycles/pixel lies at 0.25 / 0.7071 * 7 = 2.475 rings.
    torch.testing.assert_close(bands[2:4, 0, 1], torch.tensor([0.5251, 0.4749]), atol=1e-4, rtol=0)
    torch.testing.assert_close(bands[:, 1, 0], bands[:, 0, 1])


def test_a_band_belongs_to_the_frequency_and_not_to_the_size() -> None:
    small, large = (ring_bands(torch.empty(side, side)).unflatten(1, (side, -1)) for side in (16, 48))
    torch.testing.assert_close(small, large[:, ::3, ::3][:, :16, :9])


def test_white_noise_has_the_same_power_in_every_band_and_at_every_size() -> None:
    for size in ((64, 64), (24, 40)):
        u = torch.randn(512, *size, generator=torch.Generator().manual_seed(0))
        result = band_power(power(rfft2(u)), ring_bands(u)).mean(dim=0)
        torch.testing.assert_close(result, torch.ones(RINGS), rtol=0, atol=0.05)


def test_weighing_changes_the_band_alone() -> None:
    u = torch.randn(1, 3, 8, 8)
    bands, gains = ring_bands(u), torch.zeros(1, 3, RINGS)
    gains[..., 0] = 2.0
    weighed = weigh(rfft2(u), gains, bands)
    torch.testing.assert_close(weighed[:, :, 0, 0], 2 * rfft2(u)[:, :, 0, 0])
    assert not weighed[:, :, 4, 4].any()


def test_a_fresh_block_gives_the_convolution() -> None:
    r, tail = inputs(16, 8)
    assert torch.equal(FrequencyFusion(8)(r, tail), tail)


def test_open_gates_give_the_path_and_half_open_ones_the_mean() -> None:
    block, (r, tail) = FrequencyFusion(8), inputs(16, 24)
    path = block.path(r)
    for bias, expected in ((20.0, path), (0.5493061, (tail + path) / 2), (-20.0, 2 * tail - path)):
        torch.nn.init.constant_(block.gates.bias, bias)
        torch.testing.assert_close(block(r, tail), expected, rtol=0, atol=1e-5)


def test_each_band_has_its_own_gate() -> None:
    # Waves in the middles of two rings; the path is empty, and the second ring takes all from it: that wave goes.
    block, size = FrequencyFusion(8), 70
    torch.nn.init.zeros_(block.path[2].weight)
    torch.nn.init.zeros_(block.path[2].bias)
    block.gates.bias.data.view(8, RINGS)[:, 2] = 20.0
    cycles = {ring: round(ring * 0.5**0.5 / (RINGS - 1) * size) for ring in (2, 4)}
    position = 2 * torch.pi * torch.arange(size) / size
    low, high = (torch.cos(n * position).expand(1, 8, size, size) for n in cycles.values())
    torch.testing.assert_close(block(torch.zeros(1, 8, size, size), low + high), high, rtol=0, atol=0.03)


def test_the_gates_follow_the_content() -> None:
    # Were the gates the same for all contents, three times the convolution's output would be moved three times as far.
    block, (_, tail) = awake(), inputs(16, 16)
    torch.nn.init.zeros_(block.path[2].weight)
    torch.nn.init.zeros_(block.path[2].bias)
    once, thrice = (block(tail, n * tail) - n * tail for n in (1, 3))
    assert (thrice - 3 * once).abs().max() > 0.1 * once.abs().max()


def test_a_shift_of_the_image_shifts_the_result() -> None:
    block, (r, tail) = awake(), inputs(16, 24)
    moved = block(r.roll((3, 5), (2, 3)), tail.roll((3, 5), (2, 3)))
    torch.testing.assert_close(moved, block(r, tail).roll((3, 5), (2, 3)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(8, 8), (16, 24), (7, 33), (1, 1)])
def test_any_size_with_finite_gradients(size: tuple[int, int]) -> None:
    block = awake()
    for scale in (1.0, 0.0, 1e3):
        r, tail = (one.mul(scale).requires_grad_() for one in inputs(*size))
        y = block(r, tail)
        assert y.shape == tail.shape
        gradients = torch.autograd.grad(y.square().mean(), [r, tail, *block.parameters()])
        assert all(g.isfinite().all() for g in gradients)


def test_every_parameter_is_real_and_trained() -> None:
    block = awake()
    block(*inputs(16, 16)).square().mean().backward()
    for name, parameter in block.named_parameters():
        assert not parameter.is_complex()
        assert parameter.grad is not None and parameter.grad.any(), name


def test_the_gates_depend_on_frequency_and_not_on_power_alone() -> None:
    # Permuted pixels keep every channel's power and change its spectrum.
    block, (r, tail) = awake(), inputs(8, 8)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))

    def permuted(u: Tensor) -> Tensor:
        return u.flatten(2)[..., order].unflatten(2, (8, 8))

    assert (block(permuted(r), permuted(tail)) - permuted(block(r, tail))).abs().max() > 1e-3


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_fft_is_an_fp32_island_under_autocast(transforms: list[tuple[torch.dtype, bool]], device: str) -> None:
    block, (r, tail) = awake().to(device), (one.to(device) for one in inputs(16, 16))
    with torch.autocast(device, torch.bfloat16):
        assert block.path(r).dtype == torch.bfloat16  # the island has something to guard
        y = block(r, tail.bfloat16())
    assert transforms == [(torch.float32, False)] * 2
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), block(r, tail), rtol=0.05, atol=0.05)


def test_bfloat16_weights_work_too() -> None:
    block, (r, tail) = awake(), inputs(16, 16)
    expected = block(r, tail)
    half = block.bfloat16()(r.bfloat16(), tail.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.gpu
def test_cuda_equals_the_cpu() -> None:
    block, (r, tail) = awake(), inputs(40, 24)
    torch.testing.assert_close(block.cuda()(r.cuda(), tail.cuda()).cpu(), block.cpu()(r, tail), rtol=0, atol=2e-5)
