"""How much memory a forward pass takes, how much there is, and the largest tile that fits.

The first is a straight line in the number of pixels for each device, preset and precision. The lines stand in
memory_table.json, which `benchmarks/memory_table.py` measures and writes.
"""

import json
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .network import HATConfig
from .weights import preset_of

TABLE = Path(__file__).with_name("memory_table.json")
USABLE = 0.8  # of what is free: the rest is for fragmentation, other programs, and machines that need more
MULTIPLE = 16
SMALLEST = 64
# On the CPU a larger tile is no faster and changes the result little, and memory is shared with all other programs.
LARGEST = {"cpu": 512, "cuda": 2**16}
UNKNOWN = 2 * 2**30  # bytes taken for free where the system does not tell
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Work:
    """How tiles are restored, which decides what they take.

    Attributes:
        config: shape of the network.
        device: `cpu` or `cuda`.
        precision: `fp32` or `bf16`.
        ensemble: 8 for the self-ensemble, which holds two sums beside each pass.
    """

    config: HATConfig
    device: str = "cpu"
    precision: str = "fp32"
    ensemble: int = 1

    def bytes_for(self, height: int, width: int) -> int:
        """Bytes that restoring a tile of LR pixels adds, at most, to what the process or the GPU holds."""
        window, scale = self.config.window_size, self.config.scale
        pixels = _rounded_up(height, window) * _rounded_up(width, window)
        fixed, per_pixel = _line(self.config, self.device, self.precision)
        sums = 2 * 4 * 3 * scale**2 * pixels if self.ensemble == 8 else 0  # one of each orientation, float32
        return int(fixed + per_pixel * pixels + sums)


def choose_tile(work: Work, height: int, width: int, overlap: int, free: int) -> int:
    """The largest tile that fits into memory, evened out: as few tiles as possible, none larger than they need be.

    Args:
        work: how the tiles are restored.
        height, width: of the LR image.
        overlap: LR pixels that tiles share.
        free: bytes that may be taken.

    Returns:
        Side in LR pixels, a multiple of 16; 0 to leave the image whole.
    """
    most = LARGEST[work.device]

    def fits(h: int, w: int) -> bool:
        return h * w <= most**2 and work.bytes_for(h, w) <= USABLE * free

    if fits(height, width):
        return 0
    sides = range(SMALLEST, min(most, max(height, width)) + 1, MULTIPLE)
    largest = max((side for side in sides if fits(min(side, height), min(side, width))), default=SMALLEST)
    even = max(_even(length, largest, min(overlap, largest // 2)) for length in (height, width))
    return max(SMALLEST, min(largest, _rounded_up(even, MULTIPLE)))


@cache
def _line(config: HATConfig, device: str, precision: str) -> tuple[float, float]:
    """Fixed bytes and bytes a pixel; for a shape that is no preset, the most that any preset needs for its width."""
    presets = read_table()[device]
    name = preset_of(config).split(" ")[0]
    if name in presets:
        return presets[name][precision]["fixed"], presets[name][precision]["per_pixel"]
    entries = [preset[precision] for preset in presets.values()]
    per_channel = max(entry["per_pixel"] / entry["channels"] for entry in entries)
    return max(entry["fixed"] for entry in entries), per_channel * config.embed_dim


@cache
def read_table() -> dict[str, Any]:
    """device -> preset -> precision -> `fixed`, `per_pixel`, `channels` and where they come from."""
    return json.loads(TABLE.read_text())["lines"]


def _even(length: int, tile: int, overlap: int) -> int:
    """The smallest tile that covers an axis in as many tiles as `tile` does."""
    if length <= tile:
        return length
    count = -(-(length - overlap) // (tile - overlap))
    return -(-(length + (count - 1) * overlap) // count)


def _rounded_up(length: int, multiple: int) -> int:
    return length + -length % multiple


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken: free on the GPU and in PyTorch's cache, or available to the process on the CPU.

    On the CPU the processes that torchrun has started share them.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        free = _free_pages()
    left = _left_in_container()
    return (free if left is None else min(free, left)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _left_in_container() -> int | None:
    """What a container's limit leaves (Linux control groups, version 2); None where there is no limit."""
    try:
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat["inactive_file"]))  # files kept in memory give way
    except (OSError, KeyError, ValueError):  # "max" is no number: no limit
        return None


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
    if (peak := resident_memory("VmHWM")) is not None:
        return peak, "memory"
    try:
        import resource
    except ImportError:  # Windows
        return None, "memory"
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (found if sys.platform == "darwin" else found * 1024), "memory"


def resident_memory(field: str) -> int | None:
    """Bytes of this process that are in memory, now (`VmRSS`) or at its peak (`VmHWM`); None without Linux's /proc.

    Not getrusage's peak, which after a fork begins at the parent's.
    """
    try:
        with open("/proc/self/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines[field].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
