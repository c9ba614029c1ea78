"""The results files that the factsheet is made from, read and checked."""

import csv
from pathlib import Path

from benchmarks.ablation import Scores
from benchmarks.quality_tables import METRICS, Figures
from benchmarks.scored_runs import Score

COMMANDS = {
    "quality": "benchmarks/quality.py",
    "ablation": "benchmarks/ablation.py",
    "ablation_bands": "benchmarks/ablation.py",
    "selection_effect": "benchmarks/selection_effect.py",
    "selection_effect_flow": "benchmarks/selection_effect.py",
    "forward_cpu": "benchmarks/forward.py",
    "folder": "benchmarks/folder.py",
}


class ResultsError(ValueError):
    """A results file is missing or of another form; the message names it and the command that makes it."""


def rows(results: Path, name: str) -> list[dict[str, str]]:
    """The rows of a results file by column.

    Raises:
        ResultsError: it is missing or empty.
    """
    path = results / f"{name}.csv"
    remedy = f"make it with python {COMMANDS[name]} (--help tells how)"
    if not path.is_file():
        raise ResultsError(f"{path} does not exist: {remedy}")
    with path.open(newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    if not found:
        raise ResultsError(f"{path} is empty: {remedy}")
    return found


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
        ResultsError: the two files are not of one run.
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
    return scores


def flow(results: Path) -> dict[str, int]:
    """Step of the selection -> images, of benchmarks/selection_effect.py."""
    return {row["step"]: int(row["images"]) for row in rows(results, "selection_effect_flow")}
