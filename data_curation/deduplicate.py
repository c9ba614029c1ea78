"""Stage 2: keep images out of the choice that are near-duplicates of evaluation images, or of each other.

    python -m data_curation.deduplicate --pool features/pool --evaluation features/test features/bench --out duplicates

Candidates by their bytes, perceptual hashes, embeddings and local hashes (candidates.py), each laid over its partner
on the LR grid (verify.py). Writes `removed.txt`, the names to leave out, sorted; `duplicates.csv`, a row a candidate
with its evidence and the decision; `duplicates.json`, every parameter and count; and `duplicates.png`, the closest
pairs side by side. Within the pool the largest image of a group stays, ties by name. `work/` keeps what is done, for a
restart.
"""

import argparse
import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from data_curation import verify
from data_curation.candidates import (
    MAX_PHASH,
    Candidate,
    Limits,
    Pair,
    against_evaluation,
    by_size,
    hash_distance,
    within_pool,
)
from data_curation.features import Features
from data_curation.hashing import hash_images, quiet, read_checked
from data_curation.judging import Subject, judge
from data_curation.localhash import LocalHashes
from data_curation.pictures import pair as side_by_side
from data_curation.pictures import sheet
from data_curation.verify import Verdict
from image_data.sources import DataError
from models.team08_HATFreq.image_io import ImageError, write_png
from models.team08_HATFreq.system import write_bytes

REDUCTION = 4  # of the LR grid against an HR image
PICTURED = 24  # pairs in duplicates.png
REMOVED, ALREADY, LARGER, NO = "removed", "removed already", "kept: the larger one is removed", "not a duplicate"
COLUMNS = (
    "pool", "evidence", "partner", "side", "sha1_equal", "phash_distance", "cosine", "agreeing_hashes",
    "psnr_db", "detail_correlation", "common_area", "inliers", "transformation", "decision",
)  # fmt: skip


@dataclass
class Finding:
    """A candidate and what became of it; `partner` is a row of `features`, the pool or evaluation images."""

    row: int
    partner: int
    features: Features
    side: str
    candidate: Candidate
    verdict: Verdict
    decision: str = NO

    @property
    def duplicate(self) -> bool:
        """Whether the two are near-duplicates: the same bytes, or laid over each other."""
        return self.verdict.duplicate or "sha1" in self.candidate.kinds


class Deduplication:
    """A run of the stage."""

    def __init__(self, args: argparse.Namespace, workers: Executor) -> None:
        """Open the folders.

        Raises:
            DataError: a folder is incomplete, or they do not belong together.
        """
        self.args, self.workers, self.work = args, workers, args.out / "work"
        self.pool = Features(args.pool)
        self.evaluation = [Features(folder) for folder in args.evaluation]
        self.limits = Limits(args.phash, args.cosine, args.nearest)
        self.passed_over = 0
        for features in self.evaluation:
            _check_evaluation(self.pool, features)
        self.work.mkdir(parents=True, exist_ok=True)

    def run(self) -> list[Finding]:
        """All candidates with their decisions: those with evaluation images, then those within the pool."""
        ours = self._hashed(self.pool, "pool")
        findings: list[Finding] = []
        for number, features in enumerate(self.evaluation):
            theirs = self._hashed(features, f"evaluation{number}")
            found = against_evaluation(self.pool, features, ours, theirs, self.limits)
            findings += self._judged(found, features, f"evaluation{number}")
        if not self.args.keep_pool_duplicates:
            found, self.passed_over = within_pool(self.pool, ours, self.limits)
            gone = {finding.row for finding in findings if finding.duplicate}
            found = {pair: candidate for pair, candidate in found.items() if gone.isdisjoint(pair)}
            findings += self._judged(found, self.pool, "pool")
        decide(findings, self.pool)
        return findings

    def _hashed(self, features: Features, kind: str) -> list[LocalHashes]:
        hashes: list[LocalHashes] = []
        for done, block in hash_images(features, self.work, kind, self.workers):
            hashes += block
            print(f"{kind}: {done} of {len(features)} images hashed", flush=True)
        return hashes

    def _judged(self, found: dict[Pair, Candidate], features: Features, kind: str) -> list[Finding]:
        side = "pool" if features is self.pool else "evaluation"
        ours = _subjects(self.pool, REDUCTION)
        theirs = ours if side == "pool" else _subjects(features, _reduction(self.pool, features))
        common = verify.MIN_COMMON if side == "pool" else verify.MIN_LEAK
        verdicts: list[Verdict] = []
        for block in judge([(ours[a], theirs[b]) for a, b in found], common, self.work, kind, self.workers):
            verdicts += block
            print(f"{kind}: {len(verdicts)} of {len(found)} candidates verified", flush=True)
        return [
            Finding(a, b, features, side, candidate, verdict)
            for ((a, b), candidate), verdict in zip(found.items(), verdicts, strict=True)
        ]


