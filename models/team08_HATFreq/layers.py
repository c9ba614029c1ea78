"""Linear layers, the MLP, and the switches of how the network is computed.

Two things cost a network of this kind more time on the CPU than its arithmetic (docs/performance.md):

* `F.linear` in fp32 goes to MKL, whose kernels stop at AVX2 on processors of other makers than Intel, while
  convolutions go to oneDNN, which uses AVX-512 wherever it finds it. A linear layer is a 1x1 convolution of
  channels-last pixels, so where there is AVX-512 it is given to oneDNN as one, forward and backward.
* Intermediate tensors of the whole image are too large for the allocator to keep, so the system clears fresh pages
  for each of them. Without gradients, what needs no neighbours is computed a piece at a time.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIECE = 1024  # tokens a thread
AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
IMAGES = 64  # oneDNN takes a 1x1 convolution of 16 images or more, on one thread too


@dataclass
class _Switches:
    fused_attention: bool = True
    exportable: bool = False


SWITCHES = _Switches()


@contextmanager
def set_fused_attention(enabled: bool) -> Iterator[None]:
    """Use PyTorch's fused attention kernels (the default) or the plain steps. The results agree to rounding."""
    with _switched("fused_attention", enabled):
        yield


@contextmanager
def set_exportable(enabled: bool = True) -> Iterator[None]:
    """Compute by steps that an exporter can trace for images of any size: no complex numbers, no strides, no pieces."""
    with _switched("exportable", enabled):
        yield


@contextmanager
def _switched(name: str, value: bool) -> Iterator[None]:
    before = getattr(SWITCHES, name)
    setattr(SWITCHES, name, value)
    try:
        yield
    finally:
        setattr(SWITCHES, name, before)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: `... c` -> `... k` by the weight `k c` and the bias `k`; equal to rounding on every device."""
    if not AVX512 or SWITCHES.exportable or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)  # compiled: the reshape would depend on the image's size, and break the graph
    tokens = x.shape[:-1].numel()
    if not tokens:
        return F.linear(x, weight, bias)
    images = math.gcd(tokens, IMAGES)
    pixels = x.reshape(images, tokens // images, 1, x.shape[-1]).permute(0, 3, 1, 2)
    y = F.conv2d(pixels, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def in_pieces(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """function(x) for a function that treats every `n c` of `items n c` alone.

    On the CPU and without gradients a piece at a time, else all at once.
    """
    if SWITCHES.exportable or x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(x)
    items = max(1, PIECE * torch.get_num_threads() // x.shape[1])
    return torch.cat([function(piece) for piece in x.split(items)])


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them: `b h w c` -> `b h w c`."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return in_pieces(lambda rows: self.fc2(F.gelu(self.fc1(rows))), x.flatten(0, 1)).view(x.shape)
