"""The transforms against PyTorch's own, forward and backward, and their traceable form."""

import pytest
import torch

from models.team08_HATFreq import fourier
from models.team08_HATFreq.fourier import irfft2, rfft2
from models.team08_HATFreq.layers import set_exportable

SIZES = [(8, 8), (6, 7), (5, 10), (1, 4), (3, 1), (37, 50)]


@pytest.mark.parametrize("size", SIZES)
def test_rfft2_and_its_gradient_equal_torchs(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    u = torch.randn(2, 3, *size, requires_grad=True)
    result, expected = rfft2(u), torch.view_as_real(torch.fft.rfft2(u, norm="ortho"))
    torch.testing.assert_close(result, expected)
    weight = torch.randn_like(result)
    torch.testing.assert_close(*(torch.autograd.grad(one, u, weight)[0] for one in (result, expected)))


@pytest.mark.parametrize("size", SIZES)
def test_irfft2_and_its_gradient_equal_torchs_also_off_the_real_spectra(size: tuple[int, int]) -> None:
    torch.manual_seed(1)
    spectrum = torch.randn(2, 3, size[0], size[1] // 2 + 1, 2, requires_grad=True)
    result = irfft2(spectrum, size[1])
    expected = torch.fft.irfft2(torch.view_as_complex(spectrum), s=size, norm="ortho")
    torch.testing.assert_close(result, expected)
    weight = torch.randn_like(result)
    torch.testing.assert_close(*(torch.autograd.grad(one, spectrum, weight)[0] for one in (result, expected)))


@pytest.mark.parametrize("size", SIZES)
def test_the_exportable_transforms_are_the_same(size: tuple[int, int]) -> None:
    u = torch.randn(2, 3, *size)
    other = torch.randn(2, 3, size[0], size[1] // 2 + 1, 2)
    with set_exportable():
        result, back = rfft2(u), irfft2(other, size[1])
    torch.testing.assert_close(result, rfft2(u), atol=5e-6, rtol=0)
    torch.testing.assert_close(back, irfft2(other, size[1]), atol=2e-5, rtol=0)


def test_long_exportable_transforms_keep_their_precision() -> None:
    u = torch.randn(1, 1, 8, 4000)
    with set_exportable():
        torch.testing.assert_close(rfft2(u), torch.view_as_real(torch.fft.rfft2(u, norm="ortho")), atol=2e-5, rtol=0)


def test_other_types_are_refused() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(TypeError, match="float32"):
            rfft2(torch.zeros(1, 1, 8, 8, dtype=dtype))
        with pytest.raises(TypeError, match="float32"):
            irfft2(torch.zeros(1, 1, 8, 5, 2, dtype=dtype), 8)


def test_the_operators_keep_pytorchs_contract() -> None:
    torch.library.opcheck(fourier._rfft2._opoverload, (torch.randn(2, 4, 6, requires_grad=True),))
    torch.library.opcheck(fourier._irfft2._opoverload, (torch.randn(2, 4, 4, 2, requires_grad=True), 6))
