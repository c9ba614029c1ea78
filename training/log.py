"""A run's log: a CSV file that survives kills, TensorBoard, one picture of the curves, sample pictures."""

import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.team08_HATFreq.system import write_bytes
from training.curves import draw_curves

COLUMNS = ("step", "loss", "lr", "psnr", "images_per_s", "seconds")


@dataclass
class Log:
    """The log of a run folder: `log.csv`, `curves.png` and, if asked for, `tensorboard/`.

    Attributes:
        folder: the run folder.
        step: rows after it are dropped: the resumed run makes them anew.
        sets: names of the validation sets; with more than one, each has a column of its own.
        tensorboard: whether to write for TensorBoard too.
    """

    folder: Path
    step: int
    sets: list[str]
    tensorboard: bool = False
    writer: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Create or trim the files."""
        rows = [row for row in read_rows(self.path) if int(row["step"]) <= self.step]
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)
        if self.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.step + 1)

    @property
    def path(self) -> Path:
        """The CSV file."""
        return self.folder / "log.csv"

    @property
    def columns(self) -> list[str]:
        """Loss since the row before, PSNR in dB (the mean over the sets, then each), seconds of training in all."""
        return [*COLUMNS, *(f"psnr_{name}" for name in self.sets if len(self.sets) > 1)]

    def add(self, row: dict[str, float], scores: dict[str, float]) -> None:
        """Add a row of `COLUMNS` with the PSNR of each set, and redraw the curves."""
        values = {**row, **({f"psnr_{name}": psnr for name, psnr in scores.items()} if len(scores) > 1 else {})}
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(
                {key: value if isinstance(value, int) else f"{value:.6g}" for key, value in values.items()}
            )
        draw_curves(self.path, self.folder / "curves.png")
        if self.writer:
            for key, value in values.items():
                if key != "step":
                    self.writer.add_scalar(key, value, int(row["step"]))
            self.writer.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer:
            self.writer.close()


def write_left_out(path: Path, left_out: list[tuple[str, str]]) -> None:
    """List the images that are not trained on, with the reason for each; no file if there are none."""
    if not left_out:
        path.unlink(missing_ok=True)
        return
    content = io.StringIO(newline="")
    csv.writer(content).writerows([("name", "reason"), *left_out])
    write_bytes(path, content.getvalue().encode())


def read_rows(path: Path) -> list[dict[str, str]]:
    """A log's complete rows, which is none without a file: a kill can cut the last one short."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        return [row for row in reader if all(row.get(key) for key in reader.fieldnames or ())]