def decide(findings: list[Finding], pool: Features) -> None:
    """Set the decisions: what duplicates an evaluation image goes, then what duplicates a larger image that stays."""
    gone: set[int] = set()
    for finding in findings:
        if finding.side == "evaluation" and finding.duplicate:
            finding.decision = REMOVED
            gone.add(finding.row)
    inner = [finding for finding in findings if finding.side == "pool" and finding.duplicate]
    for finding in sorted(inner, key=_by_size(pool)):
        if finding.row in gone:
            finding.decision = ALREADY
        elif finding.partner in gone:
            finding.decision = LARGER
        else:
            finding.decision = REMOVED
            gone.add(finding.row)


def write_table(path: Path, findings: list[Finding], pool: Features) -> None:
    """`duplicates.csv`: a row a candidate."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    names, digests, hashes = _names(pool), _digests(pool), pool.phashes()
    others = {id(features): (_names(features), _digests(features), features.phashes()) for features in _sides(findings)}
    for one, cosine in zip(findings, _cosines(findings, pool), strict=True):
        theirs = others[id(one.features)]
        same = int(digests[one.row] == theirs[1][one.partner])
        bits = hash_distance(hashes[one.row], theirs[2][one.partner])
        found = one.verdict
        writer.writerow((names[one.row], "+".join(one.candidate.kinds), theirs[0][one.partner], one.side, same, bits,
                         f"{cosine:.4f}", one.candidate.agreeing, f"{found.psnr:.2f}", f"{found.detail:.3f}",
                         f"{found.common:.3f}", found.inliers, found.transformation, one.decision))  # fmt: skip
    write_bytes(path, text.getvalue().encode())


def write_picture(path: Path, findings: list[Finding], pool: Features) -> None:
    """`duplicates.png`: the removed that lie closest to evaluation images, then those within the pool."""
    shown = sorted(
        (one for one in findings if one.decision == REMOVED),
        key=lambda one: (one.side != "evaluation", -one.verdict.psnr, one.row, one.partner),
    )
    if not shown:
        path.unlink(missing_ok=True)  # of a former run
        return
    names, digests = _names(pool), _digests(pool)
    boxes = []
    for one in shown[:PICTURED]:
        name, digest = _names(one.features)[one.partner], _digests(one.features)[one.partner]
        images = read_checked(names[one.row], digests[one.row]), read_checked(name, digest)
        facts = f"{one.verdict.psnr:.1f} dB, {one.verdict.transformation}"
        boxes.append(side_by_side(*images, 176, [f"pool: {names[one.row]}", f"{one.side}: {name}", facts]))
    write_png(path, sheet(boxes, 4))


def summarise(run: Deduplication, findings: list[Finding]) -> dict[str, object]:
    """Every parameter and count."""
    removed = {side: {one.row for one in findings if one.decision == REMOVED and one.side == side} for side in _SIDES}
    return {
        "parameters": {
            **{key: value for key, value in asdict(run.limits).items()},
            "pool": str(run.args.pool),
            "evaluation": [str(folder) for folder in run.args.evaluation],
            "within_pool": not run.args.keep_pool_duplicates,
            "min_psnr_db": verify.MIN_PSNR,
            "min_detail_correlation": verify.MIN_DETAIL,
            "min_common_area": {"evaluation": verify.MIN_LEAK, "pool": verify.MIN_COMMON},
        },
        "counts": {
            "pool": run.pool.settings.images,
            "readable": len(run.pool),
            "evaluation": sum(len(features) for features in run.evaluation),
            "candidates": {side: sum(one.side == side for one in findings) for side in _SIDES},
            "passed_over_within_pool": run.passed_over,
            "removed_for_evaluation": len(removed["evaluation"]),
            "removed_within_pool": len(removed["pool"]),
        },
    }


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = arguments(argv)
    try:
        quiet()
        processes = get_context("forkserver")  # fork alone would copy this process's threads' locks
        processes.set_forkserver_preload(["data_curation.judging"])
        with ProcessPoolExecutor(args.workers, processes, quiet) as workers:
            run = Deduplication(args, workers)
            findings = run.run()
        write_outputs(run, findings)
    except (DataError, ImageError, OSError) as error:
        raise SystemExit(f"data_curation.deduplicate: {error}") from error
    except BrokenProcessPool as error:
        raise SystemExit("data_curation.deduplicate: a worker process died (memory?): try fewer --workers") from error


def write_outputs(run: Deduplication, findings: list[Finding]) -> None:
    """All files; `removed.txt` last, for the next stage waits for it."""
    names = _names(run.pool)
    removed = sorted({names[one.row] for one in findings if one.decision == REMOVED}, key=str.encode)
    summary = summarise(run, findings)
    write_table(run.args.out / "duplicates.csv", findings, run.pool)
    write_picture(run.args.out / "duplicates.png", findings, run.pool)
    write_bytes(run.args.out / "duplicates.json", (json.dumps(summary, indent=2) + "\n").encode())
    write_bytes(run.args.out / "removed.txt", "".join(f"{name}\n" for name in removed).encode())
    counts = summary["counts"]
    print(f"{run.args.out / 'removed.txt'}: {len(removed)} of {len(run.pool)} images; {json.dumps(counts)}")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    parser = argparse.ArgumentParser(
        prog="data_curation.deduplicate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pool", type=Path, required=True, help="features folder to clean")
    add("--evaluation", type=Path, nargs="+", required=True, help="features folders of test, validation, benchmarks")
    add("--out", type=Path, required=True, help="folder for removed.txt, duplicates.csv, .json, .png and work/")
    add("--phash", type=int, default=Limits.phash, help="bits of 64 that hashes may differ by (default %(default)s)")
    add("--cosine", type=float, default=Limits.cosine, help="least cosine of embeddings (default %(default)s)")
    add("--nearest", type=int, default=Limits.nearest,
        help="partners by embedding looked at for each image (default %(default)s)")  # fmt: skip
    add("--keep_pool_duplicates", action="store_true", help="look for duplicates of evaluation images only")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes (default %(default)s)")
    args = parser.parse_args(argv)
    if not 0 <= args.phash <= MAX_PHASH:
        parser.error(f"--phash must lie in 0 .. {MAX_PHASH}, not {args.phash}")
    if min(args.workers, args.nearest) < 1:
        parser.error("--workers and --nearest must be positive")
    return args


_TOGETHER = 4096  # embeddings read at a time
_SIDES = ("evaluation", "pool")


def _check_evaluation(pool: Features, evaluation: Features) -> None:
    """Raise DataError if evaluation images were embedded differently, or some of them were not."""
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


def _cosines(findings: list[Finding], pool: Features) -> Iterator[float]:
    """Of the embeddings of each pair; neighbours of one folder are read together."""
    for _, group in groupby(findings, lambda one: id(one.features)):
        pairs = list(group)
        for start in range(0, len(pairs), _TOGETHER):
            part = pairs[start : start + _TOGETHER]
            ours = pool.vectors([one.row for one in part]).astype(np.float64)
            theirs = part[0].features.vectors([one.partner for one in part])
            yield from (ours * theirs).sum(1).tolist()


def _reduction(pool: Features, evaluation: Features) -> float:
    """Pixels of an evaluation image a pixel of the LR grid: a pool embedded at a quarter has LR partners."""
    return REDUCTION * evaluation.settings.downscale / pool.settings.downscale


def _subjects(features: Features, factor: float) -> list[Subject]:
    return [
        Subject(*one, factor, features.settings.downscale)
        for one in zip(_names(features), _digests(features), strict=True)
    ]


def _names(features: Features) -> list[str]:
    return features.columns("name")["name"].to_pylist()


def _digests(features: Features) -> list[str]:
    return features.columns("sha1")["sha1"].to_pylist()


def _sides(findings: list[Finding]) -> list[Features]:
    return list({id(one.features): one.features for one in findings}.values())


def _by_size(pool: Features) -> Callable[[Finding], tuple[int, int]]:
    """Order of pairs within the pool: by the image that may go, the largest first, then by its partner."""
    rank = by_size(pool)
    return lambda one: (int(rank[one.row]), int(rank[one.partner]))


if __name__ == "__main__":
    main()
