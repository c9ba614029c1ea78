"""How long it takes to make training sets ready: sub-images, lists and tar shards, by the commands that a person types.

    python benchmarks/preparation.py --images photographs --out benchmarks/results/preparation.md

In a temporary folder it makes 2040x1356 PNG pictures from the photographs, as benchmarks/loader.py does, and runs each
command of scripts/prepare_data.py twice: the second time, all is there already. The first time includes what a start
takes. Files are in the system's cache, as they were just written: a network's file system is slower.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.loader import large_picture
from image_data.workers import usable_cores
from models.team08_HATFreq.image_io import list_images, read_rgb, write_png
from models.team08_HATFreq.system import write_bytes

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> None:
    """Run the commands, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--count", type=int, default=48, help="2K pictures to make (default: 48)")
    parser.add_argument("--copies", type=int, default=100, help="names that each photograph gets (default: 100)")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file of the table")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folders(args, folder)
        text = table(folder, args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(args.out, text.encode())
    print(text)


def make_folders(args: argparse.Namespace, folder: Path) -> None:
    """`2k`, of new pictures, and `many`, where each photograph stands under several names."""
    (folder / "2k").mkdir()
    (folder / "many").mkdir()
    paths = list_images(args.images)
    source = cycle(paths)
    for number in range(args.count):
        write_png(folder / "2k" / f"{number:04}.png", large_picture(source))
    for path in paths:
        for copy in range(args.copies):
            os.symlink(path.resolve(), folder / "many" / f"{copy:02}_{path.name}")


def table(folder: Path, args: argparse.Namespace) -> str:
    """A row a command, Markdown."""
    example = read_rgb(list_images(args.images)[0]).shape
    commands = {
        "sub-images, 480 every 240": ["sub-images", folder / "2k", "--out", folder / "sub"],
        "list": ["list", folder / "many", "--out", folder / "many.txt"],
        "shards": ["shards", folder / "many", "--out", folder / "shards"],
    }
    lines = ["| command | what it says | again |", "|---|---|---|"]
    for name, words in commands.items():
        first, again = (run(words, folder) for _ in range(2))
        lines.append(f"| {name} | {first} | {again.rpartition('images in ')[2]} |")
    original = sum(path.stat().st_size for path in (folder / "2k").iterdir())
    about = (
        f"sub-images of {args.count} pictures of 2040x1356 ({original / 1e9:.2f} GB of PNG); the others of "
        f"{len(list_images(folder / 'many'))} names of photographs as {example[1]}x{example[0]}; {usable_cores()} cores"
    )
    return "\n".join([*lines, "", about, ""])


def run(words: list[object], folder: Path) -> str:
    """A command's line, without the temporary folder."""
    command = [sys.executable, str(ROOT / "scripts" / "prepare_data.py"), *map(str, words)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return re.sub(rf" in {re.escape(str(folder))}\S*", "", said)


if __name__ == "__main__":
    main()
