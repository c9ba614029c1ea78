"""Make training sets ready: sub-images of large photographs, or a list of the images that are large enough.

    python -m scripts.prepare_data sub-images datasets/DIV2K/DIV2K_train_HR --out datasets/DIV2K_sub
    python -m scripts.prepare_data list 'datasets/ImageNet/train/**' --min_side 256 --out datasets/ImageNet/train.txt

Images are named as for train.py: folders, `folder/**`, lists, tar shards. See docs/data.md.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from image_data.pairs import match_lr
from image_data.sources import IN_SHARD, DataError, ImageFile, expand
from image_data.sub_images import Cut, cut_all
from image_data.workers import in_order
from models.team08_HATFreq.image_io import ImageError
from utils.files import UserError, command, listed, write_list


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cut = commands.add_parser("sub-images", help="cut photographs into overlapping sub-images")
    cut.add_argument("--lr", nargs="*", default=[], help="official low-resolution images, cut on the same grid")
    cut.add_argument("--out_lr", type=Path, help="folder for theirs")
    cut.add_argument("--side", type=int, default=480, help="side of a sub-image in pixels (default: 480)")
    cut.add_argument("--step", type=int, default=240, help="pixels between two (default: 240)")
    listing = commands.add_parser("list", help="list the images that are large enough")
    listing.add_argument("--min_side", type=int, default=256, help="shortest side in pixels (default: 256)")
    for sub in (cut, listing):
        sub.add_argument("images", nargs="+", help="folders, folder/**, lists or tar shards")
        sub.add_argument("--bad_images", choices=("stop", "skip"), default="stop", help="unreadable images")
        sub.add_argument("--out", type=Path, required=True, help="folder, or the list's name")
        sub.add_argument("--expect", type=int, help="warn if there are more or fewer images")
    args = parser.parse_args(argv)
    if args.command == "sub-images":
        if args.side % 4 or args.step % 4 or not 0 < args.step <= args.side:
            parser.error("--side and --step must be multiples of 4, and the step not larger than the side")
        if bool(args.lr) != bool(args.out_lr) or (args.lr and args.out_lr.resolve() == args.out.resolve()):
            parser.error("--lr and --out_lr go together, and --out_lr is not --out")
    return args


def sub_images(images: list[ImageFile], args: argparse.Namespace) -> str:
    """Cut all that can be read; returns what was made."""
    lr_images: Sequence[ImageFile | None] = [None] * len(images)
    if args.lr:
        lr_images = match_lr(images, [image for word in args.lr for image in expand(word)], " ".join(args.lr))
    work = cut_all(images, lr_images, Cut(args.out, args.out_lr, args.side, args.step))
    made = list(tqdm(work, total=len(images), unit="image", disable=None))
    refuse_bad([fault for _, fault in made if fault], args)
    return f"{sum(count for count, _ in made):,} sub-images in {args.out}"


def size_or_fault(image: ImageFile) -> tuple[int, str]:
    """Shortest side, or why the header cannot be read."""
    try:
        return min(image.size_in_pixels()), ""
    except ImageError as error:
        return 0, str(error)


def list_images(images: list[ImageFile], args: argparse.Namespace) -> str:
    """List; returns what was listed. Small images are counted and left out."""
    sides = list(tqdm(in_order(size_or_fault, images, 256), total=len(images), unit="image", disable=None))
    refuse_bad([fault for _, fault in sides if fault], args)
    large = [image for image, (side, _) in zip(images, sides, strict=True) if side >= args.min_side]
    if not large:
        raise DataError(f"no image is left to list in {args.out}: see --min_side, or name other images")
    base = args.out.parent.resolve()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    about = f"{len(large)} images of {' '.join(args.images)}; shortest side at least {args.min_side} pixels"
    write_list(args.out, [line_of(image, base) for image in large], [about])
    return f"{len(large):,} images listed in {args.out}, {len(images) - len(large):,} left out"


def refuse_bad(faults: list[str], args: argparse.Namespace) -> None:
    if faults and args.bad_images == "stop":
        raise DataError(
            f"{len(faults)} images cannot be used; replace them or give --bad_images skip: {listed(faults, '; ')}"
        )
    if faults:
        print(f"warning: {len(faults)} images are left out: {listed(faults, '; ')}", file=sys.stderr)


def line_of(image: ImageFile, base: Path) -> str:
    """An image's line in a list of the folder `base`, from where it is found."""
    path = os.path.relpath(os.path.abspath(image.path), base)
    line = f"{path}{IN_SHARD}{image.member}" if image.member else path
    if line != line.strip() or {"\n", "\r"} & {*line} or line.startswith("#") or (IN_SHARD in path):
        raise DataError(f"{image.name!r} cannot stand in a list, for its spaces, line breaks, '#' or '::': rename it")
    return line


@command("prepare_data", UserError, ImageError)
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    began = time.monotonic()
    images = [image for word in args.images for image in expand(word)]
    if args.expect and len(images) != args.expect:
        print(f"warning: {args.expect:,} images are expected, {len(images):,} were found", file=sys.stderr)
    made = sub_images(images, args) if args.command == "sub-images" else list_images(images, args)
    print(f"{made}; {len(images):,} images in {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
