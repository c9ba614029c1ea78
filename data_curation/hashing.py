"""The local hashes of a features folder's images, computed by worker processes, kept in blocks that a restart finds."""

import io
from collections.abc import Iterator
from concurrent.futures import Executor
from functools import lru_cache
from hashlib import sha1
from itertools import repeat
from pathlib import Path
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from data_curation.features import Features
from data_curation.localhash import THUMBNAIL, WORDS, LocalHashes, local_hashes
from image_data.sources import IN_SHARD, DataError, ImageFile, index_shard
from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.system import write_bytes

BLOCK = 1000  # images a file of hashes
_FORM = 1  # of the hashes; a change makes old files void


def find_image(name: str) -> ImageFile:
    """The image of a name that a features folder holds.

    Raises:
        DataError: its shard has no such member, or is no tar file.
    """
    path, separator, member = name.partition(IN_SHARD)
    if not separator:
        return ImageFile(Path(name))
    found = _members(Path(path)).get(member)
    if found is None:
        raise DataError(f"{path} holds no {member} any more: embed the pool again")
    return found


def read_checked(name: str, digest: str) -> NDArray[np.uint8]:
    """An image that has not changed since it was embedded, uint8 `h w 3`.

    Raises:
        DataError, ImageError: it cannot be found or read, or its bytes are others.
    """
    content = find_image(name).content()
    if sha1(content).hexdigest() != digest:
        raise DataError(f"{name} has changed since it was embedded: run data_curation.embed on a new folder")
    return read_rgb(name, content)


def hash_images(features: Features, folder: Path, kind: str, pool: Executor) -> Iterator[tuple[int, list[LocalHashes]]]:
    """The local hashes of all images, shrunk as they were embedded, in blocks; those a former run wrote are read.

    Args:
        folder: for the blocks, `local_<kind>_00000.npz`.
        pool: worker processes.

    Yields:
        Images so far, and the hashes of the block.
    """
    table = features.columns("name", "sha1")
    shrink = features.settings.downscale
    names, digests = table["name"].to_pylist(), table["sha1"].to_pylist()
    for number, start in enumerate(range(0, len(names), BLOCK)):
        part = slice(start, start + BLOCK)
        path = folder / f"local_{kind}_{number:05}.npz"
        mark = _mark(names[part], digests[part], shrink)
        block = _load(path, mark)
        if block is None:
            block = list(pool.map(_hash_one, names[part], digests[part], repeat(shrink), chunksize=8))
            _save(path, mark, block)
        yield min(start + BLOCK, len(names)), block


def quiet() -> None:
    """A worker's first act: one thread of OpenCV, for the workers share the cores already."""
    cv2.setNumThreads(1)


def _hash_one(name: str, digest: str, shrink: int) -> LocalHashes:
    return local_hashes(read_checked(name, digest), shrink)


@lru_cache(maxsize=8)
def _members(shard: Path) -> dict[str, ImageFile]:
    return index_shard(shard)


def _mark(names: list[str], digests: list[str], shrink: int) -> str:
    return sha1("\n".join([f"{_FORM} {shrink}", *names, *digests]).encode()).hexdigest()


def _save(path: Path, mark: str, block: list[LocalHashes]) -> None:
    content = io.BytesIO()
    np.savez(
        content,
        mark=np.array(mark),
        counts=np.array([len(one.codes) for one in block], np.int64),
        codes=np.concatenate([one.codes for one in block]).reshape(-1, WORDS),
        places=np.concatenate([one.places for one in block]).reshape(-1, 4),
        thumbnails=np.stack([one.thumbnail for one in block]).reshape(-1, THUMBNAIL, THUMBNAIL, 3),
    )
    write_bytes(path, content.getvalue())


def _load(path: Path, mark: str) -> list[LocalHashes] | None:
    """A block, or None if there is no sound one of these very images."""
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            if str(file["mark"]) != mark:
                return None
            cuts = np.cumsum(file["counts"])[:-1]
            parts = np.split(file["codes"], cuts), np.split(file["places"], cuts), file["thumbnails"]
    except (ValueError, KeyError, EOFError, BadZipFile):
        return None
    return [LocalHashes(*one) for one in zip(*parts, strict=True)]
