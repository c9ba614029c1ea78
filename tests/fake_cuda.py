"""Fake CUDA tensors, which have a device, a type, a shape and strides but no values, and a spy on every operator."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda")
WAITS = ("_local_scalar_dense", "is_nonzero", "item", "nonzero", "masked_select", "unique", "_unique2", "equal")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm", "linear", "convolution", "_scaled_dot_product_efficient_attention")


class FaultError(AssertionError):
    """An operator that a GPU would refuse or wait for."""


class Spy(TorchDispatchMode):
    """Looks at the tensors of every operator: nothing may wait for the device, and types must fit.

    `inside` a forward pass, no tensor may lie on the CPU at all; outside of one, copies must not block.
    """

    def __init__(self, inside: bool = True) -> None:
        super().__init__()
        self.inside, self.seen = inside, Counter[str]()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, name = operator.name().split(".")[0].split("::")
        self.seen[name] += 1
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        dtypes = {one.dtype for one in given if one.is_floating_point() or one.is_complex()}
        if name in PRODUCTS and len(dtypes) > 1:
            raise FaultError(f"{name} of mixed types: {dtypes}")
        if ("fft" in name or "fourier" in space) and not dtypes <= {torch.float32, torch.complex64}:
            raise FaultError(f"{name} of {dtypes}")
        if name in WAITS and any(one.is_cuda for one in given):
            raise FaultError(f"{name} waits for the device")
        out = operator(*args, **(kwargs or {}))
        devices = {one.device.type for one in tree_leaves((given, out)) if isinstance(one, Tensor)}
        if self.inside and devices - {"cuda"}:
            raise FaultError(f"{name} has a tensor on {devices}")
        if len(devices) > 1 and not (kwargs or {}).get("non_blocking", name == "copy_" and args[2:] == (True,)):
            raise FaultError(f"{name} blocks until the device has copied")
        return out


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, scale: float | None = None, **__: Any
) -> Tensor:
    """`F.scaled_dot_product_attention` by the memory-efficient kernel, for which PyTorch looks for a real GPU.

    Its conditions are those of `use_mem_efficient_attention` (aten/native/transformers/cuda/sdp_utils.cpp) at the
    stricter widths of half types.
    """
    for one in (q, k, v):
        if one.ndim != 4 or one.shape[-1] % 8 or one.stride(-1) != 1 or not one.numel():
            raise FaultError(f"plain attention: heads of shape {tuple(one.shape)}, strides {one.stride()}")
    if attn_mask is not None:
        full = (*q.shape[:3], k.shape[2])
        if attn_mask.dtype != q.dtype or attn_mask.shape != full or attn_mask.stride(-1) != 1 or full[-1] % 8:
            raise FaultError(f"plain attention: a mask of {attn_mask.dtype} and strides {attn_mask.stride()}")
        if torch.is_grad_enabled() and attn_mask.stride(0) and full[0] > 1:
            raise FaultError(f"the backward pass would keep a bias of every window: {full}")
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention
    return efficient(q, k, v, attn_mask, torch.is_grad_enabled(), scale=scale)[0]


@contextmanager
def fake_tensors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors without values; what leaves the device as an array is zeros."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", fused_attention)
    monkeypatch.setattr(FakeTensor, "numpy", lambda t: np.zeros(t.shape, str(t.dtype).removeprefix("torch.")))
    monkeypatch.setattr(FakeTensor, "tolist", lambda t: np.zeros(t.shape).tolist())
    monkeypatch.setattr(Tensor, "pin_memory", lambda t: t)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


@contextmanager
def cuda_autocast(bf16: bool) -> Iterator[None]:
    """`torch.autocast("cuda")`, which switches itself off where there is no GPU."""
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", bf16)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        torch.clear_autocast_cache()


def on_cuda(model: nn.Module) -> Any:
    """The model with empty CUDA tensors for its parameters and buffers; what else it holds stays where it was."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty_like(weight, device=CUDA)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device=CUDA))
    return model
