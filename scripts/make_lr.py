"""Low-resolution inputs from ground-truth photographs, by MATLAB's bicubic (utils/resize.py).

    python -m scripts.make_lr data/Set5/HR data/Set5/LR
    python -m scripts.make_lr data/Set5/HR data/Set5/LR --border clamp    # as the classic Set5, Set14, BSD100 pairs

`baby.png` becomes `babyx4.png`. Sides that the scale does not divide are cropped at the bottom and right first, as the
metric crops them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.team08_HATFreq.folder import refuse_inputs, unique_names
from models.team08_HATFreq.image_io import ImageError, list_images, read_rgb, write_png
from models.team08_HATFreq.system import HATFreqError
from utils.files import command, make_folder
from utils.resize import Border, imresize


def matlab_lr(gt: NDArray[np.uint8], scale: int, border: Border = "mirror") -> NDArray[np.uint8]:
    """uint8 `h w 3` -> uint8 `h//scale w//scale 3`."""
    height, width = (side - side % scale for side in gt.shape[:2])
    return imresize(np.ascontiguousarray(gt[:height, :width]), 1 / scale, border)


@command("make_lr", HATFreqError)
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hr", type=Path, help="folder of ground-truth images")
    parser.add_argument("lr", type=Path, help="folder to write; it is made if missing")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), default=4)
    parser.add_argument("--border", choices=("mirror", "clamp"), default="mirror", help="default: %(default)s")
    args = parser.parse_args(argv)
    files = unique_names(list_images(args.hr), f"x{args.scale}.png")
    if not files:
        raise ImageError(f"{args.hr} holds no images: name a folder of ground-truth images")
    refuse_inputs([args.lr / name for name in files], files.values())
    make_folder(args.lr)
    for name, path in files.items():
        gt = read_rgb(path)
        if min(gt.shape[:2]) < args.scale:
            raise ImageError(f"{path} has {gt.shape[1]}x{gt.shape[0]} pixels, less than the scale: take it out")
        write_png(args.lr / name, matlab_lr(gt, args.scale, args.border))
    print(f"{len(files)} images -> {args.lr}")


if __name__ == "__main__":
    sys.exit(main())
