"""The machine: devices, the processes of torchrun, memory, and files written whole or not at all."""

import atexit
import errno
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
import torch.distributed as dist

TEMPORARY = ".partial-"  # prefix of files that are being written
TIMEOUT = timedelta(days=7)  # the first process to finish waits for the last
HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
CPU = torch.device("cpu")
T = TypeVar("T")


class HATFreqError(ValueError):
    """An error that the user can put right: its message names the file and the remedy."""


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: Path, sync: bool = False) -> Iterator[BinaryIO]:
    """A file to write under a temporary name in its folder, renamed when all went well.

    A kill or an error leaves the old file or the new one.

    Args:
        path: the file's final name.
        sync: also survive a crash of the machine (fsync).

    Raises:
        OSError: naming the file and a remedy.
    """
    # A name of its own for every process of every machine, and short: the final one may be as long as is allowed.
    digest = hashlib.sha256(path.name.encode(errors="surrogateescape")).hexdigest()[:16]
    temporary = path.with_name(f"{TEMPORARY}{digest}-{HOST}-{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(
            error.errno, f"cannot write {path} ({error.strerror or error}): {_remedy(path, error)}"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remedy(path: Path, error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if path.is_dir():
        return "a folder has that name: move it away"
    return "make room on the disk, or choose a folder that can be written"


def make_folder(folder: Path) -> None:
    """Make a folder of results, and remove what killed processes of this machine were writing there.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = "a file has that name: choose another" if os.path.isfile(folder) else "choose another one"
        raise OSError(error.errno, f"cannot make the folder {folder} ({error.strerror}): {remedy}") from error
    for leftover in folder.glob(f"{TEMPORARY}*"):
        host, _, process = leftover.name.partition(TEMPORARY)[2].partition("-")[2].partition("-")
        if host == HOST and Path("/proc/self").exists() and not Path("/proc", process).exists():
            leftover.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with atomic_write(path) as file:
        file.write(content)


# ---------------------------------------------------------------------------------------------------------------------
# Devices and processes
# ---------------------------------------------------------------------------------------------------------------------


def choose_device(name: str = "auto") -> torch.device:
    """The device that a name stands for; under torchrun, `auto` and `cuda` are the GPU of this process.

    Args:
        name: `auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`.

    Raises:
        HATFreqError: not a device, or CUDA where there is none, or fewer GPUs than processes.
    """
    kind, colon, number = name.partition(":")
    if name != "auto" and (kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal()))):
        raise HATFreqError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device, count = torch.device(name), torch.cuda.device_count()
    if device.type == "cpu":
        return device
    if device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if (device.index or 0) >= count:
        remedy = "use --device cpu" if not count else f"use one of the {count} GPUs, or start fewer processes"
        raise HATFreqError(f"device {device}: PyTorch finds {count} GPUs; {remedy}")
    return device


def slow_bf16(device: torch.device) -> bool:
    """Whether bf16 is slower than fp32: on processors without units for it (avx512_bf16, AMX), up to several times."""
    return device.type == "cpu" and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


@dataclass(frozen=True)
class World:
    """This process among those that torchrun started; alone without it."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    group: Any = None  # of gloo, also beside NCCL: Python objects and signals; None is the default group

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def from_main(self, function: Callable[[], T]) -> T:
        """Call a function in the main process and give its result, or raise its error, in all processes."""
        if self.size == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except Exception as error:  # whatever it is: the others must not wait for a result that never comes
                known = isinstance(error, ValueError | RuntimeError | OSError)
                outcome[1] = error if known else RuntimeError(repr(error))
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def gather(self, item: T) -> list[T]:
        """Every process's item, in the order of their ranks; waits for the last."""
        items: list[Any] = [item] * self.size
        if self.size > 1:
            dist.all_gather_object(items, item, group=self.group)
        return items

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def max(self, *numbers: int) -> list[int]:
        """The largest of all processes' numbers, each position by itself."""
        asked = torch.tensor(numbers)
        if self.size > 1:
            dist.all_reduce(asked, dist.ReduceOp.MAX, group=self.group)
        return asked.tolist()


@cache
def world() -> World:
    """This process's place among those that torchrun started; they meet at the first call."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if "RANK" not in os.environ or size == 1:
        return World()
    store, rank, size = next(dist.rendezvous("env://"))
    # gloo on every device: only names and records are exchanged.
    dist.init_process_group("gloo", store=own_keys(store), rank=rank, world_size=size, timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)
    return World(rank, size)


def own_keys(store: Any) -> Any:
    """The store of torchrun with keys of this attempt's own.

    A restart may be given the store of the attempt before, with the addresses of processes that are gone (pytorch
    issue 167288).
    """
    return dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


# ---------------------------------------------------------------------------------------------------------------------
# Memory
# ---------------------------------------------------------------------------------------------------------------------


def available_memory(device: torch.device) -> int:
    """Bytes that can still be taken: free on the GPU and in PyTorch's cache, or available to the process on the CPU.

    On the CPU the processes that torchrun started share them.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = [_proc_field("/proc/meminfo", "MemAvailable"), left_by_control_groups()]
    known = [value for value in free if value is not None]
    return (min(known) if known else 2 * 2**30) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def left_by_control_groups(
    groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """What the tightest limit of this process's control groups leaves, in bytes; None where there is no limit.

    Looked at are the group itself and all above it (a limit of SLURM or systemd-run stands on a nested one), of both
    versions of the kernel's interface. Memory that caches files gives way and does not count.
    """
    left = []
    for folder, limit, used, cached in _control_groups(groups, mount):
        try:
            most, now = int((folder / limit).read_text()), int((folder / used).read_text())
            stat = dict(line.split()[:2] for line in (folder / "memory.stat").read_text().splitlines())
            left.append(max(0, most - now + int(stat[cached])))
        except (OSError, KeyError, ValueError):  # "max" is not a number: no limit here
            continue
    return min(left, default=None)


def _control_groups(groups: Path, mount: Path) -> Iterator[tuple[Path, str, str, str]]:
    """Folders of this process's memory groups from the innermost out, with the names of their files."""
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return
    for number, controllers, path in lines:
        if number == "0":
            root, names = mount, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = mount / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's, which is not mounted: then the root is the container's own group.
        while folder != root and root in folder.parents:
            yield folder, *names
            folder = folder.parent
        yield root, *names


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
    result = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (result if sys.platform == "darwin" else result * 1024), "memory"


def resident_memory(field: str) -> int | None:
    """Bytes of this process in memory, now (`VmRSS`) or at its peak (`VmHWM`); None without Linux's /proc.

    Not getrusage's peak, which after a fork begins at the parent's.
    """
    return _proc_field("/proc/self/status", field)


def _proc_field(path: str, field: str) -> int | None:
    """A field in kB of a file under /proc, in bytes."""
    try:
        lines = dict(line.split(":", 1) for line in Path(path).read_text().splitlines())
        return int(lines[field].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
