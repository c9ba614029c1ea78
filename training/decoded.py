"""Decoded photographs: the first ones kept in memory, the others in a folder or decoded at every use.

Decoding a 2K photograph takes far longer than cutting a patch from it. A folder of decoded pixels, mapped into memory,
is shared by all workers and processes of a machine through the system's file cache.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale
from image_data.sources import ImageFile
from models.team08_HATFreq.image_io import ImageError
from models.team08_HATFreq.system import TEMPORARY
from training.audit import Photograph

Image = NDArray[np.uint8]
DIGEST = 32  # hexadecimal digits of a photograph's own digest, before its low-resolution file's


class DecodedImages:
    """Pixels of photographs, decoded once where there is room.

    Args:
        folder: where to keep decoded pixels, a file a photograph (`<digest>.rgb`, height x width x 3 bytes); None to
            decode anew at every use what is not in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.kept: dict[ImageFile, Image] = {}
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def keep(self, photographs: list[Photograph], gigabytes: float) -> int:
        """Decode the first photographs, as many as fit into memory (1e9 bytes a GB); returns how many.

        One that cannot be read is left for when it is drawn.
        """
        room, chosen = gigabytes * 1e9, []
        for photograph in photographs:
            room -= photograph.height * photograph.width * 3
            if room < 0:
                break
            chosen.append(photograph)
        with ThreadPoolExecutor() as pool:
            for photograph, pixels in zip(chosen, pool.map(_decode_or_none, chosen), strict=True):
                if pixels is not None:
                    self.kept[photograph.image] = pixels
        return len(self.kept)

    def pixels(self, photograph: Photograph) -> Image:
        """uint8 `h w 3`, its sides cut to multiples of the scale; maybe a read-only map of a file.

        Raises:
            ImageError: it cannot be read, or has another size than at the audit.
            OSError: the folder of decoded pixels cannot be written (a full disk, say).
        """
        kept = self.kept.get(photograph.image)
        if kept is not None:
            return kept
        if self.folder is None:
            return decode(photograph)
        path = self.folder / f"{photograph.digest[:DIGEST]}.rgb"
        shape = (photograph.height, photograph.width, 3)
        if not path.exists() or path.stat().st_size != int(np.prod(shape)):
            _write(path, decode(photograph))
        return np.memmap(path, np.uint8, "r", shape=shape)


def decode(photograph: Photograph) -> Image:
    """Read a photograph: uint8 `h w 3`, its sides cut to multiples of the scale.

    Raises:
        ImageError: it cannot be read, or has another size than at the audit.
    """
    image = cut_to_scale(photograph.image.read_rgb())
    _check_size(photograph.image, image, photograph.height, photograph.width)
    return image


def low_pixels(photograph: Photograph) -> Image:
    """Read a photograph's official low-resolution image: uint8 `h/4 w/4 3`, without what lies beyond the cut.

    Raises:
        ImageError: it cannot be read, or has another size than at the audit.
    """
    assert photograph.low is not None
    h, w = photograph.height // SCALE, photograph.width // SCALE
    image = photograph.low.read_rgb()[:h, :w]
    _check_size(photograph.low, image, h, w)
    return image


def _check_size(file: ImageFile, image: Image, height: int, width: int) -> None:
    h, w = image.shape[:2]
    if (h, w) != (height, width):
        raise ImageError(f"{file.name} has changed since the run began: it is {w}x{h}, it was {width}x{height}")


def _decode_or_none(photograph: Photograph) -> Image | None:
    try:
        return decode(photograph)
    except ImageError:
        return None


def _write(path: Path, image: Image) -> None:
    """Write under a name of this process's own, then rename: several workers may write the same photograph."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(np.ascontiguousarray(image).data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(f"{path.parent} cannot keep decoded photographs ({error.strerror}): make room there") from error
