"""The training set's sources and how often each is drawn from."""

import math
from dataclasses import dataclass

from image_data.pairs import match_lr
from image_data.sources import ImageList, expand

PARTS = ("hr", "lr", "weight")


@dataclass(frozen=True)
class Source:
    """One source of training images.

    Attributes:
        name: the word it was named by.
        images: its high-resolution images.
        lr_images: their low-resolution images in the same order; None if these are made on the fly.
        weight: its share of the patches in relation to the other sources; 0 for a share in proportion to its pixels.
    """

    name: str
    images: ImageList
    lr_images: ImageList | None = None
    weight: float = 0.0


def parse_source(word: str) -> dict[str, str]:
    """`folder` or `hr=folder,lr=folder,weight=2` -> its parts by name.

    Raises:
        ValueError: an unknown or doubled part, no `hr`, or a weight that is not a positive number.
    """
    if not word.startswith(tuple(f"{part}=" for part in PARTS)):
        return {"hr": word}
    parts: dict[str, str] = {}
    for item in word.split(","):
        key, equals, value = item.partition("=")
        if key not in PARTS or not equals or not value or key in parts:
            raise ValueError(f"data: cannot read {item!r} in {word!r}: write hr=FOLDER,lr=FOLDER,weight=NUMBER")
        parts[key] = value
    if "hr" not in parts:
        raise ValueError(f"data: {word!r} names no high-resolution images: add hr=FOLDER")
    _weight(word, parts.get("weight"))
    return parts


def check_mixture(words: tuple[str, ...]) -> None:
    """Refuse a mixture of which only some sources have a weight, or that cannot be read (ValueError)."""
    weighted = ["weight" in parse_source(word) for word in words]
    if any(weighted) and not all(weighted):
        lacking = words[weighted.index(False)]
        raise ValueError(f"data: {lacking!r} has no weight and other sources have: give one to each, or to none")


def open_source(word: str) -> Source:
    """List a source's images and pair them.

    Raises:
        DataError: nothing there, or high-resolution images without their low-resolution ones (the first are named).
    """
    parts = parse_source(word)
    images = expand(parts["hr"])
    lr_images = match_lr(images, expand(parts["lr"]), parts["lr"]) if "lr" in parts else None
    return Source(word, images, lr_images, _weight(word, parts.get("weight")))


def _weight(word: str, text: str | None) -> float:
    if text is None:
        return 0.0
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"data: the weight of {word!r} must be a positive number, got {text!r}")
    return weight
