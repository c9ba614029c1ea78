"""Image files: what they hold, read without silent losses, and results written whole or not at all.

PIL reads the header, tells truncated files and decodes 8-bit samples; OpenCV decodes 16-bit samples, which PIL would
silently cut to eight bits. PNG files are written row by row, as neither library does it without another copy of the
samples and the compressed file in memory.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from .system import HATFreqError, atomic_write

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".tif", ".tiff", ".webp")
OUTPUT_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_PIXELS = 80_000_000  # more is taken for a decompression bomb; PIL itself warns from 89 million on
LONGEST = {"JPEG": 65_500, "WEBP": 16_383}  # pixels a side that libjpeg and the format hold; PNG holds 2**31 - 1

_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP")  # PIL knows many more, and starts other programs for some
_GREY, _COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "P", "PA", "YCbCr")
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_BAND = 256  # rows worked on at once
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 26  # bytes, of profiles too; PIL takes more than 1 MiB for an attack
_MAX_EXIF = 65_000  # bytes that a JPEG file holds
_KEPT_CHUNKS = (b"cICP", b"mDCV", b"cLLI", b"gAMA", b"cHRM", b"sRGB", b"tEXt", b"zTXt", b"iTXt")  # by a PNG result
_ELSEWHERE = (b"Raw profile type ", b"XML:com.adobe.xmp")  # texts that hold EXIF, profiles and XMP
# TIFF and EXIF tags
_BITS, _PHOTOMETRIC, _ORIENTATION, _CHANNELS, _PLANAR, _EXTRA, _SAMPLE_FORMAT = 258, 262, 274, 277, 284, 338, 339
_REDUCED, _X_RESOLUTION, _UNIT, _EXIF_IFD = 254, 282, 296, 0x8769
# The layout of a TIFF file and its size; and XMP, IPTC, Photoshop's data and the profile, which are no EXIF.
_LAYOUT = {*range(254, 263), 266, 273, 274, *range(277, 282), 284, *range(288, 294), 301, 317, *range(320, 326), 330,
           332, 338, 339, 347, *range(512, 521), 529, 530, 532, 700, 33723, 34377, 34675}  # fmt: skip
_SIZES = (0xA002, 0xA003)  # of the Exif IFD


class ImageError(HATFreqError):
    """A file that cannot be read as an image; the message names the file, the cause and the remedy."""


@dataclass(frozen=True)
class Metadata:
    """What a file holds beside its samples and what results keep.

    Attributes:
        icc: the colour profile.
        dpi: horizontal and vertical resolution in pixels per inch.
        exif: the EXIF block without orientation, which is applied to the samples, and without sizes.
        chunks: a PNG file's chunks of colour and text, type and content.
        lost: what the file holds and could not be read, in words.
    """

    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    exif: bytes | None = None
    chunks: tuple[tuple[bytes, bytes], ...] = ()
    lost: tuple[str, ...] = ()

    def lost_in(self, path: Path) -> tuple[str, ...]:
        """What a result of this name does not keep."""
        if (suffix := path.suffix.lower()) == ".png":
            return self.lost
        lost = [*self.lost, *dict.fromkeys(kind.decode() for kind, _ in self.chunks)]
        if self.dpi and suffix == ".webp":
            lost.append("resolution")
        if self.exif and len(self.exif) > _MAX_EXIF and suffix != ".webp":
            lost.append("EXIF (more than JPEG holds)")
        return tuple(lost)


@dataclass(frozen=True)
class Picture:
    """The samples of an image file.

    Attributes:
        rgb: `h w 3`, uint8 in [0, 255] or uint16 in [0, 65535]; three equal channels for a grey file.
        alpha: `h w` of the same type, or None if the file has none or is opaque throughout.
        grey: whether the file holds grey samples.
        metadata: what else a result should keep.
    """

    rgb: NDArray[Any]
    alpha: NDArray[Any] | None = None
    grey: bool = False
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def samples(self) -> NDArray[Any]:
        """As a file holds them: `h w`, `h w 2` (grey and alpha), `h w 3` or `h w 4`. Grey is BT.601's luma of `rgb`."""
        colour = _luma(self.rgb) if self.grey else self.rgb
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


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read_picture(path: str | os.PathLike[str], content: bytes | None = None) -> Picture:
    """Read an image file of 8 or 16 bits: grey, palette, colour, with or without alpha, upright by its EXIF tag.

    Args:
        path: the file; only a name for messages where `content` is given.
        content: the file's bytes, if they lie elsewhere (inside a tar shard, say).

    Raises:
        ImageError: not an image, truncated, too large, animated, CMYK or of floating-point samples.
    """
    path = Path(path)
    with _decoding(path):
        content = _regular(path).read_bytes() if content is None else content
        with _opened(path, io.BytesIO(content), empty=not content) as image:
            _refuse_unsupported(path, image, content)
            image.load()  # decodes everything: a truncated file fails here
            samples = _decode_16(path, content, image) if _is_16_bit(image, content) else _decode_8(content, image)
            picture = _picture(_upright(samples, _orientation(image)))
            return replace(picture, metadata=_metadata(image, picture.grey, content))


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
    path = Path(path)
    with _decoding(path):
        source = _regular(path) if content is None else io.BytesIO(content)
        empty = not (path.stat().st_size if content is None else content)
        with _opened(path, source, empty) as image:
            width, height = image.size
            turned = image.format != "TIFF" and _orientation(image) >= 5  # PIL gives a TIFF's size upright
            return (width, height) if turned else (height, width)


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into an error that names it: damaged ones fail in any way."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist") from error
    except MemoryError as error:
        raise ImageError(f"{path} does not fit into memory when it is decoded: make it smaller") from error
    except Exception as error:  # TypeError, KeyError, SyntaxError, struct.error, ...: PIL has no class for them
        if isinstance(error, OSError) and error.errno:
            raise ImageError(f"{path} cannot be read ({error.strerror}): check it and its permissions") from error
        reason = next(iter(str(error).splitlines()), "")[:100]
        if not reason or " at 0x" in reason:  # an object of PIL's, which says nothing to a reader
            reason = type(error).__name__
        raise ImageError(f"{path} is damaged or truncated ({reason}): copy or download it again") from error


