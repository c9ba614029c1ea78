"""Image files: what they hold, read without silent losses, and PNG files written whole or not at all.

PIL reads the header, tells truncated files and decodes 8-bit samples; OpenCV decodes 16-bit samples, which PIL would
silently cut to eight bits.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .png import write_rows

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MAX_PIXELS = 80_000_000  # more is taken for a decompression bomb; PIL itself warns from 89 million on
TEMPORARY = ".partial-"  # prefix of files that are being written

_GREY, _COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "P", "PA", "YCbCr")
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError)  # what PIL raises when samples cannot be decoded
_BAND = 256  # rows worked on at once
_ORIENTATION_TAG, _BITS_TAG, _SAMPLE_FORMAT_TAG = 0x0112, 258, 339


class ImageError(ValueError):
    """A file that cannot be read as an image; the message names the file, the cause and the remedy."""


@dataclass(frozen=True)
class Picture:
    """The samples of an image file.

    Attributes:
        rgb: `h w 3`, uint8 in [0, 255] or uint16 in [0, 65535]; three equal channels for a grey file.
        alpha: `h w` of the same type, or None if the file has none or is opaque throughout.
        grey: whether the file holds grey samples.
    """

    rgb: NDArray[Any]
    alpha: NDArray[Any] | None = None
    grey: bool = False

    @property
    def samples(self) -> NDArray[Any]:
        """As a file holds them: `h w`, `h w 3` or `h w 4`. Grey is the BT.601 luma of `rgb`."""
        colour = _luma(self.rgb) if self.grey and self.alpha is None else self.rgb
        return colour if self.alpha is None else np.dstack([colour, self.alpha])


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files of a folder by their suffix, sorted by name; hidden files are passed over.

    Raises:
        FileNotFoundError, NotADirectoryError: naming the folder.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"{folder} does not exist: name a folder of images")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: name the folder that holds the images")
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))


def read_picture(path: str | os.PathLike[str], content: bytes | None = None) -> Picture:
    """Read an image file of 8 or 16 bits: grey, palette, colour, with or without alpha, upright by its EXIF tag.

    Args:
        path: the file; only a name for messages where `content` is given.
        content: the file's bytes, if they lie elsewhere (inside a tar shard, say).

    Raises:
        ImageError: not an image, truncated, too large, animated, CMYK or of floating-point samples.
    """
    path = Path(path)
    content = _bytes_of(path) if content is None else content
    with _opened(path, content) as image:
        _refuse_unsupported(path, image)
        try:
            image.load()  # decodes everything: a truncated file fails here
        except _DAMAGE as error:
            raise ImageError(f"{path} is damaged or truncated ({error}): copy or download it again") from error
        sixteen = _is_16_bit(image, content)
        samples = _decode_16(path, content) if sixteen else _decode_8(image)
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    return _picture(_upright(samples, orientation))


def read_rgb(path: str | os.PathLike[str], content: bytes | None = None) -> NDArray[np.uint8]:
    """Read an image as uint8 `h w 3`: grey in three equal channels, 16 bits rounded to 8.

    Raises:
        ImageError: as `read_picture`, or an image that is partly transparent.
    """
    picture = read_picture(path, content)
    if picture.alpha is not None:
        raise ImageError(f"{path} is partly transparent: flatten it onto a background first")
    if picture.rgb.dtype == np.uint16:
        return ((picture.rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return picture.rgb


def size_of(path: str | os.PathLike[str], content: bytes | None = None) -> tuple[int, int]:
    """Height and width from the file's header, without decoding, as upright as `read_picture` gives them.

    Args:
        path, content: as `read_picture`.

    Raises:
        ImageError: not an image, damaged, or too large.
    """
    with _opened(Path(path), content) as image:
        width, height = image.size
        try:
            turned = image.getexif().get(_ORIENTATION_TAG, 1) >= 5
        except _DAMAGE as error:
            raise ImageError(f"{path} is damaged or truncated ({error}): copy or download it again") from error
        return (width, height) if turned else (height, width)


def write_png(path: str | os.PathLike[str], samples: NDArray[Any]) -> None:
    """Write uint8 or uint16 `h w`, `h w 3` (RGB) or `h w 4` (RGBA) as PNG, under its name only when it is complete.

    Raises:
        ValueError: samples that a PNG file cannot hold.
        OSError: it cannot be written (a full disk, say).
    """
    with whole_file(Path(path)) as file:
        write_rows(file, samples)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""
    with whole_file(path) as file:
        file.write(content)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write under a temporary name in its folder, renamed when all went well.

    A kill or an error leaves the old file or the new one.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    try:
        with temporary.open("wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _bytes_of(path: Path) -> bytes:
    if path.is_dir():
        raise ImageError(f"{path} is a folder with an image's name: rename it")
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error


def _opened(path: Path, content: bytes | None = None) -> Image.Image:
    """The file with its header read, from its bytes where they are at hand."""
    if content is None and path.is_dir():
        raise ImageError(f"{path} is a folder with an image's name: rename it")
    try:
        image = Image.open(path if content is None else io.BytesIO(content))
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, OSError) as error:
        empty = path.stat().st_size == 0 if content is None else not content
        cause = "is empty" if empty else f"is no image that can be read ({error})"
        raise ImageError(f"{path} {cause}: replace it or take it out of the folder") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{path} has {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}: crop it first")
    return image


def _refuse_unsupported(path: Path, image: Image.Image) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # MPO: a phone's JPEG with previews behind it; the first is the photograph
        raise ImageError(f"{path} holds {frames} frames or pages: save each as a file of its own")
    if image.mode not in _GREY + _COLOUR + _SIXTEEN:
        raise ImageError(f"{path} holds {image.mode} samples: convert it to 8- or 16-bit grey or RGB first")
    tags = getattr(image, "tag_v2", {})
    bits, sample_format = tags.get(_BITS_TAG, (8,)), tags.get(_SAMPLE_FORMAT_TAG, (1,))
    if max(np.atleast_1d(bits)) > 16 or max(np.atleast_1d(sample_format)) > 1:
        raise ImageError(f"{path} holds {max(np.atleast_1d(bits))}-bit samples that are not unsigned: save 16-bit ones")


def _is_16_bit(image: Image.Image, content: bytes) -> bool:
    """Whether samples have 16 bits; PIL's mode says so for grey files only."""
    if image.mode in _SIXTEEN:
        return True
    if image.format == "PNG":
        return content[24] == 16  # the bit depth in the IHDR chunk (PNG specification, 11.2.2)
    return max(np.atleast_1d(getattr(image, "tag_v2", {}).get(_BITS_TAG, (8,)))) == 16


