"""Image files in, restored image files out: the next one is read and the last one written meanwhile.

The engine of a folder for any restorer: it keeps a record of what is finished, resumes, shares a folder out over the
processes of torchrun, and carries on after a bad file.
"""

import hashlib
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from .image_io import (
    IMAGE_SUFFIXES,
    ImageError,
    Picture,
    list_images,
    read_picture,
    size_of,
    write_picture,
)
from .system import HATFreqError, make_folder, peak_memory, world

RECORD = "record.jsonl"
Progress = Callable[[int, int], None]  # passes done, passes in all
Inputs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]  # a folder, a file or several files
WRITERS = 4  # results that are written at once, if they are small
SMALL = 2**23  # bytes of samples of a small result
MAX_LISTED = 10  # files that a message names
_REMEDY = "use --overwrite to replace them, or another folder"


class RestorationError(HATFreqError):
    """A run that could not begin, or in which some images could not be restored; the message names them."""


class FailedImagesError(RestorationError):
    """Some images could not be restored; all others were."""


class Restorer(Protocol):
    """What a folder's restoration needs of a method."""

    scale: int
    settings: dict[str, Any]  # all that its results depend on, in JSON's types
    progress: "Progress | None"  # to be called while an image is restored

    def __call__(self, rgb: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """uint8 or uint16 `h w 3` -> the restored `h*scale w*scale 3` of the same type, and what to record of it."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# The record: what a results folder holds and how it was made, one JSON object a line
# ---------------------------------------------------------------------------------------------------------------------


class Record:
    """The record of one process: it knows what all have finished and appends what it finishes to a file of its own.

    The first line of a file holds the settings; every further line an image, or the summary of a run.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], images: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.settings, self.images = folder, settings, images
        self.path = folder / (RECORD if rank == 0 else f"record.{rank}.jsonl")

    def finished(self, name: str, source_sha256: str) -> bool:
        """Whether the output stands there, whole, and was made from the very same input."""
        entry = self.images.get(name, {})
        try:
            size = (self.folder / name).stat().st_size
        except OSError:
            return False
        return entry.get("source_sha256") == source_sha256 and entry.get("bytes") == size

    def add(self, entry: dict[str, Any]) -> None:
        """Append a line: an image under its `name`, or the summary of a run."""
        if "name" in entry:
            self.images[entry["name"]] = entry
        self._append(entry)

    def _append(self, *entries: dict[str, Any]) -> None:
        fresh = not self.path.exists()
        lines = [{"settings": self.settings}, *entries] if fresh else entries
        size = 0 if fresh else self.path.stat().st_size
        try:
            with self.path.open("ab") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        except OSError as error:
            with suppress(OSError):  # a full disk has cut the line, and the next would be joined to it
                self.path.unlink() if fresh else os.truncate(self.path, size)
            remedy = "make room on the disk, or choose another folder"
            raise OSError(error.errno, f"cannot write {self.path} ({error.strerror}): {remedy}") from error

    def join(self) -> None:
        """Take over what the other processes noted, and remove their files."""
        others = sorted(self.folder.glob("record.*.jsonl"))
        for path in others:
            lines = read_lines(path)
            self.images |= {line["name"]: line for line in lines if "name" in line}
            self._append(*(line for line in lines if "name" in line))
        for path in others:
            path.unlink()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a record; a last one that a kill has cut is taken out of the file.

    Raises:
        RestorationError: not a record.
    """
    try:
        whole, _, cut = path.read_bytes().rpartition(b"\n")
        if cut:
            os.truncate(path, len(whole) + 1)  # so that the next line begins at its start
        lines = [json.loads(line) for line in whole.split(b"\n")]
        if all(isinstance(line, dict) for line in lines) and isinstance(lines[0]["settings"], dict):
            return lines
        raise ValueError("not objects with settings first")
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise RestorationError(f"{path} is not a record of restored images ({error}): {_REMEDY}") from error


def recorded_names(folder: Path) -> set[str]:
    """The results that the records of a folder name; those of a damaged record are not known."""
    names: set[str] = set()
    for path in folder.glob("record*.jsonl"):
        with suppress(RestorationError):
            names |= {str(line["name"]) for line in read_lines(path) if "name" in line}
    return {name for name in names if name == Path(name).name}  # in this folder


def open_record(folder: Path, settings: dict[str, Any], names: list[str], overwrite: bool) -> Record:
    """The record of a results folder, new or to be continued.

    Raises:
        RestorationError: results of other settings or of unknown origin would be mixed or overwritten.
    """
    path = folder / RECORD
    parts = [path, *sorted(folder.glob("record.*.jsonl"))]
    if overwrite:
        for part in parts:
            part.unlink(missing_ok=True)
    elif not any(part.exists() for part in parts) and (there := [name for name in names if (folder / name).exists()]):
        raise RestorationError(f"{folder} holds {there[0]} and no {RECORD} that tells how it was made: {_REMEDY}")
    images: dict[str, Any] = {}
    for part in (part for part in parts if part.exists()):
        first, *lines = read_lines(part)
        before = first["settings"]
        if changed := [key for key in {**before, **settings} if before.get(key) != settings.get(key)]:
            was = ", ".join(f"{key} was {before.get(key)!r} and is now {settings.get(key)!r}" for key in changed)
            raise RestorationError(f"{folder} holds results of other settings ({was}): {_REMEDY}")
        images |= {line["name"]: line for line in lines if "name" in line}
    record = Record(folder, settings, images)
    record.join()
    record._append()
    return record


# ---------------------------------------------------------------------------------------------------------------------
# Many images
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of a process's images."""

    restored: int = 0
    kept: int = 0  # finished before
    failures: dict[str, str] = field(default_factory=dict)  # by the input's name
    peak: int | None = None  # bytes


