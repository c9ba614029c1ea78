"""The life of a run's processes: they leave with their parent and on signals, and one start owns a run folder.

PyTorch is not imported here: a process that is to leave with torchrun says so before its first slow import.
"""

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

from utils.files import UserError, make_folder

T = TypeVar("T")
LOCK = "lock"
PR_SET_PDEATHSIG = 1
REPEATED = 5.0  # seconds within which a second signal is the first one's echo: torchrun hands on what the group got too
GRACE = 25  # seconds that a rank has for its checkpoint after a signal; torchrun kills after 30, without a word


class FolderError(UserError):
    """A run folder that cannot be used; the message says why and what to do."""


class Stopped(Exception):  # noqa: N818 - not an error
    """A signal came while the run waited for its data."""


def leave_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, however it ends (Linux)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # Too late if torchrun was killed before this line; in a container it may be process 1 itself.
    if (
        os.getppid() == 1
        and "TORCHELASTIC_RUN_ID" in os.environ
        and b"torch" not in Path("/proc/1/cmdline").read_bytes()
    ):
        sys.exit("train.py: torchrun, which started this process, is gone")


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
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler would raise for the workers killed here
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(status)


class StopSignals:
    """Remembers SIGTERM or SIGINT, so that the step in progress ends with a checkpoint; a second one, later, acts."""

    def __init__(self) -> None:
        self.received, self.time, self.waiting = 0, 0.0, False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self.relax()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received:
            if time.monotonic() - self.time > REPEATED:
                self.__exit__()
                os.kill(os.getpid(), number)
            return
        self.received, self.time = number, time.monotonic()
        if (
            "RANK" in os.environ
        ):  # it may wait for a rank that is gone, outside Python: then this says where, and leaves
            faulthandler.dump_traceback_later(GRACE, exit=True)
        if self.waiting:
            raise Stopped

    def relax(self) -> None:
        """Let what is left to do take its time."""
        faulthandler.cancel_dump_traceback_later()

    def next(self, items: Iterator[T]) -> T | None:
        """The next item; None if a signal has come, or comes while it is waited for."""
        item = None
        try:
            try:
                self.waiting = True
                if not self.received:
                    item = next(items)
            finally:
                self.waiting = False
        except Stopped:
            return None
        return item


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Make a run folder and own it: no other start may write there meanwhile. The lock ends with this process.

    Raises:
        FolderError: another start owns it, or nothing can be written there.
    """
    from filelock import FileLock, Timeout

    new = not folder.exists()
    make_folder(folder)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=1)  # the workers of a start that was killed a moment ago may still hold it
    except Timeout as error:
        raise FolderError(
            f"{folder} is in use by another start: wait for its end, stop it or name another --out"
        ) from error
    except NotImplementedError:
        print(f"warning: {folder} lies where files cannot be locked: start no second run on it", file=sys.stderr)
    except OSError as error:
        raise FolderError(f"--out {folder} cannot be written ({error.strerror}): name another folder") from error
    try:
        yield
    finally:
        lock.release()
        if new and set(os.listdir(folder)) <= {LOCK}:  # the run never began
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
