"""Work shared out to processes, its results in order; a worker leaves when the process that started it is gone."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import TypeVar

import cv2

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4  # shares a worker that wait for their turn: a million items are not queued at once


class WorkerError(RuntimeError):
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
    context = get_context("forkserver")  # fork alone would copy locks that other threads of this process hold
    context.set_forkserver_preload([__name__, getattr(function, "func", function).__module__])
    with ProcessPoolExecutor(workers, context, _begin) as pool:
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


def _begin() -> None:
    """In a new worker: one thread for OpenCV, as there is a worker a core; and the watch over the parent."""
    cv2.setNumThreads(1)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A parent that is killed cannot end its workers, which would write on while the next start begins."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
