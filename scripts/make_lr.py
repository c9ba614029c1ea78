"""Low-resolution inputs from ground-truth photographs, by MATLAB's bicubic (utils/resize.py).

    python -m scripts.make_lr data/Set5/HR data/Set5/LR
    python -m scripts.make_lr data/Set5/HR data/Set5/LR --border clamp    # as the classic Set5, Set14, BSD100 pairs

`baby.png` becomes `babyx4.png`. Sides that the scale does not divide are cropped at the bottom and right first, as the
metric crops them.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.team08_HATFreq.image_io import list_images, read_rgb, write_png
from utils.resize import Border, imresize


def bicubic_downscale(gt: NDArray[np.uint8], scale: int, border: Border = "mirror") -> NDArray[np.uint8]:
    """uint8 `h w 3` -> uint8 `h//scale w//scale 3`."""
    height, width = (side - side % scale for side in gt.shape[:2])
    if not (height and width):
        raise ValueError(f"an image of {gt.shape[1]}x{gt.shape[0]} pixels is smaller than the scale {scale}")
    return imresize(np.ascontiguousarray(gt[:height, :width]), 1 / scale, border)


def main(argv: list[str] | None = None) -> None:
    """Write one LR image for every image of the first folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hr", type=Path, help="folder of ground-truth images")
    parser.add_argument("lr", type=Path, help="folder to write; it is made if missing")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--border", choices=("mirror", "clamp"), default="mirror", help="default: %(default)s")
    args = parser.parse_args(argv)
    paths = list_images(args.hr)
    args.lr.mkdir(parents=True, exist_ok=True)
    for path in paths:
        write_png(args.lr / f"{path.stem}x{args.scale}.png", bicubic_downscale(read_rgb(path), args.scale, args.border))
    print(f"{len(paths)} images -> {args.lr}")


if __name__ == "__main__":
    main()
