"""A run's processes end together, whatever ends the first of them, and one run at a time owns a folder."""

import errno
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from models.team08_HATFreq.system import make_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"
GRACE = 2.0  # seconds that a process has to say why it ends, once another one is gone
REPEATED = 5.0  # seconds within which a second signal is the first one's echo: torchrun hands on what the group got too
FOR_EVER = timedelta(days=365)
GONE = "another process of this run is gone; see its message"


# ---------------------------------------------------------------------------------------------------------------------
# The end of a process
# ---------------------------------------------------------------------------------------------------------------------


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run a program and end this process with its status, at once.

    Python's own exit waits for child processes and threads. After an error any of them may wait for ever: for a peer
    that is gone, or in the middle of a read. A process that hangs there is alive to torchrun and to SLURM, which then
    neither restart nor requeue it.
    """
    try:
        status = main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:  # the second Ctrl-C
        status = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise for the workers killed here
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)


class PeerError(RuntimeError):
    """Another process of the run is gone: its own message says why."""


class StopSignals:
    """Remembers SIGTERM or SIGINT, so that the step in progress ends with a checkpoint; a second one, later, acts."""

    def __init__(self) -> None:
        self.received, self.time = 0, 0.0
        self.before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received and time.monotonic() - self.time > REPEATED:
            self.__exit__()
            os.kill(os.getpid(), number)
        if not self.received:
            self.received, self.time = number, time.monotonic()


# ---------------------------------------------------------------------------------------------------------------------
# The end of the others
# ---------------------------------------------------------------------------------------------------------------------


def leave_with_parent() -> None:
    """End this process soon after the one that started it (torchrun): an orphan would go on writing the run folder."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        print(f"train.py: process {parent}, which started this one, is gone", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def leave_with_others(rank: int, size: int) -> Iterator[None]:
    """End this process soon after any other one of the run, in the midst of whatever it waits for.

    A process that waits in a collective for one that is gone may never return to Python (NCCL), and torchrun kills it
    after 30 seconds only. So each process waits in a thread for a word of its neighbour, which comes at the end; a
    neighbour that dies closes the connection.

    Raises:
        PeerError: in place of the error of a collective whose other side is gone.
    """
    group = dist.new_group(backend="gloo", timeout=FOR_EVER)
    gone, ended = threading.Event(), threading.Event()

    def watch() -> None:
        try:
            dist.recv(torch.zeros(1), src=(rank - 1) % size, group=group)
            ended.set()
        except RuntimeError:
            gone.set()
            time.sleep(GRACE)  # the main thread may be about to say why
            print(f"train.py: {GONE}", file=sys.stderr, flush=True)
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if gone.wait(1):
            raise PeerError(GONE) from error
        raise
    # Not after an error: then this process leaves, and the others with it.
    dist.send(torch.zeros(1), dst=(rank + 1) % size, group=group)
    ended.wait()


# ---------------------------------------------------------------------------------------------------------------------
# The run folder
# ---------------------------------------------------------------------------------------------------------------------


class FolderError(ValueError):
    """A run folder that cannot be used; the message says why and what to do."""


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make a run folder and own it: no other start may write there meanwhile.

    The lock ends with this process, however it ends. It is a POSIX lock, which network file systems share between
    machines, and which forked workers do not inherit.

    Raises:
        FolderError: another process owns it (named), or nothing can be written there.
    """
    new = not folder.exists()
    try:
        make_folder(folder)
    except OSError as error:
        raise FolderError(f"--out: {error.strerror}") from error
    try:
        file = _locked(folder / LOCK)
    except OSError as error:
        raise FolderError(f"--out {folder} cannot be written ({error.strerror}): name another folder") from error
    with file:
        file.truncate(0)
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {started}")
        file.flush()
        try:
            yield
        finally:
            if new and os.listdir(folder) == [LOCK]:  # the run never began
                os.unlink(folder / LOCK)
                folder.rmdir()
            else:
                file.truncate(0)


def _locked(path: Path) -> Any:
    while True:
        file = path.open("a+")
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                owner = file.read() or "another process"
                file.close()
                raise FolderError(
                    f"{path.parent} is in use by {owner}: wait for its end or stop it, or choose another --out"
                ) from error
            print(
                f"warning: {path.parent} cannot be locked ({error.strerror}): start no second run on it",
                file=sys.stderr,
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # its owner removed it meanwhile
