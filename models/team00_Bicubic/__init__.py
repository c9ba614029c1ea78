"""Bicubic enlargement by MATLAB's rule: the floor that every table starts from.

It shares the folder engine of team 08, so that both restore the same files in the same way.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.team08_HATFreq.folder import Inputs, Progress, restore_inputs
from models.team08_HATFreq.image_io import ImageError
from utils.resize import imresize

__all__ = ["main"]


class BicubicRestorer:
    """MATLAB's `imresize(image, 4)` with the border sample repeated; see `models.team08_HATFreq.folder.Restorer`."""

    scale = 4
    settings: dict[str, Any]
    progress: Progress | None = None

    def __init__(self) -> None:
        self.settings = {"model": f"MATLAB bicubic x{self.scale}, border clamp"}

    def __call__(self, rgb: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """uint8 `h w 3` -> uint8 `4h 4w 3`."""
        if rgb.dtype != np.uint8:
            raise ImageError("MATLAB's bicubic is defined here for 8-bit images: convert the 16-bit one first")
        return imresize(rgb, self.scale, border="clamp"), {}


def main(
    model_dir: str | os.PathLike[str] | None,
    input_path: Inputs,
    output_path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Enlarge every image of a folder x4; `model_dir` and `device` are the contract's and not needed.

    Raises:
        RestorationError: as `restore_inputs`.
    """
    restore_inputs(BicubicRestorer(), input_path, Path(output_path), overwrite)
