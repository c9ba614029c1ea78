"""Training samples a second of the loader, beside two other ways to make them, on the same images in the same run.

    python benchmarks/loader.py --images photographs --out benchmarks/results/loader.md

From the photographs given it makes, in a temporary folder, 2040x1356 pictures (tiled where a photograph is smaller) as
PNG and as JPEG (quality 95), their 480x480 sub-images, and a tar shard of these. Every row then loads batches of the
same size with the same number of worker processes:

- `plain`: decodes a whole image for every sample (OpenCV), crops and flips, and shrinks the crop by MATLAB's bicubic;
- `BasicSR's recipe`, written anew: official low-resolution images beside, both decoded by OpenCV as float, cropped
  alike, flipped and turned, made tensors;
- `HATFreq`: the trainer's own loader with its default memory for decoded images, without any, and with a folder of
  decoded pixels (`--decoded`); the low-resolution side is made in the main process, which `plain` does in a worker.

The rows take turns, several times; the table holds the medians.
"""

import argparse
import os
import random
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.results_file import publish
from image_data.mixture import open_source
from models.team08_HATFreq.image_io import list_images, read_rgb
from training.audit import audit
from training.data import Patches, StepBatches, make_loader, to_pair
from training.decoded import DecodedImages
from utils.resize import imresize

HEIGHT, WIDTH, SUB = 1356, 2040, 480
STEP = 240  # between sub-images
CPU = torch.device("cpu")
Batches = Iterator[Any]


# ---------------------------------------------------------------------------------------------------------------------
# The images
# ---------------------------------------------------------------------------------------------------------------------


def make_images(photographs: list[Path], folder: Path, count: int) -> None:
    """Write `2k-png`, `2k-jpeg`, `2k-lr`, `sub-png` and `sub.tar` below a folder."""
    for name in ("2k-png", "2k-jpeg", "2k-lr", "sub-png"):
        (folder / name).mkdir()
    source = cycle(photographs)
    for number in range(count):
        picture = large_picture(source)[..., ::-1]
        cv2.imwrite(str(folder / "2k-png" / f"{number}.png"), picture)
        cv2.imwrite(str(folder / "2k-jpeg" / f"{number}.jpg"), picture, [cv2.IMWRITE_JPEG_QUALITY, 95])
        low = imresize(np.ascontiguousarray(picture), 0.25)
        cv2.imwrite(str(folder / "2k-lr" / f"{number}.png"), low)
        for top in range(0, HEIGHT - SUB, STEP):
            for left in range(0, WIDTH - SUB, STEP):
                name = folder / "sub-png" / f"{number}_{top}_{left}.png"
                cv2.imwrite(str(name), picture[top : top + SUB, left : left + SUB])
    with tarfile.open(folder / "sub.tar", "w") as shard:
        for path in sorted((folder / "sub-png").iterdir()):
            shard.add(path, path.name)


def large_picture(photographs: Iterator[Path]) -> np.ndarray:
    """uint8 `1356 2040 3`, of as many photographs as it takes."""
    canvas = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    top = 0
    while top < HEIGHT:
        left, tallest = 0, HEIGHT
        while left < WIDTH:
            image = read_rgb(next(photographs))[: HEIGHT - top, : WIDTH - left]
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
            left, tallest = left + image.shape[1], min(tallest, image.shape[0])
        top += tallest
    return canvas


# ---------------------------------------------------------------------------------------------------------------------
# The loaders
# ---------------------------------------------------------------------------------------------------------------------


