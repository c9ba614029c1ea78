"""Near-duplicates as they occur in image collections, made from an image with a fixed seed."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


def recompressed(image: Image, rng: np.random.Generator) -> Image:
    """JPEG of quality 30 to 90."""
    return _jpeg(image, int(rng.integers(30, 91)))


def resized(image: Image, rng: np.random.Generator) -> Image:
    """By a factor of 0.5 to 2, uniform in its logarithm."""
    return _resize(image, 2 ** rng.uniform(-1, 1))


def cropped(image: Image, rng: np.random.Generator) -> Image:
    """To 60 to 90 % of each side, independently, anywhere."""
    h, w = image.shape[:2]
    height, width = (round(side * rng.uniform(0.6, 0.9)) for side in (h, w))
    top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    return image[top : top + height, left : left + width]


def flipped(image: Image, rng: np.random.Generator) -> Image:
    """Left to right or upside down."""
    return image[:, ::-1] if rng.random() < 0.5 else image[::-1]


def rotated(image: Image, rng: np.random.Generator) -> Image:
    """By 90, 180 or 270 degrees."""
    return np.rot90(image, int(rng.integers(1, 4)))


def recoloured(image: Image, rng: np.random.Generator) -> Image:
    """Each channel times 0.9 to 1.1, plus -10 to 10 levels, and a gamma of 0.9 to 1.1."""
    gain, offset, gamma = rng.uniform(0.9, 1.1, 3), rng.uniform(-10, 10, 3), rng.uniform(0.9, 1.1)
    return np.clip(np.rint(255 * (image / 255.0) ** gamma * gain + offset), 0, 255).astype(np.uint8)


def bordered(image: Image, rng: np.random.Generator) -> Image:
    """A frame of one colour, 3 to 10 % of the shorter side wide."""
    width = round(min(image.shape[:2]) * rng.uniform(0.03, 0.1))
    colour = [(0, 0, 0), (255, 255, 255), tuple(int(c) for c in rng.integers(0, 256, 3))][int(rng.integers(3))]
    return cv2.copyMakeBorder(image, width, width, width, width, cv2.BORDER_CONSTANT, value=colour)


def mixed(image: Image, rng: np.random.Generator) -> Image:
    """Flipped or rotated, resized, then JPEG."""
    turned = flipped(image, rng) if rng.random() < 0.5 else rotated(image, rng)
    return recompressed(resized(np.ascontiguousarray(turned), rng), rng)


def cropped_mixed(image: Image, rng: np.random.Generator) -> Image:
    """Cropped, flipped, resized, then JPEG."""
    return recompressed(resized(np.ascontiguousarray(flipped(cropped(image, rng), rng)), rng), rng)


KINDS: dict[str, Callable[[Image, np.random.Generator], Image]] = {
    "recompressed": recompressed,
    "resized": resized,
    "flipped": flipped,
    "rotated": rotated,
    "recoloured": recoloured,
    "bordered": bordered,
    "flipped or rotated, resized, recompressed": mixed,
    "cropped": cropped,
    "cropped, flipped, resized, recompressed": cropped_mixed,
}


def plant(image: Image, kind: str, seed: int) -> Image:
    """A near-duplicate of `image`, uint8 `h w 3`."""
    return np.ascontiguousarray(KINDS[kind](image, np.random.default_rng(seed)))


def _jpeg(image: Image, quality: int) -> Image:
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.ascontiguousarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1])


def _resize(image: Image, factor: float) -> Image:
    h, w = (max(1, round(side * factor)) for side in image.shape[:2])
    return cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
