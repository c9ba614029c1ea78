"""The memory of a training step: whether it fits before the first one, and what to set when it did not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from models.team08_HATFreq.system import available_memory
from training.config import ConfigError

GAPS = 1.2  # measured: what the allocator holds beside what is asked of it
REMEDY = "neither changes the result beyond rounding"


class OutOfMemoryError(RuntimeError):
    """There was not enough memory; the message says what to set."""


def check_step_fits(model: nn.Module, patch: int, micro: int, bf16: bool, device: torch.device) -> None:
    """Refuse a step that cannot fit into a CPU's memory, where the system would kill the process without a word.

    A rough estimate from below: what the forward pass of one patch keeps for the backward pass, times the patches that
    are taken at once, beside the gradients and Adam's two moments. A GPU raises an error, which `explained` explains.

    Raises:
        ConfigError: names what to set.
    """
    if device.type != "cpu":
        return
    kept = saved_bytes(model, patch, bf16)
    fixed = 3 * sum(weight.nbytes for weight in model.parameters())
    available = available_memory(device)

    def needed(patches: int) -> float:
        return GAPS * (fixed + patches * kept)

    if needed(micro) <= available:
        return
    fitting = [n for n in range(1, micro) if micro % n == 0 and needed(n) <= available]
    advice = f"--micro_batch {fitting[-1]}" if fitting else "--checkpointing and --micro_batch 1, or a smaller --patch"
    raise ConfigError(
        f"{micro} patches of {patch}x{patch} at once need about {needed(micro) / 1e9:.2g} GB of memory, "
        f"{available / 1e9:.2g} GB are available: set {advice}, or --checkpointing ({REMEDY})"
    )


def saved_bytes(model: nn.Module, patch: int, bf16: bool) -> int:
    """What the forward pass of one patch keeps for the backward pass, in bytes; weights aside."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            sr = model(torch.zeros(1, 3, patch, patch))  # alive: what it keeps is not given to another tensor
        del sr
    return sum(sizes.values())


@contextmanager
def explained(remedy: str) -> Iterator[None]:
    """Turn an error for lack of memory, on any device, into one that says what to set.

    Raises:
        OutOfMemoryError: with the remedy.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        words = str(error)
        lacking = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not lacking and "can't allocate memory" not in words and "ALLOC_FAILED" not in words:
            raise
        first = words.splitlines()[0] if words else "MemoryError"
        raise OutOfMemoryError(f"out of memory: set {remedy}. The last checkpoint is untouched. ({first})") from error
