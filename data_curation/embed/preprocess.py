"""How an encoder takes images: the size, how it is reached, and the range of the samples.

The same as the encoders' own preprocessing (torchvision's `Resize` and `CenterCrop` on PIL images), but a plain
description, so that decoding processes need neither the encoder nor its library.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True)
class Preprocess:
    """From any image to the encoder's square.

    Attributes:
        resize: pixels of the shorter side after resizing, or of both sides in mode `squash`.
        crop: side in pixels of the square cut from the middle, at most `resize`.
        mode: `shortest` keeps the aspect ratio, `squash` does not.
        interpolation: PIL's filter, which is antialiased.
        mean, std: of the channels, for samples in [0, 1]; the encoder takes (sample - mean) / std.
    """

    resize: int
    crop: int
    mode: Literal["shortest", "squash"]
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.mode not in ("shortest", "squash") or self.interpolation not in _FILTERS or self.crop > self.resize:
            raise ValueError(
                f"preprocessing with mode {self.mode}, {self.interpolation}, {self.resize} -> {self.crop} is not known "
                f"here: take an encoder with mode shortest or squash, bicubic or bilinear"
            )

    def apply(self, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 `h w 3` -> `crop crop 3`."""
        h, w = rgb.shape[:2]
        size = self._size(h, w)
        image = Image.fromarray(rgb)
        if size != (w, h):
            image = image.resize(size, _FILTERS[self.interpolation])
        left, top = (round((side - self.crop) / 2) for side in size)
        return np.asarray(image)[top : top + self.crop, left : left + self.crop]

    def _size(self, h: int, w: int) -> tuple[int, int]:
        """Width and height before the crop."""
        if self.mode == "squash":
            return self.resize, self.resize
        longer = int(self.resize * max(h, w) / min(h, w))
        return (longer, self.resize) if w >= h else (self.resize, longer)
