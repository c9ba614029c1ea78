"""Copies of an image as they occur in collections, to be planted: `python -m benchmarks.curation copies`.

Each kind is a function of an image, uint8 `h w 3`, and a random generator. KINDS were looked at while the method was
chosen; HELD_OUT were not, but for ten images of each.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Image

Random = np.random.Generator
_ORDERS = [(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
_SEPIA = np.array([[0.393, 0.349, 0.272], [0.769, 0.686, 0.534], [0.189, 0.168, 0.131]])
_EMBOSS = np.array([[-2, -1, 0], [-1, 0, 1], [0, 1, 2]], np.float32)


def plant(image: Image, kind: str, seed: int, other: Image | None = None) -> Image:
    """A copy of `image`; `other` is another photograph, for the kinds of WITH_OTHER."""
    make, rng = {**KINDS, **HELD_OUT}[kind], np.random.default_rng(seed)
    image = np.ascontiguousarray(image)
    return np.ascontiguousarray(make(image, rng, other) if kind in WITH_OTHER else make(image, rng))


def flipped(image: Image, rng: Random) -> Image:
    """Left to right or upside down."""
    return image[:, ::-1] if rng.random() < 0.5 else image[::-1]


def rotated(image: Image, rng: Random) -> Image:
    """By 90, 180 or 270 degrees."""
    return np.rot90(image, int(rng.integers(1, 4)))


def recompressed(image: Image, rng: Random) -> Image:
    """JPEG of quality 30 to 90."""
    return _jpeg(image, int(rng.integers(30, 91)))


def resized(image: Image, rng: Random) -> Image:
    """By a factor of 0.5 to 2, uniform in its logarithm."""
    return _resize(image, 2 ** rng.uniform(-1, 1))


def cropped(image: Image, rng: Random) -> Image:
    """To 60 to 90 % of each side, independently, anywhere."""
    return _crop(image, rng, rng.uniform(0.6, 0.9), rng.uniform(0.6, 0.9))


def turned(image: Image, rng: Random) -> Image:
    """By 2 to 12 degrees, with black corners or without."""
    h, w = image.shape[:2]
    angle = rng.uniform(2, 12) * rng.choice([-1, 1])
    result = _affine(image, cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), angle, 1))
    edge = int(0.12 * min(h, w)) if rng.random() < 0.5 else 0
    return result[edge : h - edge, edge : w - edge]


def chain(image: Image, rng: Random) -> Image:
    """Mirrored, a crop of 25 to 40 % of the area, shrunk to 50 to 70 %, then JPEG of quality 40 to 80."""
    result = np.ascontiguousarray(_crop_area(image, rng, rng.uniform(0.25, 0.4))[:, ::-1])
    return _jpeg(_resize(result, rng.uniform(0.5, 0.7)), int(rng.integers(40, 81)))


def recoloured(image: Image, rng: Random) -> Image:
    """Each channel times 0.9 to 1.1, plus -10 to 10 levels, and a gamma of 0.9 to 1.1."""
    gain, offset, gamma = rng.uniform(0.9, 1.1, 3), rng.uniform(-10, 10, 3), rng.uniform(0.9, 1.1)
    return _uint8(255 * (image / 255.0) ** gamma * gain + offset)


def logo(image: Image, rng: Random) -> Image:
    """A figure of three colours on a tenth of the area."""
    h, w = image.shape[:2]
    stretch = rng.uniform(0.7, 1.4)
    height, width = (min(side, round(np.sqrt(0.1 * h * w) * f)) for side, f in ((h, stretch), (w, 1 / stretch)))
    y, x = np.mgrid[:height, :width] / np.array([height, width])[:, None, None] - 0.5
    colours = rng.integers(0, 256, (3, 3))
    box = np.where((x**2 + y**2 < 0.16)[..., None], colours[1], colours[0])
    box[(abs(x) < 0.12) & (abs(y) < 0.3)] = colours[2]
    top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    result = image.copy()
    result[top : top + height, left : left + width] = box
    return result


def text(image: Image, rng: Random) -> Image:
    """Six lines of large letters, black or white."""
    h, w = image.shape[:2]
    result = image.copy()
    for _ in range(6):
        texts = "".join(rng.choice(list("ABCDEFGHKLMNPRSTUVXYZ"), 12))
        place = int(rng.integers(-w // 8, w // 3)), int(rng.integers(h // 10, h))
        _write(result, texts, place, w / 300, 255 * int(rng.integers(2)), max(1, w // 120))
    return result


def bordered(image: Image, rng: Random) -> Image:
    """A border of one colour, 3 to 10 % of the shorter side wide."""
    width = round(min(image.shape[:2]) * rng.uniform(0.03, 0.1))
    colour = [(0, 0, 0), (255, 255, 255), tuple(int(c) for c in rng.integers(0, 256, 3))][int(rng.integers(3))]
    return cv2.copyMakeBorder(image, width, width, width, width, cv2.BORDER_CONSTANT, value=colour)


def framed(image: Image, rng: Random) -> Image:
    """A patterned frame, 15 to 25 % of the shorter side wide."""
    h, w = image.shape[:2]
    edge = round(min(h, w) * rng.uniform(0.15, 0.25))
    y, x = np.mgrid[: h + 2 * edge, : w + 2 * edge]
    waves = 128 + 100 * np.sin(x / rng.uniform(2, 9)) * np.sin(y / rng.uniform(2, 9))
    result = _uint8(waves[..., None] * rng.uniform(0.4, 1, 3))
    result[edge : edge + h, edge : edge + w] = image
    return result


def collage(image: Image, rng: Random, other: Image) -> Image:
    """A quarter of another photograph's area, anywhere."""
    h, w = image.shape[:2]
    result = cv2.resize(other, (2 * w, 2 * h), interpolation=cv2.INTER_CUBIC)
    top, left = rng.integers(0, h + 1), rng.integers(0, w + 1)
    result[top : top + h, left : left + w] = image
    return result


