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

from models.team08_HATFreq.system import told_by_main as broadcast_from_main
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
        yield World(0, 1, _own(choose_device(device)))
        return
    leave_with_parent()
    # Launchers other than torchrun may set RANK alone.
    local_rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID")
    local = int(local_rank or int(os.environ["RANK"]) % max(1, torch.cuda.device_count()))
    chosen = _own(choose_device(device, local))
    store, rank, size = next(dist.rendezvous("env://"))
    # After a restart torchrun may offer the same store, in which the dead processes' addresses still stand (pytorch
    # issue 167288): every attempt gets keys of its own.
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend, timeout = "nccl" if chosen.type == "cuda" else "gloo", timedelta(minutes=timeout_minutes)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    world = World(rank, size, chosen, dist.new_group(backend="gloo", timeout=TIMEOUT))
    with leave_with_others(rank, size) if size > 1 else nullcontext():
        yield world
    # After an error, the others may wait for this process: leaving at once ends them.
    dist.destroy_process_group()


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device that `--device` names; under torchrun, the GPU of this process.

    Raises:
        ConfigError: not a device, or CUDA where there is none or too few.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not number.isdecimal()):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cpu":
        return device
    index = device.index if local_rank is None else local_rank
    count = torch.cuda.device_count()
    if (index or 0) >= count:
        raise ConfigError(
            f"device {name!r} with GPU {index or 0} asked for, and PyTorch finds {count}: use fewer processes, or cpu"
        )
    return device if index is None else torch.device("cuda", index)


def fast_bf16(device: torch.device) -> bool:
    """Whether a device computes bf16 faster than fp32; a CPU without AVX-512 or AMX takes several times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _own(device: torch.device) -> torch.device:
    """Make a GPU the current one, which pinned memory and the record of the machine follow."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