class _Pipeline:
    """Restores images while the next one is read and the last one written: two inputs and two results in memory.

    A GPU restores small images faster than one thread compresses them: of small results, several are written at once.
    """

    def __init__(self, restorer: Restorer, record: Record, quality: int) -> None:
        self.restorer, self.record, self.quality = restorer, record, quality
        self.outcome = Outcome()
        self.noting = Lock()

    def run(self, files: dict[str, Path], pixels: dict[str, int], quiet: bool) -> Outcome:
        """Restore `files` (result -> input), with a bar of `pixels` unless `quiet` or not at a terminal."""
        hidden = quiet or not sys.stderr.isatty()
        bar = tqdm(total=sum(pixels[name] for name in files), unit="px", unit_scale=True, disable=hidden)
        with bar, ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(WRITERS) as writer:
            names = list(files)
            following = reader.submit(self._read, names[0], files[names[0]]) if names else None
            writing: deque[Future[None]] = deque()
            for number, name in enumerate(names):
                bar.set_description(files[name].name)
                self.restorer.progress = _part_of(bar, base := bar.n, pixels[name])
                reading, following = following, None
                _wait(reading)
                if number + 1 < len(names):
                    following = reader.submit(self._read, names[number + 1], files[names[number + 1]])
                with self._noting(files[name]):
                    if (found := reading.result()) is None:  # type: ignore[union-attr]
                        self.outcome.kept += 1
                    else:
                        entry, picture = found
                        entry, result = self._restore(entry, picture)
                        while len(writing) >= (WRITERS if result.rgb.nbytes <= SMALL else 1):
                            _wait(writing.popleft())
                        writing.append(writer.submit(self._write, files[name], entry, result))
                bar.update(base + pixels[name] - bar.n)
            for future in writing:
                _wait(future)
        return self.outcome

    def _read(self, name: str, path: Path) -> tuple[dict[str, Any], Picture] | None:
        """Read one file; None if its result stands there already."""
        content = path.read_bytes() if path.is_file() else None
        digest = hashlib.sha256(content or b"").hexdigest()
        if self.record.finished(name, digest):
            return None
        picture = read_picture(path, content)
        return {"name": name, "source": path.name, "source_sha256": digest}, picture

    def _restore(self, entry: dict[str, Any], picture: Picture) -> tuple[dict[str, Any], Picture]:
        started = time.monotonic()
        result, noted = restore_picture(self.restorer, picture)
        entry |= {
            "input_size": list(picture.rgb.shape[1::-1]),
            "output_size": list(result.rgb.shape[1::-1]),
            "bits": result.rgb.dtype.itemsize * 8,
            "seconds": round(time.monotonic() - started, 3),
            **noted,
        }
        if picture.metadata.lost:
            entry["not_kept"] = list(picture.metadata.lost)
        return entry, result

    def _write(self, source: Path, entry: dict[str, Any], picture: Picture) -> None:
        """Write one result, then note it in the record."""
        with self._noting(source):
            path = self.record.folder / entry["name"]
            write_picture(path, picture, self.quality)
            with self.noting:
                self.record.add({**entry, "bytes": path.stat().st_size})
                self.outcome.restored += 1

    @contextmanager
    def _noting(self, path: Path) -> Iterator[None]:
        """Note the errors that concern one image only, so that the others are restored."""
        try:
            yield
        except (ImageError, RestorationError, FloatingPointError, ValueError, OSError, MemoryError) as error:
            text = str(error) or type(error).__name__
            if isinstance(error, MemoryError):
                text = f"out of memory while it was written or read ({text}): free memory and start again"
            self.outcome.failures[str(path)] = text if path.name in text else f"{path}: {text}"


