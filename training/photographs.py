"""The training set in columns: what is known of a million photographs in some 200 MB, which forked workers share."""

from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import cv2
import numpy as np
from numpy.typing import NDArray

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale, orient
from image_data.sources import ImageFile, ImageList
from models.team08_HATFreq.image_io import ImageError
from models.team08_HATFreq.system import atomic_write

Image = NDArray[np.uint8]
DIGEST = 16  # bytes of a hash of pixels
LISTS = ("images", "lr_images", "restorations")
HR, LR, TEACHER = range(3)  # the files of a training image
# What is known of an image, its low-resolution one and a teacher's restoration of it: hash of the files (`stamp_of`),
# size in pixels, number of the source, its weight there, whether it is a file of grey samples (1) or of colour samples
# that are grey (2), a hash that turning and mirroring does not change (`canonical_hash`; 0: unknown), hashes of the
# pixels of the three (zeros for what is not there).
ROW = np.dtype(
    [
        ("stamp", "u8"),
        ("height", "i4"),
        ("width", "i4"),
        ("source", "i2"),
        ("weight", "f4"),
        ("grey", "u1"),
        ("canonical", "u8"),
        ("digests", "u1", 3 * DIGEST),
    ]
)


class Photograph(NamedTuple):
    """A training image that passed the audit; its sides are cut to multiples of the scale.

    Attributes:
        image: the high-resolution file.
        lr_image: the official low-resolution file, or None when it is made on the fly.
        restoration: a teacher's, or None.
        row: of `ROW`.
    """

    image: ImageFile
    lr_image: ImageFile | None
    restoration: ImageFile | None
    row: Any

    def decode(self) -> Image:
        """uint8 `h w 3`, its sides cut to multiples of the scale.

        Raises:
            ImageError: it cannot be read, or is not what was audited.
        """
        whole = self.image.read_rgb()
        return self._checked(HR, self.image, whole, cut_to_scale(whole))

    def decode_lr(self) -> Image:
        """uint8 `h/4 w/4 3`: the official low-resolution image without what lies beyond the cut; errors as `decode`."""
        assert self.lr_image is not None
        whole, h, w = self.lr_image.read_rgb(), self.row["height"] // SCALE, self.row["width"] // SCALE
        return self._checked(LR, self.lr_image, whole, whole[:h, :w])

    def decode_restoration(self) -> Image:
        """uint8 `h w 3`: the teacher's restoration; errors as `decode`."""
        assert self.restoration is not None
        whole = self.restoration.read_rgb()
        return self._checked(TEACHER, self.restoration, whole, whole)

    def _checked(self, which: int, file: ImageFile, whole: Image, image: Image) -> Image:
        scale = SCALE if which == LR else 1
        was, now = (self.row["height"] // scale, self.row["width"] // scale), image.shape[:2]
        if was != now:
            raise ImageError(
                f"{file.name} has changed since the run began: it is {now[1]}x{now[0]}, it was {was[1]}x{was[0]}"
            )
        # Hashing takes as long as decoding a JPEG: only where size or time of the files say that one was written since.
        touched = stamp_of(self.image, self.lr_image, self.restoration)[0] != self.row["stamp"]
        if touched and digest(whole) != self.row["digests"].reshape(-1, DIGEST)[which].tobytes():
            raise ImageError(f"{file.name} has changed since the run began: it has other pixels")
        return image


@dataclass(frozen=True)
class Photographs:
    """Photographs in their order.

    Attributes:
        images, lr_images: their files; an empty path for a low-resolution one that is made on the fly.
        rows: what is known of them, `ROW`.
        weights: the share of each source in the samples, by its number; none or zeros for shares by area.
        restorations: a teacher's; empty if no image has one, else with an empty path for an image that has none.
        teacher_weights: the part of the restorations in the target, by the source's number.
    """

    images: ImageList
    lr_images: ImageList
    rows: NDArray[Any]
    weights: tuple[float, ...] = ()
    restorations: ImageList = field(default_factory=ImageList)
    teacher_weights: tuple[float, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> Photograph:
        others = [files[number] if files else None for files in (self.lr_images, self.restorations)]
        lr_image, restoration = (file if file and file.path.name else None for file in others)
        return Photograph(self.images[number], lr_image, restoration, self.rows[number])

    @property
    def areas(self) -> NDArray[np.int64]:
        return self.rows["height"].astype(np.int64) * self.rows["width"]

    def has_restoration(self) -> NDArray[np.bool_]:
        """Whether there is a teacher's restoration of each."""
        return np.any(self.rows["digests"][:, TEACHER * DIGEST :], axis=1)

    def fingerprint(self) -> str:
        """A hash of the training set, pixels and order: what (seed, step, index) draws from."""
        found = blake2b(digest_size=16)
        for row in self.rows["digests"]:
            end = next(end for end in (3, 2, 1) if end == 1 or row[(end - 1) * DIGEST : end * DIGEST].any())
            found.update(row[: end * DIGEST].tobytes().hex().encode())
        return found.hexdigest()

    def sampling_weights(self) -> NDArray[np.int64]:
        """How often each is drawn in relation to the others, at least 1: area x weight, scaled to its source's weight.

        A source without photographs takes no part.
        """
        areas, sources, own = self.areas, self.rows["source"], self.rows["weight"].astype(np.float64)
        scaled = areas * own
        if any(self.weights):
            totals = np.bincount(sources, scaled, len(self.weights))
            shares = np.divide(self.weights, totals, out=np.zeros(len(self.weights)), where=totals > 0)
            scaled *= shares[sources]
        elif (own == 1).all():
            return areas
        return np.maximum(1, np.rint(scaled / scaled.sum() * 2**52)).astype(np.int64)

    def save(self, path: Path) -> None:
        """Write all but the weights, whole or not at all."""
        lists = [(one, getattr(self, one).to_arrays()) for one in LISTS]
        columns: dict[str, Any] = {f"{one} {name}": array for one, found in lists for name, array in found.items()}
        with atomic_write(path) as file:
            np.savez(file, rows=self.rows, **columns)

    @classmethod
    def load(cls, path: Path) -> "Photographs | None":
        """Read what `save` wrote; None if there is none, a damaged one, or another version's."""
        try:
            with np.load(path) as found:
                lists = [{name.split()[1]: found[name] for name in found if name.split()[0] == one} for one in LISTS]
                images, lr_images, restorations = map(ImageList.from_arrays, lists)
                rows = found["rows"]
            return cls(images, lr_images, rows, restorations=restorations) if rows.dtype == ROW else None
        except (OSError, EOFError, ValueError, KeyError, BadZipFile):
            return None


def digest(image: Image) -> bytes:
    """A hash of an image's size and pixels, its sides cut to multiples of the scale (a low-resolution image's too)."""
    image = cut_to_scale(image)
    person = b"%dx%d" % image.shape[:2]
    return blake2b(np.ascontiguousarray(image).tobytes(), digest_size=DIGEST, person=person).digest()


def canonical_hash(*images: Image) -> int:
    """A hash of 64 bits that all eight orientations of an image share; of several images together.

    The orientation that is hashed is the one whose sums of rows and columns come first: that takes two passes over the
    pixels, where hashing all eight would take as long as decoding.
    """
    found = blake2b(digest_size=8)
    for image in images:
        samples = np.ascontiguousarray(image).reshape(len(image), -1)  # h w 3 -> h 3w
        sums = (cv2.reduce(samples, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).astype(np.int64) for axis in (1, 0))
        rows, columns = (one.reshape(length, -1).sum(axis=1) for one, length in zip(sums, image.shape, strict=False))
        keys = []
        for orientation in range(8):
            y, x = (columns, rows) if orientation & 4 else (rows, columns)
            y, x = y[::-1] if orientation & 2 else y, x[::-1] if orientation & 1 else x
            keys.append((len(y), y.tobytes(), x.tobytes()))
        first = {number for number, key in enumerate(keys) if key == min(keys)}  # several where sums are symmetric
        pixels = [np.ascontiguousarray(orient(image, number)) for number in sorted(first)]
        found.update(
            min(blake2b(one.tobytes(), digest_size=8, person=b"%dx%d" % one.shape[:2]).digest() for one in pixels)
        )
    return int.from_bytes(found.digest(), "little")


def stamp_of(
    image: ImageFile, lr_image: ImageFile | None = None, restoration: ImageFile | None = None
) -> tuple[int, int]:
    """Hashes of 64 bits: of names, sizes and times of change; and of the first file's place on its disk (0: unknown).

    Raises:
        OSError: a file is not there.
    """
    seen, place = [], 0
    for file in (image, lr_image, restoration):
        if file is None:
            continue
        if file is restoration:
            seen.append("teacher")  # not to be taken for a low-resolution image
        status = file.path.stat()
        seen.append(f"{file.path.absolute()}\0{file.member}\0{status.st_size}\0{status.st_mtime_ns}")
        if status.st_ino and not place:
            place = _hash(f"{status.st_dev}\0{status.st_ino}\0{file.offset}")
    return _hash("\0".join(seen)), place


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest(), "little")
