"""The README's first picture: two details of the demo's photographs by bicubic, by HATFreq and as they were.

They were picked among those with the largest gain, to be seen at a glance; the demo prints the means.

bash scripts/demo.sh && python -m scripts.draw_gain docs/images/gain.jpg
"""

import io
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from models.team08_HATFreq.image_io import read_rgb
from utils.files import write_bytes
from utils.metrics import psnr_y

DEMO = Path(__file__).resolve().parents[1] / "demo"
SIDE = 128  # of a detail, in pixels of the result
DETAILS = {"coffee": (112, 336), "astronaut": (336, 240)}  # photograph -> top and left
COLUMNS = {
    "bicubic": "results/00_Bicubic/test/{}x4.png",
    "HATFreq": "results/08_HATFreq/test/{}x4.png",
    "original": "HR/{}.png",
}


def draw(out: Path) -> None:
    """Draw the picture.

    Raises:
        ImageError: the demo has not been run.
    """
    figure = Figure(figsize=(9, 6.3), dpi=110, layout="constrained")
    for axes_row, (name, (top, left)) in zip(figure.subplots(2, 3), DETAILS.items(), strict=True):
        window = np.s_[top : top + SIDE, left : left + SIDE]
        images = {title: read_rgb(DEMO / file.format(name)) for title, file in COLUMNS.items()}
        for axes, (title, image) in zip(axes_row, images.items(), strict=True):
            gain = "" if title == "original" else f", {psnr_y(image[window], images['original'][window]):.1f} dB here"
            axes.imshow(image[window], interpolation="nearest")
            axes.set_title(f"{title}{gain}", fontsize=13)
            axes.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="jpg", pil_kwargs={"quality": 92})
    write_bytes(out, content.getvalue())


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
