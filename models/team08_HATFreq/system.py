"""Several processes on one folder, launched by torchrun: who restores what, and what they tell each other."""

import atexit
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

PATIENCE = timedelta(days=7)  # the first process to finish waits for the last
T = TypeVar("T")


def told_by_main(function: Callable[[], T], main: bool, size: int, group: Any = None) -> T:
    """Call a function in the main process and give its result, or raise its error, in all of a group's `size`."""
    if size == 1:
        return function()
    outcome: list[Any] = [None, None]
    if main:
        try:
            outcome[0] = function()
        except (ValueError, RuntimeError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0, group=group)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@dataclass(frozen=True)
class Crew:
    """This process among all that work on the folder; alone without torchrun."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    def from_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process and give its result, or raise its error, in all of them."""
        return told_by_main(function, self.main, self.size)

    def gather(self, item: T) -> list[T]:
        """Every process's item, in the order of their ranks; waits for the last."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items


@cache
def crew() -> Crew:
    """This process's place among those that torchrun has started, or alone; they meet at the first call."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if "RANK" not in os.environ or size == 1:
        return Crew()
    store, rank, size = next(dist.rendezvous("env://"))
    # A restart may be given the store of the attempt before, with the addresses of processes that are gone.
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    # gloo on every device: only names and records are exchanged.
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)
    return Crew(rank, size)


def own_device(device: torch.device) -> torch.device:
    """Under torchrun, `cuda` is the GPU of this process; a device with a number stays as it is."""
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def share_out(pixels: dict[str, int], processes: int) -> list[list[str]]:
    """Names for each process, so that all have about the same number of pixels to restore.

    The largest image goes first, each to the process with the fewest pixels so far; at most a third more than the best
    division lands on one process (R. L. Graham, "Bounds on Multiprocessing Timing Anomalies", 1969).

    Args:
        pixels: of each image by name.
        processes: how many there are.

    Returns:
        One list for each process, in the order of `pixels`.
    """
    load = [0] * processes
    owner = {}
    for name in sorted(pixels, key=lambda name: -pixels[name]):
        owner[name] = load.index(min(load))
        load[owner[name]] += max(1, pixels[name])  # a bad file, without pixels, takes a moment too
    return [[name for name in pixels if owner[name] == process] for process in range(processes)]
