"""Make training sets ready: sub-images, lists and tar shards. What is there already is passed over.

    python scripts/prepare_data.py sub-images datasets/DIV2K/DIV2K_train_HR --out datasets/DF2K_sub
    python scripts/prepare_data.py list 'datasets/ImageNet/train/**' --min_side 256 --out datasets/ImageNet/train.txt
    python scripts/prepare_data.py shards datasets/ImageNet/train.txt --out datasets/ImageNet/shards

Images are named as for train.py: folders, `folder/**`, lists, tar shards. See docs/data.md.
"""

import argparse
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.team08_HATFreq.images import ImageError
from training.prepare import cut_all, pack, usable, write_list
from training.sources import DataError, ImageFile, expand

EXPECTED = {"div2k": 800, "flickr2k": 2_650, "df2k": 3_450, "imagenet": 1_281_167, "lsdir": 84_991}
NAMED = 10


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cut = commands.add_parser("sub-images", help="cut photographs into overlapping sub-images")
    cut.add_argument("--lr", nargs="*", default=[], help="official low-resolution images, cut on the same grid")
    cut.add_argument("--out_lr", type=Path, help="folder for theirs")
    cut.add_argument("--side", type=int, default=480, help="side of a sub-image in pixels (default: 480)")
    cut.add_argument("--step", type=int, default=240, help="pixels between two (default: 240)")
    listing = commands.add_parser("list", help="list the images that are large enough")
    listing.add_argument("--min_side", type=int, default=256, help="shortest side in pixels (default: 256)")
    shards = commands.add_parser("shards", help="pack images into plain tar shards and list these")
    shards.add_argument("--shard_gb", type=float, default=1.0, help="size of a shard, 1e9 bytes (default: 1)")
    for command in (cut, listing, shards):
        command.add_argument("images", nargs="+", help="folders, folder/**, lists or tar shards")
        command.add_argument("--out", type=Path, required=True, help="folder, or the list's name")
        command.add_argument("--expect", choices=sorted(EXPECTED), help="warn if it is not this set's number of images")
        command.add_argument("--bad_images", choices=("stop", "skip"), default="stop", help="unreadable images")
    args = parser.parse_args(argv)
    if args.command == "sub-images":
        if args.side % 4 or args.step % 4 or not 0 < args.step <= args.side:
            parser.error("--side and --step must be multiples of 4, and the step not larger than the side")
        if bool(args.lr) != bool(args.out_lr):
            parser.error("--lr and --out_lr go together")
    if args.command == "shards" and not args.shard_gb > 0:
        parser.error("--shard_gb must be positive")
    return args


def sub_images(images: list[ImageFile], args: argparse.Namespace) -> tuple[str, list[str]]:
    """Cut; returns what was made and what could not be read."""
    lows = [low for word in args.lr for low in expand(word)]
    made, bad = 0, []
    for _, (count, fault) in cut_all(images, lows, args.out, args.out_lr, args.side, args.step):
        made += count
        bad += [fault] if fault else []
    return f"{made:,} sub-images in {args.out}, {folder_bytes(args.out) / 1e9:.2f} GB", bad


def list_images(images: list[ImageFile], args: argparse.Namespace) -> tuple[str, list[str]]:
    """List; returns what was listed and what could not be read. Small images are counted and left out."""
    names, bad, small = [], [], 0
    base = args.out.parent.resolve()
    for image, (side, fault) in usable(images, args.min_side):
        if side:
            names.append(os.path.relpath(Path(image.name).resolve(), base) if not image.member else image.name)
        elif "is too small" in fault:
            small += 1
        else:
            bad.append(fault)
    if not bad or args.bad_images == "skip":
        about = f"{len(names)} images of {' '.join(args.images)}; shortest side at least {args.min_side} pixels"
        write_list(args.out, names, about)
    return f"{len(names):,} images listed in {args.out}, {small:,} left out as smaller than {args.min_side} pixels", bad


def make_shards(images: list[ImageFile], args: argparse.Namespace) -> tuple[str, list[str]]:
    """Pack; returns what was packed. An image that cannot be read stops it."""
    shards, count, total = [], 0, 0
    for path, number, size in pack(images, args.out, args.out.name, round(args.shard_gb * 1e9)):
        shards.append(path.name)
        count, total = count + number, total + size
    write_list(args.out / "shards.txt", shards, f"{count} images of {' '.join(args.images)} in {len(shards)} shards")
    return f"{count:,} images in {len(shards)} shards in {args.out}, {total / 1e9:.2f} GB", []


def folder_bytes(folder: Path) -> int:
    """What the files of a folder hold."""
    return sum(path.stat().st_size for path in folder.iterdir())


def main(argv: list[str] | None = None) -> int:
    """Run one command; 1 if images could not be read and `--bad_images` is `stop`."""
    args = parse(argv)
    began = time.monotonic()
    try:
        images = [image for word in args.images for image in expand(word)]
        if args.expect and len(images) != EXPECTED[args.expect]:
            expected = EXPECTED[args.expect]
            print(f"warning: {args.expect} has {expected:,} images, {len(images):,} were found", file=sys.stderr)
        work = {"sub-images": sub_images, "list": list_images, "shards": make_shards}[args.command]
        done, bad = work(images, args)
    except (DataError, ImageError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    seconds = time.monotonic() - began
    print(f"{done}; {len(images):,} images in {seconds:.1f} s, {len(images) / seconds:.1f} images/s")
    if not bad:
        return 0
    if args.bad_images == "skip":
        report = args.out.with_name(f"{args.out.name}.unreadable.txt")
        report.write_text("".join(f"{fault}\n" for fault in bad))
        print(f"{len(bad)} images could not be read and were left out: {report}", file=sys.stderr)
        return 0
    listed = "\n".join(f"  {fault}" for fault in bad[:NAMED])
    more = f"\n  and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    raise SystemExit(
        f"error: {len(bad)} images cannot be read; replace them or give --bad_images skip:\n{listed}{more}"
    )


if __name__ == "__main__":
    sys.exit(main())
