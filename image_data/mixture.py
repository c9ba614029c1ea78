"""The training set's sources, how often their images are drawn, and whose restorations are learned beside the truth."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from image_data.pairs import match_lr, match_teacher
from image_data.sources import TREE, DataError, ImageList, expand
from models.team08_HATFreq.folder import RECORD

PARTS = ("hr", "lr", "teacher", "teacher_weight", "weight", "image_weights")


@dataclass(frozen=True)
class Source:
    """One source of training images.

    Attributes:
        name: the word it was named by.
        images: its high-resolution images.
        lr_images: their low-resolution images in the same order; None if these are made on the fly.
        weight: its share of the patches in relation to the other sources; 0 for a share in proportion to its pixels.
        restorations: a teacher's restorations of the images in the same order; None for none.
        teacher_weight: the restoration's part in the target, in [0, 1]; the rest is the image itself.
        teacher: name and sha256 of the teacher's weights.
        image_weights: of each image, how often its pixels are drawn in relation to the others'; None for alike.
    """

    name: str
    images: ImageList
    lr_images: ImageList | None = None
    weight: float = 0.0
    restorations: ImageList | None = None
    teacher_weight: float = 0.0
    teacher: dict[str, str] | None = None
    image_weights: NDArray[np.float64] | None = None


def parse_source(word: str) -> dict[str, str]:
    """`folder` or `hr=folder,lr=folder,weight=2` -> its parts by name.

    Raises:
        ValueError: an unknown or doubled part, no `hr`, a weight that is not a positive number, or a `teacher_weight`
            that has no teacher or does not lie in [0, 1].
    """
    if not word.startswith(tuple(f"{part}=" for part in PARTS)):
        return {"hr": word}
    parts: dict[str, str] = {}
    for item in word.split(","):
        key, equals, value = item.partition("=")
        if key not in PARTS or not equals or not value or key in parts:
            raise ValueError(
                f"data: cannot read {item!r} in {word!r}: write hr=FOLDER,lr=FOLDER,teacher=FOLDER,weight=NUMBER,"
                "image_weights=FILE"
            )
        parts[key] = value
    if "hr" not in parts:
        raise ValueError(f"data: {word!r} names no high-resolution images: add hr=FOLDER")
    _weight(word, parts.get("weight"))
    _teacher_weight(word, parts)
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
        DataError: nothing there, high-resolution images without their low-resolution ones or their restorations (the
            first are named), a teacher that is not known, or weights that are not those of the images.
    """
    parts = parse_source(word)
    images = expand(parts["hr"])
    lr_images = match_lr(images, expand(parts["lr"]), parts["lr"]) if "lr" in parts else None
    source = Source(word, images, lr_images, _weight(word, parts.get("weight")))
    if "image_weights" in parts:
        source = replace(source, image_weights=read_image_weights(Path(parts["image_weights"]), images))
    if "teacher" not in parts:
        return source
    teacher, folder = read_teacher(parts["teacher"]), parts["teacher"]
    restorations = match_teacher(images, expand(folder), folder)
    return replace(source, restorations=restorations, teacher_weight=_teacher_weight(word, parts), teacher=teacher)


def open_sources(words: tuple[str, ...]) -> list[Source]:
    """The sources of a training set; arguments and errors as `open_source`.

    Raises:
        DataError: they have different teachers.
    """
    sources = [open_source(word) for word in words]
    taught = [source for source in sources if source.teacher]
    for other in taught[1:]:
        if other.teacher != taught[0].teacher:
            raise DataError(
                f"{taught[0].name} and {other.name} have different teachers: a run has one; train it in two runs, the "
                "second with --init, or make the restorations again with one teacher"
            )
    return sources


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


def read_teacher(folder: str) -> dict[str, str]:
    """Name and sha256 of the weights that made a folder of restorations, from its record.

    Raises:
        DataError: the folder has no record of scripts.make_teacher.
    """
    path = Path(folder)
    record = (path.parent if path.name == TREE else path) / RECORD
    try:
        with record.open("rb") as file:
            settings = json.loads(file.readline())["settings"]
        return {"name": Path(settings["teacher"]).stem, "sha256": settings["teacher_sha256"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{record} does not tell which teacher made the restorations: name a folder that scripts.make_teacher wrote"
        ) from error


def _weight(word: str, text: str | None) -> float:
    if text is None:
        return 0.0
    weight = _number(text)
    if not 0 < weight < math.inf:
        raise ValueError(f"data: the weight of {word!r} must be a positive number, got {text!r}")
    return weight


def _teacher_weight(word: str, parts: dict[str, str]) -> float:
    text = parts.get("teacher_weight", "1")
    if "teacher" not in parts and "teacher_weight" in parts:
        raise ValueError(f"data: {word!r} has a teacher_weight and no teacher: add teacher=FOLDER")
    weight = _number(text)
    if not 0 <= weight <= 1:
        raise ValueError(f"data: the teacher_weight of {word!r} must lie between 0 and 1, got {text!r}")
    return weight


def _number(text: str) -> float:
    """NaN for what is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan
