"""The training set is read before step 1: unreadable, too small, grey and evaluation images are named, not met later.

What is found is kept in a small database by file name, size and time, so that the next start reads changed files only.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale, fits
from image_data.mixture import NAMED, Source
from image_data.sources import DataError, ImageFile
from models.team08_HATFreq.image_io import ImageError, read_picture

Image = NDArray[np.uint8]
AT_ONCE = 2048  # images between two writes to the database
T = TypeVar("T")


@dataclass(frozen=True)
class Photograph:
    """A training image that passed the audit; its sides are cut to multiples of the scale.

    Attributes:
        image: the high-resolution file.
        height, width: in pixels, after the cut.
        digest: hash of its pixels, and of those of its low-resolution file.
        low: the official low-resolution file, or None when it is made on the fly.
        source: number of its source.
    """

    image: ImageFile
    height: int
    width: int
    digest: str
    low: ImageFile | None = None
    source: int = 0


@dataclass(frozen=True)
class Finding:
    """What one file holds: size as it is, digest of its cut pixels, whether it is grey; or why it cannot be read."""

    height: int = 0
    width: int = 0
    digest: str = ""
    grey: bool = False
    fault: str = ""
    lost: bool = False  # unreadable now, and readable at an earlier start: the other fields are of then


@dataclass(frozen=True)
class Audit:
    """The training set: what can be trained on, and the images left out with the reason for each."""

    photographs: list[Photograph]
    left_out: list[tuple[str, str]]

    def summary(self) -> str:
        """One line for the log."""
        pixels = sum(item.height * item.width for item in self.photographs) / 1e6
        kinds = Counter(reason.partition(":")[0] for _, reason in self.left_out)
        skipped = "".join(f", {count} left out ({kind})" for kind, count in sorted(kinds.items()))
        return f"{len(self.photographs)} training images, {pixels:.1f} megapixels{skipped}"


def audit(sources: list[Source], patch: int, excluded: dict[str, str], skip: bool, cache: Path | None) -> Audit:
    """Read every training image that is new or changed since an earlier start.

    Args:
        sources: the images.
        patch: side of a low-resolution patch; an image's sides must be at least `patch * SCALE`.
        excluded: digest -> name of the evaluation images.
        skip: leave unusable images out instead of refusing the set. Images that were readable at an earlier start keep
            their place in the order, so that a run in progress goes on with the same batches; they are passed over when
            they are drawn.
        cache: the database; None to read everything anew.

    Raises:
        DataError: images unreadable, too small, grey or of the evaluation set (the first ten are named); with `skip`,
            when none is left.
    """
    pairs = [
        (Photograph(image, 0, 0, "", low, number), low)
        for number, source in enumerate(sources)
        for image, low in zip(source.images, source.lows, strict=True)
    ]
    wanted = [file for item, low in pairs for file in (item.image, low) if file is not None]
    photographs: list[Photograph] = []
    left_out: list[tuple[str, str]] = []
    with closing(inspect(wanted, cache)) as findings:
        for item, low in pairs:
            high = next(findings)
            below = next(findings) if low else None
            if reason := _reason(high, below, item, patch, excluded, skip):
                left_out.append((item.image.name, reason))
                continue
            h, w = high.height - high.height % SCALE, high.width - high.width % SCALE
            digest = high.digest + (below.digest if below else "")
            photographs.append(replace(item, height=h, width=w, digest=digest))
    if left_out and (not skip or not photographs):
        raise DataError(_fault_message(left_out, len(pairs)))
    return Audit(photographs, left_out)


def inspect(files: list[ImageFile], cache: Path | None) -> Generator[Finding, None, None]:
    """What each file holds, in order, decoded by all cores where the database does not know it."""
    with closing(_open(cache)) as database, ThreadPoolExecutor() as pool:
        for some in _chunks(files, AT_ONCE):
            stamps = [_stamp(file) for file in some]
            known = [_recall(database, file, stamp) for file, stamp in zip(some, stamps, strict=True)]
            fresh = pool.map(_look, [file for file, (finding, _) in zip(some, known, strict=True) if finding is None])
            findings = [next(fresh) if finding is None else finding for finding, _ in known]
            for file, stamp, finding in zip(some, stamps, findings, strict=True):
                _remember(database, file, stamp, finding)
            database.commit()
            for finding, (_, earlier) in zip(findings, known, strict=True):
                yield replace(earlier, fault=finding.fault, lost=True) if finding.fault and earlier else finding


def fingerprint(photographs: list[Photograph]) -> str:
    """A hash of the training set, pixels and order: what (seed, step, index) draws from."""
    return blake2b("".join(photograph.digest for photograph in photographs).encode(), digest_size=16).hexdigest()


def digest(image: Image) -> str:
    """A hash of an image's size and pixels."""
    return blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16, person=b"%dx%d" % image.shape[:2]).hexdigest()


