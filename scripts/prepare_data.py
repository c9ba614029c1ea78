"""Make training sets ready: sub-images, lists and tar shards. What is there already is passed over.

    python -m scripts.prepare_data sub-images datasets/DIV2K/DIV2K_train_HR --out datasets/DIV2K_sub
    python -m scripts.prepare_data list 'datasets/ImageNet/train/**' --min_side 256 --out datasets/ImageNet/train.txt
    python -m scripts.prepare_data shards datasets/ImageNet/train.txt --out datasets/ImageNet/shards
    python -m scripts.prepare_data parquet s3://bucket/LSDIR --out datasets/LSDIR/shards

Images are named as for train.py: folders, `folder/**`, lists, tar shards, or addresses of them. See docs/data.md.
"""

import argparse
import csv
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from image_data.headers import Header, read_headers
from image_data.pairs import match_lr
from image_data.shards import pack, plan
from image_data.sources import IN_SHARD, MAX_LISTED, DataError, ImageFile, expand
from image_data.sub_images import Cut, cut_all, strangers
from image_data.workers import WorkerError
from models.team08_HATFreq.image_io import ImageError
from models.team08_HATFreq.system import write_bytes

EXPECTED = {
    "div2k": 800, "flickr2k": 2_650, "df2k": 3_450, "lsdir": 84_991, "hq50k": 50_000, "imagenet": 1_281_167,
}  # fmt: skip


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
    shards = commands.add_parser("shards", help="pack images into plain tar shards and list these")
    shards.add_argument("--shard_gb", type=float, default=1.0, help="size of a shard, 1e9 bytes (default: 1)")
    parquet = commands.add_parser("parquet", help="unpack images of Parquet tables into plain tar shards")
    parquet.add_argument(
        "images", nargs="+", help="Parquet files, folders of them, or addresses such as s3://bucket/folder"
    )
    for command in (cut, listing, shards):
        command.add_argument("images", nargs="+", help="folders, folder/**, lists or tar shards")
        command.add_argument("--bad_images", choices=("stop", "skip"), default="stop", help="unreadable images")
    for command in (cut, listing, shards, parquet):
        command.add_argument("--out", type=Path, required=True, help="folder, or the list's name")
        command.add_argument("--expect", choices=sorted(EXPECTED), help="warn if it is not this set's number of images")
    args = parser.parse_args(argv)
    if args.command == "sub-images":
        if args.side % 4 or args.step % 4 or not 0 < args.step <= args.side:
            parser.error("--side and --step must be multiples of 4, and the step not larger than the side")
        if bool(args.lr) != bool(args.out_lr):
            parser.error("--lr and --out_lr go together")
        if args.out_lr and args.out_lr.resolve() == args.out.resolve():
            parser.error("--out and --out_lr are one folder, and their sub-images have the same names: name another")
    if args.command == "shards" and not args.shard_gb > 0:
        parser.error("--shard_gb must be positive")
    if args.out.name in ("", ".."):  # shards and the list of unreadable images are named by it
        args.out = args.out.resolve()
    return args


def sub_images(images: list[ImageFile], args: argparse.Namespace) -> str:
    """Cut all that can be read, then settle what cannot; returns what was made."""
    lr_images: Sequence[ImageFile | None] = [None] * len(images)
    if args.lr:
        lr_images = match_lr(images, [image for word in args.lr for image in expand(word)], " ".join(args.lr))
    work = cut_all(images, lr_images, Cut(args.out, args.out_lr, args.side, args.step))
    made = list(tqdm(work, total=len(images), unit="photo", disable=None))
    if others := strangers(images, args.out):
        warn(f"{args.out} holds {len(others)} images that are not of these photographs, as {others[0]}")
    settle([(image, pieces.fault) for image, pieces in zip(images, made, strict=True) if pieces.fault], args)
    count, size = sum(pieces.count for pieces in made), sum(pieces.size for pieces in made)
    if not count:
        raise DataError(f"none of the {len(images)} images can be read: name a folder of photographs")
    return f"{count:,} sub-images in {args.out}, {size / 1e9:.2f} GB"


def list_images(images: list[ImageFile], args: argparse.Namespace) -> str:
    """List; returns what was listed. Small images are counted and left out."""
    found = readable(images, args)
    large = [(image, header) for image, header in found if min(header.height, header.width) >= args.min_side]
    base = args.out.parent.resolve()
    about = f"{len(large)} images of {' '.join(args.images)}; shortest side at least {args.min_side} pixels"
    write_list(args.out, [line_of(image, base) for image, _ in large], about)
    small, size = len(found) - len(large), sum(header.size for _, header in large)
    return (
        f"{len(large):,} images listed in {args.out}, {size / 1e9:.2f} GB, "
        f"{small:,} left out as smaller than {args.min_side} pixels"
    )


