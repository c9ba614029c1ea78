"""What a deduplication covers: the images of its pool and its evaluation images, so that no other pool is chosen from.

`coverage.npz` beside `removed.txt` holds a 64-bit hash of each image: of name and bytes for the pool, of the
bytes alone for evaluation images.
"""

import os
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from data_curation.features import Features
from data_curation.images import find_image
from image_data.sources import DataError
from utils.files import atomic_write, listed

COVERAGE, REMOVED = "coverage.npz", "removed.txt"
REMEDY = "run data_curation.dedup on this pool, with the queries among its --evaluation"


def check_unchanged(features: Features) -> None:
    """Refuse images whose size in bytes has changed since they were embedded, or that are gone.

    Raises:
        DataError: names the first ten.
    """
    changed = []
    for name, size in zip(features.column("name"), features.column("bytes"), strict=True):
        try:
            image = find_image(name)
            now = image.size if image.member else os.stat(image.path).st_size
        except (OSError, DataError):
            now = -1
        if now != size:
            changed.append(name)
    if changed:
        raise DataError(
            f"{len(changed)} images have changed or are gone since {features.folder} was embedded: {listed(changed)}; "
            "restore them, or embed again to a new folder"
        )


def forget(folder: Path) -> None:
    """Remove a former list and its coverage: a run that is stopped leaves none that could be taken for its own."""
    for name in (REMOVED, COVERAGE):
        (folder / name).unlink(missing_ok=True)


def write_coverage(folder: Path, pool: Features, evaluation: list[Features]) -> None:
    """Write what `check_coverage` reads."""
    with atomic_write(folder / COVERAGE) as file:
        np.savez(file, pool=_images(pool), evaluation=np.concatenate([_contents(images) for images in evaluation]))


def check_coverage(folder: Path, pool: Features, queries: Features) -> None:
    """Refuse a list of images to leave out that was not made of all of this pool and of these queries.

    Args:
        folder: of data_curation.dedup.

    Raises:
        DataError: it lacks its list, or does not cover an image (named).
    """
    path = folder / COVERAGE
    if not (folder / REMOVED).is_file():
        raise DataError(f"{folder} holds no finished {REMOVED}: {REMEDY}")
    try:
        with np.load(path) as held:
            known, guarded = held["pool"], held["evaluation"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is missing or damaged ({error}): {REMEDY}") from error
    for features, hashes, covered, kind in (
        (pool, _images(pool), known, "the pool"),
        (queries, _contents(queries), guarded, "the queries"),
    ):
        outside = np.flatnonzero(~np.isin(hashes, covered))
        if len(outside):
            name = features.column("name")[int(outside[0])]
            raise DataError(f"{folder} does not cover {len(outside)} images of {kind}, {name} first: {REMEDY}")


def _images(features: Features) -> NDArray[np.uint64]:
    return _hashes(map("\0".join, zip(features.column("name"), features.column("sha1"), strict=True)))


def _contents(features: Features) -> NDArray[np.uint64]:
    return _hashes(features.column("sha1"))


def _hashes(texts: Iterable[str]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts), np.uint64)
