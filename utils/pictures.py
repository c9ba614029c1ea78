"""Pictures of pictures: contact sheets and pairs side by side, deterministic to the byte."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

PAPER, INK, FAINT = (255, 255, 255), (32, 32, 32), (128, 128, 128)
_FONT, _LINE = cv2.FONT_HERSHEY_SIMPLEX, 16  # pixels a line of text
_GAP = 8


def fitted(image: Image, height: int, width: int) -> Image:
    """An image `h w 3` in the middle of a white box, shrunk if it is larger."""
    scale = min(height / image.shape[0], width / image.shape[1])
    h, w = (max(1, round(side * scale)) for side in image.shape[:2])
    small = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    box = np.full((height, width, 3), PAPER, np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    box[top : top + h, left : left + w] = small
    return box


def captioned(box: Image, lines: Sequence[str]) -> Image:
    """A picture with lines of text below it; what does not fit into the width is cut off."""
    foot = np.full((_LINE * len(lines) + 4, box.shape[1], 3), PAPER, np.uint8)
    for number, line in enumerate(lines):
        colour = INK if number == 0 else FAINT
        place = (1, _LINE * (number + 1) - 3)
        cv2.putText(foot, _ascii(line, box.shape[1]), place, _FONT, 0.38, colour, 1, cv2.LINE_AA)
    return np.concatenate([box, foot])


def sheet(pictures: Sequence[Image], columns: int) -> Image:
    """Pictures in rows of boxes as large as the largest."""
    h, w = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    page = np.full((rows * (h + _GAP) + _GAP, columns * (w + _GAP) + _GAP, 3), PAPER, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (_GAP + index * (side + _GAP) for index, side in zip(divmod(number, columns), (h, w), strict=True))
        page[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return page


def pair(left: Image, right: Image, side: int, lines: Sequence[str]) -> Image:
    """Two images side by side in boxes of `side` pixels, with text below."""
    gap = np.full((side, 4, 3), PAPER, np.uint8)
    return captioned(np.concatenate([fitted(left, side, side), gap, fitted(right, side, side)], axis=1), lines)


def _ascii(line: str, width: int) -> str:
    """What OpenCV's fonts can draw of a line, cut to a width in pixels; the end of a name tells more than its start."""
    line = line.encode("ascii", "replace").decode()
    while line and cv2.getTextSize(line, _FONT, 0.38, 1)[0][0] > width - 2:
        line = line[: len(line) // 2 - 2] + ".." + line[len(line) // 2 + 1 :]
    return line
