"""One image from its file to what is kept of it: the encoder's square, hashes, measures.

Runs in processes of its own (see reader.py), which a damaged or hostile file may crash or hang.
"""

import re
from dataclasses import dataclass
from hashlib import sha1

import numpy as np
from numpy.typing import NDArray

from data_curation.features import Record
from data_curation.framing import Framing
from data_curation.phash import phash8
from data_curation.quality import quality
from image_data.sources import ImageFile
from models.team08_HATFreq.image_io import ImageError, read_rgb
from utils.resize import imresize

_ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-f]+>")  # differs from run to run, unlike everything else written


@dataclass(frozen=True)
class Decoded:
    """An image as the encoder takes it, uint8 `crop crop 3`, and its record."""

    pixels: NDArray[np.uint8]
    record: Record


def decode(image: ImageFile, framing: Framing, downscale: int) -> Decoded:
    """Read and measure an image.

    Args:
        downscale: 1, or the factor by which MATLAB's bicubic shrinks the image before the encoder's preprocessing,
            its bottom and right first cut to multiples of it: what the test's low-resolution side looks like.

    Raises:
        ImageError: it cannot be read as an opaque image, is smaller than `downscale` pixels, or has a name that no
            list can hold.
    """
    _check_name(image)
    content = image.content()
    rgb = read_rgb(image.name, content)
    h, w = rgb.shape[:2]
    if min(h, w) < downscale:
        raise ImageError(f"{image.name} has {w}x{h} pixels, too few to shrink by {downscale}: take it out")
    blockiness, sharpness = quality(rgb)
    hashes = [int(bits) for bits in phash8(rgb)]
    record = Record(image.name, h, w, len(content), sha1(content).hexdigest(), hashes, blockiness, sharpness)
    shrunk = imresize(rgb[: h - h % downscale, : w - w % downscale], 1 / downscale) if downscale > 1 else rgb
    return Decoded(np.ascontiguousarray(framing.apply(shrunk)), record)


def reason_of(image: ImageFile, error: Exception) -> str:
    """Why an image could not be read, in one line that is the same in every run."""
    reason = str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
    return " ".join(_ADDRESS.sub("", reason).removeprefix(image.name).split())


def _check_name(image: ImageFile) -> None:
    try:
        image.name.encode()
    except UnicodeEncodeError as error:
        raise ImageError(f"{image.name} has a name that is not UTF-8: rename it") from error
