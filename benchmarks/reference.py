"""What the benchmarks measure against and by: spandrel's HAT, and a device's clock and memory."""

import torch
from torch import nn

from models.team08_HATFreq import HATConfig
from models.team08_HATFreq.system import resident_memory

SHAPE = ("embed_dim", "depths", "num_heads", "window_size", "compress_ratio", "squeeze_factor", "conv_scale")
SHAPE += ("overlap_ratio", "mlp_ratio", "drop_path_rate", "num_feat")


def reference_hat(config: HATConfig) -> nn.Module:
    """The reference HAT of a shape (`pip install spandrel`); it has HAT's upsampler and no frequency blocks."""
    from spandrel.architectures.HAT import HAT

    return HAT(upscale=config.scale, **{name: getattr(config, name) for name in SHAPE})


def held(device: torch.device, peak: bool = False) -> int:
    """Bytes in use now, or the most so far.

    Raises:
        RuntimeError: the system has no figure of it (memory is measured on Linux).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    found = resident_memory("VmHWM" if peak else "VmRSS")
    if found is None:
        raise RuntimeError("no /proc/self/status here: measure memory on Linux")
    return found


def synchronise(device: torch.device) -> None:
    """Wait for the GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
