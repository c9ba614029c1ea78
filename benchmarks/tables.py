"""Results files (JSON) as tables of strings, for Markdown and LaTeX alike, and the statistics of paired runs."""

import csv
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import ttest_1samp

PUBLISHED = Path(__file__).with_name("published_x4.csv")
CONFIDENCE = 0.95
BASE, LIGHT = "base", "light"
ARMS = {  # of benchmarks/budget.py
    BASE: "L1 on the truth, at the batch, patch and EMA below",
    "batch16": "batch 16",
    "batch32": "batch 32",
    "patch48": "patch 48",
    "frequency": "frequency loss, 0.05, beside L1",
    "muon": "Muon for the matrices, Adam for the rest",
    "easier": "without the 5 % of photographs that the start restores worst",
    "teacher": "the teacher's restorations instead of the truth",
    "features": "L1 on the truth, and the affinities of the teacher's features",
    "l1_end": "two stages, L1 in both",
    "mse_end": "two stages, MSE in the second",
    LIGHT: "3 groups of 4 blocks, 32 channels, fusion",
    "without_fusion": "the same without fusion",
    "groups_of_six": "2 groups of 6 blocks",
    "wider": "48 channels, 2 blocks a group",
}
CHOICES = {
    "similar": "chosen by data_curation",
    "quota": "chosen with a quota for every query",
    "random": "random",
    "dissimilar": "least similar",
}
Result = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table of strings; `title` stands above it and may be empty."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""

    def markdown(self) -> str:
        """The table in Markdown."""
        lines = [f"### {self.title}", ""] if self.title else []
        lines += [f"| {' | '.join(self.head)} |", "|" + "---|" * len(self.head)]
        return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in self.rows)])


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences and its confidence interval (Student's t)."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference shown"

    def __str__(self) -> str:
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


def paired(ours: Sequence[float], others: Sequence[float]) -> Difference:
    """`ours` minus `others`, value by value; both in the order of the seeds.

    Raises:
        ValueError: not as many of one as of the other, or fewer than two pairs, which have no spread.
    """
    if len(ours) != len(others) or len(ours) < 2:
        raise ValueError(f"paired differences need two pairs or more, got {len(ours)} and {len(others)} values")
    values = tuple(a - b for a, b in zip(ours, others, strict=True))
    if len(set(values)) == 1:  # no spread: scipy divides by zero
        return Difference(values[0], values[0], values[0], values)
    interval = ttest_1samp(values, 0).confidence_interval(CONFIDENCE)
    return Difference(statistics.fmean(values), float(interval.low), float(interval.high), values)


def quality(result: Result) -> list[Table]:
    """A table a set, and what others have published."""
    head = ["method", "parameters", "PSNR-Y, dB", "SSIM-Y", "LPIPS", "NIQE", "s an image"]
    tables = []
    for name in unique(row["set"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["set"] == name]
        tables.append(
            Table(
                head,
                [quality_cells(result, row) for row in rows],
                f"{name} ({rows[0]['images']} images), measured here",
            )
        )
    return [*tables, published()]


def quality_cells(result: Result, row: dict[str, Any]) -> list[str]:
    """A method's name (a teacher is marked), parameters, PSNR, SSIM, LPIPS, NIQE, seconds; what is unknown is blank."""
    name = f"{row['method']} (teacher)" if is_teacher(result, row) else row["method"]
    formats = {"parameters": ",", "psnr": ".3f", "ssim": ".4f", "lpips": ".4f", "niqe": ".3f", "seconds": ".3f"}
    return [name, *(format(row[key], form) if row[key] else "" for key, form in formats.items())]


def is_teacher(result: Result, row: dict[str, Any]) -> bool:
    """Whether our weights were distilled from a row's method, by the hash of its weights or by its name."""
    teachers = result["setting"].get("weights", {}).get("teachers", [])
    return any(row["weights"] == one["sha256"] or row["method"] == one["name"] for one in teachers)


def published() -> Table:
    """Figures of others, not run here."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sets = ["Set5", "Set14", "BSD100"]
    cells = [[r["method"], f"{int(r['parameters']):,}", *(r[name] for name in sets), r["source"]] for r in rows]
    title = "Published by others, not run here (PSNR-Y, dB; trained on larger data)"
    return Table(["method", "parameters", *sets, "source"], cells, title)


def variant_psnr(result: Result, variant: str, name: str) -> list[float]:
    """PSNR-Y of a variant on a set, a value a seed; over all sets for the name `mean`."""
    by_seed: dict[int, list[float]] = {}
    for row in result["rows"]:
        if row["variant"] == variant and name in (row["set"], "mean"):
            by_seed.setdefault(row["seed"], []).append(row["psnr"])
    return [statistics.fmean(by_seed[seed]) for seed in sorted(by_seed)]


def budget(result: Result) -> list[Table]:
    """Each arm's paired differences from the base or, of shapes, from `light`.

    MSE at the end is compared with L1 in the same two stages too.
    """
    names = [*unique(row["set"] for row in result["rows"]), "mean"]
    steps = {row["variant"]: row["steps"] for row in result["rows"]}
    values = {arm: [variant_psnr(result, arm, name) for name in names] for arm in ARMS if arm in steps}
    scores = [
        [arm, ARMS[arm], f"{steps[arm]:,}", *(f"{statistics.fmean(v):.3f} ± {statistics.stdev(v):.3f}" for v in found)]
        for arm, found in values.items()
    ]
    by_set = [budget_differences(result, name) for name in names]
    differences = [[what, *(str(found[what]) for found in by_set), by_set[-1][what].verdict] for what in by_set[-1]]
    return [
        Table(["arm", "", "steps", *names], scores, "PSNR-Y in dB, mean and standard deviation over the seeds"),
        Table(["paired differences", *names, "on the mean"], differences, "Differences in dB, with 95 % intervals"),
    ]


def budget_differences(result: Result, name: str = "mean") -> dict[str, Difference]:
    """What is compared -> its differences on a set."""
    arms = unique(row["variant"] for row in result["rows"])
    base = BASE if BASE in arms else LIGHT
    pairs = [(arm, base) for arm in ARMS if arm in arms and arm != base]
    pairs += [("mse_end", "l1_end")] * ({"mse_end", "l1_end"} <= set(arms))
    values = {arm: variant_psnr(result, arm, name) for arm in arms}
    return {f"{ours} less {other}": paired(values[ours], values[other]) for ours, other in pairs}


def selection(result: Result) -> list[Table]:
    """What fine-tuning on chosen images gives, and how many images each step of the selection let pass."""
    head = ["trained on", "PSNR-Y, dB", "standard deviation", "minus the start", "minus random", "", "from"]
    rows = []
    for choice, shown in CHOICES.items():
        values = selection_psnr(result, choice)
        cells = [shown, f"{statistics.fmean(values):.3f}", f"{statistics.stdev(values):.3f}"]
        cells.append(str(paired(values, selection_psnr(result, "start"))))
        against = paired(values, selection_psnr(result, "random"))
        cells += ["", ""] if choice == "random" else [str(against), against.verdict]
        rows.append([*cells, ", ".join(f"{name} {share:.0%}" for name, share in result["folders"][choice].items())])
    flow = [[step, f"{count:,}"] for step, count in result["flow"].items()]
    title = "Differences in dB, paired by seed, with 95 % intervals"
    return [Table(head, rows, title), Table(["step", "images"], flow, "What the selection let pass (first seed)")]


def selection_psnr(result: Result, choice: str) -> list[float]:
    """PSNR-Y of a choice, a value a seed."""
    return [row["psnr"] for row in sorted(result["rows"], key=lambda row: row["seed"]) if row["choice"] == choice]


def speed_forward(result: Result) -> list[Table]:
    """One pass beside the reference: the first kind of a preset, size and precision.

    The blocks' part of a pass is told where the row before is the same network without them.
    """
    head = ["preset", "LR pixels", "precision", "", "s", "faster", "of it in the blocks", "peak MB"]
    head += ["of the reference's", "max difference", "s of the floor"]
    rows, base, before = [], result["rows"][0], result["rows"][0]
    for row in result["rows"]:
        base = row if row["kind"] == base["kind"] else base
        faster, share = base["seconds"] / row["seconds"], row["peak_bytes"] / base["peak_bytes"]
        blocks = f"{1 - before['seconds'] / row['seconds']:.1%}" if row["kind"].endswith("frequency blocks") else ""
        difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
        cells = [row["preset"], row["size"], row["precision"], row["kind"], f"{row['seconds']:.3f}", f"{faster:.2f}x"]
        cells += [blocks, f"{row['peak_bytes'] / 1e6:.0f}", f"{share:.2f}", difference]
        rows.append([*cells, f"{row['floor_seconds']:.3f}"])
        before = row
    return [Table(head, rows)]


def speed_step(result: Result) -> list[Table]:
    """A training step beside the reference's of the same preset."""
    head = ["preset", "", "patches", "s a step", "lowest to highest", "faster than the reference", "GB"]
    rows, base = [], 0.0
    for row in result["rows"]:
        median = statistics.median(row["seconds"])
        base = median if row["case"].startswith("reference") else base
        cells = [row["preset"], row["case"], f"{row['batch']} of {row['patch']}x{row['patch']}", f"{median:.3f}"]
        cells += [f"{min(row['seconds']):.3f} to {max(row['seconds']):.3f}", f"{base / median:.2f}x"]
        rows.append([*cells, f"{statistics.median(row['peak_bytes']) / 1e9:.2f}"])
    return [Table(head, rows)]


def speed_count(result: Result) -> list[Table]:
    """Parameters and multiply-accumulates of the presets, without and with frequency blocks."""
    head = ["preset", "parameters of HAT", "of HATFreq", "more", "GMAC of HAT", "of HATFreq", "more"]
    rows = []
    for preset in unique(row["preset"] for row in result["rows"]):
        plain, fused = (row for row in result["rows"] if row["preset"] == preset)
        cells = [preset]
        for key, form, unit in (("parameters", ",", 1), ("macs", ".1f", 1e9)):
            cells += [format(one[key] / unit if unit > 1 else one[key], form) for one in (plain, fused)]
            cells.append(f"{fused[key] / plain[key] - 1:.1%}")
        rows.append(cells)
    return [Table(head, rows)]


def memory(result: Result) -> list[Table]:
    """What a pass adds at its peak, in all and for a LR pixel."""
    cells = [
        [r["device"], r["preset"], r["precision"], f"{r['side']}x{r['side']}", f"{r['peak_bytes'] / 1e6:.0f}",
         f"{r['peak_bytes'] / r['side'] ** 2:,.0f}"]
        for r in result["rows"]
    ]  # fmt: skip
    return [Table(["device", "preset", "precision", "LR pixels", "peak, MB", "bytes a LR pixel"], cells)]


def memory_image(result: Result) -> list[Table]:
    """test.py on a small and a large image: what grows, and what the images' own samples take."""
    head = ["tile", "LR image", "CPU seconds", "peak, MB", "growth, MB", "the images' own, MB"]
    rows, first = [], result["rows"][0]
    for row in result["rows"]:
        first = row if row["tile"] != first["tile"] else first
        grown = [(row[key] - first[key]) / 1e6 for key in ("peak_bytes", "sample_bytes")]
        cells = [str(row["tile"]), row["size"], f"{row['cpu_seconds']:.1f}", f"{row['peak_bytes'] / 1e6:.0f}"]
        rows.append([*cells, *(f"{value:.0f}" for value in grown)])
    return [Table(head, rows)]


def folder(result: Result) -> list[Table]:
    """test.py on a folder beside the bare passes, which are the first row."""
    base = result["rows"][0]["seconds"]
    cells = [[r["what"], f"{r['seconds']:.2f}", f"{r['seconds'] / base:.3f}"] for r in result["rows"]]
    return [Table(["what", "seconds", "over the bare passes"], cells)]


def times(result: Result) -> list[Table]:
    """Seconds for one picture by its size and the number of threads."""
    cells = [
        [f"{r['side']}x{r['side']}", f"{r['side'] * 4}x{r['side'] * 4}", str(r["threads"]), f"{r['seconds']:.1f}",
         f"{r['cpu_seconds']:.1f}"]
        for r in result["rows"]
    ]  # fmt: skip
    return [Table(["picture", "result", "threads", "seconds by the clock", "seconds of the CPU"], cells)]


def integrations(result: Result) -> list[Table]:
    """The ways beside PyTorch, which is the first of each set; and their memory."""
    quality, memory, base = [], [], 1.0
    for row in result["rows"]:
        if "side" in row:
            memory.append([f"{row['side']}x{row['side']}", row["way"], f"{row['peak_bytes'] / 1e6:.0f}"])
            continue
        base = row["seconds"] if row["way"] == "PyTorch" else base
        cells = [row["set"], row["way"], f"{row['psnr']:.4f}", f"{row['difference']:.1e}", f"{row['seconds']:.2f}"]
        quality.append([*cells, f"{row['seconds'] / base:.2f}"])
    head = ["set", "way", "PSNR-Y, dB", "largest difference from PyTorch", "seconds", "of PyTorch's"]
    return [Table(head, quality), Table(["LR pixels", "way", "peak, MB"], memory)]


def curation_copies(result: Result) -> list[Table]:
    """Planted copies by kind: the share that was found, of all and of the half on which nothing was fitted."""
    head = ["copy", "planted", "HR known", "its second half", "LR known", "its second half", "removed, both known"]
    keys = {"hr": "planted", "hr_second": "planted_second", "lr": "planted", "lr_second": "planted_second",
            "removed": "planted"}  # fmt: skip
    tables = []
    for held_out, title in ((False, "Kinds that the method was chosen on"), (True, "Kinds held out")):
        rows = [row for row in result["rows"] if row["held_out"] == held_out]
        cells = [[row["copy"], str(row["planted"]), *(percent(row[key], row[of]) for key, of in keys.items())]
                 for row in rows]  # fmt: skip
        tables.append(Table(head, cells, title))
    return tables


def percent(count: int, total: int) -> str:
    """`99.2%`, or nothing of nothing."""
    return f"{count / total:.1%}" if total else ""


AT = (10**6, 10**7, 10**8)  # images that the cost of curation is calculated for
LINEAR = ("an image of the pool decoded", "an image looked up in 100 evaluation")
GROWING = ("an image looked up in a pool", "near embeddings", "near hashes", "scored")


def curation_cost(result: Result) -> list[Table]:
    """CPU time of deduplication's steps, and what follows for a hundred million images."""
    rows = [[r["step"], f"{r['count']:,}", f"{1000 * r['cpu_seconds'] / r['count']:.2f}", gibibytes(r["peak_bytes"]),
             f"{r['recall']:.2%}" if "recall" in r else ""] for r in result["rows"]]  # fmt: skip
    tables = [Table(["step", "count", "CPU ms each", "peak, GiB", "recall"], rows)]
    found = [growth_of(step, result["rows"]) for step in (*LINEAR, *GROWING)]
    if growth := [row for row in found if row]:
        sizes = [f"{count // 10**6} M" for count in AT]
        head = ["step", "time grows as", *(f"{size}: core hours" for size in sizes), f"{sizes[-1]}: days of 64 cores",
                f"{sizes[-1]}: GiB of memory"]  # fmt: skip
        tables.append(Table(head, growth))
    if disk := [r["disk_bytes"] for r in result["rows"] if "disk_bytes" in r]:
        tables.append(
            Table(["images", "features on disk, GiB"], [[f"{n:,}", f"{disk[-1] * n / 2**30:,.0f}"] for n in AT])
        )
    return tables


def growth_of(step: str, measured: list[dict[str, Any]]) -> list[str]:
    """How a step's time grows between the two largest pools, and what that gives at AT; in proportion if measured once.

    Between smaller ones something else may grow: caches fill, and the ways change with the size.
    """
    rows = [r for r in measured if r["step"].startswith(step)]
    if not rows:
        return []
    few, many, power, memory = rows[-2:][0], rows[-1], 1.0, ""
    if few is not many:
        power = math.log(many["cpu_seconds"] / few["cpu_seconds"]) / math.log(many["count"] / few["count"])
        each = (many["peak_bytes"] - few["peak_bytes"]) / (many["count"] - few["count"])
        memory = f"{(many['peak_bytes'] + each * (AT[-1] - many['count'])) / 2**30:,.0f}"
    hours = [many["cpu_seconds"] * (count / many["count"]) ** power / 3600 for count in AT]
    return [step, f"n^{power:.2f}", *(f"{hour:,.1f}" for hour in hours), f"{hours[-1] / 64 / 24:,.1f}", memory]


def curation_recall(result: Result) -> list[Table]:
    """Copies that the searches within pools of several sizes find, of those that a comparison of all finds."""
    head = ["pool", "bits of a key", "by keypoints", "by perceptual hash", "by either"]
    rows = [[f"{r['pool']:,}", str(r["bits"]), *(f"{r[kind]:.1%}" for kind in ("keypoints", "phash", "either"))]
            for r in result["rows"]]  # fmt: skip
    return [Table(head, rows)]


def curation_select(result: Result) -> list[Table]:
    """Selection beside numpy and faiss."""
    rows = [[r["way"], f"{r['seconds']:.1f}", gibibytes(r["peak_bytes"]), str(r["differ"])] for r in result["rows"]]
    return [Table(["way", "seconds", "peak, GiB", "chosen otherwise"], rows)]


def gibibytes(count: int | None) -> str:
    """`0.98`, or nothing where it was not measured."""
    return f"{count / 2**30:.2f}" if count else ""


def unique(values: Any) -> list[Any]:
    """Each value once, in the order of their first appearance."""
    return list(dict.fromkeys(values))


TABLES: dict[str, Callable[[Result], list[Table]]] = {
    one.__name__: one
    for one in (quality, budget, selection, speed_forward, speed_step, speed_count, memory, memory_image,
                folder, integrations, times, curation_copies, curation_cost, curation_recall,
                curation_select)
}  # fmt: skip
