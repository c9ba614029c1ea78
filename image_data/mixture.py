"""The training set's sources and how often each is drawn from."""

import math
from collections import Counter
from dataclasses import dataclass

from image_data.sources import DataError, ImageFile, expand

NAMED = 10  # how many images a message lists
SCALE_SUFFIX = "x4"  # official low-resolution images may carry it: 0001.png <-> 0001x4.png
PARTS = ("hr", "lr", "weight")


@dataclass(frozen=True)
class Source:
    """One source of training images.

    Attributes:
        name: the word it was named by.
        images: its high-resolution images.
        lows: their low-resolution images in the same order, or None for each if these are made on the fly.
        weight: its share of the patches in relation to the other sources; 0 for a share in proportion to its pixels.
    """

    name: str
    images: tuple[ImageFile, ...]
    lows: tuple[ImageFile | None, ...]
    weight: float = 0.0


def parse_source(word: str) -> dict[str, str]:
    """`folder` or `hr=folder,lr=folder,weight=2` -> its parts by name.

    Raises:
        ValueError: an unknown or doubled part, no `hr`, or a weight that is no positive number.
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
    lows: list[ImageFile | None] = [None] * len(images)
    if "lr" in parts:
        lows = [*pair_lows(images, expand(parts["lr"]), parts["lr"])]
    return Source(word, tuple(images), tuple(lows), _weight(word, parts.get("weight")))


def pair_lows(images: list[ImageFile], lows: list[ImageFile], where: str) -> list[ImageFile]:
    """The low-resolution image of each image: named alike, or with `x4` after the name.

    Args:
        where: what the low-resolution images were named by, for messages.

    Raises:
        DataError: some have none (the first ten are named), or several have the same name.
    """
    by_stem = {low.stem: low for low in lows}
    for side, stems in (("the targets", [i.stem for i in images]), (where, [low.stem for low in lows])):
        if doubled := [stem for stem, count in Counter(stems).items() if count > 1]:
            raise DataError(
                f"{side}: several images are called {', '.join(doubled[:NAMED])}: pairs are matched by name"
            )
    found = [by_stem.get(f"{image.stem}{SCALE_SUFFIX}") or by_stem.get(image.stem) for image in images]
    missing = [image.name for image, low in zip(images, found, strict=True) if low is None]
    if missing:
        raise DataError(
            f"{where} lacks the low-resolution images of {len(missing)} targets: {', '.join(missing[:NAMED])}; they "
            f"are named like the target, or with {SCALE_SUFFIX} after its name"
        )
    return [low for low in found if low is not None]


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
