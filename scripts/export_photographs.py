"""The photographs that scikit-image ships, as PNG files: real pictures for the demo without a download.

python -m scripts.export_photographs demo/HR
"""

import argparse
from pathlib import Path

import numpy as np
import skimage.data

from image_data.geometry import cut_to_scale
from models.team08_HATFreq.image_io import write_png

# Colour photographs inside the scikit-image package itself; its other pictures would be fetched from the network.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def main(argv: list[str] | None = None) -> None:
    """Write every photograph to the folder given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the PNG files are written; it is made if missing")
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        image = np.asarray(getattr(skimage.data, name)())
        image = np.ascontiguousarray(cut_to_scale(image[..., :3]))
        write_png(folder / f"{name}.png", image)
        print(f"{name}: {image.shape[1]}x{image.shape[0]}")


if __name__ == "__main__":
    main()
