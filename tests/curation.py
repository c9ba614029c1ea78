"""Photographs and features folders for the tests of data_curation."""

from hashlib import sha1
from pathlib import Path

import cv2
import numpy as np
from skimage import data

from data_curation.features import SETTINGS, Record, Settings, normalised, write_shard
from data_curation.phash import phash8
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.system import write_bytes

MODEL = "hand:made"
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")


def photograph(name: str) -> np.ndarray:
    """A photograph of scikit-image, uint8 `h w 3`, its longer side 480."""
    image = getattr(data, name)()
    image = image[..., :3] if image.ndim == 3 else np.dstack([image] * 3)
    scale = 480 / max(image.shape)
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def write_images(folder: Path, images: dict[str, np.ndarray]) -> list[Path]:
    """PNG files in the order given."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        write_png(folder / f"{name}.png", np.ascontiguousarray(image))
    return [folder / f"{name}.png" for name in images]


def write_features(folder: Path, paths: list[Path], vectors: np.ndarray | None = None, downscale: int = 1) -> Path:
    """A features folder of images with given embeddings, or with random ones, which say nothing; two a shard."""
    folder.mkdir()
    if vectors is None:
        vectors = np.random.default_rng(len(paths)).standard_normal((len(paths), 16))
    rows = normalised(vectors.astype(np.float32))
    records = []
    for path in paths:
        content, rgb = path.read_bytes(), read_rgb(path)
        hashes = [int(bits) for bits in phash8(rgb)]
        records.append(Record(str(path), *rgb.shape[:2], len(content), sha1(content).hexdigest(), hashes, 1.0, 100.0))
    write_bytes(
        folder / SETTINGS,
        Settings(MODEL, "made", downscale, rows.shape[1], "fp32", ("x",), 2, len(paths)).encode(),
    )
    for number, start in enumerate(range(0, len(paths), 2)):
        part = slice(start, start + 2)
        write_shard(folder, number, rows[part], records[part], [], MODEL, "inputs")
    return folder
