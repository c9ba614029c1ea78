"""One trainer in several processes, launched by torchrun: who is who, and how the global batch is shared out.

One process, one machine and many machines take the same path. The global batch is the setting; each process's share and
the accumulation steps follow from the number of processes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from models.team08_HATFreq.system import World, choose_device, own_keys
from training.config import ConfigError
from utils.files import UserError

TIMEOUT = timedelta(hours=2)  # while the main process lists a large training set


class PeerError(UserError):
    """Another process of the run is gone, or does not answer."""


def share(batch: int, micro_batch: int, processes: int) -> tuple[int, int]:
    """Patches that a process takes at once, and accumulation steps, for a global batch.

    Raises:
        ConfigError: the batch cannot be shared out evenly.
    """
    if batch % processes:
        below = batch - batch % processes
        near = f"{below} or {below + processes}" if below else str(processes)
        raise ConfigError(f"{processes} processes cannot share a global batch of {batch} evenly: set batch to {near}")
    per_process = batch // processes
    micro = micro_batch or per_process
    if per_process % micro:
        raise ConfigError(
            f"micro_batch {micro} does not divide the {per_process} patches of a process "
            f"(a global batch of {batch} over {processes}): set it to a divisor of {per_process}"
        )
    return micro, per_process // micro


@contextmanager
def joined(device: str, timeout_minutes: float) -> Iterator[World]:
    """This process's place among those that torchrun has started, or alone.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        timeout_minutes: how long a process waits for the others in a step.

    Raises:
        ConfigError: one process was started where several GPUs wait.
        PeerError: in place of a collective's error, when another process is gone or does not answer.
    """
    if "RANK" not in os.environ:
        if device == "auto" and torch.cuda.device_count() > 1:
            count = torch.cuda.device_count()
            raise ConfigError(
                f"{count} GPUs and one process: start with 'torchrun --standalone --nproc_per_node {count} train.py "
                "...', or name one GPU with --device cuda:0"
            )
        yield World(0, 1, _current(device))
        return
    if "LOCAL_RANK" not in os.environ:  # launchers other than torchrun
        local = int(os.environ.get("SLURM_LOCALID") or os.environ["RANK"]) % max(1, torch.cuda.device_count())
        os.environ["LOCAL_RANK"] = str(local)
    chosen = _current(device.partition(":")[0])  # each process has its own GPU
    backend, timeout = "nccl" if chosen.type == "cuda" else "gloo", timedelta(minutes=timeout_minutes)
    try:
        store, rank, size = next(dist.rendezvous("env://"))
        dist.init_process_group(backend, store=own_keys(store), rank=rank, world_size=size, timeout=timeout)
        yield World(rank, size, chosen, dist.new_group(backend="gloo", timeout=TIMEOUT))
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and "gloo" not in text:
            raise
        if "imed out" in text or "imeout" in text:
            cause = f"did not answer within {timeout_minutes:g} minutes (--timeout_minutes): it hangs, or is far slower"
        else:
            cause = "is gone; see its message"
        raise PeerError(f"another process of this run {cause}. The last checkpoint is untouched.") from error
    # After an error, the others may wait for this process: leaving at once ends them.
    dist.destroy_process_group()


def _current(name: str) -> torch.device:
    """The device that `--device` names, made the current one, which pinned memory and the machine's record follow."""
    device = choose_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
