"""How periodic a photograph is, from its autocorrelation, and the crops of repeated structure that are held out.

    python -m benchmarks.frequency.periodicity --data $DATA/train/hq480-a ... --manifest $DATA/train/hq480_manifest.csv

writes `repeated.csv`: the most periodic crop of each of the most periodic photographs. Every tile of these photographs
is left out of training.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from models.team08_HATFreq.image_io import read_rgb
from utils.metrics import rgb_to_y

Image = NDArray[np.uint8]

TILE, STEP = 192, 64  # pixels of the HR image
PERIODS = np.arange(8, 45, 2)  # pixels: 2 to 11 of the LR image
DIRECTIONS = np.arange(0, 180, 5) * np.pi / 180
PHASES = (0.5, 1.0, 1.5, 2.0)  # lags in periods: between the repetitions, and at them
CROP = 320  # pixels
CROPS = 40
ACTIVITY = 4.0  # grey levels: the least standard deviation of a crop's finest scale; keeps blurred pictures out
LIST = Path(__file__).with_name("repeated.csv")


@dataclass(frozen=True)
class Crop:
    """A square of `CROP` pixels of a photograph.

    Attributes:
        file: `folder/name` of the photograph or of its tile.
        origin: the photograph that the tile was cut from; all its tiles are held out.
        top, left: of the square.
        periodicity: see `periodicity`.
    """

    file: str
    origin: str
    top: int
    left: int
    periodicity: float


def _lags() -> dict[float, tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Row and column of the lag of every phase, period and direction: `periods directions`."""
    return {
        phase: (
            np.rint(phase * PERIODS[:, None] * np.sin(DIRECTIONS)).astype(np.intp),
            np.rint(phase * PERIODS[:, None] * np.cos(DIRECTIONS)).astype(np.intp),
        )
        for phase in PHASES
    }


LAGS = _lags()
TAPER = np.outer(np.hanning(TILE), np.hanning(TILE))
TAPER_AUTOCORRELATION = np.fft.irfft2(np.abs(np.fft.rfft2(TAPER, s=(2 * TILE, 2 * TILE))) ** 2)


def tile_periodicity(tile: NDArray[np.float64]) -> tuple[float, float]:
    """The contrast of the autocorrelation between one and two periods and the halves between them, and the energy.

    The contrast is 1 for a wave along any direction and near 0 for an edge, a slope or noise; the best period and
    direction count.

    Args:
        tile: `TILE TILE`, without its low frequencies.
    """
    tapered = (tile - tile.mean()) * TAPER
    autocorrelation = np.fft.irfft2(np.abs(np.fft.rfft2(tapered, s=(2 * TILE, 2 * TILE))) ** 2)
    energy = autocorrelation[0, 0] / TAPER_AUTOCORRELATION[0, 0]
    if energy < 1e-9:
        return 0.0, 0.0
    at = {phase: autocorrelation[lag] / TAPER_AUTOCORRELATION[lag] / energy for phase, lag in LAGS.items()}
    contrast = (np.minimum(at[1.0], at[2.0]) - np.maximum(at[0.5], at[1.5])) / 2
    return float(contrast.max()), float(energy)


def tile_grid(image: Image) -> NDArray[np.float64]:
    """`tile_periodicity` of the tiles that begin every `STEP` pixels: `rows columns 2`.

    uint8 `h w 3`; sides under `TILE` are mirrored up to it.
    """
    luma = rgb_to_y(image)
    luma = np.pad(luma, [(0, max(0, TILE - side)) for side in luma.shape], "symmetric")
    luma = luma - cv2.GaussianBlur(luma, (0, 0), 8)
    tops, lefts = (range(0, side - TILE + 1, STEP) for side in luma.shape)
    return np.array([[tile_periodicity(luma[y : y + TILE, x : x + TILE]) for x in lefts] for y in tops])


def weighted(grid: NDArray[np.float64]) -> float:
    """The tiles' mean contrast, weighted by their energy."""
    return float(np.average(grid[..., 0], weights=grid[..., 1] + 1e-12))


def periodicity(image: Image) -> float:
    """How periodic an image is, uint8 `h w 3`: the mean contrast of its tiles."""
    return weighted(tile_grid(image))


def activity(image: Image) -> float:
    """Standard deviation of the finest scale of the luma, in grey levels."""
    luma = rgb_to_y(image)
    return float((luma - cv2.GaussianBlur(luma, (0, 0), 2)).std())


def most_periodic_crop(image: Image, file: str, origin: str) -> Crop | None:
    """The best crop of an image, or None where none is sharp and large enough."""
    h, w = image.shape[:2]
    tiles = (CROP - TILE) // STEP + 1  # a side
    grid, found = tile_grid(image), []
    for row in range((h - CROP) // STEP + 1):
        for column in range((w - CROP) // STEP + 1):
            top, left = row * STEP, column * STEP
            if activity(image[top : top + CROP, left : left + CROP]) >= ACTIVITY:
                value = weighted(grid[row : row + tiles, column : column + tiles])
                found.append(Crop(file, origin, top, left, value))
    return max(found, key=lambda crop: crop.periodicity, default=None)


def select(crops: Iterator[Crop], number: int) -> list[Crop]:
    """The most periodic crops, one a photograph, best first."""
    best: dict[str, Crop] = {}
    for crop in crops:
        if crop.origin not in best or crop.periodicity > best[crop.origin].periodicity:
            best[crop.origin] = crop
    return sorted(best.values(), key=lambda crop: (-crop.periodicity, crop.file))[:number]


def read_origins(manifest: Path) -> dict[str, str]:
    """The photograph of each tile, by the tile's file name."""
    with manifest.open(newline="") as file:
        return {row["file"]: f"{row['source']}/{row['origin']}" for row in csv.DictReader(file)}


def read_crops(path: Path = LIST) -> list[Crop]:
    """The list of held-out crops."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [Crop(r["file"], r["origin"], int(r["top"]), int(r["left"]), float(r["periodicity"])) for r in rows]


def write_crops(crops: Sequence[Crop], path: Path = LIST) -> None:
    """Write the list."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "origin", "top", "left", "periodicity"])
        writer.writerows((*astuple(crop)[:-1], f"{crop.periodicity:.4f}") for crop in crops)


def main(argv: Sequence[str] | None = None) -> None:
    """Rank the photographs and write the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="folders of HR photographs")
    parser.add_argument("--manifest", type=Path, required=True, help="csv with `file`, `source` and `origin`")
    args = parser.parse_args(argv)
    origins = read_origins(args.manifest)

    def crops() -> Iterator[Crop]:
        for path in (path for folder in args.data for path in sorted(folder.iterdir())):
            crop = most_periodic_crop(
                read_rgb(path), f"{path.parent.name}/{path.name}", origins.get(path.name, path.name)
            )
            if crop:
                yield crop

    write_crops(select(crops(), CROPS))


if __name__ == "__main__":
    main()
