"""What the deduplication costs an image, and how that grows: hashing, looking up, laying over each other.

    python -m benchmarks.deduplication_scale --images ../shared/data/train/{bsds-sun,hq480-a,hq480-b} \\
        --bench ../shared/data/bench/BSD100/HR

Hashing and laying over are timed on photographs, decoding included, in seconds of one core. Looking up takes synthetic
images of 256 random hashes, within the pool, and reports the process's peak memory. Keys that many images share are
passed over; how many pairs of near-duplicates are still found when keys are as crowded as among 137,600 images is
measured with the limit brought down in proportion. The last line is what 137,600 images need.
"""

import argparse
import resource
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.planting import plant
from data_curation.localhash import KEYPOINTS, local_hashes
from data_curation.retrieval import CROWD, POOL_VOTES, Hashes, Index
from data_curation.verify import verify, view
from models.team08_HATFreq.image_io import list_images, read_rgb

POOL = 137_600  # LSDIR, HQ-50K and Flickr2K


def hashing(paths: list[Path]) -> float:
    """Seconds an image: read and hashed."""
    start = time.process_time()
    for path in paths:
        local_hashes(read_rgb(path))
    return (time.process_time() - start) / len(paths)


def laying_over(paths: list[Path]) -> float:
    """Seconds a pair: both read, prepared and laid over each other."""
    start = time.process_time()
    for one, other in zip(paths[::2], paths[1::2], strict=False):
        verify(view(read_rgb(one), 4), view(read_rgb(other), 4))
    return (time.process_time() - start) / (len(paths) // 2)


def looking_up(images: int) -> tuple[float, float]:
    """Seconds an image to index a synthetic pool and to look all of it up in itself, and the peak memory in GiB."""
    codes = np.random.default_rng(0).integers(0, 2**64, (images * KEYPOINTS, 2), dtype=np.uint64)
    shapes = np.zeros((len(codes), 2), np.float32)
    hashes = Hashes(codes, shapes, np.arange(images + 1) * KEYPOINTS)
    start = time.process_time()
    Index(hashes).sharing(hashes, POOL_VOTES, within=True)
    seconds = (time.process_time() - start) / images
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def recall_when_crowded(pool: list[Path], bench: list[Path], kind: str) -> tuple[float, int]:
    """Of pairs of an image resized and the same image by another kind, the share found; and pairs found by chance."""
    hashes = [local_hashes(read_rgb(path)) for path in pool]
    for number, path in enumerate(bench):
        hashes += [local_hashes(plant(read_rgb(path), one, number)) for one in ("resized", kind)]
    every = Hashes.of(hashes)  # a pair alone makes two hashes a key
    found = Index(every, max(2, CROWD * len(hashes) // POOL)).sharing(every, POOL_VOTES, within=True)
    pairs = {(int(one), int(other)) for one, other, _ in found}
    hits = [(len(pool) + 2 * k + 1, len(pool) + 2 * k) in pairs for k in range(len(bench))]
    return float(np.mean(hits)), sum(one < len(pool) for one, _ in pairs)


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of photographs")
    parser.add_argument("--bench", type=Path, required=True, help="folder of photographs to plant near-duplicates of")
    parser.add_argument("--count", type=int, default=100, help="photographs timed (default %(default)s)")
    parser.add_argument("--synthetic", type=int, nargs="+", default=[2000, 8000, 32000], help="sizes of the pool")
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    images, bench = [path for folder in args.images for path in list_images(folder)], list_images(args.bench)
    paths = images[: args.count]
    hashed, laid = hashing(paths), laying_over(paths)
    print(f"hashing: {1000 * hashed:.1f} ms an image; laying over: {1000 * laid:.1f} ms a pair ({len(paths)} images)")
    print("| images | looking up, ms an image | peak memory, GiB |\n|---|---|---|")
    for size in args.synthetic:
        seconds, memory = looking_up(size)
        print(f"| {size:,} | {1000 * seconds:.2f} | {memory:.2f} |", flush=True)
    for kind in ("recompressed", "cropped", "cropped, flipped, resized, recompressed"):
        share, chance = recall_when_crowded(images, bench, kind)
        print(
            f"as crowded as {POOL:,} images: {share:.1%} of pairs resized / {kind}; {chance} among {len(images)} others"
        )
    hours = POOL * (hashed + seconds) / 3600
    print(f"{POOL:,} images at these rates: {hours:.1f} core hours, and {1000 * laid:.0f} ms a pair laid over")


if __name__ == "__main__":
    main()