def _regular(path: Path) -> Path:
    if path.is_dir():
        raise ImageError(f"{path} is a folder with an image's name: rename it")
    if path.exists() and not path.is_file():  # reading from a pipe would wait for ever
        raise ImageError(f"{path} is not a regular file: take it out of the folder")
    return path


def _opened(path: Path, source: Path | BinaryIO, empty: bool) -> Image.Image:
    """The file with its header read."""
    try:
        image = Image.open(source, formats=_FORMATS)
    except UnidentifiedImageError as error:
        kind = None if empty else _other_format(source)
        cause = "is empty" if empty else "is not an image (PNG, JPEG, BMP, TIFF or WebP), or its header is damaged"
        remedy = "convert it to PNG" if kind else "replace it or take it out of the folder"
        raise ImageError(f"{path} {f'holds {kind}' if kind else cause}: {remedy}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has more than {MAX_PIXELS:,} pixels: crop it first") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError(f"{path} has {image.width}x{image.height} pixels, more than {MAX_PIXELS:,}: crop it first")
    return image


def _other_format(source: Path | BinaryIO) -> str | None:
    """The name of a format that PIL knows by its header and that is not read here."""
    try:
        with Image.open(source) as image:
            return image.format
    except Exception:  # as many kinds of errors as formats
        return None


def _refuse_unsupported(path: Path, image: Image.Image, content: bytes) -> None:
    frames = _frames(image)
    if frames > 1 and image.format != "MPO":  # MPO: a phone's JPEG with previews behind it; the first is the photograph
        raise ImageError(f"{path} holds {frames} frames or pages: save each as a file of its own")
    if image.mode not in _GREY + _COLOUR + _SIXTEEN:
        raise ImageError(f"{path} holds {image.mode} samples: convert it to 8- or 16-bit grey or RGB first")
    if image.format == "PNG" and content[12:16] != b"IHDR":
        raise ImageError(f"{path} is damaged (its header is not in its place): copy or download it again")
    if image.format == "TIFF":
        _refuse_tiff(path, image)


def _frames(image: Any) -> int:
    """Frames or pages; a TIFF file's reduced copies of its first page do not count."""
    count = getattr(image, "n_frames", 1)
    if count == 1 or image.format != "TIFF":
        return count
    full = 1
    for number in range(1, count):
        image.seek(number)
        full += not int(image.tag_v2.get(_REDUCED, 0)) & 1
    image.seek(0)
    return full


