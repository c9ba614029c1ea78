"""The photographs that scikit-image ships, as PNG files: real pictures for the demo without a download.

python -m scripts.export_photographs demo/HR
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data

from models.team08_HATFreq.image_io import write_png

# Colour photographs inside the scikit-image package itself; its other pictures would be fetched from the network.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
SCALE = 4  # sides are cropped to a multiple, so that ground truth and restored image have one size


def main(argv: list[str] | None = None) -> None:
    """Write every photograph to the folder given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the PNG files are written; it is made if missing")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        image = np.asarray(getattr(skimage.data, name)())
        height, width = (side - side % SCALE for side in image.shape[:2])
        write_png(folder / f"{name}.png", np.ascontiguousarray(image[:height, :width, :3]))
        print(f"{name}: {width}x{height}")


if __name__ == "__main__":
    main()
