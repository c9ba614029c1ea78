"""Stage 1: embed images with CLIP, or another encoder, into a features folder (see features.py).

    python -m data_curation.embed DIV2K_test_LR --out features/queries
    torchrun --nproc_per_node 8 -m data_curation.embed 'LSDIR/**' Flickr2K HQ-50K/*.tar --downscale 4 --out pool

Images are folders, `folder/**` for sub-folders too, lists, tar shards (uncompressed) or single files; a .gif is not an
image here. They are cut into shards by their order; process r of n takes shards r, r + n, ... and writes each whole or
not at all: a run that was killed is finished by starting it again. RANK and WORLD_SIZE tell r and n, from torchrun or
from a job array. `--ray` has a Ray cluster do the shards instead, with the same bytes. On a CPU a process computes with
one thread: start more of them.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_curation.embed.shards import Done, embed_here, fingerprint, make_encoder
from data_curation.features import SETTINGS, Features, FeaturesError, Settings, finished_inputs, read_settings
from image_data.sources import DataError, ImageFile, ImageList, expand
from models.team08_HATFreq.image_io import ImageError
from utils.files import command, listed, make_folder, write_bytes


class CutList(Sequence[list[ImageFile]]):
    """Images cut into shards by their order; a shard's references are made when it is asked for."""

    def __init__(self, images: ImageList, size: int) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return -(-len(self.images) // self.size)

    def __getitem__(self, number: Any) -> Any:
        start = range(len(self))[number] * self.size
        return self.images[start : start + self.size]


def images_of(words: Sequence[str]) -> ImageList:
    """The images of the command's words, by absolute names, in order.

    Raises:
        DataError: a word without images, or an image named twice.
    """
    images = ImageList()
    for word in words:
        images.extend(expand(str(Path(word).absolute())))
    hashes = np.fromiter((hash(image.name) for image in images), np.int64, len(images))  # names take ten times as much
    _, place, count = np.unique(hashes, return_inverse=True, return_counts=True)
    alike = Counter(images[row].name for row in np.flatnonzero(count[place] > 1))
    twice = [name for name, times in alike.items() if times > 1]
    if twice:
        raise DataError(f"{len(twice)} images are named twice, {twice[0]} first: give each folder, list or shard once")
    return images


def prepare(folder: Path, settings: Settings, write: bool) -> None:
    """Make the features folder, or check that what is in it was made with the same settings.

    Raises:
        FeaturesError: it was not; names what differs and the remedy.
    """
    make_folder(folder)
    if (folder / SETTINGS).exists():
        result = read_settings(folder)
        changed = [key for key in vars(settings) if getattr(result, key) != getattr(settings, key)]
        if changed:
            was = ", ".join(f"{key} {getattr(result, key)} (now {getattr(settings, key)})" for key in changed)
            raise FeaturesError(f"{folder} was begun with other settings: {was}; choose another --out, or delete it")
    elif write:
        write_bytes(folder / SETTINGS, settings.encode())


def unfinished(folder: Path, settings: Settings, shards: Sequence[list[ImageFile]], mine: range) -> list[int]:
    """The numbers of this process's shards that are still to do.

    Raises:
        FeaturesError: a finished shard was made of other images, or otherwise.
    """
    todo = []
    for number in mine:
        result = finished_inputs(folder, number)
        if result is None:
            todo.append(number)
        elif result != fingerprint(shards[number], settings):
            raise FeaturesError(
                f"the images of shard {number} ({shards[number][0].name}, ...), or the encoder, have changed since: "
                f"choose another --out, or delete {folder}/shard_{number:05}.parquet to embed them again"
            )
    return todo


def run(args: argparse.Namespace) -> None:
    """Embed this process's share of the images, or all by Ray.

    Raises:
        DataError, EncoderError: see there.
        RuntimeError: Ray is not installed, or see cluster.py.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    images = images_of(args.images)
    encoder = make_encoder(args)
    settings = Settings(encoder.model, encoder.weights, args.downscale, encoder.dimension, args.precision,
                        tuple(args.images), args.shard_size, len(images), args.batch)  # fmt: skip
    shards = CutList(images, args.shard_size)
    prepare(args.out, settings, write=rank == 0)
    todo = unfinished(args.out, settings, shards, range(rank, len(shards), world))
    work = embed_by_ray(args, settings, shards, todo) if args.ray else embed_here(encoder, args, settings, shards, todo)
    for number, result, unreadable, seconds in work:
        _print_shard(number, len(shards), result, unreadable, seconds)
    if (args.out / SETTINGS).exists() and all(finished_inputs(args.out, n) is not None for n in range(len(shards))):
        features = Features(args.out)
        lost = len(images) - len(features)
        print(f"{args.out}: {len(features)} embeddings of {encoder.model}, {lost} images unreadable")


def embed_by_ray(
    args: argparse.Namespace, settings: Settings, shards: Sequence[list[ImageFile]], todo: Sequence[int]
) -> Iterator[Done]:
    """The same by a Ray cluster; see cluster.py."""
    try:
        from data_curation.embed.cluster import embed_by_tasks
    except ModuleNotFoundError as error:
        raise RuntimeError("--ray needs Ray: pip install -e '.[cluster]'") from error
    return embed_by_tasks(args, settings, shards, todo)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    parser = argparse.ArgumentParser(
        prog="data_curation.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", nargs="+", help="folders, folder/**, lists, tar shards, or image files")
    add("--out", type=Path, required=True, help="the features folder")
    add("--model", default="ViT-L-14", help="open_clip's name, or local-dir:FOLDER (default %(default)s)")
    add("--pretrained", default="openai", help="open_clip's tag, or a weights file (default %(default)s)")
    add("--backbone", help="instead of CLIP: alexnet, or a model of timm; needs --weights")
    add("--weights", type=Path, help="the backbone's weights, .safetensors or .pth")
    add("--downscale", type=int, choices=(1, 2, 3, 4), default=1,
        help="shrink by MATLAB's bicubic first: 4 shows the pool as the test's low-resolution images are")  # fmt: skip
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--batch", type=positive, default=64, help="images the encoder takes at once (default %(default)s)")
    share = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    add("--workers", type=positive, default=share,
        help="decoding processes of each process (default: the cores, shared out: %(default)s)")  # fmt: skip
    add("--seconds", type=float, default=60, help="time limit for reading one image (default %(default)s)")
    add("--shard_size", type=positive, default=10_000, help="images a shard (default %(default)s)")
    add("--ray", metavar="ADDRESS",
        help="embed by a Ray cluster (auto, HOST:PORT, ray://HOST:PORT) or Ray on this machine (local)")  # fmt: skip
    add("--device", default="", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    if bool(args.backbone) != bool(args.weights):
        parser.error("--backbone and --weights go together: the name of the network and the file of its weights")
    if args.ray and "RANK" in os.environ:
        parser.error("--ray shares the shards out itself: start it once, without torchrun and without RANK")
    if args.seconds <= 0:
        parser.error(f"--seconds must be positive, not {args.seconds:g}")
    return args


def positive(word: str) -> int:
    """An argument's type: an integer of at least 1."""
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is not positive")
    return number


@command("data_curation.embed", ImageError, RuntimeError)
def main(argv: list[str] | None = None) -> None:
    run(arguments(argv))


def _print_shard(number: int, shards: int, read: int, unreadable: list[tuple[str, str]], seconds: float) -> None:
    total = read + len(unreadable)
    print(f"shard {number + 1} of {shards}: {total} images in {seconds:.1f} s ({total / seconds:.1f}/s)", flush=True)
    if unreadable:
        names = listed([f"{name!r} {reason}" for name, reason in unreadable], "; ")
        print(f"  unreadable (shard_{number:05}.unreadable.csv): {names}", file=sys.stderr)
