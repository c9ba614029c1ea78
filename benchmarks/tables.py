"""Results files (JSON) as tables of strings, for Markdown and LaTeX alike."""

import csv
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).with_name("published_x4.csv")
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


def curation_cost(result: Result) -> list[Table]:
    """CPU time of deduplication's steps."""
    rows = [[r["step"], f"{r['count']:,}", f"{1000 * r['cpu_seconds'] / r['count']:.2f}", gibibytes(r["peak_bytes"])]
            for r in result["rows"]]  # fmt: skip
    return [Table(["step", "count", "CPU ms each", "peak, GiB"], rows)]


def gibibytes(count: int | None) -> str:
    """`0.98`, or nothing where it was not measured."""
    return f"{count / 2**30:.2f}" if count else ""


def unique(values: Any) -> list[Any]:
    """Each value once, in the order of their first appearance."""
    return list(dict.fromkeys(values))


TABLES: dict[str, Callable[[Result], list[Table]]] = {
    one.__name__: one
    for one in (quality, speed_forward, speed_step, speed_count, memory, memory_image,
                folder, integrations, times, curation_copies, curation_cost)
}  # fmt: skip
