"""The training set as columns: what is known of a million photographs in some 200 MB, which forked workers share."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, overload
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale
from image_data.sources import ImageFile, ImageList
from models.team08_HATFreq.image_io import ImageError
from models.team08_HATFreq.system import atomic_write

Image = NDArray[np.uint8]
DIGEST = 16  # bytes of a hash of pixels
COLUMNS = {"heights": "i", "widths": "i", "sources": "h", "stamps": "Q"}
NAMES = {"names": "B", "ends": "q", "offsets": "q", "sizes": "q"}


class Photograph(NamedTuple):
    """A training image that passed the audit; its sides are cut to multiples of the scale.

    Attributes:
        image: the high-resolution file.
        lr_image: the official low-resolution file, or None when it is made on the fly.
        height, width: in pixels, after the cut.
        source: number of its source.
        stamp: hash of the files' names, sizes and times of change (`stamp_of`).
        digests: of the pixels of both, `DIGEST` bytes each; zeros for what is not there.
    """

    image: ImageFile
    lr_image: ImageFile | None
    height: int
    width: int
    source: int
    stamp: int
    digests: bytes

    def decode(self) -> Image:
        """uint8 `h w 3`, its sides cut to multiples of the scale.

        Raises:
            ImageError: it cannot be read, or is not what was audited.
        """
        whole = self.image.read_rgb()
        image = cut_to_scale(whole)
        self._check(self.image, whole, image, (self.height, self.width), self.digests[:DIGEST])
        return image

    def decode_lr(self) -> Image:
        """uint8 `h/4 w/4 3`: the official low-resolution image without what lies beyond the cut; errors as `decode`."""
        assert self.lr_image is not None
        whole = self.lr_image.read_rgb()
        h, w = self.height // SCALE, self.width // SCALE
        self._check(self.lr_image, whole, image := whole[:h, :w], (h, w), self.digests[DIGEST:])
        return image

    def _check(self, file: ImageFile, whole: Image, image: Image, size: tuple[int, int], audited: bytes) -> None:
        # Hashing takes as long as decoding a JPEG: only where size or time of the file say that it was written since.
        if image.shape[:2] == size and (
            stamp_of(self.image, self.lr_image)[0] == self.stamp or digest(whole) == audited
        ):
            return
        raise ImageError(f"{file.name} has changed since the run began: {_sizes(image, size)}")


def _sizes(image: Image, size: tuple[int, int]) -> str:
    if image.shape[:2] == size:
        return "it has other pixels"
    return f"it is {image.shape[1]}x{image.shape[0]}, it was {size[1]}x{size[0]}"


class Photographs(Sequence[Photograph]):
    """Photographs in order, and the share of each source in the samples (`weights` by number; none: by area)."""

    def __init__(self, weights: Sequence[float] = ()) -> None:
        self.images, self.lr_images = ImageList(), ImageList()
        self.columns = {name: array(kind) for name, kind in COLUMNS.items()}
        self.digests = bytearray()
        self.weights = tuple(weights)

    def append(self, photograph: Photograph) -> None:
        """Add a photograph."""
        image, lr_image, *values, digests = photograph
        self.images.append(image)
        self.lr_images.append(lr_image or ImageFile(Path()))
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)
        self.digests += digests

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Photograph: ...

    @overload
    def __getitem__(self, index: slice) -> list[Photograph]: ...

    def __getitem__(self, index: int | slice) -> Photograph | list[Photograph]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        lr_image = self.lr_images[number]
        values: list[Any] = [column[number] for column in self.columns.values()]
        digests = bytes(self.digests[2 * DIGEST * number : 2 * DIGEST * (number + 1)])
        return Photograph._make((self.images[number], lr_image if lr_image.path.name else None, *values, digests))

    @property
    def areas(self) -> NDArray[np.int64]:
        """Pixels of each."""
        heights, widths = (np.frombuffer(self.columns[name], np.int32) for name in ("heights", "widths"))
        return heights.astype(np.int64) * widths

    def fingerprint(self) -> str:
        """A hash of the training set, pixels and order: what (seed, step, index) draws from."""
        found = blake2b(digest_size=16)
        for start in range(0, len(self.digests), 2 * DIGEST):
            one = bytes(self.digests[start : start + 2 * DIGEST])
            found.update((one if any(one[DIGEST:]) else one[:DIGEST]).hex().encode())
        return found.hexdigest()

    def sampling_weights(self) -> NDArray[np.int64]:
        """How often each is drawn in relation to the others, at least 1: its area, scaled to its source's weight.

        A source without photographs takes no part.
        """
        areas = self.areas
        if not any(self.weights):
            return areas
        sources = np.frombuffer(self.columns["sources"], np.int16)
        totals = np.bincount(sources, areas, len(self.weights))
        shares = np.divide(self.weights, totals, out=np.zeros(len(self.weights)), where=totals > 0)
        scaled = areas * shares[sources]
        return np.maximum(1, np.rint(scaled / scaled.sum() * 2**52)).astype(np.int64)

    def save(self, path: Path) -> None:
        """Write the columns, whole or not at all."""
        columns: dict[str, Any] = {
            name: np.frombuffer(column, column.typecode) for name, column in self.columns.items()
        }
        for prefix, files in (("", self.images), ("lr_", self.lr_images)):
            columns |= {prefix + name: np.frombuffer(getattr(files, name), kind) for name, kind in NAMES.items()}
        with atomic_write(path) as file:
            np.savez(file, **columns, digests=np.frombuffer(self.digests, np.uint8))

    @classmethod
    def load(cls, path: Path, weights: Sequence[float] = ()) -> "Photographs | None":
        """Read what `save` wrote; None if there is none, or a damaged one."""
        found = cls(weights)
        try:
            with np.load(path) as file:
                for name, column in found.columns.items():
                    column.frombytes(file[name].tobytes())
                for prefix, files in (("", found.images), ("lr_", found.lr_images)):
                    files.names = bytearray(file[prefix + "names"])
                    for name, kind in list(NAMES.items())[1:]:
                        setattr(files, name, array(kind, file[prefix + name].tobytes()))
                found.digests = bytearray(file["digests"])
        except (OSError, ValueError, KeyError, BadZipFile):
            return None
        return found


def digest(image: Image) -> bytes:
    """A hash of an image's size and pixels, its sides cut to multiples of the scale (a low-resolution image's too)."""
    image = cut_to_scale(image)
    person = b"%dx%d" % image.shape[:2]
    return blake2b(np.ascontiguousarray(image).tobytes(), digest_size=DIGEST, person=person).digest()


def stamp_of(image: ImageFile, lr_image: ImageFile | None = None) -> tuple[int, int]:
    """Hashes of 64 bits: of names, sizes and times of change; and of the first file's place on its disk (0: unknown).

    Raises:
        OSError: a file is not there.
    """
    seen, place = [], 0
    for file in filter(None, (image, lr_image)):
        status = file.path.stat()
        seen.append(f"{file.path.absolute()}\0{file.member}\0{status.st_size}\0{status.st_mtime_ns}")
        if status.st_ino and not place:
            place = _hash(f"{status.st_dev}\0{status.st_ino}\0{file.offset}")
    return _hash("\0".join(seen)), place


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "little")
