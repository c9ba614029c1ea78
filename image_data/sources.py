"""Where images come from: folders, trees, lists and tar shards, as plain references that any process can read.

A tar shard (webdataset's layout: one member a file) is indexed once by the offsets of its members, so that its images
are read in any order, as from a folder; a file system sees one file where there were thousands.
"""

import os
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.team08_HATFreq.image_io import IMAGE_SUFFIXES, ImageError, read_rgb, size_of
from utils.files import UserError

IN_SHARD = "::"  # between a shard's path and a member's name
TREE = "**"  # last part of a folder that stands for its sub-folders too
HEADER = 1 << 16  # bytes of a file in which its size in pixels mostly stands
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class DataError(UserError):
    """Images that cannot be trained or validated on; the message names them and the remedy."""


@dataclass(frozen=True, order=True, slots=True)
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

    def content(self, most: int = -1) -> bytes:
        """The encoded bytes, or their beginning.

        Args:
            most: bytes to read; -1 for all.

        Raises:
            ImageError: they cannot be read; names the image.
        """
        try:
            if not self.member and not self.path.is_file():  # a pipe would wait for ever
                raise ImageError(f"{self.path} is not a file that can be read: restore it, or take it out of the set")
            with self.path.open("rb") as file:
                file.seek(self.offset)
                wanted = min(self.size, most) if self.member and most >= 0 else self.size if self.member else most
                content = file.read(wanted)
        except OSError as error:
            raise ImageError(f"{self.name} cannot be read ({error.strerror or error}): restore it") from error
        if self.member and len(content) < wanted:
            raise ImageError(f"{self.name} is cut short: copy or download the shard again")
        return content

    def size_in_pixels(self) -> tuple[int, int]:
        """Height and width, upright, by the header; errors as `read_rgb`."""
        try:
            return size_of(self.name, self.content(HEADER))
        except ImageError:  # some JPEG files hold long notes first
            return size_of(self.name, self.content())

    def read_rgb(self) -> NDArray[np.uint8]:
        """uint8 `h w 3`, upright.

        Raises:
            ImageError: it cannot be read as an opaque image; names it.
        """
        return read_rgb(self.name, self.content())


