"""Stage 2: keep images out of the choice that are near-duplicates of evaluation images, or of each other.

    python -m data_curation.dedup --pool features/pool --evaluation features/test features/bench --out duplicates

Candidates by their bytes, perceptual hashes, embeddings and keypoints (candidates.py), each registered with its partner
(registration.py) and judged by the structure that both show (agreement.py). Writes `removed.txt`, the names to leave
out, sorted; `coverage.npz`, which images were compared; `kept.txt`, all others; `duplicates.csv`, a row a candidate
with its evidence and the decision; `duplicates.json`, every parameter and count; and `duplicates.png`, pairs side by
side. Within the pool the largest image of a group stays, ties by name. `work/` keeps what is done, for a restart.
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from data_curation.coverage import check_unchanged, forget, write_coverage
from data_curation.dedup import agreement
from data_curation.dedup.candidates import MAX_PHASH, Candidate, Limits, Pair, against_evaluation, by_size, within_pool
from data_curation.dedup.decisions import REMOVED, Finding, decide
from data_curation.dedup.judging import ImageId, evaluation_keypoints, judge
from data_curation.embed.phash import distance
from data_curation.features import Features
from data_curation.images import read_checked
from data_curation.joined import open_features
from image_data.sources import DataError
from image_data.workers import CONTEXT, start_worker
from models.team08_HATFreq.image_io import ImageError, write_png
from utils.files import command, make_folder, write_bytes, write_list
from utils.pictures import pair as side_by_side
from utils.pictures import sheet

PICTURED = 24  # pairs in duplicates.png
SUSPICIOUS = 0.1  # share of the pool removed for evaluation images from which on a warning is due
COLUMNS = (
    "pool", "evidence", "partner", "side", "sha1_equal", "phash_distance", "cosine", "shared_keypoints",
    "agreeing_share", "agreeing_pixels", "common_area", "inliers", "transformation", "decision",
)  # fmt: skip
_SIDES = ("evaluation", "pool")
_BATCH = 4096  # embeddings read at a time


class Deduplication:
    """A run of the stage."""

    def __init__(self, args: argparse.Namespace, workers: Executor) -> None:
        """Open the folders.

        Raises:
            DataError: a folder is incomplete, or they do not belong together.
        """
        self.args, self.workers, self.work = args, workers, args.out / "work"
        self.pool = open_features(args.pool)
        self.evaluation = [Features(folder) for folder in args.evaluation]
        self.limits = Limits(args.phash, args.cosine, args.nearest, args.index)
        self.ids = {id(features): _ids(features) for features in (self.pool, *self.evaluation)}
        self.passed_over = 0
        for features in self.evaluation:
            _check_evaluation(self.pool, features)
        for features in (self.pool, *self.evaluation):
            check_unchanged(features)
        for folder in (args.out, self.work):
            make_folder(folder)
        forget(args.out)

    def run(self) -> list[Finding]:
        """All candidates with their decisions: those with evaluation images, then those within the pool.

        Raises:
            DataError: nothing is left of the pool.
        """
        findings: list[Finding] = []
        for number, features in enumerate(self.evaluation):
            partners = list(self.workers.map(evaluation_keypoints, self.ids[id(features)], chunksize=4))
            result = against_evaluation(self.pool, features, partners, self.limits)
            findings += self._judged(result, features, f"evaluation{number}")
        gone = {finding.row for finding in findings if finding.duplicate}
        rank = by_size(self.pool)
        if not self.args.keep_pool_duplicates:
            result, self.passed_over = within_pool(self.pool, rank, self.limits)
            result = {pair: candidate for pair, candidate in result.items() if gone.isdisjoint(pair)}
            findings += self._judged(result, self.pool, "pool")
        decide(findings, rank)
        if len(gone) == len(self.pool):
            raise DataError(f"every image of {self.pool.folder} duplicates an evaluation image: give a training pool")
        return findings

    def _judged(self, result: dict[Pair, Candidate], features: Features, kind: str) -> list[Finding]:
        """Findings in the order of the candidates; judged in the order of their partners, who are prepared once."""
        side = "pool" if features is self.pool else "evaluation"
        findings = [Finding(*pair, features, side, candidate) for pair, candidate in result.items()]
        order = sorted(findings, key=lambda one: (one.partner, one.row))
        own, partners = self.ids[id(self.pool)], self.ids[id(features)]
        done = 0
        for block in judge(
            [(own[one.row], partners[one.partner]) for one in order], side, self.work, kind, self.workers
        ):
            for verdict in block:
                order[done].verdict = verdict
                done += 1
            print(f"{kind}: {done} of {len(order)} candidates verified", flush=True)
        return findings

    def names(self, features: Features) -> list[str]:
        """Of a folder's rows."""
        return [one.name for one in self.ids[id(features)]]


