"""Toy training sets for scripts/train.sh --toy, laid out as in docs/data.md: tiles of scikit-image photographs.

python -m scripts.rehearsal_data rehearsal/data

Training sets are cut from two photographs, the validation and the test image from two others. Into the pool of the
selection goes a mirrored JPEG copy of the test image: the selection must find it. AlexNet's first layers with random
weights (`encoder.safetensors`) take the place of CLIP, which would have to be downloaded.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import skimage.data
import torch
import torchvision
from numpy.typing import NDArray
from safetensors.torch import save_file

from models.team08_HATFreq.image_io import write_png
from utils.files import write_bytes
from utils.resize import imresize

TILE = 160  # stage 3's patches of the rehearsal are 112 pixels wide
LEAK = "copy_of_the_test_image.jpg"


def write_tiles(image: NDArray[np.uint8], folder: Path, name: str, step: int, tile: int = TILE) -> None:
    """Square tiles of an image `h w 3`, `step` pixels apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for top in range(0, image.shape[0] - tile + 1, step):
        for left in range(0, image.shape[1] - tile + 1, step):
            window = np.ascontiguousarray(image[top : top + tile, left : left + tile])
            write_png(folder / f"{name}_{top}_{left}.png", window)


def write_sets(out: Path) -> None:
    """All sets, in the folders that the stages look into."""
    astronaut, coffee = skimage.data.astronaut(), skimage.data.coffee()
    write_tiles(astronaut, out / "ImageNet" / "train" / "n01", "astronaut", 176)
    write_tiles(coffee, out / "ImageNet" / "train" / "n02", "coffee", 200)
    write_tiles(astronaut, out / "DIV2K" / "DIV2K_train_HR", "astronaut", 256, 256)
    write_tiles(coffee, out / "Flickr2K" / "Flickr2K_HR", "coffee", 200, 256)
    write_tiles(astronaut[40:], out / "LSDIR" / "astronaut", "astronaut", 150)
    write_tiles(coffee[30:], out / "LSDIR" / "coffee", "coffee", 190)
    write_tiles(skimage.data.rocket()[100:260, 200:360], out / "DIV2K" / "DIV2K_valid_HR", "rocket", TILE)
    test = np.ascontiguousarray(skimage.data.chelsea()[:296, :448])
    for folder, image in (("HR", test), ("LR", imresize(test, 0.25))):
        (out / f"DIV2K_test_{folder}").mkdir(exist_ok=True)
        write_png(out / f"DIV2K_test_{folder}" / "cat.png", image)
    copy = cv2.imencode(".jpg", test[:, ::-1, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 70])[1]  # mirrored, and BGR
    write_bytes(out / "LSDIR" / LEAK, copy.tobytes())


def main(argv: list[str] | None = None) -> None:
    """Write sets and encoder to the folder given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="it is made if missing")
    folder = parser.parse_args(argv).folder
    write_sets(folder)
    torch.manual_seed(0)
    features = torchvision.models.alexnet().features[:12].state_dict()
    save_file({f"features.{key}": value for key, value in features.items()}, folder / "encoder.safetensors")
    (folder / "complete").touch()


if __name__ == "__main__":
    main()
