"""Where a benchmark's table goes: printed, and written as Markdown with its figures as CSV beside it."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.team08_HATFreq.system import write_bytes


def publish(text: str, out: Path | None, columns: list[str], rows: Iterable[Iterable[Any]]) -> None:
    """Print a table and, if `out` is given, write it there and the figures to the same name with `.csv`."""
    print(text)
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, text.encode())
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