def write_table(path: Path, findings: Sequence[Finding], run: Deduplication) -> None:
    """`duplicates.csv`: a row a candidate."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    own, hashes = run.names(run.pool), run.pool.phashes()
    others = {id(one): (run.names(one), one.phashes()) for one in (run.pool, *run.evaluation)}
    for one, cosine in zip(findings, _cosines(findings, run.pool), strict=True):
        names, partners = others[id(one.features)]
        bits = int(distance(hashes[one.row], partners[one.partner, 0]).min())
        result = one.verdict
        writer.writerow((own[one.row], "+".join(one.candidate.kinds), names[one.partner], one.side,
                         int(one.same_bytes), bits, f"{cosine:.4f}", one.candidate.shared, f"{result.share:.3f}",
                         result.agreeing, f"{result.common:.3f}", result.inliers, result.transformation,
                         one.decision))  # fmt: skip
    write_bytes(path, text.getvalue().encode())


def write_picture(path: Path, findings: Sequence[Finding], run: Deduplication) -> None:
    """`duplicates.png`: pairs of removed images, those with evaluation images first, the least certain first."""
    shown = sorted(
        (one for one in findings if one.decision == REMOVED),
        key=lambda one: (one.side != "evaluation", one.verdict.share, one.row, one.partner),
    )
    if not shown:
        path.unlink(missing_ok=True)  # of a former run
        return
    boxes = []
    for one in shown[:PICTURED]:
        own, partners = run.ids[id(run.pool)][one.row], run.ids[id(one.features)][one.partner]
        record = f"{one.verdict.share:.0%} agree, {one.verdict.transformation}"
        texts = [f"pool: {own.name}", f"{one.side}: {partners.name}", record]
        boxes.append(side_by_side(read_checked(*own), read_checked(*partners), 176, texts))
    write_png(path, sheet(boxes, 4))


def summarise(run: Deduplication, findings: Sequence[Finding]) -> dict[str, Any]:
    """Every parameter and count, and warnings."""
    removed = {side: {one.row for one in findings if one.decision == REMOVED and one.side == side} for side in _SIDES}
    leaks = len(removed["evaluation"])
    warning = (
        f"{leaks} of {len(run.pool)} images of the pool duplicate evaluation images: is it a training pool? "
        "Look at duplicates.png"
    )
    return {
        "parameters": {
            **asdict(run.limits),
            "pool": [str(folder) for folder in run.args.pool],
            "evaluation": [str(folder) for folder in run.args.evaluation],
            "within_pool": not run.args.keep_pool_duplicates,
            "min_agreeing_share": agreement.MIN_SHARE,
            "min_agreeing_pixels": agreement.MIN_AGREEING,
            "min_common_area": {"evaluation": agreement.MIN_LEAK, "pool": agreement.MIN_COMMON},
        },
        "counts": {
            "pool": run.pool.settings.images,
            "readable": len(run.pool),
            "evaluation": sum(len(features) for features in run.evaluation),
            "candidates": {side: sum(one.side == side for one in findings) for side in _SIDES},
            "passed_over_within_pool": run.passed_over,
            "removed_for_evaluation": leaks,
            "removed_within_pool": len(removed["pool"]),
        },
        "warnings": [warning] if leaks > SUSPICIOUS * len(run.pool) else [],
    }


def write_outputs(run: Deduplication, findings: Sequence[Finding]) -> None:
    """All files; `removed.txt` last, for the next stage waits for it."""
    names = run.names(run.pool)
    removed = sorted({names[one.row] for one in findings if one.decision == REMOVED}, key=str.encode)
    out = set(removed)
    kept = [name for name in names if name not in out]
    summary = summarise(run, findings)
    write_table(run.args.out / "duplicates.csv", findings, run)
    write_picture(run.args.out / "duplicates.png", findings, run)
    write_bytes(run.args.out / "duplicates.json", (json.dumps(summary, indent=2) + "\n").encode())
    write_list(run.args.out / "kept.txt", kept)
    write_coverage(run.args.out, run.pool, run.evaluation)
    write_list(run.args.out / "removed.txt", removed)
    for warning in summary["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    counts = json.dumps(summary["counts"])
    print(f"{run.args.out / 'removed.txt'}: {len(removed)} of {len(run.pool)} images; {counts}")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    parser = argparse.ArgumentParser(
        prog="data_curation.dedup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pool", type=Path, nargs="+", required=True, help="features folders to clean, read as one pool")
    add("--evaluation", type=Path, nargs="+", required=True, help="features folders of test, validation, benchmarks")
    add("--out", type=Path, required=True, help="folder for removed.txt, kept.txt, duplicates.* and work/")
    add("--phash", type=int, default=Limits.phash, help="bits of 64 that hashes may differ by (default %(default)s)")
    add("--cosine", type=float, default=Limits.cosine, help="least cosine of embeddings (default %(default)s)")
    add("--nearest", type=int, default=Limits.nearest,
        help="partners by embedding looked at for each image (default %(default)s)")  # fmt: skip
    add("--index", default=Limits.index, metavar="FACTORY",
        help="faiss' index within the pool: Flat (default, exact), for many millions IVF65536,Flat")  # fmt: skip
    add("--keep_pool_duplicates", action="store_true", help="look for duplicates of evaluation images only")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (default %(default)s)")
    args = parser.parse_args(argv)
    if not 0 <= args.phash <= MAX_PHASH:
        parser.error(f"--phash must lie in 0 .. {MAX_PHASH}, not {args.phash}")
    try:
        faiss.index_factory(64, args.index)
    except RuntimeError:
        parser.error(f"--index {args.index} is not a factory string of faiss, such as Flat or IVF1024,Flat")
    if min(args.workers, args.nearest) < 1:
        parser.error("--workers and --nearest must be positive")
    return args


@command("data_curation.dedup", ImageError)
def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    context = get_context(CONTEXT)
    context.set_forkserver_preload(["data_curation.dedup.judging"])
    try:
        with ProcessPoolExecutor(args.workers, context, start_worker) as workers:
            run = Deduplication(args, workers)
            findings = run.run()
    except BrokenProcessPool as error:
        raise DataError("a worker process died (memory?): try fewer --workers") from error
    write_outputs(run, findings)


def _check_evaluation(pool: Features, evaluation: Features) -> None:
    """Raise DataError if evaluation images were embedded differently, are the pool, or were unreadable."""
    if evaluation.folder.resolve() in [folder.resolve() for folder in pool.folders]:
        raise DataError(f"{evaluation.folder} is given as the pool and as evaluation images")
    if pool.settings.model != evaluation.settings.model:
        raise DataError(
            f"{pool.folder} was embedded by {pool.settings.model}, {evaluation.folder} by {evaluation.settings.model}: "
            "embed both with one encoder"
        )
    if lost := evaluation.unreadable():
        raise DataError(
            f"{lost[0][0]} could not be read when {evaluation.folder} was embedded ({lost[0][1]}), nor {len(lost) - 1} "
            "more: nothing would keep them out of the pool; repair them or take them out, and embed again"
        )


def _ids(features: Features) -> list[ImageId]:
    return [ImageId(*one) for one in zip(features.column("name"), features.column("sha1"), strict=True)]


def _cosines(findings: Sequence[Finding], pool: Features) -> Iterator[float]:
    """Of the embeddings of each pair; neighbours of one folder are read together."""
    for _, group in groupby(findings, lambda one: id(one.features)):
        pairs = list(group)
        for start in range(0, len(pairs), _BATCH):
            part = pairs[start : start + _BATCH]
            own = pool.vectors([one.row for one in part]).astype(np.float64)
            partners = part[0].features.vectors([one.partner for one in part])
            yield from (own * partners).sum(1).tolist()