def perspective(image: Image, rng: Random) -> Image:
    """Every corner moved by up to 12 % of the sides."""
    h, w = image.shape[:2]
    corners = np.array([[0, 0], [w, 0], [w, h], [0, h]], np.float32)
    moved = (corners + rng.uniform(-0.12, 0.12, (4, 2)) * (w, h)).astype(np.float32)
    moved -= moved.min(0)
    size = tuple(int(side) for side in np.ceil(moved.max(0)))
    return cv2.warpPerspective(image, cv2.getPerspectiveTransform(corners, moved), size)


def distorted(image: Image, rng: Random) -> Image:
    """A lens' barrel or pincushion of 8 to 20 %."""
    h, w = image.shape[:2]
    strength = rng.uniform(0.08, 0.2) * rng.choice([-1, 1])
    y, x = np.mgrid[:h, :w] / np.array([h / 2, w / 2])[:, None, None] - 1
    radius = 1 + strength * (x * x + y * y - 1)
    return _remap(image, (x * radius + 1) * w / 2, (y * radius + 1) * h / 2)


def wavy(image: Image, rng: Random) -> Image:
    """Waves of 1.2 % of the longer side."""
    h, w = image.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float64)
    pulse = 2 * np.pi * rng.uniform(1.5, 3) / max(h, w)
    height = 0.012 * max(h, w)
    return _remap(image, x + height * np.sin(pulse * y), y + height * np.sin(pulse * x))


def sheared(image: Image, rng: Random) -> Image:
    """By 10 to 25 %."""
    h, w = image.shape[:2]
    shear = rng.uniform(0.1, 0.25)
    return cv2.warpAffine(image, np.array([[1, shear, 0], [0, 1, 0.0]]), (int(w + shear * h), h))


def equalised(image: Image, rng: Random) -> Image:
    """CLAHE of the lightness."""
    result = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)
    result[..., 0] = cv2.createCLAHE(4, (8, 8)).apply(np.ascontiguousarray(result[..., 0]))
    return cv2.cvtColor(result, cv2.COLOR_LAB2RGB)


def hue_turned(image: Image, rng: Random) -> Image:
    """By 60 to 300 degrees."""
    result = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    result[..., 0] = (result[..., 0].astype(int) + int(rng.integers(30, 150))) % 180
    return cv2.cvtColor(result, cv2.COLOR_HSV2RGB)


def eight_colours(image: Image, rng: Random) -> Image:
    """The palette of k-means."""
    cv2.setRNGSeed(1)
    samples = image.reshape(-1, 3).astype(np.float32)
    _, labels, centres = cv2.kmeans(samples, 8, None, (3, 8, 1.0), 1, cv2.KMEANS_PP_CENTERS)
    return _uint8(centres[labels.ravel()].reshape(image.shape))


