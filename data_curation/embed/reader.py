"""Images decoded by worker processes, in order, with a time limit for each.

A worker that exceeds the limit is killed, one that dies is replaced, and its image is reported as unreadable: neither
stops the run.
"""

import signal
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import TimeoutError as FutureTimeoutError
from itertools import islice
from multiprocessing import get_context

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from data_curation.embed.decode import Decoded, decode, reason_of
from data_curation.embed.preprocess import Preprocess
from image_data.sources import ImageFile
from image_data.workers import CONTEXT, start_worker

Outcome = Decoded | str  # or why there is none


def read(
    images: Iterable[ImageFile], preprocess: Preprocess, downscale: int, workers: int, seconds: float, ahead: int
) -> Generator[Outcome, None, None]:
    """The outcome of every image, in order; closing the iterator ends the workers.

    Args:
        preprocess, downscale: see `decode`.
        workers: processes, at least 1.
        seconds: time limit for one image.
        ahead: images decoded before they are asked for, at most.
    """
    images = iter(images)
    context = get_context(CONTEXT)
    context.set_forkserver_preload(["data_curation.embed.reader"])  # a new worker starts at once
    with ProcessPool(workers, initializer=start_worker, context=context) as pool:
        waiting: deque[tuple[ImageFile, ProcessFuture[Outcome]]] = deque()
        try:
            while True:
                for image in islice(images, ahead - len(waiting)):
                    waiting.append((image, pool.schedule(_decode, (image, preprocess, downscale), timeout=seconds)))
                if not waiting:
                    return
                yield _outcome(*waiting.popleft(), seconds)
        finally:
            pool.stop()  # a no-op for idle workers; the others would finish what nobody waits for


def _decode(image: ImageFile, preprocess: Preprocess, downscale: int) -> Outcome:
    try:
        return decode(image, preprocess, downscale)
    except Exception as error:  # whatever a decoder raises, the next image is decoded
        return reason_of(image, error)


def _outcome(image: ImageFile, future: "ProcessFuture[Outcome]", seconds: float) -> Outcome:
    try:
        return future.result()
    except FutureTimeoutError:
        return f"took longer than {seconds:g} s to read and decode"
    except ProcessExpired as error:
        code = error.exitcode
        ending = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        return f"ended the decoder that read it ({ending})"
