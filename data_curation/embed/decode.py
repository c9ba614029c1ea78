"""One image from its file to what is kept of it: the encoder's square, hashes, keypoints, measures.

Runs in processes of its own (see reader.py), which a damaged or hostile file may crash or hang.
"""

import re
from dataclasses import dataclass
from hashlib import sha1

import cv2
import numpy as np
from numpy.typing import NDArray

from data_curation.embed.keypoints import find_keypoints, hashed
from data_curation.embed.phash import phash8
from data_curation.embed.preprocess import Preprocess
from data_curation.embed.quality import quality
from data_curation.features import THUMBNAIL, Record
from image_data.sources import IN_SHARD, ImageFile
from models.team08_HATFreq.image_io import ImageError, read_rgb, size_of
from utils.resize import imresize

MAX_ASPECT = 16  # between the sides; the preprocessing of a longer strip would take gigabytes
_ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-f]+>")  # differs from run to run, unlike everything else written


@dataclass(frozen=True)
class Decoded:
    """An image as the encoder takes it, uint8 `crop crop 3`, and its record."""

    pixels: NDArray[np.uint8]
    record: Record


def decode(image: ImageFile, preprocess: Preprocess, downscale: int) -> Decoded:
    """Read and measure an image.

    Args:
        downscale: 1, or the factor by which MATLAB's bicubic shrinks the image before the encoder's preprocessing,
            its bottom and right first cut to multiples of it: what the test's low-resolution side looks like.

    Raises:
        ImageError: it cannot be read as an opaque image, is smaller than `downscale` pixels, is a strip, or has a name
            that no list can hold.
    """
    check_name(image)
    content = image.content()
    _check_size(image.name, *size_of(image.name, content), downscale)
    rgb = read_rgb(image.name, content)
    h, w = rgb.shape[:2]
    shrunk = imresize(rgb[: h - h % downscale, : w - w % downscale], 1 / downscale) if downscale > 1 else rgb
    return Decoded(np.ascontiguousarray(preprocess.apply(shrunk)), measure(image.name, content, rgb))


def measure(name: str, content: bytes, rgb: NDArray[np.uint8]) -> Record:
    """The record of an image from its bytes and its pixels, uint8 `h w 3`."""
    h, w = rgb.shape[:2]
    blockiness, sharpness = quality(rgb)
    thumbnail = cv2.resize(rgb, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    keypoints = hashed(find_keypoints(rgb), h, w)
    return Record(name, h, w, len(content), sha1(content).hexdigest(), phash8(rgb).tolist(), blockiness, sharpness,
                  thumbnail.tobytes(), keypoints.tobytes())  # fmt: skip


def check_name(image: ImageFile) -> None:
    """Refuse the names that a list, one name a line in UTF-8, cannot hold.

    Raises:
        ImageError: the name is one.
    """
    name = image.name
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ImageError(f"{name} has a name that is not UTF-8: rename it") from error
    if len(name.splitlines()) != 1:
        raise ImageError(f"{name} has a line break in its name: rename it")
    if IN_SHARD in str(image.path):
        raise ImageError(f"{name} has {IN_SHARD} in its path, which stands before a shard's member: rename it")


def reason_of(image: ImageFile, error: Exception) -> str:
    """Why an image could not be read, in one line that is the same in every run."""
    reason = str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
    return " ".join(_ADDRESS.sub("", reason).removeprefix(image.name).split())


def _check_size(name: str, h: int, w: int, downscale: int) -> None:
    """Refuse from the header what is too small or too long to decode."""
    if min(h, w) < downscale:
        raise ImageError(f"{name} has {w}x{h} pixels, too few to shrink by {downscale}: take it out")
    if max(h, w) > MAX_ASPECT * min(h, w):
        raise ImageError(f"{name} has {w}x{h} pixels, a strip of more than {MAX_ASPECT}:1: crop it or take it out")
