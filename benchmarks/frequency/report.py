"""The tables of the experiment, from the results that there are."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from benchmarks.tables import Difference, paired

from .blocks import CANDIDATES
from .jobs import BANDS, HIGHEST, Job

Result = dict[str, Any]
MEAN = "mean"
ALPHA = 0.05
BAR = 0.02  # dB
SEEDS_APART = (
    "(n): seeds that could be compared, where they are not the row's: pairs count on one kind of processor only"
)
PERIODICITY = "periodicity.json"  # image -> how periodic its HR version is


def read_results(folder: Path) -> dict[Job, Result]:
    """All finished jobs of a folder of results."""
    paths = (path for path in sorted(folder.glob("*.json")) if path.name != PERIODICITY)
    results = [json.loads(path.read_text()) for path in paths]
    return {Job(**result["job"]): result for result in results}


def psnr(result: Result, name: str = MEAN) -> float:
    """Mean PSNR-Y over a set; the mean of the sets for `mean`."""
    if name != MEAN:
        return statistics.fmean(result["sets"][name]["images"].values())
    return statistics.fmean(psnr(result, one) for one in result["sets"])


@dataclass(frozen=True)
class Compared:
    """A candidate against another job of the same seed: one value a seed that both have finished."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean difference; nan without a pair."""
        return statistics.fmean(self.values) if self.values else float("nan")

    def half(self, level: float = ALPHA) -> float:
        """Half the width of Student's interval that misses the true mean with a probability of `level`."""
        n = len(self.values)
        if n < 2:
            return float("nan")
        return float(student.ppf(1 - level / 2, n - 1)) * statistics.stdev(self.values) / n**0.5

    @property
    def difference(self) -> Difference:
        """The mean and its 95 % interval; of two values or more."""
        return paired(self.values, [0.0] * len(self.values))

    @property
    def p(self) -> float:
        """Two-sided p of no difference; 1 with fewer than two pairs."""
        n = len(self.values)
        if n < 2:
            return 1.0
        spread = statistics.stdev(self.values) / n**0.5
        return 2 * float(student.sf(abs(self.mean) / spread, n - 1)) if spread else float(self.mean == 0)


def compare(results: dict[Job, Result], ours: Sequence[Job], others: Sequence[Job], name: str = MEAN) -> Compared:
    """The differences in PSNR-Y of the pairs that are finished."""
    return Compared(tuple(psnr(a, name) - psnr(b, name) for a, b in finished(results, ours, others)))


def finished(results: dict[Job, Result], ours: Sequence[Job], others: Sequence[Job]) -> list[tuple[Result, Result]]:
    """The pairs whose jobs are both finished, on processors of one kind: on two kinds the same job ends otherwise."""
    pairs = [(results[a], results[b]) for a, b in zip(ours, others, strict=True) if a in results and b in results]
    return [(a, b) for a, b in pairs if a.get("machine") == b.get("machine")]


def seeds_apart(one: Compared, row: Compared) -> str:
    """The number of seeds in brackets where it is not that of the row; what it means is `SEEDS_APART`."""
    return "" if len(one.values) == len(row.values) else f" ({len(one.values)})"


def holm(ps: dict[str, float], tried: int) -> dict[str, float]:
    """Holm's adjusted p of each of `tried` comparisons; those that are not given count as 1."""
    adjusted, highest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (tried - rank)))
        adjusted[name] = highest
    return adjusted


def jobs_of(candidate: str, control: bool, seeds: Iterable[int], setting: Job) -> list[Job]:
    """A candidate's jobs, a seed each, with everything else as in `setting`."""
    return [replace(setting, candidate=candidate, control=control, seed=seed) for seed in seeds]


def against_controls(results: dict[Job, Result], seeds: Sequence[int], setting: Job) -> dict[str, Compared]:
    """Every candidate that has finished a pair against its control, best first."""
    found = {
        name: compare(results, jobs_of(name, False, seeds, setting), jobs_of(name, True, seeds, setting))
        for name in CANDIDATES
    }
    some = {name: one for name, one in found.items() if one.values}  # the mean of none is nan, which has no place
    return dict(sorted(some.items(), key=lambda item: -item[1].mean))


def at_the_bar(results: dict[Job, Result], seeds: Sequence[int], setting: Job) -> list[str]:
    """The candidates that beat their control by enough, and not by chance."""
    found = against_controls(results, seeds, setting)
    adjusted = holm({name: one.p for name, one in found.items()}, len(CANDIDATES))
    return [name for name, one in found.items() if one.mean >= BAR and adjusted[name] < ALPHA]