def _decode_8(image: Image.Image) -> NDArray[np.uint8]:
    """uint8 `h w`, `h w 2` (grey and alpha), `h w 3` or `h w 4`."""
    transparent = "transparency" in image.info
    if image.mode in ("1", "L", "LA"):
        mode = "LA" if transparent or image.mode == "LA" else "L"
    else:
        mode = "RGBA" if transparent or image.mode in ("RGBA", "PA") else "RGB"
    converted = image if image.mode == mode else image.convert(mode)
    channels = len(converted.getbands())
    # Straight from PIL's bytes: np.array copies twice more, which takes as long as decoding a JPEG.
    samples = np.frombuffer(converted.tobytes(), np.uint8)
    return samples.reshape(converted.height, converted.width, *([channels] if channels > 1 else []))


def _decode_16(path: Path, content: bytes) -> NDArray[np.uint16]:
    """uint16 `h w`, `h w 3` or `h w 4`."""
    samples = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise ImageError(f"{path} holds 16-bit samples that OpenCV cannot decode: save it as a 16-bit PNG")
    if samples.ndim == 3:
        samples = cv2.cvtColor(samples, cv2.COLOR_BGRA2RGBA if samples.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return samples


def _upright(samples: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Undo an EXIF orientation, 1 to 8 (EXIF 2.3, tag 274)."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return np.ascontiguousarray(samples)


def _picture(samples: NDArray[Any]) -> Picture:
    """Sort channels into colour and alpha; an alpha that is opaque throughout is dropped."""
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    samples = samples.reshape(*samples.shape[:2], channels)
    colour = samples[..., : channels - 1] if channels in (2, 4) else samples
    rgb = np.ascontiguousarray(colour if colour.shape[2] == 3 else colour.repeat(3, axis=2))
    alpha = samples[..., -1] if channels in (2, 4) else None
    if alpha is not None and (alpha == np.iinfo(samples.dtype).max).all():
        alpha = None
    grey = colour.shape[2] == 1
    return Picture(rgb, None if alpha is None else np.ascontiguousarray(alpha), grey)


def _luma(rgb: NDArray[Any]) -> NDArray[Any]:
    """BT.601 luma of full-range RGB, `h w 3` -> `h w` of the same type; equal channels keep their value."""
    luma = np.empty(rgb.shape[:2], rgb.dtype)
    for top in range(0, len(rgb), _BAND):  # the float64 of a large image would take eight times its samples
        part = rgb[top : top + _BAND] @ (np.array([65.481, 128.553, 24.966]) / 219)
        luma[top : top + _BAND] = np.rint(part)
    return luma