class ImageList(Sequence[ImageFile]):
    """Image files in some 24 bytes each beside their names.

    A million objects would take a gigabyte in every process, and forked workers would copy what they touch: Python
    counts references inside each object. These are four arrays, which workers share with the process that forked them.
    """

    def __init__(self, images: Iterable[ImageFile] = ()) -> None:
        self.names, self.ends = bytearray(), array("q")  # path, NUL, member; and where each name ends
        self.offsets, self.sizes = array("q"), array("q")
        for image in images:
            self.append(image)

    def append(self, image: ImageFile) -> None:
        self.add(f"{image.path}\0{image.member}" if image.member else str(image.path), image.offset, image.size)

    def add(self, name: str, offset: int = 0, size: int = 0) -> None:
        """Add an image file by its path, or by a shard's path, NUL and the member's name."""
        self.names += os.fsencode(name)
        self.ends.append(len(self.names))
        self.offsets.append(offset)
        self.sizes.append(size)

    def extend(self, images: "ImageList") -> None:
        begin = len(self.names)
        self.names += images.names
        self.ends.extend(array("q", (np.frombuffer(images.ends, np.int64) + begin).tobytes()))
        self.offsets.extend(images.offsets)
        self.sizes.extend(images.sizes)

    def paths(self) -> Iterator[tuple[bytes, bool]]:
        """The name of each, `shard.tar NUL member` in a shard; and whether it lies in one. A million take a second."""
        begin = 0
        for end in self.ends:
            name = bytes(self.names[begin:end])
            begin = end
            yield name, b"\0" in name

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        """An `ImageFile`, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        begin = self.ends[number - 1] if number else 0
        path, _, member = os.fsdecode(bytes(self.names[begin : self.ends[number]])).partition("\0")
        return ImageFile(Path(path), member, self.offsets[number], self.sizes[number])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)


# ---------------------------------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------------------------------


def expand(word: str) -> ImageList:
    """The images that a word of a command line stands for, in an order that does not change.

    Args:
        word: `folder`; `folder/**` for its sub-folders too (ImageNet's tree), symbolic links included; `list.txt`, an
            image, folder or shard a line, relative to the list's folder or absolute, `#` starting a comment;
            `shard.tar`; an image; or `shard.tar::member`.

    Raises:
        DataError: nothing there, no image in it, or a list's line that leads nowhere; names the word and the remedy.
    """
    images = ImageList()
    _expand(word, images, {})
    if not images:
        raise DataError(f"{word} holds no images: give a folder of PNG or JPEG files, a list of them or a tar shard")
    return images


def index_shard(path: Path) -> dict[str, ImageFile]:
    """The images of an uncompressed tar file by their member name, in the order of the file; errors as `expand`."""
    return {name: ImageFile(path, name, offset, size) for name, offset, size in _members(path)}


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each image in a tar file."""
    hashes = array("q")
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
            while (member := shard.next()) is not None:
                if (member.islnk() or member.issym()) and _is_image(member.name):
                    raise DataError(
                        f"{path} holds {member.name}, a link: pack it again with tar --dereference --hard-dereference"
                    )
                if member.isfile() and _is_image(member.name):
                    hashes.append(hash(member.name))
                    yield member.name, member.offset_data, member.size
                shard.members.clear()  # type: ignore[attr-defined]  # a million of them would take a gigabyte
            _check_end(path, shard.offset)
    except (tarfile.TarError, EOFError, OSError) as error:
        remedy = "copy it again; shards are plain, not compressed"
        raise DataError(f"{path} is not a tar shard that can be read ({error}): {remedy}") from error
    if len(np.unique(np.frombuffer(hashes, np.int64))) < len(hashes):
        raise DataError(f"{path} holds several images of one name: pack it again")


def _check_end(path: Path, offset: int) -> None:
    """At a damaged header tarfile stops without a word, as if the archive ended there: look for what stands behind."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it is cut short: the mark of its end is missing")
        while block:  # zeros up to the end of the file
            if any(block):
                raise tarfile.ReadError(f"damaged at or before byte {file.tell()}")
            block = file.read(1 << 20)


def _expand(word: str, images: ImageList, shards: dict[str, dict[str, ImageFile]], listed: bool = False) -> None:
    """Append what a word stands for; `shards` keeps the index of each shard whose members are named one by one."""
    path = Path(word)
    if IN_SHARD in word:
        shard, _, member = word.partition(IN_SHARD)
        if shard not in shards:
            shards[shard] = index_shard(Path(shard))
        if member not in shards[shard]:
            raise DataError(f"{shard} holds no image {member}: make the list again from this shard")
        images.append(shards[shard][member])
    elif path.name == TREE:
        if not path.parent.is_dir():
            raise DataError(f"{path.parent} is not a folder: give a folder of images")
        _add_folder(str(path.parent), images, visited=set())
    elif path.is_dir():
        _add_folder(str(path), images)
    elif not path.exists():
        raise DataError(f"{word or 'an empty word'} does not exist: give a folder of images, a list or a tar shard")
    elif path.suffix.lower() == ".tar":
        for name, offset, size in _members(path):
            images.add(f"{path}\0{name}", offset, size)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        images.append(ImageFile(path))
    elif path.name.lower().endswith(COMPRESSED):
        raise DataError(f"{word} is a compressed archive: unpack it, images compress to nothing; shards are plain .tar")
    elif listed:
        raise DataError(f"a list cannot name another list, as {word}")
    else:
        _add_listed(path, images, shards)


def _add_folder(folder: str, images: ImageList, visited: set[tuple[int, int]] | None = None) -> None:
    """Append a folder's images by name; those of its sub-folders too where `visited` collects them.

    Links to folders are followed. A folder that several links lead to counts once, so that a loop ends.
    """
    try:
        if visited is not None:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                return
            visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): check its permissions") from error
    for entry in ordered:
        path = entry.name if folder == "." else entry.path
        if visited is not None and os.path.isdir(path):
            _add_folder(path, images, visited)
        elif _is_image(entry.name):
            images.add(path)


def _add_listed(path: Path, images: ImageList, shards: dict[str, dict[str, ImageFile]]) -> None:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # names are bytes on Linux
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): give a text file, one image a line") from error
    if "\0" in text:
        raise DataError(f"{path} is not a list of images: give a text file, one image a line")
    folder, hashes = path.parent, array("q")
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if not line or line.startswith("#"):
            continue
        hashes.append(hash(line))
        word = os.path.join(folder, line) if str(folder) != "." else line
        if line.lower().endswith(IMAGE_SUFFIXES) and IN_SHARD not in line:
            images.add(word)  # not looked for here: a million look-ups take their time
            continue
        try:
            _expand(word, images, shards, listed=True)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    if len(np.unique(np.frombuffer(hashes, np.int64))) < len(hashes):
        raise DataError(f"{path} names images more than once, and they would be drawn more often: name each once")


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.rpartition("/")[2].startswith(".")
