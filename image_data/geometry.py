"""Sizes, crops and orientations of images `h w c` at the scale of the degradation."""

import numpy as np
from numpy.typing import NDArray

from image_data.degradation import KERNEL_MARGIN, SCALE

Image = NDArray[np.uint8]


def cut_to_scale(image: Image) -> Image:
    """Bottom and right cut to multiples of the scale (the organisers' modcrop)."""
    h, w = image.shape[:2]
    return image[: h - h % SCALE, : w - w % SCALE]


def fits(height: int, lr_height: int, width: int, lr_width: int) -> bool:
    """Whether a low-resolution image has a quarter of the sides, rounded down or up as MATLAB does."""
    sides = ((height, lr_height), (width, lr_width))
    return all(low in (high // SCALE, -(-high // SCALE)) for high, low in sides)


def orient(image: Image, orientation: int) -> Image:
    """One of the eight flips and quarter turns of `h w c`, as a view: bit 2 transposes, then bits 1 and 0 flip."""
    if orientation & 4:
        image = image.swapaxes(0, 1)
    if orientation & 2:
        image = image[::-1]
    return image[:, ::-1] if orientation & 1 else image


def cut_region(image: Image, top: int, left: int, side: int) -> Image:
    """A square of an image with `KERNEL_MARGIN` more pixels on each side; mirrored at the borders, as MATLAB does.

    Args:
        image: uint8 `h w 3`.
        top, left, side: of the square, which lies in the image.

    Returns:
        uint8 `side+12 side+12 3`, contiguous.
    """
    y, x = top - KERNEL_MARGIN, left - KERNEL_MARGIN
    end_y, end_x = top + side + KERNEL_MARGIN, left + side + KERNEL_MARGIN
    h, w = image.shape[:2]
    inside = image[max(0, y) : min(h, end_y), max(0, x) : min(w, end_x)]
    beyond = ((max(0, -y), max(0, end_y - h)), (max(0, -x), max(0, end_x - w)), (0, 0))
    return np.ascontiguousarray(np.pad(inside, beyond, "symmetric"))
