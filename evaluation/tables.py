"""The organisers' two result files: one row an image, and the averages with the total score."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from evaluation.perceptual import total_score
from utils.files import write_bytes

Rows = dict[str, dict[str, float]]


def result_stem(output_folder: Path) -> str:
    """`<parent>--<folder>`, the organisers' name for the results of a folder."""
    folder = output_folder.resolve()
    return f"{folder.parent.name}--{folder.name}"


def averages(rows: Rows) -> dict[str, float]:
    """Mean of every column, in the order of their names."""
    keys = sorted({key for values in rows.values() for key in values})
    return {key: math.fsum(values[key] for values in rows.values()) / len(rows) for key in keys}


def score_line(means: Mapping[str, float], missing: Mapping[str, str]) -> str:
    """What follows `Total Score: `: the score, or why there is none."""
    score = total_score(means)
    return f"{score:.6f}" if score is not None else f"not available (missing: {', '.join(missing)})"


def write_tables(
    folder: Path, stem: str, rows: Rows, missing: Mapping[str, str], failed: Mapping[str, str]
) -> tuple[Path, Path]:
    """Write `<stem>.csv` and `<stem>.txt`; returns their paths.

    Args:
        rows: values by file name and key.
        missing: metrics that are unavailable, with the reason.
        failed: images that could not be scored, with the reason; the averages are then of the others.
    """
    means = averages(rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Filename", *means])
    writer.writerows([name, *(values[key] for key in means)] for name, values in rows.items())
    lines = [f"{key}: {value}" for key, value in means.items()]
    lines += [f"not scored: {name} ({reason})" for name, reason in failed.items()]
    lines.append(f"Total Score: {score_line(means, missing) if not failed else 'not available (images failed)'}")
    folder.mkdir(parents=True, exist_ok=True)
    table, summary = folder / f"{stem}.csv", folder / f"{stem}.txt"
    write_bytes(table, text.getvalue().encode(errors="surrogateescape"))
    write_bytes(summary, ("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    return table, summary
