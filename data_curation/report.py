"""Stage 4: one page that shows what was chosen, what was not, and why.

    python -m data_curation.report --selection data_ldcc --duplicates duplicates --out report

Writes `index.html` and its pictures: the flow of the pool with its counts, the histogram of scores with the cut, the
chosen, the borderline and the rejected beside their nearest query, what the nearest neighbours of queries look like, a
map of pool, queries and choice, and the duplicates removed with their evidence. Reads what the earlier stages wrote,
and the images shown. The same inputs give the same bytes.
"""

import argparse
import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_curation import deduplicate, drawing, page
from data_curation.drawing import BLUE, GREY, ORANGE
from data_curation.features import Features
from data_curation.hashing import find_image
from data_curation.pictures import captioned, fitted, sheet
from data_curation.pictures import pair as side_by_side
from data_curation.select import NAME
from image_data.sources import DataError
from models.team08_HATFreq.image_io import ImageError, write_png
from models.team08_HATFreq.system import write_bytes

BOX = 150  # pixels of the side of a picture on a sheet
NEIGHBOURS, QUERIES = 5, 8  # shown of each query, and queries
POINTS = 4000  # of a group on the map, taken evenly
LISTED = 60  # pairs of duplicates in the table
_ROWS = 8192  # embeddings read at a time
_DUPLICATE = "duplicate"  # select's reason


@dataclass(frozen=True)
class Scored:
    """A row of data_ldcc.csv; rank 0 for images that a gate kept out."""

    name: str
    score: float
    query: str
    rank: int
    chosen: bool
    reason: str


class Inputs:
    """What the earlier stages wrote."""

    def __init__(self, selection: Path, duplicates: Path) -> None:
        """Read it.

        Raises:
            DataError: something is missing, damaged, or of another pool.
        """
        self.selection = _read_json(selection / f"{NAME}.json", "data_curation.select")
        self.duplicates = _read_json(duplicates / "duplicates.json", "data_curation.deduplicate")
        self.rows = _read_scores(selection / f"{NAME}.csv")
        self.pairs = _read_rows(duplicates / "duplicates.csv", "data_curation.deduplicate")
        self.picture = duplicates / "duplicates.png"
        parameters = self.selection["parameters"]
        self.pool, self.queries = Features(parameters["pool"]), Features(parameters["queries"])
        self._check()

    @property
    def chosen(self) -> list[Scored]:
        """By rank."""
        return [row for row in self.rows if row.chosen]

    @property
    def passed(self) -> list[Scored]:
        """Those that no gate kept out, by rank."""
        return [row for row in self.rows if row.rank]

    def _check(self) -> None:
        """Raise DataError if the stages' counts contradict each other."""
        counts, found = self.selection["counts"], self.duplicates["counts"]
        removed = found["removed_for_evaluation"] + found["removed_within_pool"]
        pairs = (
            ("readable images", counts["readable"], found["readable"]),
            ("rows of the table", counts["readable"], len(self.rows)),
            ("embeddings of the pool", counts["readable"], len(self.pool)),
            ("duplicates left out", counts["left_out"].get(_DUPLICATE, 0), removed),
            ("chosen images", counts["chosen"], len(self.chosen)),
        )
        for what, one, other in pairs:
            if one != other:
                raise DataError(
                    f"{what}: {one} for {NAME}.json, {other} for the other files; they are of different runs: run "
                    "select with --exclude removed.txt of these duplicates"
                )


