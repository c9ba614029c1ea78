"""Bicubic enlargement by MATLAB's rule: the floor that every table starts from."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.team08_HATFreq.image_io import ImageError
from models.team08_HATFreq.inference import restore_folder
from utils.resize import imresize

__all__ = ["main"]


class BicubicRestorer:
    """MATLAB's `imresize(image, 4)` with the border sample repeated; see `models.team08_HATFreq.inference.Restorer`."""

    scale = 4
    settings: dict[str, Any]

    def __init__(self) -> None:
        self.settings = {"model": f"MATLAB bicubic x{self.scale}, border clamp"}

    def __call__(self, rgb: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """uint8 `h w 3` -> uint8 `4h 4w 3`."""
        if rgb.dtype != np.uint8:
            raise ImageError("MATLAB's bicubic is defined here for 8-bit images: convert the 16-bit one first")
        return imresize(rgb, self.scale, border="clamp"), {}


def main(
    model_dir: str | os.PathLike[str] | None,
    input_path: str | os.PathLike[str],
    output_path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Enlarge every image of a folder x4; `model_dir` and `device` are the contract's and not needed.

    Raises:
        RestorationError: as `restore_folder`.
    """
    restore_folder(BicubicRestorer(), Path(input_path), Path(output_path), overwrite)
