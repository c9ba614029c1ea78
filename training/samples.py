"""What the network makes of the first validation images, as pictures to look at while it trains."""

from collections.abc import Callable
from itertools import chain, islice, zip_longest
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from image_data.degradation import SCALE
from image_data.pairs import Pair
from models.team08_HATFreq.image_io import write_png
from training.validation import ValidationSet

Image = NDArray[np.uint8]
SIDE = 64  # LR pixels of the window shown
GAP = 8  # white pixels between the windows


def draw_samples(restore: Callable[[Image], Image], sets: list[ValidationSet], count: int, picture: Path) -> None:
    """Draw one row an image: the low-resolution middle enlarged by OpenCV's bicubic, restored, and as it should be.

    Args:
        restore: uint8 `h w 3` -> uint8 `4h 4w 3`.
        sets: images are taken from each in turn.
        count: rows.
        picture: PNG file to write, whole or not at all; its folder is made.
    """
    turns = chain.from_iterable(zip_longest(*[one.pairs for one in sets]))
    rows = [_row(restore, pair) for pair in islice((pair for pair in turns if pair), count)]
    width = max(row.shape[1] for row in rows)
    sheet = np.vstack([np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])
    picture.parent.mkdir(exist_ok=True)
    write_png(picture, sheet[:-GAP])


def _row(restore: Callable[[Image], Image], pair: Pair) -> Image:
    lq, gt = _middle(pair.lq, SIDE), _middle(pair.target, SIDE * SCALE)
    h, w = gt.shape[:2]
    enlarged = cv2.resize(lq, (w, h), interpolation=cv2.INTER_CUBIC)
    gap = np.full((h, GAP, 3), 255, np.uint8)
    return np.hstack([enlarged, gap, restore(lq), gap, gt])


def _middle(image: Image, side: int) -> Image:
    """The middle of an image, on the grid of the scale in the target as in its low-resolution image."""
    unit = side // SIDE
    top, left = (unit * max(0, (n // unit - SIDE) // 2) for n in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])