def make_shards(images: list[ImageFile], args: argparse.Namespace) -> str:
    """Pack what can be read by its header; returns what was packed."""
    found = readable(images, args)
    planned = plan([i for i, _ in found], [h for _, h in found], args.out, round(args.shard_gb * 1e9))
    packed = list(tqdm(pack(planned), total=len(planned), unit="shard", disable=None))
    about = f"{len(found)} images of {' '.join(args.images)} in {len(packed)} shards"
    write_list(args.out / "shards.txt", [shard.path.name for shard in packed], about)
    size = sum(shard.path.stat().st_size for shard in packed)
    return f"{len(found):,} images in {len(packed)} shards in {args.out}, {size / 1e9:.2f} GB"


def unpack_parquet(words: list[str], args: argparse.Namespace) -> tuple[str, int]:
    """Unpack tables, each into a shard; returns what was made, and how many images."""
    try:
        from image_data.parquet import find_tables, unpack
    except ImportError as error:
        raise DataError(f"{error}: pip install -e '.[curation]' brings what reads Parquet") from error
    tables = [table for word in words for table in find_tables(word)]
    made = list(tqdm(unpack(tables, args.out), total=len(tables), unit="table", disable=None))
    if empty := sum(one.empty for one in made):
        warn(f"{empty} rows hold no image of a known format and were left out")
    count, size = sum(one.images for one in made), sum(one.size for one in made)
    about = f"{count} images of {' '.join(words)} in {len(made)} shards"
    write_list(args.out / "shards.txt", [one.path.name for one in made], about)
    return f"{count:,} images in {len(made)} shards in {args.out}, {size / 1e9:.2f} GB", count


def readable(images: list[ImageFile], args: argparse.Namespace) -> list[tuple[ImageFile, Header]]:
    """The images whose headers can be read; the others are settled."""
    headers = tqdm(read_headers(images), total=len(images), unit="image", disable=None)
    found = list(zip(images, headers, strict=True))
    settle([(image, header.fault) for image, header in found if header.fault], args)
    return [(image, header) for image, header in found if not header.fault]


def settle(bad: list[tuple[ImageFile, str]], args: argparse.Namespace) -> None:
    """Stop at images that cannot be read, or write them to a file beside `--out` where they are to be skipped.

    Raises:
        DataError: with `--bad_images stop`, or when no image can be read; names the first ten.
    """
    report = args.out.with_name(f"{args.out.name}.unreadable.csv")
    report.unlink(missing_ok=True)
    if not bad:
        return
    if args.bad_images == "stop":
        listed = "\n".join(f"  {fault}" for _, fault in bad[:MAX_LISTED])
        more = f"\n  and {len(bad) - MAX_LISTED} more" if len(bad) > MAX_LISTED else ""
        raise DataError(f"{len(bad)} images cannot be read; replace them or give --bad_images skip:\n{listed}{more}")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("name", "reason"), *((image.name, why) for image, why in bad)])
    report.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(report, text.getvalue().encode(errors="surrogateescape"))
    warn(f"{len(bad)} images could not be read and were left out: {report}")


def write_list(path: Path, names: list[str], about: str) -> None:
    """Write a list that the trainer reads: a `#` line that says what it is, then a name a line.

    Raises:
        DataError: there is nothing to list.
    """
    if not names:
        raise DataError(f"no image is left to list in {path}: see --min_side, or name other images")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, "".join(f"{line}\n" for line in (f"# {about}", *names)).encode(errors="surrogateescape"))


def line_of(image: ImageFile, base: Path) -> str:
    """An image's line in a list of the folder `base`, from where it is found.

    Raises:
        DataError: a name that a list cannot hold.
    """
    path = os.path.relpath(os.path.abspath(image.path), base)
    line = f"{path}{IN_SHARD}{image.member}" if image.member else path
    if line != line.strip() or {"\n", "\r"} & {*line} or line.startswith("#") or (IN_SHARD in path):
        raise DataError(f"{image.name!r} cannot stand in a list, for its spaces, line breaks, '#' or '::': rename it")
    return line


def check_count(count: int, args: argparse.Namespace) -> None:
    if args.expect and count != EXPECTED[args.expect]:
        warn(f"{args.expect} has {EXPECTED[args.expect]:,} images, {count:,} were found")


def warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors end it with a message and status 1."""
    args = parse(argv)
    began = time.monotonic()
    try:
        if args.command == "parquet":
            done, count = unpack_parquet(args.images, args)
            check_count(count, args)
        else:
            images = [image for word in args.images for image in expand(word)]
            check_count(len(images), args)
            work = {"sub-images": sub_images, "list": list_images, "shards": make_shards}[args.command]
            done, count = work(images, args), len(images)
    except (DataError, ImageError, WorkerError) as error:
        raise SystemExit(f"error: {error}") from error
    except OSError as error:
        raise SystemExit(f"error: {args.out}: {error}; put it right, and start the same command again") from error
    seconds = time.monotonic() - began
    found = f"{count:,} of {EXPECTED[args.expect]:,} images" if args.expect else f"{count:,} images"
    print(f"{done}; {found} in {seconds:.1f} s, {count / seconds:.1f} images/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