def _part_of(bar: "tqdm[Any]", base: float, pixels: int) -> Progress:
    """Moves a bar through one image's share of it: passes done, passes in all."""
    return lambda done, total: bar.update(base + pixels * done / total - bar.n) and None


def _wait(future: "Future[Any] | None") -> None:
    """Wait for a future; its error is raised by whoever asks for its result."""
    if future is not None:
        future.exception()


def restore_files(
    restorer: Restorer,
    files: dict[str, Path],
    target: Path,
    overwrite: bool = False,
    device: torch.device | None = None,
    quality: int = 95,
) -> Record:
    """Restore image files into a folder, keeping what is finished and carrying on after a bad file.

    Under torchrun the processes share the images out by pixels, and the first of them speaks for all.

    Args:
        restorer: the method; its settings decide whether results that stand in `target` are of the same kind.
        files: name of each result (its suffix is its format) -> input.
        target: folder for the results and the record; made if missing.
        overwrite: begin anew: what the folder's record names is removed.
        device: where the restorer computes, for the record.
        quality: of JPEG and WebP results.

    Raises:
        RestorationError: at once, if nothing can begin.
        FailedImagesError: at the end, naming the images that failed; in the first process.
    """
    team, started = world(), time.monotonic()
    images = team.from_main(lambda: _begin(target, restorer.settings, files, overwrite).images)
    record = Record(target, restorer.settings, images, team.rank)
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    pixels = {name: pixels_of(path) for name, path in files.items()}
    mine = {name: files[name] for name in share_out(pixels, team.size)[team.rank]}
    outcome = _Pipeline(restorer, record, quality).run(mine, pixels, quiet=not team.is_main)
    outcome.peak = peak_memory(device)[0]
    outcomes = team.gather(outcome)
    if team.is_main:
        record.join()
        print(f"{_summary(record, device, outcomes, time.monotonic() - started)} -> {target}")
        _say_not_kept(record, files)
        _raise_failures(outcomes, files)
    return record


def restore_inputs(
    restorer: Restorer, inputs: Inputs, target: Path, overwrite: bool = False, device: torch.device | None = None
) -> Record:
    """`restore_files` of the images of a folder, of one file or of several, each to a PNG file of the same stem."""
    paths = [Path(one) for one in ([inputs] if isinstance(inputs, str | os.PathLike) else inputs)]
    if len(paths) == 1 and not paths[0].is_file():
        folder, paths = paths[0], list_images(paths[0])
        if not paths:
            raise RestorationError(f"{folder} holds no images (PNG, JPEG, BMP, TIFF or WebP)")
        if world().is_main and (others := passed_over(folder)):
            print(f"{folder}: skipped {others}")
    elif folders := [path for path in paths if path.is_dir()]:
        raise RestorationError(f"{folders[0]} is a folder, and not the only input: give one folder, or files")
    return restore_files(restorer, unique_names(paths, ".png"), target, overwrite, device)


def unique_names(paths: list[Path], suffix: str) -> dict[str, Path]:
    """Name of the result -> input file.

    Raises:
        RestorationError: some would get one name, or one is there twice.
    """
    counts = Counter(path.stem for path in paths)
    if doubled := [path.name for path in paths if counts[path.stem] > 1]:
        if len({os.path.abspath(path) for path in paths}) < len(paths):
            raise RestorationError(f"{doubled[0]} is named twice: name it once")
        more = f" and {len(doubled) - MAX_LISTED} more" if len(doubled) > MAX_LISTED else ""
        raise RestorationError(
            f"{', '.join(doubled[:MAX_LISTED])}{more} would share names of results: rename those of one stem"
        )
    return {f"{path.stem}{suffix}": path for path in paths}


def refuse_inputs(results: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Results never replace what they are made from.

    Raises:
        RestorationError: naming the input.
    """
    originals = {os.path.realpath(path) for path in inputs}
    for path in results:
        if os.path.realpath(path) in originals:
            raise RestorationError(
                f"{path} is an input, and a result would replace it: choose another folder for the results"
            )


def passed_over(folder: Path) -> str:
    """What else a folder holds, in words; empty if nothing."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    others = sorted(e.name for e in entries if not e.is_dir() and e.suffix.lower() not in IMAGE_SUFFIXES)
    parts = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (("folder(s)", folders), ("file(s) of other formats", others))
        if names
    ]
    return ", ".join(parts)


