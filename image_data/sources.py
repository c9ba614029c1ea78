"""Where images come from: folders, trees, list files and tar shards, all as plain references that any process can read.

A tar shard (the layout of webdataset: one member a file) is indexed once by the offsets of its members, so that its
images are read in any order, as from a folder: a file system sees one file where there were thousands.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from models.team08_HATFreq.image_io import IMAGE_SUFFIXES, ImageError, list_images, read_rgb

IN_SHARD = "::"  # between a shard's path and a member's name
TREE = "**"  # last part of a folder that stands for its sub-folders too


class DataError(ValueError):
    """Images that cannot be trained or validated on; the message names them and the remedy."""


@dataclass(frozen=True, order=True)
class ImageFile:
    """An image file, or one inside a tar shard.

    Attributes:
        path: the file, or the shard.
        member: name inside the shard; empty for a file of its own.
        offset, size: where the member's bytes lie in the shard.
    """

    path: Path
    member: str = ""
    offset: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        """What lists hold and messages show: `photo.png`, or `shard.tar::photo.png`."""
        return f"{self.path}{IN_SHARD}{self.member}" if self.member else str(self.path)

    @property
    def stem(self) -> str:
        """The image's name without folder and suffix."""
        return PurePosixPath(self.member).stem if self.member else self.path.stem

    def content(self) -> bytes:
        """The encoded bytes.

        Raises:
            ImageError: they cannot be read; names the image.
        """
        try:
            if not self.member:
                return self.path.read_bytes()
            with self.path.open("rb") as shard:
                shard.seek(self.offset)
                found = shard.read(self.size)
        except OSError as error:
            raise ImageError(f"{self.name} cannot be read ({error.strerror}): restore it") from error
        if len(found) < self.size:
            raise ImageError(f"{self.name} is cut short: copy or download the shard again")
        return found

    def read_rgb(self) -> NDArray[np.uint8]:
        """uint8 `h w 3`, upright.

        Raises:
            ImageError: it cannot be read as an opaque image; names it.
        """
        return read_rgb(self.name, self.content())


def expand(word: str) -> list[ImageFile]:
    """The images that one word of a command line or a list stands for, in an order that does not change.

    Args:
        word: `folder`; `folder/**` for its sub-folders too (ImageNet's tree); `list.txt`, one image, folder or
            shard a line, relative to the list's folder or absolute, `#` starting a comment; `shard.tar`; an image; or
            `shard.tar::member`.

    Raises:
        DataError: nothing there, no image in it, or a list's line that leads nowhere; names the word and the remedy.
    """
    images = _expand(word, {})
    if not images:
        raise DataError(f"{word} holds no images: give a folder of PNG or JPEG files, a list of them or a tar shard")
    return images


def index_shard(path: Path) -> dict[str, ImageFile]:
    """The images of an uncompressed tar file by their member name, in the order of the file.

    Raises:
        DataError: not a tar file, compressed, or cut short.
    """
    try:
        with tarfile.open(path, "r:") as shard:
            members = [item for item in shard if item.isfile() and _is_image(PurePosixPath(item.name))]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{path} is no tar shard that can be read ({error}): copy it again; shards are plain, not compressed"
        ) from error
    return {item.name: ImageFile(path, item.name, item.offset_data, item.size) for item in members}


def _expand(word: str, shards: dict[Path, dict[str, ImageFile]]) -> list[ImageFile]:
    path = Path(word)
    if IN_SHARD in word:
        return [_member(word, shards)]
    if path.name == TREE:
        return [ImageFile(found) for found in sorted(_folder(path.parent).rglob("*")) if _is_image(found)]
    if path.is_dir():
        return [ImageFile(found) for found in list_images(path)]
    if not path.exists():
        raise DataError(f"{word} does not exist: give a folder of images, a list of them or a tar shard")
    if path.suffix.lower() == ".tar":
        return list(_shard(path, shards).values())
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return [ImageFile(path)]
    return _listed(path, shards)


def _listed(path: Path, shards: dict[Path, dict[str, ImageFile]]) -> list[ImageFile]:
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no list of images that can be read: give a text file, one image a line") from error
    images: list[ImageFile] = []
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        if Path(line).suffix.lower() in IMAGE_SUFFIXES and IN_SHARD not in line:
            images.append(ImageFile(path.parent / line))  # not looked for here: a million lookups take their time
            continue
        if Path(line).suffix.lower() == path.suffix.lower():
            raise DataError(f"{path}, line {number}: a list cannot name another list, as {line}")
        try:
            images += _expand(str(path.parent / line), shards)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    return images


def _member(word: str, shards: dict[Path, dict[str, ImageFile]]) -> ImageFile:
    shard, _, member = word.partition(IN_SHARD)
    found = _shard(Path(shard), shards).get(member)
    if found is None:
        raise DataError(f"{shard} holds no image {member}: make the list anew from this shard")
    return found


def _shard(path: Path, shards: dict[Path, dict[str, ImageFile]]) -> dict[str, ImageFile]:
    """The index of a shard, made once a call of `expand`."""
    if path not in shards:
        shards[path] = index_shard(path)
    return shards[path]


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"{path} is not a folder: give a folder of images")
    return path


def _is_image(path: PurePosixPath | Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