def _refuse_tiff(path: Path, image: Any) -> None:
    """Kinds of TIFF that PIL (8 bits) and OpenCV (16 bits) would read wrongly and not say so."""
    bits, kinds = (set(np.atleast_1d(image.tag_v2.get(tag, 1)).tolist()) for tag in (_BITS, _SAMPLE_FORMAT))
    remedy = "save it with 8 or 16 bits, or as PNG"
    if kinds != {1}:
        raise ImageError(f"{path} holds {max(bits)}-bit samples that are not unsigned: {remedy}")
    if len(bits) > 1 or not bits <= {1, 2, 4, 8, 16}:
        raise ImageError(f"{path} holds samples of {max(bits)} bits: {remedy}")
    channels = image.tag_v2.get(_CHANNELS, 1)
    if image.tag_v2.get(_PLANAR, 1) != 1 and (channels == 2 or (channels > 1 and bits == {16})):
        raise ImageError(f"{path} keeps its channels in separate planes: save it with interleaved ones, or as PNG")
    extra = np.atleast_1d(image.tag_v2.get(_EXTRA, ())).tolist()
    layout = (image.tag_v2.get(_PHOTOMETRIC), channels, extra)
    if bits == {16} and layout not in ((0, 1, []), (1, 1, []), (2, 3, []), (2, 4, []), (2, 4, [2])):
        raise ImageError(f"{path} holds 16-bit samples other than grey, RGB, and RGB with straight alpha: {remedy}")


def _largest_tag(image: Image.Image, tag: int, default: int) -> int:
    """A TIFF tag that may have one value a channel; the default for other formats."""
    return int(max(np.atleast_1d(getattr(image, "tag_v2", {}).get(tag, default))))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the tag is missing or is not a number."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _is_16_bit(image: Image.Image, content: bytes) -> bool:
    """Whether samples have 16 bits; PIL's mode says so for grey files only."""
    if image.format == "PNG":
        return content[24] == 16  # the bit depth in the IHDR chunk (PNG specification, 11.2.1)
    return image.mode in _SIXTEEN or _largest_tag(image, _BITS, 8) == 16


def _decode_8(content: bytes, image: Image.Image) -> NDArray[np.uint8]:
    """uint8 `h w`, `h w 2` (grey and alpha), `h w 3` or `h w 4`."""
    transparent = "transparency" in image.info
    if transparent and image.format == "PNG" and image.mode == "L":
        image.info["transparency"] *= 255 // (2 ** content[24] - 1)  # PIL has spread 2 and 4 bits over the range
    if image.mode in _GREY:
        mode = "LA" if transparent or image.mode == "LA" else "L"
    else:
        mode = "RGBA" if transparent or image.mode in ("RGBA", "PA") else "RGB"
    converted = image if image.mode == mode else image.convert(mode)
    channels = len(converted.getbands())
    # Straight from PIL's bytes: np.array copies twice more, which takes as long as decoding a JPEG.
    samples = np.frombuffer(converted.tobytes(), np.uint8)
    return samples.reshape(converted.height, converted.width, *([channels] if channels > 1 else []))


