"""An exported network in tiles, with numpy, PIL and onnxruntime alone: enlarges a picture x4.

python integrations/onnx_tiles.py hatfreq_light_x4.onnx photograph.jpg restored.png
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

SCALE, TILE, OVERLAP = 4, 256, 32


def starts(length: int) -> list[int]:
    """Where tiles begin; the last one ends with the image."""
    return [*range(0, max(1, length - TILE), TILE - OVERLAP), max(0, length - TILE)] if length > TILE else [0]


def enlarge(session: onnxruntime.InferenceSession, rgb: np.ndarray) -> np.ndarray:
    """uint8 `h w 3` -> uint8 `4h 4w 3`; overlapping tiles are faded into each other."""
    h, w = rgb.shape[:2]
    total, weights = np.zeros((h * SCALE, w * SCALE, 3)), np.zeros((h * SCALE, w * SCALE, 1))
    fade = np.minimum(np.arange(TILE * SCALE) + 1, OVERLAP * SCALE) / (OVERLAP * SCALE)
    for top in starts(h):
        for left in starts(w):
            part = rgb[top : top + TILE, left : left + TILE].transpose(2, 0, 1)[None].astype(np.float32) / 255
            sr = session.run(None, {"lq": part})[0][0].transpose(1, 2, 0)
            rows, columns = (np.minimum(fade[:n], fade[:n][::-1]) for n in sr.shape[:2])
            weight = (rows[:, None] * columns)[..., None]
            place = np.s_[top * SCALE : top * SCALE + sr.shape[0], left * SCALE : left * SCALE + sr.shape[1]]
            total[place] += sr * weight
            weights[place] += weight
    return (total / weights * 255).round().clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    network = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    Image.fromarray(enlarge(network, np.asarray(ImageOps.exif_transpose(Image.open(sys.argv[2])).convert("RGB")))).save(
        sys.argv[3]
    )
