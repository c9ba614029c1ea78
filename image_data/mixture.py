"""The training set's sources and how often their images are drawn."""

import math
from dataclasses import dataclass
from pathlib import Path

from image_data.pairs import match_lr
from image_data.sources import DataError, ImageList, expand
from utils.files import refuse_doubled

PARTS = ("hr", "lr", "weight")


@dataclass(frozen=True)
class Source:
    """One source of training images.

    Attributes:
        images: its high-resolution images.
        lr_images: their low-resolution images in the same order; None if these are made on the fly.
        weight: its share of the patches in relation to the other sources; 0 for a share in proportion to its pixels.
    """

    images: ImageList
    lr_images: ImageList | None = None
    weight: float = 0.0


def open_sources(words: tuple[str, ...]) -> list[Source]:
    """List the images of a training set, and pair them where low-resolution images are given.

    Args:
        words: `folder` (or what else `expand` takes), or `hr=folder,lr=folder,weight=2`.

    Raises:
        DataError: nothing there, images without their partners.
    """
    parsed = [parse_source(word) for word in words]
    refuse_doubled([str(Path(parts["hr"]).absolute()) for parts in parsed], "name each source of --data once")
    sources = []
    for parts in parsed:
        images = expand(parts["hr"])
        lr_images = match_lr(images, expand(parts["lr"]), parts["lr"]) if "lr" in parts else None
        sources.append(Source(images, lr_images, float(parts.get("weight", 0))))
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
            form = "hr=FOLDER,lr=FOLDER,weight=NUMBER"
            raise DataError(f"data: cannot read {item!r} in {word!r}: write {form} (no folder here has a comma)")
        parts[key] = value
    if "hr" not in parts:
        raise DataError(f"data: {word!r} names no high-resolution images: add hr=FOLDER")
    if "weight" in parts and not 0 < _number(parts["weight"]) < math.inf:
        raise DataError(f"data: the weight of {word!r} must be a positive number, got {parts['weight']!r}")
    return parts


def _number(text: str) -> float:
    """NaN for what is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