def table(results: dict[Job, Result], seeds: Sequence[int], setting: Job) -> str:
    """Markdown of a stage: every candidate against its control and against `none`, best first."""
    ours = {name: jobs_of(name, False, seeds, setting) for name in CANDIDATES}
    controls = {name: jobs_of(name, True, seeds, setting) for name in CANDIDATES}
    without = jobs_of("none", False, seeds, setting)
    found = against_controls(results, seeds, setting)
    if not found:
        return "No pair of a candidate and its control is finished.\n"
    adjusted = holm({name: one.p for name, one in found.items()}, len(CANDIDATES))
    sets = list(next(iter(results.values()))["sets"])
    head = [
        "candidate",
        "seeds",
        "against its control",
        "corrected interval",
        "Holm's p",
        *sets,
        "candidate - none",
        "control - none",
    ]
    head += ["parameters", "CPU s a step"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    noted = False
    for name, one in found.items():
        wide = one.half(ALPHA / len(CANDIDATES))
        interval = f"{one.mean - wide:+.3f} .. {one.mean + wide:+.3f}" if len(one.values) > 1 else "one seed"
        cells = [name, str(len(one.values)), f"{one.mean:+.4f}", interval]
        cells.append(f"{adjusted[name]:.3f}")
        cells += [f"{compare(results, ours[name], controls[name], one_set).mean:+.3f}" for one_set in sets]
        for jobs in ours[name], controls[name]:
            beside_none = compare(results, jobs, without)
            apart = seeds_apart(beside_none, one)
            cells.append(f"{beside_none.mean:+.4f}{apart}" if beside_none.values else "not measured")
            noted = noted or bool(beside_none.values and apart)
        done = [results[job] for job in ours[name] if job in results]
        cells += [f"{done[0]['parameters']:,}", f"{step_seconds(done):.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    if noted:
        lines += ["", f"{SEEDS_APART}."]
    base = [results[job] for job in without if job in results]
    if base:
        shown = ", ".join(f"{one_set} {statistics.fmean(psnr(r, one_set) for r in base):.3f}" for one_set in sets)
        lines += ["", f"`none` ({len(base)} seeds): {shown} dB, {step_seconds(base):.3f} CPU s a step."]
    other = [
        name
        for name in CANDIDATES
        if len(found.get(name, Compared(())).values)
        < sum(a in results and b in results for a, b in zip(ours[name], controls[name], strict=True))
    ]
    if other:
        lines += [
            "",
            f"Candidate and control ran on two kinds of processor; delete one's result: {', '.join(other)}.",
        ]
    reached = ", ".join(at_the_bar(results, seeds, setting)) or "none"
    lines += ["", f"At the bar (+{BAR} dB, Holm's p below {ALPHA}): {reached}."]
    return "\n".join(lines) + "\n"


def step_seconds(results: Sequence[Result]) -> float:
    """Mean CPU seconds of a training step."""
    return statistics.fmean(result["train_cpu_seconds"] / result["job"]["steps"] for result in results)


def pairs_of(results: dict[Job, Result], name: str, seeds: Sequence[int], setting: Job) -> list[tuple[Result, Result]]:
    """The finished pairs of a candidate and its control."""
    return finished(results, jobs_of(name, False, seeds, setting), jobs_of(name, True, seeds, setting))


def band_gains(pairs: Sequence[tuple[Result, Result]]) -> NDArray[np.float64]:
    """How much less error than its control a candidate leaves in each band, over all sets, in dB: `seeds BANDS`."""
    energy = np.array([[np.sum([s["bands"] for s in r["sets"].values()], axis=0) for r in pair] for pair in pairs])
    return 10 * np.log10(energy[:, 1] / energy[:, 0])


def quarter_gains(pairs: Sequence[tuple[Result, Result]], ranked: dict[str, float]) -> NDArray[np.float64]:
    """Mean difference in PSNR-Y on the quarters of all images, from the least to the most periodic: `seeds 4`."""
    images = sorted(ranked, key=lambda name: ranked[name])
    rows = []
    for pair in pairs:
        ours, other = ({k: v for s in result["sets"].values() for k, v in s["images"].items()} for result in pair)
        values = [ours[name] - other[name] for name in images]
        rows.append([np.mean(part) for part in np.array_split(values, 4)])
    return np.array(rows)


def details(results: dict[Job, Result], seeds: Sequence[int], setting: Job, ranked: dict[str, float]) -> str:
    """Markdown: gains against the control seed by seed, by band of frequency and by periodicity; 95 % intervals."""
    edges = np.linspace(0, HIGHEST, BANDS + 1)
    head = ["candidate", *(f"{low:.2f}-{high:.2f}" for low, high in pairwise(edges))]
    bands = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    by_seed = ["| candidate | 95 % interval, not corrected | seed by seed |", "|---|---|---|"]
    quarters = ["| candidate | least periodic quarter | second | third | most periodic |", "|---|---|---|---|---|"]
    for name in CANDIDATES:
        pairs = pairs_of(results, name, seeds, setting)
        if pairs:
            one = Compared(tuple(psnr(ours) - psnr(control) for ours, control in pairs))
            interval = f"{one.difference.low:+.3f} .. {one.difference.high:+.3f}" if len(pairs) > 1 else "one seed"
            by_seed.append(f"| {name} | {interval} | {', '.join(f'{value:+.3f}' for value in one.values)} |")
            bands.append(f"| {name} | {' | '.join(_cells(band_gains(pairs)))} |")
            quarters.append(f"| {name} | {' | '.join(_cells(quarter_gains(pairs, ranked)))} |")
    return "\n".join([*by_seed, "", *bands, "", *quarters]) + "\n"


def _cells(rows: NDArray[np.float64]) -> list[str]:
    found = [Compared(tuple(column)) for column in rows.T.tolist()]
    return [f"{one.mean:+.3f}" + (f" ± {one.half():.3f}" if len(one.values) > 1 else "") for one in found]
