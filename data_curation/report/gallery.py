"""All chosen images to browse: `gallery.html` with its data, and a thumbnail a file, shown as they scroll into view.

A thumbnail is named by the sha1 of its image's bytes, so that a report of another choice makes only the new ones. The
folder needs no server and no network.
"""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from data_curation.features import Features
from data_curation.images import read_checked
from utils.files import make_folder, write_bytes

SIDE = 96  # pixels of a thumbnail's longer side
_QUALITY = 55  # of JPEG: some 2 KB each
_FOLDER = "thumbnails"
_AHEAD = 1000  # images handed to the threads at a time


def write_gallery(out: Path, chosen: pa.Table, pool: Features, queries: Features, workers: int) -> None:
    """Write the page, its data and its thumbnails; those of images that are not shown any more go.

    Args:
        chosen: name, score, nearest_query, rank and quota_of of each chosen image, by rank.
        workers: threads that read images.

    Raises:
        DataError, ImageError: an image is missing, unreadable or has changed.
    """
    digests = dict(zip(queries.column("name"), queries.column("sha1"), strict=True))
    query_names = sorted(digests, key=str.encode)
    number = {name: place for place, name in enumerate(query_names)}
    wanted = pa.table({"name": chosen["name"]}).join(pool.columns("name", "sha1"), "name")
    known = dict(zip(wanted["name"].to_pylist(), wanted["sha1"].to_pylist(), strict=True))
    images = [
        (row["name"], row["score"], number[row["quota_of"] or row["nearest_query"]], row["rank"], known[row["name"]])
        for row in chosen.to_pylist()
    ]
    _write_thumbnails(out / _FOLDER, {**known, **digests}, workers)
    data = {"folder": _FOLDER, "queries": [(name, digests[name]) for name in query_names], "images": images}
    write_bytes(out / "gallery.js", f"const GALLERY = {json.dumps(data, separators=(',', ':'))};\n".encode())
    write_bytes(out / "gallery.html", (Path(__file__).parent / "gallery.html").read_bytes())


def thumbnail(name: str, digest: str) -> bytes:
    """A JPEG of an image, SIDE pixels at most; its bytes have to be those that were embedded."""
    rgb = read_checked(name, digest)
    scale = min(1.0, SIDE / max(rgb.shape))
    size = [max(1, round(side * scale)) for side in rgb.shape[1::-1]]
    small = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", np.ascontiguousarray(small[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1])


def _write_thumbnails(folder: Path, digests: dict[str, str], workers: int) -> None:
    make_folder(folder)
    missing = {f"{digest}.jpg": name for name, digest in digests.items()}
    for path in list(folder.iterdir()):
        if not missing.pop(path.name, None):
            path.unlink()  # of a former choice, or of a run that was killed

    def write(one: tuple[str, str]) -> None:
        file, name = one
        write_bytes(folder / file, thumbnail(name, Path(file).stem))

    with ThreadPoolExecutor(workers) as threads:
        for part in _parts(list(missing.items())):
            list(threads.map(write, part))


def _parts(items: list[Any]) -> Iterable[list[Any]]:
    return (items[start : start + _AHEAD] for start in range(0, len(items), _AHEAD))
