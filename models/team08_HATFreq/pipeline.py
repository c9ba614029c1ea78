"""Images restored one after the other, with the next one read and the last one written meanwhile."""

import hashlib
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from .image_io import ImageError, Picture, read_picture, size_of, write_png
from .record import Record, RestorationError


class Restorer(Protocol):
    """What a folder's restoration needs of a method."""

    scale: int
    settings: dict[str, Any]  # all that its results depend on, in JSON's types

    def __call__(self, rgb: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """uint8 or uint16 `h w 3` -> the restored `h*scale w*scale 3` of the same type, and what to record of it."""
        ...


@dataclass(frozen=True)
class Source:
    """An image file that was read, and the name of its result."""

    path: Path
    name: str
    sha256: str
    picture: Picture


@dataclass
class Outcome:
    """What became of a process's images."""

    restored: int = 0
    kept: int = 0  # finished before
    failures: dict[str, str] = field(default_factory=dict)  # by the input's name
    images: dict[str, Any] = field(default_factory=dict)  # the record's entries
    peak: int | None = None  # bytes


class Pipeline:
    """Restores images into a record's folder; at most two inputs and two results are in memory at one time.

    Args:
        restorer: the method.
        record: what is finished, and where to note what will be.
    """

    def __init__(self, restorer: Restorer, record: Record) -> None:
        self.restorer, self.record = restorer, record
        self.outcome = Outcome()
        self.writing: list[tuple[Path, Future[None]]] = []

    def run(self, names: dict[str, Path], pixels: dict[str, int], quiet: bool = False) -> Outcome:
        """Restore the images `names` (result -> input), with a bar of `pixels` unless `quiet` or not at a terminal."""
        total, hidden = sum(pixels[name] for name in names), quiet or not sys.stderr.isatty()
        with (
            tqdm(total=total, unit="px", unit_scale=True, dynamic_ncols=True, disable=hidden) as bar,
            ThreadPoolExecutor(1, "read") as reader,
            ThreadPoolExecutor(1, "write") as writer,
        ):
            for name, reading in self._read_ahead(reader, names):
                bar.set_description(names[name].name)
                with self._noting(names[name]):
                    self._restore(reading, writer)
                bar.update(pixels[name])
            self._await_written()
        self.outcome.images = self.record.content["images"]
        return self.outcome

    def _read_ahead(
        self, reader: ThreadPoolExecutor, names: dict[str, Path]
    ) -> Iterator[tuple[str, "Future[Source | None]"]]:
        """Each image when it has been read; only then does the reading of the next one begin."""
        items = list(names.items())
        following = [reader.submit(self._read, *item) for item in items[:1]]
        for number, (name, _) in enumerate(items):
            current = following.pop()
            wait([current])
            following += [reader.submit(self._read, *item) for item in items[number + 1 : number + 2]]
            yield name, current

    def _read(self, name: str, path: Path) -> Source | None:
        """Read one file; None if its result stands there already."""
        content = path.read_bytes() if path.is_file() else None
        digest = hashlib.sha256(content or b"").hexdigest()
        if self.record.finished(name, digest):
            return None
        return Source(path, name, digest, read_picture(path, content))

    def _restore(self, reading: "Future[Source | None]", writer: ThreadPoolExecutor) -> None:
        """Restore one image, and hand it to the writer when the one before has been written."""
        source = reading.result()
        if source is None:
            self.outcome.kept += 1
            return
        started = time.monotonic()
        rgb, noted = self.restorer(source.picture.rgb)
        noted = {"seconds": round(time.monotonic() - started, 3), **noted}
        self._await_written()
        self.writing.append((source.path, writer.submit(self._write, source, rgb, noted)))

    def _await_written(self) -> None:
        while self.writing:
            path, future = self.writing.pop()
            with self._noting(path):
                future.result()
                self.outcome.restored += 1

    def _write(self, source: Source, rgb: NDArray[Any], noted: dict[str, Any]) -> None:
        """Write one result and note it in the record."""
        picture = source.picture
        alpha = None if picture.alpha is None else enlarge_alpha(picture.alpha, rgb.shape[:2])
        write_png(self.record.path.with_name(source.name), Picture(rgb, alpha, picture.grey).samples)
        entry = {
            "source": source.path.name,
            "source_sha256": source.sha256,
            "input_size": list(picture.rgb.shape[1::-1]),
            "output_size": list(rgb.shape[1::-1]),
            "bits": rgb.dtype.itemsize * 8,
            **noted,
        }
        self.record.add(source.name, entry)

    @contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        """Note the errors that concern one image only, so that the others are restored."""
        try:
            yield
        except (ImageError, RestorationError, FloatingPointError, OSError) as error:
            self.outcome.failures[path.name] = str(error) if path.name in str(error) else f"{path}: {error}"


def enlarge_alpha(alpha: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Transparency is no photograph: it is enlarged bicubically, `h w` -> `H W` of the same type."""
    tensor = torch.from_numpy(alpha.astype(np.float32))[None, None]
    enlarged = torch.nn.functional.interpolate(tensor, size=tuple(shape), mode="bicubic", align_corners=False)
    return enlarged[0, 0].round().clamp(0, np.iinfo(alpha.dtype).max).numpy().astype(alpha.dtype)


def pixels_of(path: Path) -> int:
    """An image's weight in the progress bar and among processes; a bad file, named when its turn comes, has none."""
    try:
        height, width = size_of(path)
    except ImageError:
        return 0
    return height * width