def flow(inputs: Inputs) -> str:
    """The factsheet's Figure 1, with counts."""
    counts, found = inputs.selection["counts"], inputs.duplicates["counts"]
    unreadable = counts["pool"] - counts["readable"]
    reasons = Counter(row.reason for row in inputs.rows if not row.rank and row.reason != _DUPLICATE)
    after = counts["readable"] - found["removed_for_evaluation"]
    stages = [
        ("pool", counts["pool"]),
        ("readable", counts["readable"]),
        ("not an evaluation image", after),
        ("no duplicate in the pool", after - found["removed_within_pool"]),
        ("passed the gates", counts["eligible"]),
        ("chosen: Data-LDCC", counts["chosen"]),
    ]
    losses = [
        [("unreadable", unreadable)],
        [("near-duplicates of evaluation images", found["removed_for_evaluation"])],
        [("near-duplicates of larger images", found["removed_within_pool"])],
        sorted(reasons.items()),
        [("less similar", counts["eligible"] - counts["chosen"])],
    ]
    return drawing.flow(stages, losses)


def evenly(rows: list[Any], count: int) -> list[Any]:
    """So many of a list, from its first to its last."""
    if len(rows) <= count:
        return rows
    return [rows[int(place)] for place in np.linspace(0, len(rows) - 1, count).round()]


def write_sheets(inputs: Inputs, out: Path, examples: int) -> list[str]:
    """The sections with the chosen, the borderline and the rejected; their pictures are written."""
    chosen, others = inputs.chosen, [row for row in inputs.passed if not row.chosen]
    half = examples // 2
    closed = [row for row in inputs.rows if not row.rank and row.reason != _DUPLICATE]
    by_reason = [row for reason in sorted({row.reason for row in closed}) for row in closed if row.reason == reason]
    groups = [
        ("chosen", "The chosen", "Evenly over the ranks, the most similar first; right, the nearest query.",
         evenly(chosen, examples)),
        ("borderline", "The borderline", "The last that were chosen, then the first that were not.",
         chosen[-half:] + others[:half]),
        ("rejected", "The rejected", "The least similar of those that passed the gates.", others[-examples:]),
        ("gates", "Kept out by the gates", "Whatever their similarity.", evenly(by_reason, examples)),
    ]  # fmt: skip
    sections = []
    for file, heading, lead, rows in groups:
        path = out / f"{file}.png"
        if not rows:
            path.unlink(missing_ok=True)  # of a former run
            continue
        write_png(path, sheet([_beside_query(row) for row in rows], 3))
        sections.append(page.section(heading, lead, page.image(path.name, lead)))
    return sections


def write_neighbours(inputs: Inputs, out: Path) -> str:
    """The section with some queries and the images of the pool that are nearest to them."""
    names = inputs.queries.columns("name")["name"].to_pylist()
    order = sorted(range(len(names)), key=lambda row: names[row].encode())
    shown = evenly(order, QUERIES)
    near = nearest(inputs.pool, inputs.queries.vectors(shown), NEIGHBOURS)
    pool_names = inputs.pool.columns("name")["name"]
    boxes = []
    for query, rows in zip(shown, near, strict=True):
        boxes.append(_box(names[query], "query"))
        boxes += [_box(pool_names[row].as_py(), f"cosine {cosine:.3f}") for row, cosine in rows]
    write_png(out / "neighbours.png", sheet(boxes, 1 + min(NEIGHBOURS, len(inputs.pool))))
    lead = "Left a query, then the nearest images of the whole pool, duplicates and all."
    return page.section("What nearness looks like", lead, page.image("neighbours.png", lead))


def nearest(pool: Features, queries: NDArray[np.float32], count: int) -> list[list[tuple[int, float]]]:
    """The nearest rows of the pool of each query and their cosines, the nearest first, ties by row."""
    best: list[list[tuple[int, float]]] = [[] for _ in queries]
    start = 0
    for shard in pool.shards():
        for first in range(0, len(shard), _ROWS):
            cosines = queries.astype(np.float64) @ np.asarray(shard[first : first + _ROWS], np.float64).T
            for query, values in enumerate(cosines):
                top = np.argsort(-values, kind="stable")[:count]
                best[query] += [(start + first + int(row), float(values[row])) for row in top]
                best[query] = sorted(best[query], key=lambda pair: (-pair[1], pair[0]))[:count]
        start += len(shard)
    return best


