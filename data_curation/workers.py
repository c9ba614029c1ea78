"""What every worker process of curation and of the benchmarks does first."""

import os
import signal
import threading
from multiprocessing import parent_process
from multiprocessing.connection import wait

import cv2

CONTEXT = "forkserver"  # fork alone would copy the locks of this process's threads


def start_worker() -> None:
    """The initialiser: one thread of OpenCV, no Ctrl-C, and no life without the process that started it.

    Workers wait on pipes whose other ends their siblings hold too, so that a killed parent would leave them waiting.
    """
    cv2.setNumThreads(1)  # the workers share the cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    parent = parent_process()
    if parent:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)
