"""Orthonormal real Fourier transforms without complex tensors, in fp32, with one meaning everywhere.

* Real and imaginary part are a last axis of two, and the transforms are custom operators with their own backward pass:
  torch.compile then meets no complex number, for which PyTorch 2.11 generates no code.
* FFT libraries differ in what they make of an imaginary part in the first and (for an even width) the last column,
  once the columns are transformed back. Gains that are equal for f and -f, as the block's are, leave rounding there; a
  gradient, which the backward pass of `rfft2` gives to the same operator, may have any. It is dropped here, as the
  adjoint of `rfft2` drops it.
* ONNX has no complex numbers and no dependable inverse real FFT: under `set_exportable` the transforms are products
  with matrices of cosines and sines that the graph makes from the image's size.
"""

import math

import torch
from torch import Tensor

from .layers import SWITCHES

# This folder may be imported under two names in one process: in the repository, and as the package hatfreq.
NAMESPACE = f"{__name__.partition('.')[0]}_fourier"


def rfft2(u: Tensor) -> Tensor:
    """`torch.view_as_real(torch.fft.rfft2(u, norm="ortho"))`: float32 `... h w` -> `... h w//2+1 2`."""
    return _rfft2_by_matrices(u) if SWITCHES.exportable else _rfft2(u)


def irfft2(spectrum: Tensor, width: int) -> Tensor:
    """The inverse: float32 `... h width//2+1 2` -> `... h width`."""
    return _irfft2_by_matrices(spectrum, width) if SWITCHES.exportable else _irfft2(spectrum, width)


@torch.library.custom_op(f"{NAMESPACE}::rfft2", mutates_args=())
def _rfft2(u: Tensor) -> Tensor:
    _check_float32(u)
    return torch.view_as_real(torch.fft.rfft2(u.contiguous(), norm="ortho").contiguous())


@torch.library.custom_op(f"{NAMESPACE}::irfft2", mutates_args=())
def _irfft2(spectrum: Tensor, width: int) -> Tensor:
    _check_float32(spectrum)
    rows = torch.fft.ifft(torch.view_as_complex(spectrum.contiguous()), dim=-2, norm="ortho").contiguous()
    imag = torch.view_as_real(rows)[..., 1]
    imag[..., 0] = 0
    if width % 2 == 0:
        imag[..., -1] = 0
    return torch.fft.irfft(rows, n=width, dim=-1, norm="ortho").contiguous()


@_rfft2.register_fake
def _(u: Tensor) -> Tensor:
    _check_float32(u)
    return u.new_empty((*u.shape[:-1], u.shape[-1] // 2 + 1, 2))


@_irfft2.register_fake
def _(spectrum: Tensor, width: int) -> Tensor:
    _check_float32(spectrum)
    return spectrum.new_empty((*spectrum.shape[:-2], width))


# The adjoint of each is the other one, with the columns of an rfft that stand for two coefficients weighed by a half or
# by two: the sum over the whole spectrum holds them twice, the half that is kept once.
def _rfft2_backward(ctx, spectrum: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return _irfft2(spectrum / _column_counts(ctx.width, spectrum.device)[:, None], ctx.width)


def _irfft2_backward(ctx, u: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
    return _rfft2(u) * _column_counts(ctx.width, u.device)[:, None], None


def _keep_width(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.width = inputs[1] if len(inputs) == 2 else inputs[0].shape[-1]


_rfft2.register_autograd(_rfft2_backward, setup_context=_keep_width)
_irfft2.register_autograd(_irfft2_backward, setup_context=_keep_width)


def _check_float32(u: Tensor) -> None:
    # A bf16 FFT does not exist, and an fp16 one on CUDA for powers of two only.
    if u.dtype != torch.float32:
        raise TypeError(f"the transforms take float32, got {u.dtype}: disable autocast around them and cast")


def _column_counts(width: int, device: torch.device | None = None) -> Tensor:
    """How often each column of an rfft stands in the full spectrum: float32 `width//2 + 1`, 1 or 2."""
    index = torch.arange(width // 2 + 1, device=device)
    return torch.where((index == 0) | (index * 2 == width), 1.0, 2.0)


def _fourier_matrix(length: int) -> tuple[Tensor, Tensor]:
    """The orthonormal Fourier matrix of a length, real and imaginary part: float32 `length length`, symmetric.

    Products of integers are reduced modulo the length before they become angles, so long transforms stay precise.
    """
    index = torch.arange(length)
    size = index[-1] + 1  # a tensor: the exporter knows no remainder by a size
    angle = (index[:, None] * index[None] % size).float() * (2 * math.pi) / size
    return angle.cos() / size.sqrt(), -angle.sin() / size.sqrt()


def _rfft2_by_matrices(u: Tensor) -> Tensor:
    h, w = u.shape[-2:]
    (ch, sh), (cw, sw) = _fourier_matrix(h), _fourier_matrix(w)
    half = w // 2 + 1
    real, imag = u @ cw[:, :half], u @ sw[:, :half]
    return torch.stack([ch @ real - sh @ imag, ch @ imag + sh @ real], dim=-1)


def _irfft2_by_matrices(spectrum: Tensor, width: int) -> Tensor:
    real, imag = spectrum.unbind(-1)
    (ch, sh), (cw, sw) = _fourier_matrix(real.shape[-2]), _fourier_matrix(width)
    half, counts = width // 2 + 1, _column_counts(width)
    # Along h the conjugate of the forward matrix; along the width the real part of it, each pair of columns at once.
    rows_real, rows_imag = ch @ real + sh @ imag, ch @ imag - sh @ real
    return (rows_real * counts) @ cw[:half] + (rows_imag * counts) @ sw[:half]
