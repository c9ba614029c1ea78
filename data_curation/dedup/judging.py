"""Candidates judged by worker processes, in blocks that a restart finds."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict
from functools import lru_cache
from hashlib import sha1
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_curation.dedup.agreement import MIN_COMMON, MIN_LEAK, Verdict, verify
from data_curation.dedup.registration import COUNT, View, view
from data_curation.embed.keypoints import POOL_SIDE, find_keypoints, hashed
from data_curation.images import read_checked
from utils.files import write_bytes

EVALUATION_SIDE = 1024  # pixels: twice those of the pool's images, so that small crops are found in them
BLOCK = 256  # pairs a file of verdicts
_FORM = 2  # of the verdicts; a change makes old files void


class ImageId(NamedTuple):
    """An image by its name and the sha1 of its bytes."""

    name: str
    sha1: str


def judge(
    pairs: Sequence[tuple[ImageId, ImageId]], side: str, folder: Path, kind: str, workers: Executor
) -> Iterator[list[Verdict]]:
    """Verdicts on pairs, block after block; blocks that a former run wrote are read.

    Args:
        pairs: image of the pool, partner; pairs of one partner follow each other.
        side: of the partners, `evaluation` or `pool`.
        folder: for the blocks, `verdicts_<kind>_00000.json`.
    """
    for number, start in enumerate(range(0, len(pairs), BLOCK)):
        part = pairs[start : start + BLOCK]
        path = folder / f"verdicts_{kind}_{number:05}.json"
        mark = sha1(json.dumps([_FORM, side, part]).encode()).hexdigest()
        verdicts = _load(path, mark)
        if verdicts is None:
            groups = [(partner, [one for one, _ in group]) for partner, group in groupby(part, lambda pair: pair[1])]
            partners, images = zip(*groups, strict=True)
            verdicts = [one for result in workers.map(_judge, partners, images, [side] * len(groups)) for one in result]
            content = {"mark": mark, "verdicts": [asdict(verdict) for verdict in verdicts]}
            write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
        yield verdicts


def evaluation_keypoints(image: ImageId) -> NDArray[np.void]:
    """`n` of HASHED: more keypoints of an evaluation image than a features folder holds."""
    rgb = read_checked(*image)
    return hashed(find_keypoints(rgb, EVALUATION_SIDE, COUNT), *rgb.shape[:2])


def _judge(partner: ImageId, images: list[ImageId], side: str) -> list[Verdict]:
    partner_view = _view(partner, EVALUATION_SIDE if side == "evaluation" else POOL_SIDE)
    least = MIN_LEAK if side == "evaluation" else MIN_COMMON
    return [verify(_view(image, POOL_SIDE), partner_view, least) for image in images]


@lru_cache(maxsize=16)
def _view(image: ImageId, side: int) -> View:
    return view(read_checked(*image), side)


def _load(path: Path, mark: str) -> list[Verdict] | None:
    """A block's verdicts, or None if there are no sound ones on these very pairs."""
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
        return [Verdict(**verdict) for verdict in result["verdicts"]] if result["mark"] == mark else None
    except (ValueError, KeyError, TypeError):
        return None