def _begin(target: Path, settings: dict[str, Any], files: dict[str, Path], overwrite: bool) -> Record:
    """Make the folder ready; the record says what stands there."""
    results = [target / name for name in {*files, *(recorded_names(target) if overwrite else ())}]
    refuse_inputs(results, files.values())
    make_folder(target)
    if overwrite:  # what an earlier run left would stand among the new ones, should this one be stopped
        for path in results:
            if path.is_file():
                path.unlink()
    return open_record(target, settings, list(files), overwrite)


def pixels_of(path: Path) -> int:
    """An image's weight in the progress bar and among processes; a bad file, named when its turn comes, has none."""
    try:
        height, width = size_of(path)
    except ImageError:
        return 0
    return height * width


def share_out(pixels: dict[str, int], processes: int) -> list[list[str]]:
    """Names for each process, so that all have about the same number of pixels to restore.

    The largest image goes first, each to the process with the fewest pixels so far; at most a third more than the best
    division lands on one process (R. L. Graham, "Bounds on Multiprocessing Timing Anomalies", 1969).

    Args:
        pixels: of each image by name.
        processes: how many there are.

    Returns:
        One list for each process, in the order of `pixels`.
    """
    load = [0] * processes
    owner = {}
    for name in sorted(pixels, key=lambda name: -pixels[name]):
        owner[name] = load.index(min(load))
        load[owner[name]] += max(1, pixels[name])  # a bad file, without pixels, takes a moment too
    return [[name for name in pixels if owner[name] == process] for process in range(processes)]


def restore_picture(restorer: Restorer, picture: Picture) -> tuple[Picture, dict[str, Any]]:
    """The restored picture with its transparency and metadata, and what the restorer has noted."""
    rgb, noted = restorer(picture.rgb)
    alpha = None if picture.alpha is None else enlarge_alpha(picture.alpha, rgb.shape[:2])
    return replace(picture, rgb=rgb, alpha=alpha), noted


def enlarge_alpha(alpha: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Transparency is enlarged bicubically, not by the network: `h w` -> `H W` of the same type."""
    tensor = torch.from_numpy(alpha.astype(np.float32))[None, None]
    enlarged = torch.nn.functional.interpolate(tensor, size=tuple(shape), mode="bicubic", align_corners=False)
    return enlarged[0, 0].round().clamp(0, np.iinfo(alpha.dtype).max).numpy().astype(alpha.dtype)


def _summary(record: Record, device: torch.device | None, outcomes: list[Outcome], seconds: float) -> str:
    """Append the run's summary to the record; returns its line for the screen."""
    restored, kept = (sum(getattr(one, key) for one in outcomes) for key in ("restored", "kept"))
    peaks = [one.peak for one in outcomes if one.peak is not None]
    peak, kind = max(peaks, default=None), peak_memory(device)[1]
    run = {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "restored": restored,
        "kept": kept,
        "seconds": round(seconds, 3),
        "processes": len(outcomes),
        "peak_memory_bytes": peak,
        "peak_memory_kind": kind,
        "device": torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else "cpu",
        "torch": torch.__version__,
    }
    record.add({"run": run})
    rate = f", {seconds / restored:.2f} s an image" if restored else ""
    old = f", {kept} finished before" if kept else ""
    size = "not available" if peak is None else f"{peak / 2**30:.2f} GiB"
    return f"{restored} {'image' if restored == 1 else 'images'} restored{rate}{old}, peak {kind} {size}"


def _say_not_kept(record: Record, files: dict[str, Path]) -> None:
    """Say which images held something that their results do not."""
    entries = (record.images.get(name, {}) for name in files)
    not_kept = [f"{entry['source']}: {', '.join(entry['not_kept'])}" for entry in entries if entry.get("not_kept")]
    if not_kept:
        more = f" and {len(not_kept) - MAX_LISTED} more" if len(not_kept) > MAX_LISTED else ""
        print(f"not kept in the results: {'; '.join(not_kept[:MAX_LISTED])}{more}")


def _raise_failures(outcomes: list[Outcome], files: dict[str, Path]) -> None:
    """Name the images that failed, in the order of the folder."""
    failures = {name: text for outcome in outcomes for name, text in outcome.failures.items()}
    if failures:
        listed = "\n".join(f"  {failures[str(path)]}" for path in files.values() if str(path) in failures)
        raise FailedImagesError(f"{len(failures)} of {len(files)} images could not be restored:\n{listed}")
