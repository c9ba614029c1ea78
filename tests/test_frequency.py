"""The frequency block: goldens of its transforms, the fp32 island, independence of the size, its modes."""

import pytest
import torch
from torch import Tensor

from models.team08_HATFreq.fourier import rfft2
from models.team08_HATFreq.frequency import (
    KNOTS,
    FrequencyFusion,
    GlobalSpectrum,
    WindowSpectrum,
    radial_interpolation,
)

CPU = torch.device("cpu")
MODES = ["both", "global", "window", "identity"]


def awake(mode: str, dim: int = 8, window: int = 8, shifted: bool = False) -> FrequencyFusion:
    """A block whose last layer is not zero any more."""
    torch.manual_seed(0)
    block = FrequencyFusion(dim, window, mode, shifted)
    torch.nn.init.normal_(block.fuse.weight, std=0.5)
    return block


def spy_on_rfft2(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.dtype, bool]]:
    """Collects the dtype of every transform's input, and whether autocast was on."""
    calls = []

    def spy(u: Tensor) -> Tensor:
        calls.append((u.dtype, torch.is_autocast_enabled(u.device.type)))
        return rfft2(u)

    monkeypatch.setattr("models.team08_HATFreq.frequency.rfft2", spy)
    return calls


def test_radial_interpolation_by_hand() -> None:
    weight = radial_interpolation(4, 4, CPU).view(KNOTS, 4, 3)
    torch.testing.assert_close(weight.sum(0), torch.ones(4, 3))
    assert weight[0, 0, 0] == 1  # the mean takes knot 0
    torch.testing.assert_close(weight[KNOTS - 1, 2, 2], torch.tensor(1.0))  # the corner, sqrt(1/2), takes the last
    # 1/4 cycles/pixel lies at 0.25 / 0.7071 * 15 = 5.303 knots.
    torch.testing.assert_close(weight[5:7, 0, 1], torch.tensor([0.6967, 0.3033]), atol=1e-4, rtol=0)
    torch.testing.assert_close(weight[:, 1, 0], weight[:, 0, 1])


def test_the_gain_belongs_to_the_frequency_and_not_to_the_size() -> None:
    branch = GlobalSpectrum(2)
    branch.gain.data.copy_(torch.randn(2, KNOTS))
    small, large = (branch._gain(torch.empty(1, 2, size, size)) for size in (16, 48))
    torch.testing.assert_close(small, large.view(2, 48, 25)[:, ::3, ::3][:, :16, :9])


@pytest.mark.parametrize("shifted", [False, True])
def test_a_fresh_window_branch_is_the_identity(shifted: bool) -> None:
    x = torch.randn(2, 3, 16, 24)
    torch.testing.assert_close(WindowSpectrum(3, 8, shifted)(x), x, rtol=0, atol=1e-5)


def test_window_gains_weigh_their_own_coefficient() -> None:
    branch = WindowSpectrum(1, 8, shifted=False)
    branch.gain.data[0, 0, 2] = 3.0
    phase = torch.arange(16) * 2 * torch.pi / 8
    wave, other = torch.cos(2 * phase), torch.cos(3 * phase)
    x = (wave + other).expand(1, 1, 8, 16)
    torch.testing.assert_close(branch(x), (3 * wave + other).expand(1, 1, 8, 16), rtol=0, atol=1e-5)


def test_the_window_grid_is_shifted_by_half() -> None:
    for shifted, touched in [(False, range(0, 8)), (True, range(4, 12))]:
        branch = WindowSpectrum(1, 8, shifted)
        branch.gain.data.zero_()
        branch.gain.data[0, 0, 0] = 1.0  # every window becomes its mean
        x = torch.zeros(1, 1, 8, 16)
        x[..., 5] = 8.0
        columns = (branch(x).abs().amax(dim=(0, 1, 2)) > 1e-6).nonzero().flatten().tolist()
        assert columns == list(touched)


def test_the_global_branch_ignores_the_mean() -> None:
    torch.manual_seed(0)
    branch = GlobalSpectrum(3)
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(branch(x), branch(x + 5), rtol=0, atol=1e-5)
    assert branch(torch.ones(1, 3, 16, 16)).abs().max() < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_a_fresh_block_is_exactly_zero(mode: str) -> None:
    assert not FrequencyFusion(8, 8, mode)(torch.randn(1, 16, 8, 8)).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(8, 8), (16, 24), (40, 8)])
def test_any_multiple_of_the_window_with_finite_gradients(mode: str, size: tuple[int, int]) -> None:
    block = awake(mode)
    for x in (torch.randn(2, *size, 8), torch.zeros(2, *size, 8), torch.full((2, *size, 8), 1e3)):
        x.requires_grad_()
        y = block(x)
        assert y.shape == x.shape
        gradients = torch.autograd.grad(y.square().mean(), [x, *block.parameters()])
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("mode", MODES)
def test_every_parameter_is_real_and_trained(mode: str) -> None:
    block = awake(mode)
    block(torch.randn(2, 16, 16, 8)).square().mean().backward()
    for name, parameter in block.named_parameters():
        assert not parameter.is_complex()
        assert parameter.grad is not None and parameter.grad.any(), name


def test_identity_has_the_parameters_of_both_and_no_fft(monkeypatch: pytest.MonkeyPatch) -> None:
    both, identity = awake("both"), awake("identity")
    shapes = [{k: v.shape for k, v in block.state_dict().items()} for block in (both, identity)]
    assert shapes[0] == shapes[1]
    spy = spy_on_rfft2(monkeypatch)
    identity(torch.randn(1, 8, 8, 8))
    assert spy == []
    both(torch.randn(1, 8, 8, 8))
    assert len(spy) == 2


def test_identity_is_blind_to_position_and_both_is_not() -> None:
    # Without the FFT the block is a chain of 1x1 operations: pixels can be permuted freely (the mean stays).
    x = torch.randn(1, 8, 8, 8)
    permuted = x.flip(1)[:, :, torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    identity, window = awake("identity"), awake("both")
    window.window_branch.gain.data.uniform_()
    torch.testing.assert_close(identity(permuted), identity(x).flip(1)[:, :, order], rtol=0, atol=1e-5)
    assert (window(permuted) - window(x).flip(1)[:, :, order]).abs().max() > 1e-2


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_fft_is_an_fp32_island_under_autocast(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    block, spy = awake("both").to(device), spy_on_rfft2(monkeypatch)
    x = torch.randn(1, 16, 16, 8, device=device)
    with torch.autocast(device, torch.bfloat16):
        assert block.reduce(x.permute(0, 3, 1, 2)).dtype == torch.bfloat16  # the island has something to guard
        y = block(x)
    assert spy == [(torch.float32, False)] * 2
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), block(x), rtol=0.05, atol=0.05)


def test_bfloat16_weights_work_too() -> None:
    block = awake("both")
    x = torch.randn(1, 16, 16, 8)
    expected = block(x)
    torch.testing.assert_close(block.bfloat16()(x.bfloat16()).float(), expected, rtol=0.05, atol=0.05)


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="fourier"):
        FrequencyFusion(8, 8, "fourier")


@pytest.mark.gpu
def test_cuda_equals_the_cpu() -> None:
    block, x = awake("both"), torch.randn(2, 40, 24, 8)
    torch.testing.assert_close(block.cuda()(x.cuda()).cpu(), block.cpu()(x), rtol=0, atol=2e-5)
