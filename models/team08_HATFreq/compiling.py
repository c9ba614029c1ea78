"""torch.compile for the network, one kind of block at a time."""

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from .network import HATFreq, HybridAttentionBlock, OverlappingAttentionBlock


class CompilerError(RuntimeError):
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
    for module in model.modules():
        if isinstance(module, HybridAttentionBlock | OverlappingAttentionBlock):
            module.compile(backend=backend, dynamic=sizes_vary)


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
