"""Shards embedded and written, by one process; see run.py for which, cluster.py for many machines."""

import argparse
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from hashlib import sha256
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from data_curation.embed.decode import Decoded
from data_curation.embed.encoders import Encoder, backbone_encoder, clip_encoder
from data_curation.embed.reader import Outcome, read
from data_curation.features import Record, Settings, normalised, write_shard
from image_data.sources import ImageFile

Done = tuple[int, int, list[tuple[str, str]], float]  # a shard, images read, those that could not be, seconds
BATCHES_AHEAD = 4  # decoded images kept waiting for the encoder, in batches


def make_encoder(args: argparse.Namespace) -> Encoder:
    """The encoder that the command names, on its device."""
    cuda = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    device = torch.device(args.device or cuda)
    torch.set_num_threads(1)  # more would share out sums differently: other bytes on another machine
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    bf16 = args.precision == "bf16"
    if args.backbone:
        return backbone_encoder(args.backbone, args.weights, device, bf16, args.batch)
    return clip_encoder(args.model, args.pretrained, device, bf16, args.batch)


def read_images(
    images: Iterable[ImageFile], encoder: Encoder, args: argparse.Namespace
) -> Generator[Outcome, None, None]:
    """What is read of images, by the processes that the command asks for."""
    ahead = BATCHES_AHEAD * args.batch + args.workers
    return read(images, encoder.preprocess, args.downscale, args.workers, args.seconds, ahead)


def embed_batch(encoder: Encoder, outcomes: Sequence[Outcome]) -> tuple[NDArray[np.float16], list[Record]]:
    """Embeddings `n d` and records of the readable images of a batch, at most `encoder.batch` of them."""
    side = encoder.preprocess.crop
    pixels = np.zeros((len(outcomes), side, side, 3), np.uint8)  # an image's place is its own, readable or not
    readable = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, Decoded)]
    decoded = [outcome for outcome in outcomes if isinstance(outcome, Decoded)]
    if not decoded:
        return np.empty((0, encoder.dimension), np.float16), []
    pixels[readable] = [one.pixels for one in decoded]
    return normalised(encoder.embed(pixels)[readable]), [one.record for one in decoded]


def embed_shard(
    encoder: Encoder, images: Sequence[ImageFile], outcomes: Iterator[Outcome]
) -> tuple[NDArray[np.float16], list[Record], list[tuple[str, str]]]:
    """Embed one shard.

    Args:
        outcomes: of the images, in order; as many are taken as there are images.

    Returns:
        float16 `n d`, the records of its rows, name and reason of what could not be read.
    """
    rows, records, unreadable = [], [], []
    for start in range(0, len(images), encoder.batch):
        batch = images[start : start + encoder.batch]
        result = list(islice(outcomes, len(batch)))
        vectors, known = embed_batch(encoder, result)
        rows.append(vectors)
        records += known
        unreadable += [(image.name, why) for image, why in zip(batch, result, strict=True) if isinstance(why, str)]
    return np.concatenate(rows), records, unreadable


def embed_and_write(
    encoder: Encoder, args: argparse.Namespace, settings: Settings, number: int, images: Sequence[ImageFile],
    outcomes: Iterator[Outcome] | None = None,
) -> tuple[int, list[tuple[str, str]]]:  # fmt: skip
    """Embed a shard and write its files.

    Args:
        outcomes: of the images; read anew if None.

    Returns:
        How many images were read, name and reason of the others.
    """
    if outcomes is None:
        with closing(read_images(images, encoder, args)) as outcomes:
            return embed_and_write(encoder, args, settings, number, images, outcomes)
    vectors, records, unreadable = embed_shard(encoder, images, outcomes)
    write_shard(args.out, number, vectors, records, unreadable, settings, fingerprint(images, settings))
    return len(records), unreadable


def embed_here(
    encoder: Encoder, args: argparse.Namespace, settings: Settings, shards: Sequence[list[ImageFile]],
    todo: Sequence[int],
) -> Iterator[Done]:  # fmt: skip
    """Embed shards in this process, images being read ahead from one to the next; yields what each took."""
    with closing(read_images((image for number in todo for image in shards[number]), encoder, args)) as outcomes:
        for number in todo:
            since = time.monotonic()
            result, unreadable = embed_and_write(encoder, args, settings, number, shards[number], outcomes)
            yield number, result, unreadable, time.monotonic() - since


def fingerprint(images: Sequence[ImageFile], settings: Settings) -> str:
    """A hash of how and of what a shard is made, images by names and bytes: a finished one has to have the same."""
    digest = sha256(settings.made.encode())
    for image in images:
        digest.update(f"{image.name}\t{bytes_of(image)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def bytes_of(image: ImageFile) -> int:
    """Size of an image's file; -1 if there is none."""
    if image.member:
        return image.size
    try:
        return image.path.stat().st_size
    except OSError:
        return -1  # will be named as unreadable
