"""Photographs and features folders for the tests of data_curation."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from skimage import data

from data_curation.embed.decode import measure
from data_curation.features import SETTINGS, Record, Settings, normalised, write_shard
from models.team08_HATFreq.image_io import read_rgb, write_png
from utils.files import write_bytes

MODEL = "hand:made"
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
BLANK = Record("", 480, 320, 1, "", [0] * 8, 1.0, 100.0, bytes(768), b"")


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


def write_records(
    folder: Path, vectors: np.ndarray, records: Sequence[Record], shard: int = 100, downscale: int = 1
) -> Path:
    """A features folder with given embeddings of length one, float16, and records."""
    folder.mkdir()
    settings = Settings(MODEL, "made", downscale, vectors.shape[1], "fp32", ("x",), shard, len(records))
    write_bytes(folder / SETTINGS, settings.encode())
    for number, start in enumerate(range(0, len(records), shard)):
        part = slice(start, start + shard)
        write_shard(folder, number, vectors[part], list(records[part]), [], settings, "inputs")
    return folder


def write_names(folder: Path, vectors: np.ndarray, names: list[str], shard: int = 100, **known: list[Any]) -> Path:
    """The same of images that are no more than names, and what is known of them."""
    records = [replace(BLANK, **{"name": name, "sha1": name, **{key: values[row] for key, values in known.items()}})
               for row, name in enumerate(names)]  # fmt: skip
    return write_records(folder, vectors, records, shard)


def write_features(folder: Path, paths: list[Path], vectors: np.ndarray | None = None, downscale: int = 1) -> Path:
    """The same of image files, two a shard, by default with random embeddings, which say nothing."""
    if vectors is None:
        vectors = np.random.default_rng(len(paths)).standard_normal((len(paths), 16))
    records = [measure(str(path), path.read_bytes(), read_rgb(path)) for path in paths]
    return write_records(folder, normalised(vectors.astype(np.float32)), records, 2, downscale)


def alive(session: int) -> list[int]:
    """The processes of a session that have not ended, as Linux' /proc tells."""
    result = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, number = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(number) == session and state != "Z":
            result.append(int(stat.parent.name))
    return result
