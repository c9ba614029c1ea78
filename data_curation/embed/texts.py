"""Sentences as queries: embedded with CLIP's text tower, into a features folder that select and report take.

    python -m data_curation.embed.texts sentences.txt --out features/texts
    python -m data_curation.select --pool features/pool --queries features/texts --per_query 100 --out chosen

One sentence a line. In the features folder each is an image file with the sentence written on it, so that tables,
pictures and pages name and show it like any query. Cosines between a sentence and an image are lower than between two
images, so do not mix both in one choice.
"""

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from data_curation.embed.decode import measure
from data_curation.embed.encoders import clip_encoder
from data_curation.embed.run import prepare
from data_curation.features import Record, Settings, normalised, write_shard
from image_data.sources import DataError
from models.team08_HATFreq.image_io import write_png
from utils.files import command, make_folder

CARD = 1024  # pixels a side: larger than any image that an encoder is shown, so that select does not warn of its size
CARDS = "sentences"  # their folder in the features folder
_CHARACTERS, _LINE, _MARGIN = 26, 80, 40  # characters a line; pixels


def read_sentences(path: Path) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        DataError: it cannot be read, has none, or has one twice.
    """
    try:
        lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): give a text file in UTF-8, one sentence a line") from error
    sentences = [line for line in lines if line]
    if not sentences:
        raise DataError(f"{path} has no sentence: write one a line")
    if len(set(sentences)) < len(sentences):
        twice = next(one for one in sentences if sentences.count(one) > 1)
        raise DataError(f"{path} has the sentence {twice!r} twice: take one out")
    return sentences


def card(sentence: str) -> NDArray[np.uint8]:
    """The picture that stands for a sentence, uint8 `h w 3`; letters beyond ASCII are drawn as question marks."""
    picture = np.full((CARD, CARD, 3), 255, np.uint8)
    for number, line in enumerate(textwrap.wrap(sentence, _CHARACTERS)[: CARD // _LINE]):
        place = (_MARGIN, _LINE * (number + 1))
        drawn = line.encode("ascii", "replace").decode()
        cv2.putText(picture, drawn, place, cv2.FONT_HERSHEY_SIMPLEX, 2, (32, 32, 32), 3, cv2.LINE_AA)
    return picture


def write_card(folder: Path, number: int, sentence: str) -> Record:
    """Write a sentence's picture; returns its record."""
    words = re.sub(r"[^0-9A-Za-z]+", "-", sentence).strip("-")[:60]
    path = folder.absolute() / f"{number:05}_{words}.png"
    write_png(path, card(sentence))
    return measure(str(path), path.read_bytes(), card(sentence))


@command("data_curation.embed.texts", RuntimeError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="data_curation.embed.texts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("sentences", type=Path, help="a text file, one sentence a line")
    add("--out", type=Path, required=True, help="the features folder")
    add("--model", default="ViT-L-14", help="as the pool's (default %(default)s)")
    add("--pretrained", default="openai", help="as the pool's (default %(default)s)")
    args = parser.parse_args(argv)
    embed_sentences(args.sentences, args.out, args.model, args.pretrained)


def embed_sentences(path: Path, out: Path, model: str, pretrained: str) -> None:
    """Make the features folder of a file of sentences.

    Raises:
        DataError, EncoderError: see there.
    """
    sentences = read_sentences(path)
    encoder = clip_encoder(model, pretrained, torch.device("cpu"), bf16=False, batch=1)
    vectors = normalised(np.stack([encoder.embed_text(sentence) for sentence in sentences]))
    settings = Settings(encoder.model, encoder.weights, 1, encoder.dimension, "fp32", (str(path),), len(sentences),
                        len(sentences), 1)  # fmt: skip
    prepare(out, settings, write=True)
    make_folder(out / CARDS)
    records = [write_card(out / CARDS, number, sentence) for number, sentence in enumerate(sentences, 1)]
    write_shard(out, 0, vectors, records, [], settings, "\n".join(sentences))
    print(f"{out}: {len(records)} sentences by {encoder.model}")


if __name__ == "__main__":
    sys.exit(main())
