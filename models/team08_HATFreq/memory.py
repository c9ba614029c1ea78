"""How much memory a forward pass takes, how much there is, and the largest tile that fits."""

import math
import os
import sys

import torch

from .network import HATConfig

# Bytes of a forward pass for each LR pixel and channel: as much as the most that benchmarks/forward_memory.py has
# measured on a CPU in fp32, from 96x96 to 768x768 (69 to 120 for `light`, 103 to 144 for `base`); bf16: 0.65 to 0.67.
BYTES_PER_CHANNEL = 144
BF16_SHARE = 0.7
USABLE = 0.6  # of what is free: the rest is for the images themselves and for fragmentation
MULTIPLE = 16
SMALLEST = 64
UNKNOWN = 2 * 2**30  # bytes taken for free where the system does not tell


def choose_tile(config: HATConfig, height: int, width: int, device: torch.device, precision: str) -> int:
    """The largest tile that should fit into free memory, in LR pixels; 0 for the whole image.

    Args:
        config: shape of the network.
        height, width: of the LR image.
        device: where the network runs.
        precision: `fp32` or `bf16`.
    """
    share = BF16_SHARE if precision == "bf16" else 1.0
    pixels = USABLE * available_memory(device) / (BYTES_PER_CHANNEL * config.embed_dim * share)
    if height * width <= pixels:
        return 0
    side = int(math.sqrt(pixels))
    return max(SMALLEST, side - side % MULTIPLE)


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken: free on the GPU and in PyTorch's cache, or available to the process on the CPU."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _free_pages()


def _free_pages() -> int:
    """Free memory where there is no /proc (macOS has no such figure and takes a quarter of the whole)."""
    try:
        size = os.sysconf("SC_PAGE_SIZE")
        return size * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, ValueError, OSError):
        return UNKNOWN


def peak_memory(device: torch.device | None) -> tuple[int | None, str]:
    """Bytes (None where the system has no figure), and of what: GPU memory allocated, or resident memory."""
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "GPU memory"
    try:
        import resource
    except ImportError:  # Windows
        return None, "memory"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (peak if sys.platform == "darwin" else peak * 1024), "memory"