class Plain(Dataset[Any]):
    """Decode everything, crop, flip, shrink the crop."""

    def __init__(self, folder: Path, patch: int) -> None:
        self.paths, self.side = sorted(folder.iterdir()), 4 * patch

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = random.Random(index)
        image = cv2.cvtColor(cv2.imread(str(self.paths[rng.randrange(len(self.paths))])), cv2.COLOR_BGR2RGB)
        top, left = (4 * rng.randrange((n - self.side) // 4 + 1) for n in image.shape[:2])
        gt = image[top : top + self.side, left : left + self.side]
        gt = np.ascontiguousarray(gt[:, ::-1] if rng.random() < 0.5 else gt)
        return tuple(torch.from_numpy(one).permute(2, 0, 1).float() / 255 for one in (imresize(gt, 0.25), gt))


class Paired(Dataset[Any]):
    """BasicSR's recipe for pairs, written anew: both files decoded as float, a common crop, flips and a turn."""

    def __init__(self, high: Path, low: Path, patch: int) -> None:
        self.pairs = [(path, low / path.name) for path in sorted(high.iterdir())]
        self.patch = patch

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng, patch = random.Random(index), self.patch
        gt, lq = (self.decode(path) for path in self.pairs[rng.randrange(len(self.pairs))])
        top, left = (rng.randrange(n - patch + 1) for n in lq.shape[:2])
        crops = [
            lq[top : top + patch, left : left + patch],
            gt[4 * top : 4 * (top + patch), 4 * left : 4 * (left + patch)],
        ]
        for axis in (0, 1):
            if rng.random() < 0.5:
                crops = [np.flip(crop, axis) for crop in crops]
        if rng.random() < 0.5:
            crops = [crop.transpose(1, 0, 2) for crop in crops]
        tensors = [torch.from_numpy(np.ascontiguousarray(crop[..., ::-1].transpose(2, 0, 1))) for crop in crops]
        return tensors[0], tensors[1]

    @staticmethod
    def decode(path: Path) -> np.ndarray:
        """float32 `h w 3` in [0, 1], BGR, from the file's bytes."""
        content = np.frombuffer(path.read_bytes(), np.uint8)
        return cv2.imdecode(content, cv2.IMREAD_COLOR).astype(np.float32) / 255


def ours(word: str, args: argparse.Namespace, gigabytes: float, decoded: Path | None = None) -> Batches:
    """The trainer's own loader, to the tensors that the network takes."""
    found = audit([open_source(word)], args.patch, {}, False, None).photographs
    images = DecodedImages(decoded)
    images.keep(found, gigabytes)
    patches = Patches(found, args.patch, seed=0, images=images)
    loader = make_loader(patches, StepBatches(0, args.batch), args.workers, pin_memory=False)
    return (to_pair(batch, CPU) for batch in loader)


def theirs(dataset: Dataset[Any], args: argparse.Namespace) -> Batches:
    """A plain DataLoader."""
    return iter(DataLoader(dataset, batch_size=args.batch, num_workers=args.workers))


def rows(folder: Path, args: argparse.Namespace) -> dict[tuple[str, str], Callable[[], Batches]]:
    """(images, loader) -> what starts it."""
    keep = 2.0
    return {
        ("2K PNG", "plain"): lambda: theirs(Plain(folder / "2k-png", args.patch), args),
        ("2K PNG", "BasicSR's recipe"): lambda: theirs(Paired(folder / "2k-png", folder / "2k-lr", args.patch), args),
        ("2K PNG", "HATFreq, decoded anew"): lambda: ours(str(folder / "2k-png"), args, 0),
        ("2K PNG", "HATFreq, --decoded"): lambda: ours(str(folder / "2k-png"), args, 0, folder / "decoded"),
        ("2K PNG", "HATFreq, in memory"): lambda: ours(str(folder / "2k-png"), args, keep),
        ("2K JPEG", "plain"): lambda: theirs(Plain(folder / "2k-jpeg", args.patch), args),
        ("2K JPEG", "HATFreq, decoded anew"): lambda: ours(str(folder / "2k-jpeg"), args, 0),
        ("sub-images, PNG", "plain"): lambda: theirs(Plain(folder / "sub-png", args.patch), args),
        ("sub-images, PNG", "HATFreq, decoded anew"): lambda: ours(str(folder / "sub-png"), args, 0),
        ("sub-images, tar shard", "HATFreq, decoded anew"): lambda: ours(str(folder / "sub.tar"), args, 0),
    }


def samples_a_second(start: Callable[[], Batches], args: argparse.Namespace) -> float:
    """Rate over `--seconds`, after a warm-up in which the workers start and every image is met about once."""
    batches = start()
    warm = time.perf_counter()
    for _ in islice(batches, args.warmup):
        if time.perf_counter() - warm > args.seconds:
            break
    began, made = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < args.seconds:
        next(batches)
        made += args.batch
    return made / passed


def table(results: dict[tuple[str, str], list[float]], args: argparse.Namespace) -> str:
    """Markdown."""
    plain = {images: statistics.median(rates) for (images, loader), rates in results.items() if loader == "plain"}
    lines = ["| images | loader | samples/s | lowest to highest | beside plain |", "|---|---|---|---|---|"]
    for (images, loader), rates in results.items():
        median, base = statistics.median(rates), plain.get(images, plain["sub-images, PNG"])
        spread = f"{min(rates):.0f} to {max(rates):.0f}"
        lines.append(f"| {images} | {loader} | {median:.0f} | {spread} | {median / base:.1f}x |")
    setting = (
        f"LR patch {args.patch}, batch {args.batch}, {args.workers} worker(s), {os.cpu_count()} cores, {args.count} "
        f"pictures of {WIDTH}x{HEIGHT}, median of {args.rounds} rounds of {args.seconds:g} s, torch {torch.__version__}"
    )
    return "\n".join([*lines, "", setting]) + "\n"


def main(argv: list[str] | None = None) -> None:
    """Make the images, let the loaders take turns, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs to make the pictures from")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    parser.add_argument("--count", type=int, default=24, help="pictures of 2040x1356 pixels")
    parser.add_argument("--patch", type=int, default=64, help="LR patch")
    parser.add_argument("--batch", type=int, default=16, help="samples a batch")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each row")
    parser.add_argument("--seconds", type=float, default=4.0, help="time of each turn")
    parser.add_argument("--warmup", type=int, default=12, help="batches before the clock starts")
    args = parser.parse_args(argv)
    cv2.setNumThreads(0)
    with tempfile.TemporaryDirectory() as name:
        make_images(list_images(args.images), Path(name), args.count)
        starts = rows(Path(name), args)
        results: dict[tuple[str, str], list[float]] = {row: [] for row in starts}
        for _ in range(args.rounds):
            for row, start in starts.items():
                results[row].append(samples_a_second(start, args))
                print(f"{', '.join(row)}: {results[row][-1]:.0f} samples/s", file=sys.stderr)
    figures = ((*row, f"{rate:.2f}") for row, rates in results.items() for rate in rates)
    publish(table(results, args), args.out, ["images", "loader", "samples_per_second"], figures)


if __name__ == "__main__":
    main()
