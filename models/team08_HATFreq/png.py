"""PNG files written row by row: neither a second copy of the samples nor the compressed file is held in memory.

OpenCV wants a copy in its order of channels and gives the file as one piece of memory; PIL copies the samples to four
bytes a pixel. For a result of 12000x8000 pixels that is as much again as the samples, or more.

Source: the PNG specification, third edition (https://www.w3.org/TR/png-3/), sections 5, 7 and 9.
"""

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> grey, grey and alpha, RGB, RGBA
_LEFT = 1  # filter type "Sub": a sample less the one to its left
_BAND = 1 << 20  # bytes compressed at once


def write_rows(file: BinaryIO, samples: NDArray[Any]) -> None:
    """Write samples as a PNG file.

    Args:
        file: open for writing.
        samples: uint8 or uint16, `h w`, `h w 2` (grey and alpha), `h w 3` (RGB) or `h w 4` (RGBA).

    Raises:
        ValueError: samples of another type or shape, or none.
        OSError: the file cannot be written (a full disk, say).
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
    # Run lengths at the lowest level: a third larger than the best, and many times faster.
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    rows = max(1, _BAND // samples[0].nbytes)
    for top in range(0, height, rows):
        filtered = _filtered(samples[top : top + rows].reshape(-1, width, channels))
        _write_chunk(file, b"IDAT", packer.compress(filtered.data))
    _write_chunk(file, b"IDAT", packer.flush())
    _write_chunk(file, b"IEND", b"")


def _filtered(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 or uint16 `h w c` -> uint8 `h 1+n`: the filter's number, then each byte less that one pixel before it."""
    pixels = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder(">"), copy=False))
    data = pixels.view(np.uint8).reshape(len(rows), rows.shape[1], -1)  # h w bytes
    filtered = np.empty((len(rows), 1 + data[0].size), np.uint8)
    filtered[:, 0] = _LEFT
    differences = filtered[:, 1:].reshape(data.shape)
    differences[:, 0] = data[:, 0]
    np.subtract(data[:, 1:], data[:, :-1], out=differences[:, 1:])
    return filtered


def _write_chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    if content or kind != b"IDAT":
        file.write(struct.pack(">I", len(content)) + kind + content)
        file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