def _decode_16(path: Path, content: bytes, image: Image.Image) -> NDArray[np.uint16]:
    """uint16 `h w`, `h w 2`, `h w 3` or `h w 4`."""
    tags = getattr(image, "tag_v2", {})
    samples = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        if image.format == "PNG":
            raise ImageError(f"{path} is damaged or truncated: copy or download it again")
        raise ImageError(f"{path} holds 16-bit samples that OpenCV cannot decode: save it as a 16-bit PNG")
    if samples.ndim == 3:
        samples = cv2.cvtColor(samples, cv2.COLOR_BGRA2RGBA if samples.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    if image.format == "PNG" and content[25] == 4:  # grey and alpha, which OpenCV gives as colour and alpha
        return samples[..., 2:]
    if samples.ndim == 2 and tags.get(_PHOTOMETRIC, 1) == 0:  # WhiteIsZero: OpenCV leaves it a negative
        return np.subtract(65535, samples, dtype=np.uint16)
    if samples.ndim == 2 and isinstance(value := image.info.get("transparency"), int):
        return np.dstack([samples, np.where(samples == value, 0, 65535).astype(np.uint16)])
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


def _metadata(image: Any, grey: bool, content: bytes) -> Metadata:
    """Profile, resolution, EXIF and chunks, as far as they can be read; none of them is a reason to refuse an image."""
    lost: list[str] = []
    icc = image.info.get("icc_profile") or None
    if icc is not None and icc[16:20] != (b"GRAY" if grey else b"RGB "):  # bytes 16 to 19: the profile's colour space
        icc, lost = None, [*lost, "colour profile (of another kind of samples)"]
    dpi, exif = None, None
    try:
        dpi = _resolution(image)
        exif = _exif(image)
    except Exception as error:  # PIL writes only what it can parse
        lost.append(f"EXIF ({error or type(error).__name__})")
    if any(key in image.info for key in ("xmp", "XML:com.adobe.xmp", "photoshop")):
        lost.append("XMP or IPTC")
    return Metadata(icc, dpi, exif, tuple(_chunks(content)) if image.format == "PNG" else (), tuple(lost))


def _resolution(image: Any) -> tuple[float, float] | None:
    """In pixels per inch, if the file holds one: PIL makes up 1 or 72 where it does not."""
    x, y = map(float, image.info.get("dpi", (0, 0)))
    held = True
    if image.format == "TIFF":
        held = _X_RESOLUTION in image.tag_v2 and image.tag_v2.get(_UNIT, 2) != 1
    elif image.format in ("JPEG", "MPO"):
        held = image.info.get("jfif_unit", 0) in (1, 2) or _X_RESOLUTION in image.getexif()
    return (x, y) if held and min(x, y) > 0 and max(x, y) < 1e5 else None


def _exif(image: Image.Image) -> bytes | None:
    """A file's EXIF without orientation and sizes; of a TIFF file, whose own tags they are, without its layout."""
    tags = image.getexif()
    for tag in _LAYOUT & set(tags):
        del tags[tag]
    for tag in _SIZES if _EXIF_IFD in tags else ():
        tags.get_ifd(_EXIF_IFD).pop(tag, None)
    if image.format == "TIFF":
        for tag in (_X_RESOLUTION, _X_RESOLUTION + 1, _UNIT):
            tags.pop(tag, None)
    return tags.tobytes() if len(tags) else None


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """A PNG file's chunks that results keep."""
    place = len(_SIGNATURE)
    while place + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        data = content[place + 8 : place + 8 + length]
        if kind in _KEPT_CHUNKS and not data.startswith(_ELSEWHERE):
            yield kind, data
        place += length + 12


def _luma(rgb: NDArray[Any]) -> NDArray[Any]:
    """BT.601 luma of full-range RGB, `h w 3` -> `h w` of the same type; equal channels keep their value."""
    luma = np.empty(rgb.shape[:2], rgb.dtype)
    for top in range(0, len(rgb), _BAND):  # the float64 of a large image would take eight times its samples
        part = rgb[top : top + _BAND] @ (np.array([65.481, 128.553, 24.966]) / 219)
        luma[top : top + _BAND] = np.rint(part)
    return luma


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def write_picture(path: str | os.PathLike[str], picture: Picture, quality: int = 95) -> None:
    """Write a picture with its metadata in the format of the path's suffix, one of OUTPUT_SUFFIXES.

    Args:
        quality: of JPEG and WebP, 1 to 100; 100 is lossless WebP.

    Raises:
        ValueError: samples that the format cannot hold.
        OSError: the file cannot be written (a full disk, say).
    """
    path, kept = Path(path), picture.metadata
    kind = check_format(path, picture)
    if kind == "PNG":
        write_png(path, picture.samples, kept)
        return
    samples = picture.samples
    if samples.dtype == np.uint16:
        samples = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
    exif = b"" if kind == "JPEG" and len(kept.exif or b"") > _MAX_EXIF else kept.exif or b""
    options: dict[str, Any] = {"quality": quality, "icc_profile": kept.icc, "exif": exif}
    if kind == "WEBP":
        options |= {"lossless": quality == 100, "exact": True}
    else:
        options |= {"subsampling": 0} | ({"dpi": kept.dpi} if kept.dpi else {})
    with atomic_write(path) as file:
        Image.fromarray(samples).save(file, kind, **options)


def check_format(path: Path, picture: Picture, scale: int = 1) -> str:
    """PNG, JPEG or WEBP by the path's suffix.

    Args:
        scale: by which the picture will be enlarged before it is written.

    Raises:
        ValueError: the format cannot hold the picture.
    """
    suffix = path.suffix.lower()
    kind = "JPEG" if suffix in (".jpg", ".jpeg") else suffix[1:].upper()
    if kind == "JPEG" and picture.alpha is not None:
        raise ValueError(f"JPEG holds no transparency, and {path.stem} has some: write PNG or WebP")
    height, width = (scale * length for length in picture.rgb.shape[:2])
    if max(height, width) > LONGEST.get(kind, max(height, width)):
        raise ValueError(
            f"{path} would have {width}x{height} pixels, and {kind} holds {LONGEST[kind]} a side: write PNG"
        )
    return kind


def write_png(path: str | os.PathLike[str], samples: NDArray[Any], metadata: Metadata | None = None) -> None:
    """Write uint8 or uint16 `h w`, `h w 2` (grey, alpha), `h w 3` or `h w 4` as PNG, under its name once complete.

    Raises:
        ValueError: samples that a PNG file cannot hold.
        OSError: it cannot be written (a full disk, say).
    """
    with atomic_write(Path(path)) as file:
        write_rows(file, samples, metadata or Metadata())


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> grey, grey and alpha, RGB, RGBA
_SUB = 1  # the filter type: a sample minus the one to its left
_COMPRESSED_AT_ONCE = 1 << 20  # bytes


def write_rows(file: BinaryIO, samples: NDArray[Any], metadata: Metadata) -> None:
    """Write samples as a PNG file, a few rows at a time (PNG specification, https://www.w3.org/TR/png-3/).

    Raises:
        ValueError: samples of another type or shape than `write_png` takes, or none.
        OSError: the file cannot be written.
    """
    channels = 1 if samples.ndim == 2 else samples.shape[-1]
    if samples.dtype not in (np.uint8, np.uint16) or samples.ndim not in (2, 3) or channels not in _COLOUR_TYPES:
        raise ValueError(f"PNG holds 8 or 16 bits in 1 to 4 channels, not {samples.dtype} of shape {samples.shape}")
    if not samples.size:
        raise ValueError(f"an image of shape {samples.shape} has no pixels")
    height, width = samples.shape[:2]
    bits = 8 * samples.dtype.itemsize
    file.write(_SIGNATURE)
    _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, bits, _COLOUR_TYPES[channels], 0, 0, 0))
    for name, content in metadata.chunks:
        if not (name == b"sRGB" and metadata.icc):
            _write_chunk(file, name, content)
    if metadata.icc:
        _write_chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc))
    if metadata.dpi:
        x, y = (round(value / 0.0254) for value in metadata.dpi)  # pixels per metre
        _write_chunk(file, b"pHYs", struct.pack(">IIB", x, y, 1))
    if metadata.exif:
        _write_chunk(file, b"eXIf", metadata.exif.removeprefix(b"Exif\0\0"))
    # Run lengths at the lowest level: a third larger than the best, and many times faster.
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    rows = max(1, _COMPRESSED_AT_ONCE // samples[0].nbytes)
    for top in range(0, height, rows):
        filtered = _filtered(samples[top : top + rows].reshape(-1, width, channels))
        _write_chunk(file, b"IDAT", packer.compress(filtered.data))
    _write_chunk(file, b"IDAT", packer.flush())
    _write_chunk(file, b"IEND", b"")


def _filtered(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 or uint16 `h w c` -> uint8 `h 1+n`: the filter's number, then each byte minus that one pixel before it."""
    pixels = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder(">"), copy=False))
    data = pixels.view(np.uint8).reshape(len(rows), rows.shape[1], -1)  # h w bytes
    filtered = np.empty((len(rows), 1 + data[0].size), np.uint8)
    filtered[:, 0] = _SUB
    differences = filtered[:, 1:].reshape(data.shape)
    differences[:, 0] = data[:, 0]
    np.subtract(data[:, 1:], data[:, :-1], out=differences[:, 1:])
    return filtered


def _write_chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    if content or kind == b"IEND":  # a compressor that returns nothing yet makes no chunk
        file.write(struct.pack(">I", len(content)) + kind + content)
        file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
