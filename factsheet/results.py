"""The results files that the factsheet is made from, read and checked."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ablation import VARIANTS, Scores
from benchmarks.quality_tables import COLUMNS, METRICS, Figures
from benchmarks.scored_runs import Score


@dataclass(frozen=True)
class Source:
    """A results file: the command that writes it and the columns that are read."""

    command: str
    columns: tuple[str, ...]


SOURCES = {
    "quality": Source("benchmarks/quality.py", tuple(COLUMNS)),
    "ablation": Source("benchmarks/ablation.py", ("variant", "seed", "set", "steps", "psnr_y")),
    "ablation_bands": Source("benchmarks/ablation.py", ("variant", "seed", "set", "error_energy")),
    "selection_effect": Source("benchmarks/selection_effect.py", ("seed", "trained_on", "images", "steps", "psnr_y")),
    "selection_effect_flow": Source("benchmarks/selection_effect.py", ("step", "images")),
    "forward_cpu": Source(
        "benchmarks/forward.py", ("preset", "size", "kind", "seconds", "faster", "of_reference", "difference")
    ),
    "folder": Source("benchmarks/folder.py", ("what", "seconds")),
}


class ResultsError(ValueError):
    """A results file is missing or of another form; the message names it and the command that makes it."""


def remedy(name: str) -> str:
    """How a results file is made."""
    return f"make it with python {SOURCES[name].command} (--help tells how)"


def rows(results: Path, name: str) -> list[dict[str, str]]:
    """The rows of a results file by column.

    Raises:
        ResultsError: it is missing, empty, or lacks a column.
    """
    path = results / f"{name}.csv"
    if not path.is_file():
        raise ResultsError(f"{path} does not exist: {remedy(name)}")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        found = list(reader)
    if not found:
        raise ResultsError(f"{path} is empty: {remedy(name)}")
    if lacking := [column for column in SOURCES[name].columns if column not in (reader.fieldnames or ())]:
        raise ResultsError(f"{path} has no column {', '.join(lacking)}: {remedy(name)}")
    return found


def setting(results: Path, name: str) -> str:
    """How and on what machine a results file was measured: the last paragraph of the Markdown beside it.

    Raises:
        ResultsError: the Markdown is missing or ends without such a paragraph.
    """
    path = results / f"{name}.md"
    if not path.is_file():
        raise ResultsError(f"{path} does not exist: {remedy(name)}")
    own = path.read_text(encoding="utf-8").split("### Published by others")[0]
    last = own.strip().split("\n\n")[-1]
    if re.match(r"[|#-]", last):
        raise ResultsError(f"{path} does not end with what was measured: {remedy(name)}")
    return counted("; ".join(last.splitlines()))


def counted(text: str) -> str:
    """`1 thread(s)` and `4 turn(s)` as one says them."""
    return re.sub(r"\b(\d+) (\w+)\(s\)", lambda m: f"{m[1]} {m[2]}{'' if m[1] == '1' else 's'}", text)


def measured_quality(results: Path) -> list[Figures]:
    """What benchmarks/quality.py measured, without the published figures."""
    return [
        Figures(
            row["method"],
            row["set"],
            row["runtime"],
            int(row["parameters"]),
            {key: float(row[key.lower()]) for key in METRICS if row[key.lower()]},
            float(row["seconds"]) if row["seconds"] else None,
        )
        for row in rows(results, "quality")
        if row["origin"] == "measured"
    ]


def ablation_scores(results: Path) -> Scores:
    """The scores of benchmarks/ablation.py, as it holds them itself.

    Raises:
        ResultsError: the two files are not of one run, or not every variant has every seed.
    """
    bands: dict[tuple[str, str, str], list[float]] = {}
    for row in rows(results, "ablation_bands"):
        bands.setdefault((row["variant"], row["seed"], row["set"]), []).append(float(row["error_energy"]))
    scores: Scores = {}
    for row in rows(results, "ablation"):
        key = (row["variant"], row["seed"], row["set"])
        if key not in bands:
            raise ResultsError(f"{results}: ablation.csv and ablation_bands.csv are of different runs: make them anew")
        score = Score(float(row["psnr_y"]), tuple(bands[key]))
        scores.setdefault((row["variant"], int(row["seed"])), {})[row["set"]] = score
    seeds = sorted({seed for _, seed in scores})
    wanted = {(variant, seed) for variant in VARIANTS for seed in seeds}
    if len(seeds) < 2 or set(scores) != wanted:
        raise ResultsError(f"{results / 'ablation.csv'} is incomplete, or of one seed: {remedy('ablation')}")
    return scores


def selection_scores(results: Path, choices: tuple[str, ...]) -> dict[str, list[float]]:
    """Choice of images -> PSNR-Y in dB, a value a seed in the same order.

    Args:
        results: folder of results.
        choices: what must be there.

    Raises:
        ResultsError: not every choice has every seed.
    """
    found: dict[str, dict[str, float]] = {}
    for row in rows(results, "selection_effect"):
        found.setdefault(row["trained_on"], {})[row["seed"]] = float(row["psnr_y"])
    seeds = sorted({seed for row in found.values() for seed in row})
    if len(seeds) < 2 or any(sorted(found.get(choice, {})) != seeds for choice in choices):
        path = results / "selection_effect.csv"
        raise ResultsError(f"{path} is incomplete, or of one seed: {remedy('selection_effect')}")
    return {choice: [found[choice][seed] for seed in seeds] for choice in choices}


def flow(results: Path) -> dict[str, int]:
    """Step of the selection -> images, of benchmarks/selection_effect.py."""
    return {row["step"]: int(row["images"]) for row in rows(results, "selection_effect_flow")}