def principal_axes(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean `d` and the two axes `d 2` along which a folder's embeddings vary most; an axis points to its largest
    component, so that the same embeddings give the same map.
    """
    total, products = np.zeros(features.settings.dimension), np.zeros((features.settings.dimension,) * 2)
    for shard in features.shards():
        for first in range(0, len(shard), _ROWS):
            block = np.asarray(shard[first : first + _ROWS], np.float64)
            total += block.sum(0)
            products += block.T @ block
    mean = total / len(features)
    axes = np.linalg.eigh(products / len(features) - np.outer(mean, mean))[1][:, :-3:-1]
    return mean, axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])


def map_of(inputs: Inputs) -> str:
    """The section with the map."""
    mean, axes = principal_axes(inputs.pool)
    names = inputs.pool.columns("name")["name"].to_pylist()
    chosen = {row.name for row in inputs.chosen}
    rows = [[k for k, name in enumerate(names) if (name in chosen) == wanted] for wanted in (False, True)]
    drawn = [evenly(part, POINTS) for part in rows]
    queries = evenly(list(range(len(inputs.queries))), POINTS)
    query_names = inputs.queries.columns("name")["name"].to_pylist()
    places = [(inputs.pool.vectors(part) - mean) @ axes for part in drawn]
    places.append((inputs.queries.vectors(queries) - mean) @ axes)
    every = np.concatenate(places)
    low, size = every.min(0), np.maximum(np.ptp(every, axis=0), 1e-9)
    labels = [[names[k] for k in part] for part in drawn] + [[query_names[k] for k in queries]]
    kinds = (("pool", GREY, 2.2), ("chosen", BLUE, 2.6), ("queries", ORANGE, 4.0))
    groups = [
        (*kind, (place - low) / size, [Path(name).name for name in label])
        for kind, place, label in zip(kinds, places, labels, strict=True)
    ]
    counts = [f"{kind[0]}: {len(part):,} of {total:,} drawn" for kind, part, total in zip(
        kinds, [*drawn, queries], [len(rows[0]), len(rows[1]), len(inputs.queries)], strict=True)]  # fmt: skip
    lead = "The two directions in which the pool's embeddings vary most; hover over a point for its name."
    legend = page.key([(kind[1], words) for kind, words in zip(kinds, counts, strict=True)])
    return page.section("The map", lead, legend, drawing.scatter(groups))


def duplicates_of(inputs: Inputs, out: Path) -> str:
    """The section with the duplicates; their picture is copied."""
    removed = [row for row in inputs.pairs if row["decision"] == deduplicate.REMOVED]
    target = out / "duplicates.png"
    target.unlink(missing_ok=True)  # of a former run
    lead = (
        f"{len({row['pool'] for row in removed}):,} images of the pool were removed, "
        f"{len(inputs.pairs):,} candidates laid over each other."
    )
    if not removed:
        return page.section("Duplicates removed", lead)
    write_bytes(target, inputs.picture.read_bytes())
    head = ("removed", "partner", "side", "evidence", "PSNR, dB", "detail", "common", "transformation")
    keys = ("pool", "partner", "side", "evidence", "psnr_db", "detail_correlation", "common_area", "transformation")
    cells = [[Path(row[k]).name if k in ("pool", "partner") else row[k] for k in keys] for row in removed[:LISTED]]
    more = len(removed) - LISTED
    rest = [page.note(f"{more:,} more pairs in duplicates.csv")] if more > 0 else []
    return page.section(
        "Duplicates removed", lead, page.image(target.name, "the closest pairs"), page.table(head, cells), *rest
    )


def parameters_of(inputs: Inputs) -> str:
    """The section with every parameter."""
    rows = [
        (stage, name, json.dumps(value))
        for stage, found in (("deduplicate", inputs.duplicates), ("select", inputs.selection))
        for name, value in found["parameters"].items()
        if value is not None
    ]
    rows += [("embed", name, json.dumps(value)) for name, value in inputs.selection["pool"].items()]
    lead = "As the stages wrote them; embed's are the pool's."
    return page.section("Parameters", lead, page.table(("stage", "parameter", "value"), rows))


def run(args: argparse.Namespace) -> None:
    """Write the report, the page last.

    Raises:
        DataError, ImageError, OSError: naming what is missing.
    """
    inputs = Inputs(args.selection, args.duplicates)
    args.out.mkdir(parents=True, exist_ok=True)
    scores, counts = inputs.selection["scores"], inputs.selection["counts"]
    model = inputs.pool.settings.model
    remarks = [page.note(_no_clip(model))] if model.startswith("alexnet") else []
    sections = [
        page.section("From pool to choice", "How many images are left, why others went.", *remarks, flow(inputs)),
        page.section(
            "Similarity",
            "The scores of the images that passed the gates; in colour, the chosen.",
            drawing.histogram(scores["histogram_edges"], scores["histogram_eligible"], scores["histogram_chosen"],
                              scores["lowest_chosen"]),
        ),
        *write_sheets(inputs, args.out, args.examples),
        write_neighbours(inputs, args.out),
        map_of(inputs),
        duplicates_of(inputs, args.out),
        parameters_of(inputs),
    ]  # fmt: skip
    removed = inputs.duplicates["counts"]
    figures = [
        (f"{counts['pool']:,}", "images in the pool"),
        (f"{counts['queries']:,}", "queries"),
        (f"{removed['removed_for_evaluation'] + removed['removed_within_pool']:,}", "duplicates removed"),
        (f"{counts['chosen']:,}", "chosen"),
    ]
    lead = f"Training images chosen by the similarity of their embeddings ({model})"
    text = page.page("Data-LDCC", lead, figures, sections)
    write_bytes(args.out / "index.html", text.encode())
    print(f"{args.out / 'index.html'}: {counts['chosen']} of {counts['pool']} images chosen")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="data_curation.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--selection", type=Path, required=True, help=f"folder of select: {NAME}.csv and .json")
    parser.add_argument("--duplicates", type=Path, required=True, help="folder of deduplicate")
    parser.add_argument("--out", type=Path, required=True, help="folder for index.html and its pictures")
    parser.add_argument("--examples", type=int, default=12, help="images a sheet (default %(default)s)")
    args = parser.parse_args(argv)
    if args.examples < 2:
        parser.error(f"--examples must be at least 2, not {args.examples}")
    try:
        run(args)
    except (DataError, ImageError, OSError) as error:
        raise SystemExit(f"data_curation.report: {error}") from error


def _no_clip(model: str) -> str:
    return f"These embeddings are {model}: the convolutions of AlexNet, not CLIP. They tell textures from each other."


def _beside_query(row: Scored) -> NDArray[np.uint8]:
    place = f"rank {row.rank}" if row.rank else row.reason
    lines = [f"{place}, score {row.score:.3f}", Path(row.name).name, f"query {Path(row.query).name}"]
    return side_by_side(find_image(row.name).read_rgb(), find_image(row.query).read_rgb(), BOX, lines)


def _box(name: str, words: str) -> NDArray[np.uint8]:
    return captioned(fitted(find_image(name).read_rgb(), BOX, BOX), [words, Path(name).name])


def _read_json(path: Path, stage: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        return {key: found[key] for key in found}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): run {stage}") from error


def _read_rows(path: Path, stage: str) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): run {stage}") from error


def _read_scores(path: Path) -> list[Scored]:
    try:
        return [
            Scored(row["name"], float(row["score"]), row["nearest_query"], int(row["rank"] or 0), row["chosen"] == "1",
                   row["reason"])
            for row in _read_rows(path, "data_curation.select")
        ]  # fmt: skip
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): run data_curation.select") from error


if __name__ == "__main__":
    main()
