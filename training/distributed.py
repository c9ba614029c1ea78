"""One trainer in several processes, launched by torchrun: who is who, and what they tell each other.

One process, one machine and many machines take the same path. The global batch is the setting; each process's share and
the accumulation steps follow from the number of processes.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from models.team08_HATFreq.system import broadcast_from_main, choose_device, own_keys
from training.config import ConfigError
from training.lifetime import leave_with_others, leave_with_parent

TIMEOUT = timedelta(hours=12)  # the audit of a large training set, which the main process makes, may take hours
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    rank: int
    size: int
    device: torch.device
    cpu_group: Any = None  # gloo on every device: asking there makes no process wait for its GPU

    @property
    def is_main(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0

    def share(self, batch: int, micro_batch: int) -> tuple[int, int]:
        """Patches that this process takes at once, and accumulation steps, for a global batch.

        Raises:
            ConfigError: the batch cannot be shared out evenly.
        """
        if batch % self.size:
            below = batch - batch % self.size
            near = f"{below} or {below + self.size}" if below else str(self.size)
            raise ConfigError(
                f"{self.size} processes cannot share a global batch of {batch} evenly: set batch to {near}"
            )
        share = batch // self.size
        micro = micro_batch or share
        if share % micro:
            raise ConfigError(
                f"micro_batch {micro} does not divide the {share} patches of a process "
                f"(a global batch of {batch} over {self.size}): set it to a divisor of {share}"
            )
        return micro, share // micro

    def from_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process and give its result, or raise its error, in all of them."""
        return broadcast_from_main(function, self.is_main, self.size, self.cpu_group)

    def gather(self, item: T) -> list[T]:
        """Every process's item, in the order of their ranks."""
        items: list[Any] = [item] * self.size
        if self.size > 1:
            dist.all_gather_object(items, item, group=self.cpu_group)
        return items

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all_reduce_max(self, *numbers: int) -> list[int]:
        """The largest of all processes' numbers, each by itself."""
        asked = torch.tensor(numbers)
        if self.size > 1:
            dist.all_reduce(asked, dist.ReduceOp.MAX, group=self.cpu_group)
        return asked.tolist()


@contextmanager
def joined(device: str, timeout_minutes: float) -> Iterator[World]:
    """This process's place among those that torchrun has started, or alone.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        timeout_minutes: how long a process waits for the others in a step.

    Raises:
        ConfigError: the device cannot be used, or one process was started where several GPUs wait.
    """
    if "RANK" not in os.environ:
        if device == "auto" and torch.cuda.device_count() > 1:
            count = torch.cuda.device_count()
            raise ConfigError(
                f"{count} GPUs and one process: start with 'torchrun --standalone --nproc_per_node {count} train.py "
                "...', or name one GPU with --device cuda:0"
            )
        yield World(0, 1, _device(device))
        return
    leave_with_parent()
    if "LOCAL_RANK" not in os.environ:  # launchers other than torchrun
        local = int(os.environ.get("SLURM_LOCALID") or os.environ["RANK"]) % max(1, torch.cuda.device_count())
        os.environ["LOCAL_RANK"] = str(local)
    chosen = _device(device.partition(":")[0])  # each process has its own GPU
    store, rank, size = next(dist.rendezvous("env://"))
    backend, timeout = "nccl" if chosen.type == "cuda" else "gloo", timedelta(minutes=timeout_minutes)
    dist.init_process_group(backend, store=own_keys(store), rank=rank, world_size=size, timeout=timeout)
    world = World(rank, size, chosen, dist.new_group(backend="gloo", timeout=TIMEOUT))
    with leave_with_others(rank, size) if size > 1 else nullcontext():
        yield world
    # After an error, the others may wait for this process: leaving at once ends them.
    dist.destroy_process_group()


def _device(name: str) -> torch.device:
    """The device that `--device` names, made the current one, which pinned memory and the machine's record follow.

    Raises:
        ConfigError: not a device, or CUDA where there is none or too few.
    """
    try:
        device = choose_device(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
