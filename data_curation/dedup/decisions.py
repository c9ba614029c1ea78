"""From verdicts to decisions: what duplicates an evaluation image goes; of copies within the pool the largest stays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_curation.dedup.agreement import NOTHING, Verdict
from data_curation.dedup.candidates import Candidate
from data_curation.features import Features

REMOVED, ALREADY, LARGER, NO = "removed", "removed already", "kept: the larger one is removed", "not a duplicate"
WHOLE = 0.9  # common area from which on two images are copies of one frame, not parts that overlap


@dataclass
class Finding:
    """A candidate and what became of it.

    Attributes:
        row: of the pool.
        partner: row of `features`.
        features: the evaluation images, or the pool.
        side: which of them, `evaluation` or `pool`.
    """

    row: int
    partner: int
    features: Features
    side: str
    candidate: Candidate
    verdict: Verdict = NOTHING
    decision: str = NO

    @property
    def same_bytes(self) -> bool:
        """Whether the two files are equal."""
        return "sha1" in self.candidate.kinds

    @property
    def duplicate(self) -> bool:
        """Whether the two are near-duplicates."""
        return self.verdict.duplicate or self.same_bytes

    @property
    def whole(self) -> bool:
        """Whether they show the same frame; copies of one are copies of each other."""
        return self.same_bytes or (self.verdict.duplicate and self.verdict.common >= WHOLE)


def decide(findings: list[Finding], rank: NDArray[np.int64]) -> None:
    """Set the decisions.

    Copies of one frame form a group, whose largest stays. An image that overlaps a larger one goes if that one stays:
    what overlaps only an image that goes is kept.

    Args:
        findings: those within the pool have the smaller image as their row.
        rank: of the pool's rows, the largest image first.
    """
    gone = {one.row for one in findings if one.side == "evaluation" and one.duplicate}
    for one in findings:
        if one.side == "evaluation" and one.duplicate:
            one.decision = REMOVED
    inner = [one for one in findings if one.side == "pool" and one.duplicate]
    largest = _groups(
        [(one.row, one.partner) for one in inner if one.whole and gone.isdisjoint((one.row, one.partner))], rank
    )
    for one in sorted(inner, key=lambda one: (rank[one.row], rank[one.partner])):
        partner = largest.get(one.partner, one.partner)
        if one.row in gone:
            one.decision = ALREADY
        elif largest.get(one.row, one.row) != one.row or partner not in gone:
            one.decision = REMOVED
            gone.add(one.row)
        else:
            one.decision = LARGER


def _groups(pairs: list[tuple[int, int]], rank: NDArray[np.int64]) -> dict[int, int]:
    """Union-find: every row of a pair, and the largest of the rows that pairs connect it with."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        while parent.setdefault(row, row) != row:
            parent[row] = parent[parent[row]]  # the path is halved on the way
            row = parent[row]
        return row

    for pair in pairs:
        first, second = sorted(map(root, pair), key=lambda row: rank[row])
        parent[second] = first
    return {row: root(row) for row in list(parent)}
