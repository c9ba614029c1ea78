"""Candidates laid over each other by worker processes, in blocks that a restart finds."""

import json
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha1
from itertools import groupby
from pathlib import Path

from data_curation.hashing import read_checked
from data_curation.verify import Verdict, View, verify, view
from models.team08_HATFreq.system import write_bytes

BLOCK = 256  # pairs a file of verdicts
_FORM = 1  # of the verdicts; a change makes old files void


@dataclass(frozen=True)
class Subject:
    """An image to lay over another.

    Attributes:
        name, sha1: see Features.
        factor, shrink: see verify.view.
    """

    name: str
    sha1: str
    factor: float
    shrink: int


def judge(
    pairs: list[tuple[Subject, Subject]], min_common: float, folder: Path, kind: str, pool: Executor
) -> Iterator[list[Verdict]]:
    """Verdicts on pairs, block after block; blocks that a former run wrote are read.

    Args:
        pairs: image of the pool, partner.
        min_common: see verify.verify.
        folder: for the blocks, `verdicts_<kind>_00000.json`.
        pool: worker processes.
    """
    for number, start in enumerate(range(0, len(pairs), BLOCK)):
        part = pairs[start : start + BLOCK]
        path = folder / f"verdicts_{kind}_{number:05}.json"
        mark = sha1(
            json.dumps([_FORM, min_common, [[asdict(one), asdict(other)] for one, other in part]]).encode()
        ).hexdigest()
        verdicts = _load(path, mark)
        if verdicts is None:
            groups = [
                (one, [other for _, other in group], min_common) for one, group in groupby(part, lambda pair: pair[0])
            ]
            verdicts = [verdict for found in pool.map(_judge_one, *zip(*groups, strict=True)) for verdict in found]
            content = {"mark": mark, "verdicts": [asdict(verdict) for verdict in verdicts]}
            write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())
        yield verdicts


def _judge_one(image: Subject, partners: list[Subject], min_common: float) -> list[Verdict]:
    ours = _view(image)
    return [verify(ours, _view(partner), min_common) for partner in partners]


@lru_cache(maxsize=128)
def _view(image: Subject) -> View:
    return view(read_checked(image.name, image.sha1), image.factor, image.shrink)


def _load(path: Path, mark: str) -> list[Verdict] | None:
    """A block's verdicts, or None if there are no sound ones on these very pairs."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text())
        return [Verdict(**verdict) for verdict in found["verdicts"]] if found["mark"] == mark else None
    except (ValueError, KeyError, TypeError):
        return None