def dithered(image: Image, rng: Random) -> Image:
    """Bayer's matrix of 4x4."""
    bayer = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) * 16 + 8
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    h, w = luma.shape
    return _grey(np.uint8(255) * (luma > np.tile(bayer, (h // 4 + 1, w // 4 + 1))[:h, :w]))


def pixelated(image: Image, rng: Random) -> Image:
    """In blocks of 3 to 5 pixels."""
    h, w = image.shape[:2]
    block = int(rng.integers(3, 6))
    small = cv2.resize(image, (w // block, h // block), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (w, h), interpolation=cv2.INTER_NEAREST)


def shaken(image: Image, rng: Random) -> Image:
    """Motion blur of 7 to 14 pixels."""
    size = int(rng.integers(7, 15))
    kernel = np.zeros((size, size), np.float32)
    kernel[size // 2] = 1
    kernel = _affine(kernel, cv2.getRotationMatrix2D((size // 2, size // 2), rng.uniform(0, 180), 1))
    return cv2.filter2D(image, -1, kernel / kernel.sum())


def watermarked(image: Image, rng: Random) -> Image:
    """Slanted half transparent writing all over."""
    h, w = image.shape[:2]
    layer = np.zeros((h, w), np.uint8)
    for y in range(-h, 2 * h, max(24, h // 6)):
        _write(layer, "SAMPLE PHOTO  " * 8, (y % 37 - 20, y), w / 500, 255, max(1, w // 250))
    layer = _affine(layer, cv2.getRotationMatrix2D((w / 2, h / 2), 25, 1))
    return _uint8(image + (255 - image.astype(float)) * layer[..., None] / 510)


def erased(image: Image, rng: Random) -> Image:
    """Four boxes of 35 % of the sides in one colour each."""
    h, w = image.shape[:2]
    result = image.copy()
    for _ in range(4):
        top, left = rng.integers(0, h - int(0.35 * h)), rng.integers(0, w - int(0.35 * w))
        result[top : top + int(0.35 * h), left : left + int(0.35 * w)] = rng.integers(0, 256, 3)
    return result


def ruled(image: Image, rng: Random) -> Image:
    """A grid of 12 lines, three pixels wide."""
    result, step = image.copy(), max(image.shape[:2]) // 12
    for offset in range(3):
        result[offset::step] = result[:, offset::step] = rng.integers(0, 256, 3)
    return result


def screenshot(image: Image, rng: Random) -> Image:
    """On a page with a bar and writing, JPEG."""
    h, w = image.shape[:2]
    result = np.full((int(1.5 * h), int(1.4 * w), 3), 250, np.uint8)
    result[: h // 9] = (60, 90, 160)
    for line in range(8):
        _write(result, "lorem ipsum dolor sit amet 0123456789", (5, int(1.3 * h) + 14 * line), 0.4, 20, 1)
    result[int(0.2 * h) : int(0.2 * h) + h, int(0.2 * w) : int(0.2 * w) + w] = image
    return _jpeg(result, 70)


KINDS: dict[str, Callable[..., Image]] = {
    "recompressed": recompressed,
    "strongly compressed": lambda image, rng: _jpeg(image, int(rng.integers(8, 21))),
    "resized": resized,
    "stretched": lambda image, rng: _resize(image, rng.uniform(1.15, 1.4) ** (1 if rng.random() < 0.5 else -1), 1),
    "flipped": flipped,
    "rotated": rotated,
    "turned": turned,
    "mixed": lambda image, rng: recompressed(
        resized(np.ascontiguousarray((flipped if rng.random() < 0.5 else rotated)(image, rng)), rng), rng
    ),
    "recoloured": recoloured,
    "grey": lambda image, rng: _grey(_luma(image)),
    "swapped": lambda image, rng: image[..., list(_ORDERS[int(rng.integers(5))])],
    "negative": lambda image, rng: 255 - image,
    "gamma": lambda image, rng: _uint8(  # an exponent of 0.4 to 0.6, or of 1.7 to 2.5
        255 * (image / 255.0) ** (rng.uniform(0.4, 0.6) if rng.random() < 0.5 else rng.uniform(1.7, 2.5))
    ),
    "low contrast": lambda image, rng: _uint8((image - 128.0) * rng.uniform(0.3, 0.6) + rng.uniform(60, 190)),
    "posterised": lambda image, rng: _uint8(np.rint(image / 255 * (n := int(rng.integers(3, 6)) - 1)) / n * 255),
    "tinted": lambda image, rng: _uint8(image * (1 - (a := rng.uniform(0.3, 0.5))) + rng.uniform(0, 255, 3) * a),
    "sepia": lambda image, rng: _uint8(image @ _SEPIA),
    "blurred": lambda image, rng: cv2.GaussianBlur(image, (0, 0), rng.uniform(1.5, 3)),
    "noisy": lambda image, rng: _uint8(image + rng.normal(0, rng.uniform(10, 30), image.shape)),
    "logo": logo,
    "text": text,
    "bordered": bordered,
    "framed": framed,
    "collage": collage,
    "cropped": cropped,
    "cropped mixed": lambda image, rng: recompressed(
        resized(np.ascontiguousarray(flipped(cropped(image, rng), rng)), rng), rng
    ),
    "quarter": lambda image, rng: _crop_area(image, rng, 0.25),
    "chain": chain,
    "eighth": lambda image, rng: _crop_area(image, rng, 0.12),
}
HELD_OUT: dict[str, Callable[..., Image]] = {
    "perspective": perspective,
    "distorted": distorted,
    "wavy": wavy,
    "sheared": sheared,
    "halves swapped": lambda image, rng: np.roll(image, -(image.shape[1] // 2), axis=1),
    "grey negative crop": lambda image, rng: 255 - _grey(_luma(_crop_area(image, rng, 0.3)[:, ::-1].copy())),
    "solarised": lambda image, rng: np.where(image > rng.uniform(100, 150), 255 - image, image),
    "equalised": equalised,
    "hue turned": hue_turned,
    "one channel": lambda image, rng: _grey(image[..., int(rng.integers(3))]),
    "eight colours": eight_colours,
    "black and white": lambda image, rng: _grey(np.uint8(255) * (_luma(image) > np.median(_luma(image)))),
    "dithered": dithered,
    "embossed": lambda image, rng: _grey(_uint8(128 + cv2.filter2D(_luma(image).astype(np.float32), -1, _EMBOSS))),
    "pixelated": pixelated,
    "shaken": shaken,
    "smoothed": lambda image, rng: cv2.bilateralFilter(image, 9, 80, 9),
    "painted": lambda image, rng: cv2.medianBlur(image, 9),
    "watermarked": watermarked,
    "erased": erased,
    "ruled": ruled,
    "screenshot": screenshot,
    "blended": lambda image, rng, other: _uint8(0.6 * image + 0.4 * cv2.resize(other, image.shape[1::-1])),
}
WITH_OTHER = ("collage", "blended")


def _luma(image: Image) -> Image:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def _uint8(samples: NDArray[Any]) -> Image:
    return np.clip(np.rint(samples), 0, 255).astype(np.uint8)


def _grey(luma: Image) -> Image:
    return np.repeat(luma[..., None], 3, axis=2)


def _jpeg(image: Image, quality: int) -> Image:
    _, encoded = cv2.imencode(".jpg", image[..., ::-1].copy(), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1].copy()


def _resize(image: Image, across: float, down: float | None = None) -> Image:
    down = across if down is None else down
    h, w = image.shape[:2]
    size = max(1, round(w * across)), max(1, round(h * down))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if across * down < 1 else cv2.INTER_CUBIC)


def _crop(image: Image, rng: Random, down: float, across: float) -> Image:
    h, w = image.shape[:2]
    height, width = round(h * down), round(w * across)
    top, left = rng.integers(0, h - height + 1), rng.integers(0, w - width + 1)
    return image[top : top + height, left : left + width].copy()


def _crop_area(image: Image, rng: Random, share: float) -> Image:
    stretch = rng.uniform(0.8, 1.25)
    return _crop(image, rng, min(1, np.sqrt(share * stretch)), min(1, np.sqrt(share / stretch)))


def _affine(image: NDArray[Any], matrix: NDArray[np.float64]) -> NDArray[Any]:
    return cv2.warpAffine(image, matrix, image.shape[1::-1], flags=cv2.INTER_CUBIC)


def _remap(image: Image, x: NDArray[np.float64], y: NDArray[np.float64]) -> Image:
    places = x.astype(np.float32), y.astype(np.float32)
    return cv2.remap(image, *places, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def _write(image: Image, texts: str, place: tuple[int, int], size: float, level: int, thickness: int) -> None:
    cv2.putText(image, texts, place, cv2.FONT_HERSHEY_DUPLEX, size, (level,) * 3, thickness, cv2.LINE_AA)
