"""Where images come from: folders, trees, lists and tar shards, all as plain references that any process can read.

A tar shard (the layout of webdataset: one member a file) is indexed once by the offsets of its members, so that its
images are read in any order, as from a folder: a file system sees one file where there were thousands. An address such
as `s3://bucket/shard.tar` stands for a file in an object store, as fsspec opens it.
"""

import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from models.team08_HATFreq.image_io import IMAGE_SUFFIXES, ImageError, read_rgb

IN_SHARD = "::"  # between a shard's path and a member's name
ADDRESS = "://"  # in the name of a file that fsspec opens
TREE = "**"  # last part of a folder that stands for its sub-folders too
MAX_LISTED = 10  # how many images a message lists


class DataError(ValueError):
    """Images that cannot be trained or validated on; the message names them and the remedy."""


@dataclass(frozen=True, order=True, slots=True)
class ImageFile:
    """An image file, or one inside a tar shard.

    Attributes:
        path: the file, or the shard; see `located`.
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
    def remote(self) -> bool:
        """Whether the file is an address."""
        return not isinstance(self.path, Path)

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
            if self.remote:
                address: Any = self.path
                found = address.fs.cat_file(address.path, start=self.offset, end=self.offset + self.size)
            else:
                with self.path.open("rb") as shard:
                    shard.seek(self.offset)
                    found = shard.read(self.size)
        except Exception as error:
            if not self.remote and not isinstance(error, OSError):  # packages of object stores raise others too
                raise
            raise ImageError(f"{self.name} cannot be read ({why(error)}): restore it") from error
        if len(found) < self.size:
            raise ImageError(f"{self.name} is cut short: copy or download the shard again")
        return found

    def read_rgb(self) -> NDArray[np.uint8]:
        """uint8 `h w 3`, upright.

        Raises:
            ImageError: it cannot be read as an opaque image; names it.
        """
        if not self.remote and os.path.exists(self.path) and not os.path.isfile(self.path):  # a pipe waits for ever
            raise ImageError(f"{self.path} is not a file that can be read: take it out of the folder")
        return read_rgb(self.name, self.content())


def why(error: Exception) -> str:
    """What a file system says of an error; fsspec's have no words of their own but the name."""
    return getattr(error, "strerror", None) or f"{type(error).__name__} {error}"


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

    def extend(self, others: "ImageList") -> None:
        begin = len(self.names)
        self.names += others.names
        self.ends.extend(array("q", (np.frombuffer(others.ends, np.int64) + begin).tobytes()))
        self.offsets.extend(others.offsets)
        self.sizes.extend(others.sizes)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: Any) -> Any:
        """An `ImageFile`, or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        begin = self.ends[number - 1] if number else 0
        path, _, member = os.fsdecode(bytes(self.names[begin : self.ends[number]])).partition("\0")
        return ImageFile(located(path), member, self.offsets[number], self.sizes[number])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        kinds = {"names": np.uint8, "ends": np.int64, "offsets": np.int64, "sizes": np.int64}
        return {name: np.frombuffer(getattr(self, name), kind) for name, kind in kinds.items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]]) -> "ImageList":
        images = cls()
        images.names += arrays["names"].tobytes()
        for name in ("ends", "offsets", "sizes"):
            getattr(images, name).frombytes(arrays[name].tobytes())
        return images


def located(word: str) -> Path:
    """The file of a path; of an address, what behaves like one (a UPath of universal_pathlib).

    Raises:
        DataError: universal_pathlib is not installed.
    """
    if ADDRESS not in word:
        return Path(word)
    try:
        from upath import UPath
    except ImportError as error:
        raise DataError(f"{word} is an address: pip install -e '.[cluster]' to read it, and s3fs for s3://") from error
    return cast(Path, UPath(word))


def expand(word: str) -> ImageList:
    """The images that one word of a command line or a list stands for, in an order that does not change.

    Args:
        word: `folder`; `folder/**` for its sub-folders too (ImageNet's tree), symbolic links included; `list.txt`, one
            image, folder or shard a line, relative to the list's folder or absolute, `#` starting a comment;
            `shard.tar`; an image; or `shard.tar::member`. Each may be an address; then `*` in the last part stands for
            all files that match.

    Raises:
        DataError: nothing there, no image in it, or a list's line that leads nowhere; names the word and the remedy.
    """
    images = ImageList()
    try:
        _expand(word, images, {})
    except DataError:
        raise
    except Exception as error:
        if ADDRESS not in word:
            raise
        raise DataError(f"{word} cannot be opened ({error}): check the address and its credentials") from error
    if not images:
        raise DataError(f"{word} holds no images: give a folder of PNG or JPEG files, a list of them or a tar shard")
    return images


def index_shard(path: Path) -> dict[str, ImageFile]:
    """The images of an uncompressed tar file by their member name, in the order of the file.

    Raises:
        DataError: not a tar file, compressed, cut short, damaged, or with several images of one name.
    """
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as shard:
            members = [item for item in shard if item.isfile() and _is_image(item.name)]
            _check_end(path, shard.offset)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            f"{path} is not a tar shard that can be read ({error}): copy it again; shards are plain, not compressed"
        ) from error
    if doubled := [name for name, count in Counter(item.name for item in members).items() if count > 1]:
        raise DataError(f"{path} holds several images called {', '.join(doubled[:MAX_LISTED])}: pack it again")
    return {item.name: ImageFile(path, item.name, item.offset_data, item.size) for item in members}


def _check_end(path: Path, offset: int) -> None:
    """Check that an archive's members end with its end.

    At a damaged header tarfile stops without a word, as if the archive ended there.

    Raises:
        tarfile.ReadError: something else stands at `offset`, where the members end, or after it.
    """
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it is cut short: the mark of its end is missing")
        while block:  # zeros up to the end of the file
            if any(block):
                raise tarfile.ReadError(f"damaged at or before byte {file.tell()}")
            block = file.read(1 << 20)


def _expand(word: str, images: ImageList, shards: dict[Path, dict[str, ImageFile]], in_list: bool = False) -> None:
    """Append what a word stands for; `shards` keeps the index of each shard whose members are named one by one."""
    path = located(word)
    if IN_SHARD in word:
        images.append(_member(word, shards))
    elif path.name == TREE:
        if not path.parent.is_dir():
            raise DataError(f"{path.parent} is not a folder: give a folder of images")
        _add_folder(str(path.parent), images, visited=set())
    elif ADDRESS in word and "*" in path.name:
        for file in sorted(map(str, path.parent.glob(path.name))):
            _expand(file, images, shards, in_list)
    elif path.is_dir():
        _add_folder(str(path), images)
    elif not path.exists():
        raise DataError(f"{word} does not exist: give a folder of images, a list of them or a tar shard")
    elif path.suffix.lower() == ".tar":
        for image in index_shard(path).values():
            images.append(image)
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        images.append(ImageFile(path))
    elif path.name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise DataError(f"{word} is a compressed archive: unpack it, images compress to nothing; shards are plain .tar")
    elif in_list:
        raise DataError(f"a list cannot name another list, as {word}")
    else:
        _add_listed(path, images, shards)


def _add_folder(folder: str, images: ImageList, visited: set[tuple[int, int]] | None = None) -> None:
    """Append a folder's images by name; those of its sub-folders too where `visited` collects them.

    Links to folders are followed. A folder that several links lead to counts once, so that a loop ends.
    """
    if ADDRESS in folder:  # no links there, and one request lists a whole tree
        root = located(folder)
        names = [str(file) for file in (root.iterdir() if visited is None else root.rglob("*")) if _is_image(file.name)]
        for name in sorted(names, key=lambda name: name.split("/")):  # folder by folder, as on a disk
            images.add(name)
        return
    try:
        if visited is not None:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                return
            visited.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): check its permissions") from error
    for entry in entries:
        path = entry.name if folder == "." else entry.path
        if visited is not None and os.path.isdir(path):
            _add_folder(path, images, visited)
        elif _is_image(entry.name):
            images.add(path)


def _add_listed(path: Path, images: ImageList, shards: dict[Path, dict[str, ImageFile]]) -> None:
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # names are bytes on Linux
    except OSError as error:
        raise DataError(f"{path} cannot be read ({why(error)}): give a text file, one image a line") from error
    if "\0" in text:
        raise DataError(f"{path} is not a list of images: give a text file, one image a line")
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if not line or line.startswith("#"):
            continue
        word = line if ADDRESS in line else str(path.parent / line)
        if Path(line).suffix.lower() in IMAGE_SUFFIXES and IN_SHARD not in line:
            images.add(word)  # not looked for here: a million lookups take their time
            continue
        try:
            _expand(word, images, shards, in_list=True)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error


def _member(word: str, shards: dict[Path, dict[str, ImageFile]]) -> ImageFile:
    shard, _, member = word.partition(IN_SHARD)
    path = located(shard)
    if path not in shards:
        shards[path] = index_shard(path)
    if member not in shards[path]:
        raise DataError(f"{shard} holds no image {member}: make the list again from this shard")
    return shards[path][member]


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
