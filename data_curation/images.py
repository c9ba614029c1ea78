"""The images that a features folder names, found and read again."""

from functools import lru_cache
from hashlib import sha1
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from image_data.sources import IN_SHARD, DataError, ImageFile, index_shard
from models.team08_HATFreq.image_io import read_rgb


def find_image(name: str) -> ImageFile:
    """The image of a name that a features folder holds.

    Raises:
        DataError: its shard has no such member, or cannot be read.
    """
    path, separator, member = name.partition(IN_SHARD)
    if not separator:
        return ImageFile(Path(name))
    result = _members(Path(path)).get(member)
    if result is None:
        raise DataError(f"{path} no longer holds {member}: embed the pool again")
    return result


def read_checked(name: str, digest: str) -> NDArray[np.uint8]:
    """An image that has not changed since it was embedded, uint8 `h w 3`.

    Raises:
        DataError, ImageError: it cannot be found or read, or its bytes are others.
    """
    content = find_image(name).content()
    if sha1(content).hexdigest() != digest:
        raise DataError(f"{name} has changed since it was embedded: run data_curation.embed on a new folder")
    return read_rgb(name, content)


@lru_cache(maxsize=8)
def _members(shard: Path) -> dict[str, ImageFile]:
    return index_shard(shard)