def default_cache() -> Path:
    """Where the findings of all runs of a person are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hatfreq" / "audit.sqlite"


def _look(file: ImageFile) -> Finding:
    try:
        picture = read_picture(file.name, file.content())
        if picture.alpha is not None:
            raise ImageError(f"{file.name} is partly transparent: flatten it onto a background first")
        rgb = picture.rgb if picture.rgb.dtype == np.uint8 else file.read_rgb()
    except ImageError as error:
        return Finding(fault=str(error))  # names the file
    return Finding(rgb.shape[0], rgb.shape[1], digest(cut_to_scale(rgb)), picture.grey)


def _reason(
    high: Finding, low: Finding | None, item: Photograph, patch: int, excluded: dict[str, str], skip: bool
) -> str:
    """Why an image cannot be trained on, `kind: what`; empty if it can."""
    for finding in (high, low):
        if finding and finding.fault and not (skip and finding.lost):
            return f"unreadable: {finding.fault}"
    h, w = high.height - high.height % SCALE, high.width - high.width % SCALE
    if min(h, w) < patch * SCALE:
        return f"too small: {w}x{h} pixels, a patch of {patch} needs {patch * SCALE}"
    if high.grey:
        return "grey: its samples are grey, which teaches nothing of colour"
    if high.digest in excluded:
        return f"evaluation image: equals {excluded[high.digest]}"
    if low and not fits(high.height, low.height, high.width, low.width):
        name = item.low.name if item.low else ""
        return f"wrong scale: {name} is {low.width}x{low.height}, it needs {w // SCALE}x{h // SCALE}"
    return ""


def _fault_message(faults: list[tuple[str, str]], total: int) -> str:
    listed = "\n".join(f"  {name}: {reason}" for name, reason in faults[:NAMED])
    more = f"\n  and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
    return (
        f"{len(faults)} of {total} training images cannot be used; remove or replace them, or leave them out with "
        f"--bad_images skip:\n{listed}{more}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# The database
# ---------------------------------------------------------------------------------------------------------------------


def _open(cache: Path | None) -> sqlite3.Connection:
    """The database with its table, or one in memory for this start only.

    Raises:
        DataError: the file cannot be opened or is no database.
    """
    try:
        if cache:
            cache.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(cache or ":memory:", timeout=60)
        database.execute(
            "create table if not exists findings (name text primary key, size integer, time integer, height integer, "
            "width integer, digest text, grey integer) without rowid"
        )
    except (OSError, sqlite3.Error) as error:
        raise DataError(
            f"{cache} cannot keep what the audit finds ({error}): delete it, name another --audit_cache, or none"
        ) from error
    return database


def _recall(
    database: sqlite3.Connection, file: ImageFile, stamp: tuple[int, int]
) -> tuple[Finding | None, Finding | None]:
    """What is known of a file as it is now, and as it was when it was last readable."""
    row = database.execute(
        "select size, time, height, width, digest, grey from findings where name = ?", (_key(file),)
    ).fetchone()
    if row is None:
        return None, None
    earlier = Finding(row[2], row[3], row[4], bool(row[5]))
    return (earlier if (row[0], row[1]) == stamp else None), earlier


def _remember(database: sqlite3.Connection, file: ImageFile, stamp: tuple[int, int], finding: Finding) -> None:
    """Keep what a readable file holds; an unreadable one is looked at anew at the next start."""
    if not finding.fault:
        row = (_key(file), *stamp, finding.height, finding.width, finding.digest, finding.grey)
        database.execute("insert or replace into findings values (?, ?, ?, ?, ?, ?, ?)", row)


def _key(file: ImageFile) -> str:
    return os.path.abspath(file.path) + (f"::{file.member}" if file.member else "")


def _stamp(file: ImageFile) -> tuple[int, int]:
    """Size and time of change in ns; zeros for a file that is not there."""
    try:
        status = file.path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some
