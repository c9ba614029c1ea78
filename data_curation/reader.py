"""Images decoded by worker processes, in order, with a time limit for each.

A worker that exceeds the limit is killed, one that dies is replaced, and its image is reported as unreadable: neither
stops the run. The workers are fed by a thread, so that they go on decoding while the encoder is busy.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import cv2

from data_curation.decode import Decoded, decode, reason_of
from data_curation.framing import Framing
from image_data.sources import ImageFile

Outcome = Decoded | str  # or why there is none
Task = tuple[int, ImageFile]  # and its number
IN_HAND = 2  # images a worker is given at once, so that it need not wait for the next
START_SECONDS = 120  # for a worker to import what it needs
_TICK = 0.05  # seconds between two looks at whether the reader was closed or the consumer made room


class Reader:
    """A pool of decoding processes; a context manager, which ends them."""

    def __init__(self, framing: Framing, downscale: int, workers: int, seconds: float, ahead: int) -> None:
        """Prepare the pool.

        Args:
            framing, downscale: see `decode`.
            workers: processes, at least 1.
            seconds: time limit for one image.
            ahead: images decoded before they are asked for, at most.
        """
        self._seconds, self._size = seconds, workers
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["data_curation.reader"])  # a new worker starts at once
        self._arguments = (framing, downscale)
        self._room = threading.Semaphore(ahead)
        self._closed = threading.Event()
        self._done: queue.Queue[tuple[int, Outcome] | Exception] = queue.Queue()
        self._workers: list[_Worker] = []
        self._again: deque[Task] = deque()  # handed to a worker that ended before it came to them
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed.set()
        if self._thread:
            self._thread.join()
        for worker in self._workers:
            worker.kill()

    def read(self, images: Iterable[ImageFile]) -> Iterator[Outcome]:
        """The outcome of every image, in order; once a reader.

        Raises:
            RuntimeError: the workers do not start.
        """
        self._workers = [self._start() for _ in range(self._size)]
        self._thread = threading.Thread(target=self._feed, args=(iter(enumerate(images)),), daemon=True)
        self._thread.start()
        early: dict[int, Outcome] = {}
        for number in count():
            while number not in early:
                found = self._done.get()
                if isinstance(found, Exception):
                    raise found
                if found[0] < 0:
                    return
                early[found[0]] = found[1]
            self._room.release()
            yield early.pop(number)

    def _feed(self, images: Iterator[Task]) -> None:
        """The thread: hand out images, gather outcomes, replace workers."""
        try:
            total = self._hand_out(images)
        except Exception as error:
            self._done.put(error)
            return
        if total is not None:
            self._done.put((-1, ""))

    def _hand_out(self, images: Iterator[Task]) -> int | None:
        """How many images there were; None if the reader was closed before the last."""
        handed, exhausted = 0, False
        while not self._closed.is_set():
            while worker := self._with_room():
                task = self._again.popleft() if self._again else None
                if not task and not exhausted and self._room.acquire(blocking=False):
                    task = next(images, None)
                    exhausted = task is None
                    handed += task is not None
                if not task:
                    break
                worker.send(task, self._seconds)
            busy = [worker for worker in self._workers if worker.tasks or not worker.ready]
            if exhausted and not any(worker.tasks for worker in busy):
                return handed
            self._gather(busy)
        return None

    def _with_room(self) -> "_Worker | None":
        """The ready worker with the fewest images, if it can take one more."""
        ready = [worker for worker in self._workers if worker.ready and len(worker.tasks) < IN_HAND]
        return min(ready, key=lambda worker: len(worker.tasks), default=None)

    def _gather(self, busy: list["_Worker"]) -> None:
        """Wait a little for outcomes, and end what is overdue."""
        if not busy:
            time.sleep(_TICK / 10)  # all decoded ahead: the consumer is the slower side
            return
        arrived = wait([worker.pipe for worker in busy], _TICK)
        for worker in busy:
            if worker.pipe in arrived:
                self._receive(worker)
            elif time.monotonic() > worker.deadline:
                self._replace(worker, f"took longer than {self._seconds:g} s to read and decode")

    def _receive(self, worker: "_Worker") -> None:
        try:
            outcome = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join(1)
            self._replace(worker, f"ended the decoder that read it ({_ending(worker.process.exitcode)})")
            return
        if worker.ready:
            self._done.put((worker.tasks.popleft()[0], outcome))
        worker.ready = True
        worker.deadline = time.monotonic() + self._seconds  # of the next, which it has begun

    def _replace(self, worker: "_Worker", reason: str) -> None:
        """End a worker for the image that it is at; the one that waits behind goes to another."""
        worker.kill()
        if not worker.tasks:
            raise RuntimeError("a decoding process ended before its first image: see its message above, or its memory")
        self._done.put((worker.tasks.popleft()[0], reason))
        self._again.extend(worker.tasks)
        self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> "_Worker":
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, *self._arguments), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours, time.monotonic() + START_SECONDS)


@dataclass
class _Worker:
    """A process, our end of its pipe, and the images it has in hand: the first is being decoded until `deadline`."""

    process: Any
    pipe: Connection
    deadline: float
    tasks: deque[Task] = field(default_factory=deque)
    ready: bool = False

    def send(self, task: Task, seconds: float) -> None:
        if not self.tasks:
            self.deadline = time.monotonic() + seconds
        self.tasks.append(task)
        try:
            self.pipe.send(task[1])
        except OSError:
            return  # it has died: reading from its pipe will tell

    def kill(self) -> None:
        self.process.kill()
        self.pipe.close()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit status {code}"


def _serve(pipe: Connection, framing: Framing, downscale: int) -> None:
    """A worker's life: decode what comes, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    cv2.setNumThreads(1)
    tasks: queue.Queue[ImageFile] = queue.Queue()
    threading.Thread(target=_listen, args=(pipe, tasks), daemon=True).start()
    pipe.send("ready")
    while True:
        image = tasks.get()
        outcome: Outcome
        try:
            outcome = decode(image, framing, downscale)
        except Exception as error:  # whatever a decoder raises, the next image is decoded
            outcome = reason_of(image, error)
        pipe.send(outcome)


def _listen(pipe: Connection, tasks: "queue.Queue[ImageFile]") -> None:
    """Also ends a worker that hangs in a file when its parent is killed."""
    while True:
        try:
            tasks.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(1)
