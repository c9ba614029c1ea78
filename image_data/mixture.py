"""The training set's sources and how often their images are drawn."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from image_data.pairs import match_lr
from image_data.sources import DataError, ImageList, expand
from utils.files import refuse_doubled

PARTS = ("hr", "lr", "weight", "image_weights")


@dataclass(frozen=True)
class Source:
    """One source of training images.

    Attributes:
        images: its high-resolution images.
        lr_images: their low-resolution images in the same order; None if these are made on the fly.
        weight: its share of the patches in relation to the other sources; 0 for a share in proportion to its pixels.
        image_weights: of each image, how often its pixels are drawn in relation to the others'; None for alike.
    """

    images: ImageList
    lr_images: ImageList | None = None
    weight: float = 0.0
    image_weights: NDArray[np.float64] | None = None


def open_sources(words: tuple[str, ...]) -> list[Source]:
    """List the images of a training set, and pair them where low-resolution images are given.

    Args:
        words: `folder` (or what else `expand` takes), or `hr=folder,lr=folder,weight=2,image_weights=file`.

    Raises:
        DataError: nothing there, images without their partners, or weights that are not those of the images.
    """
    parsed = [parse_source(word) for word in words]
    refuse_doubled([str(Path(parts["hr"]).absolute()) for parts in parsed], "name each source of --data once")
    sources = []
    for parts in parsed:
        images = expand(parts["hr"])
        lr_images = match_lr(images, expand(parts["lr"]), parts["lr"]) if "lr" in parts else None
        file = parts.get("image_weights")
        weights = read_image_weights(Path(file), images) if file else None
        sources.append(Source(images, lr_images, float(parts.get("weight", 0)), weights))
    return sources


def check_mixture(words: tuple[str, ...]) -> None:
    """Refuse sources that cannot be read, or of which only some have a weight (DataError)."""
    weighted = ["weight" in parse_source(word) for word in words]
    if any(weighted) and not all(weighted):
        lacking = words[weighted.index(False)]
        raise DataError(f"data: {lacking!r} has no weight and other sources have: give one to each, or to none")


def parse_source(word: str) -> dict[str, str]:
    """`folder` or `hr=folder,lr=folder,weight=2` -> its parts by name.

    Raises:
        DataError: an unknown or doubled part, no `hr`, or a weight that is not a positive number.
    """
    if not word.startswith(tuple(f"{part}=" for part in PARTS)):
        return {"hr": word}
    parts: dict[str, str] = {}
    for item in word.split(","):
        key, _, value = item.partition("=")
        if key not in PARTS or not value or key in parts:
            form = "hr=FOLDER,lr=FOLDER,weight=NUMBER,image_weights=FILE"
            raise DataError(f"data: cannot read {item!r} in {word!r}: write {form}")
        parts[key] = value
    if "hr" not in parts:
        raise DataError(f"data: {word!r} names no high-resolution images: add hr=FOLDER")
    if "weight" in parts and not 0 < _number(parts["weight"]) < math.inf:
        raise DataError(f"data: the weight of {word!r} must be a positive number, got {parts['weight']!r}")
    return parts


def read_image_weights(path: Path, images: ImageList) -> NDArray[np.float64]:
    """The weights of a source's images: a text file with one positive number a line, in the order of the images.

    Raises:
        DataError: it cannot be read, a line is no positive number, or there are more or fewer than images.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): give a text file, one number a line") from error
    held = [(number, line) for number, line in enumerate(lines, start=1) if line.strip() and not line.startswith("#")]
    weights = np.array([_number(line) for _, line in held], np.float64)
    if (bad := ~((weights > 0) & (weights < math.inf))).any():
        number, line = held[int(bad.argmax())]
        raise DataError(f"{path}, line {number}: {line!r} is not a positive number: write one")
    if len(weights) != len(images):
        raise DataError(f"{path} has {len(weights)} weights for {len(images)} images: give the file made with the list")
    return weights


def _number(text: str) -> float:
    """NaN for what is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
