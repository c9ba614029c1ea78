"""torch.compile for the network, one kind of block at a time."""

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from .network import HATFreq, HybridAttentionBlock, OverlappingAttentionBlock
from .system import HATFreqError

VECTOR_BITS = {"AVX512": 512, "AVX2": 256}  # of a processor's capability, as PyTorch names it


class CompilerError(HATFreqError):
    """The machine lacks what torch.compile needs; the message names it."""


def compile_blocks(
    model: HATFreq, device: torch.device, sizes_vary: bool, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile the attention blocks in place; the network's keys stay as they are, and copies of it are not compiled.

    Blocks of one kind share their code, so that a deep network takes no longer to compile than one block of each kind.
    What lies between them (convolutions, and the frequency blocks, whose transforms are operators of their own) stays
    as it is.

    Args:
        model: on the device.
        device: where it computes.
        sizes_vary: compile for any height and width, instead of again for each.
        backend: as of `torch.compile`.

    Raises:
        CompilerError: no compiler is found.
    """
    check_compiler(device)
    options = inductor_options(device) if backend == "inductor" else None
    for module in model.modules():
        if isinstance(module, HybridAttentionBlock | OverlappingAttentionBlock):
            module.compile(backend=backend, dynamic=sizes_vary, options=options)


def inductor_options(device: torch.device) -> dict[str, int] | None:
    """What torch.compile must be told: on a CPU the bits of a vector.

    PyTorch 2.11 keeps the code that it generates on disk under a key that does not tell the processor. Code for AVX-512
    would be taken up again where there is AVX2 alone, and crash. The bits are part of the key once they are set.
    """
    bits = VECTOR_BITS.get(torch.backends.cpu.get_cpu_capability())
    return {"cpp.simdlen": bits} if bits and device.type == "cpu" else None


def check_compiler(device: torch.device) -> None:
    """Raises CompilerError where torch.compile would fail at the first pass, after everything else was set up."""
    compiler = os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))
    if shutil.which(compiler) is None:
        raise CompilerError(
            f"--compile needs a C++ compiler and {compiler} is not found: install it, name another in CXX, or leave "
            "--compile out"
        )
    if device.type == "cuda" and find_spec("triton") is None:
        raise CompilerError("--compile needs Triton on a GPU: pip install triton, or leave --compile out")
