"""Work shared out to processes, its results in order; a worker leaves when the process that started it is gone."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import TypeVar

import cv2

from utils.files import UserError

T = TypeVar("T")
R = TypeVar("R")
CONTEXT = "forkserver"  # fork alone would copy locks that other threads of this process hold
AHEAD = 4  # shares a worker that wait for their turn: a million items are not queued at once


class WorkerError(UserError):
    """A worker process ended by force."""


def in_order(function: Callable[[T], R], items: Sequence[T], share: int = 1) -> Iterator[R]:
    """`map(function, items)` by all the cores that this process may use.

    Args:
        function: picklable; what it raises is raised here.
        items: what it is called with.
        share: items that a worker takes at once; more than one where each takes less than some milliseconds.

    Raises:
        WorkerError: a worker was killed (by the system, mostly for memory).
    """
    workers = min(usable_cores(), -(-len(items) // share))
    if workers <= 1:
        yield from map(function, items)
        return
    shares = (items[start : start + share] for start in range(0, len(items), share))
    waiting: deque[Future[list[R]]] = deque()
    context = get_context(CONTEXT)
    context.set_forkserver_preload([__name__, getattr(function, "func", function).__module__])
    with ProcessPoolExecutor(workers, context, start_worker) as pool:
        try:
            waiting.extend(pool.submit(_each, function, some) for some in islice(shares, AHEAD * workers))
            while waiting:
                yield from waiting.popleft().result()
                waiting.extend(pool.submit(_each, function, some) for some in islice(shares, 1))
        except BrokenProcessPool as error:
            raise WorkerError("a worker process was killed, mostly for memory: the same command resumes") from error
        finally:
            pool.shutdown(cancel_futures=True)


def usable_cores() -> int:
    """Cores that this process may run on: of a cluster's machine, the job's share."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _each(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    return [function(item) for item in items]


def start_worker() -> None:
    """Initialiser of a worker process: one thread of OpenCV, no Ctrl-C, and an end with the process that started it.

    A killed parent cannot end its workers: they would write on while the next start begins, or wait on pipes whose
    other ends their siblings hold.
    """
    cv2.setNumThreads(1)  # the workers share the cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    if parent := parent_process():
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    # Not PR_SET_PDEATHSIG: the parent in the kernel's sense is the fork server, which outlives the parent.
    connection.wait([sentinel])
    os._exit(1)
