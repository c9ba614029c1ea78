"""Stage 4: one page that shows what was chosen, what was not, and why.

    python -m data_curation.report --selection data_ldcc --duplicates duplicates --out report

Writes `gallery.html`, all chosen images to browse, and `index.html` with its pictures: the flow of the pool with its
counts, the histogram of scores with the cut, the chosen, the borderline and the rejected beside their nearest query,
what the nearest neighbours of queries look like, a map of pool, queries and choice, and the duplicates removed with
their evidence. Reads what the earlier stages wrote, and the images shown. The same inputs give the same bytes.
"""

import argparse
import csv
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from data_curation.dedup.decisions import REMOVED
from data_curation.embed.run import positive
from data_curation.features import Features
from data_curation.images import find_image
from data_curation.joined import open_features
from data_curation.neighbours import nearest
from data_curation.report.gallery import write_gallery
from data_curation.select import NAME
from image_data.sources import DataError
from models.team08_HATFreq.image_io import ImageError, write_png
from utils.files import command, make_folder, write_bytes
from utils.pictures import captioned, fitted, sheet
from utils.pictures import pair as side_by_side

BOX = 150  # pixels of the side of a picture on a sheet
NEIGHBOURS, QUERIES = 5, 8  # shown of each query, and queries
POINTS = 4000  # of a group on the map, taken evenly
LISTED = 60  # pairs of duplicates in the table
_ROWS = 8192  # embeddings read at a time
_DUPLICATE = "duplicate"  # select's reason
_PAIR = ("pool", "partner", "side", "evidence", "agreeing_share", "common_area", "transformation")  # columns shown


class Inputs:
    """What the earlier stages wrote.

    Attributes:
        selection, duplicates: parameters and counts of select and dedup.
        passed, closed: rows of data_ldcc.csv that passed the gates, by rank, and the others.
        removed: rows of duplicates.csv.
    """

    def __init__(self, selection: Path, duplicates: Path) -> None:
        """Read it.

        Raises:
            DataError: something is missing, damaged, or of another pool.
        """
        self.selection = _read_json(selection / f"{NAME}.json", "data_curation.select")
        self.duplicates = _read_json(duplicates / "duplicates.json", "data_curation.dedup")
        table = _read_table(selection / f"{NAME}.csv")
        ranked = pc.is_valid(table["rank"])
        self.passed, self.closed = table.filter(ranked), table.filter(pc.invert(ranked))
        self.chosen = self.passed.filter(pc.equal(self.passed["chosen"], 1))
        self.removed = _read_removed(duplicates / "duplicates.csv")
        self.picture = duplicates / "duplicates.png"
        parameters = self.selection["parameters"]
        self.pool, self.queries = open_features(parameters["pool"]), Features(parameters["queries"])
        self._check()

    def _check(self) -> None:
        """Raise DataError if the stages' counts contradict each other."""
        counts, result = self.selection["counts"], self.duplicates["counts"]
        removed = result["removed_for_evaluation"] + result["removed_within_pool"]
        pairs = (
            ("readable images", counts["readable"], result["readable"]),
            ("rows of the table", counts["readable"], len(self.passed) + len(self.closed)),
            ("embeddings of the pool", counts["readable"], len(self.pool)),
            ("duplicates left out", counts["left_out"].get(_DUPLICATE, 0), removed),
            ("chosen images", counts["chosen"], len(self.chosen)),
        )
        for what, one, other in pairs:
            if one != other:
                raise DataError(
                    f"{what}: {one} for {NAME}.json, {other} for the other files; they are of different runs: run "
                    "select with --duplicates and the folder of these"
                )


def flow(inputs: Inputs) -> list[dict[str, Any]]:
    """The factsheet's Figure 1, with counts: stages, images left, and why others went."""
    counts, result = inputs.selection["counts"], inputs.duplicates["counts"]
    gates = Counter(reason for reason in inputs.closed["reason"].to_pylist() if reason != _DUPLICATE)
    after = counts["readable"] - result["removed_for_evaluation"]
    unreadable, full = counts["pool"] - counts["readable"], counts["of_full_cells"]
    stages: tuple[tuple[str, int, dict[str, int]], ...] = (
        ("pool", counts["pool"], {}),
        ("readable", counts["readable"], {"unreadable": unreadable}),
        ("not an evaluation image", after, {"near-duplicates of evaluation images": result["removed_for_evaluation"]}),
        ("no duplicate in the pool", after - result["removed_within_pool"],
         {"near-duplicates of larger images": result["removed_within_pool"]}),
        ("passed the gates", counts["eligible"], dict(sorted(gates.items()))),
        ("chosen: Data-LDCC", counts["chosen"],
         {"less similar": counts["eligible"] - counts["chosen"] - full, "of cells that were full": full}),
    )  # fmt: skip
    return [
        {"name": name, "count": count,
         "lost": "; ".join(f"{gone:,} {reason}" for reason, gone in lost.items() if gone) or "none lost"}
        for name, count, lost in stages
    ]  # fmt: skip


def histogram(scores: dict[str, Any]) -> dict[str, Any]:
    """The bars of the scores between the first and the last that is filled, and the place of the cut, 0 to 1."""
    edges, eligible, chosen = (scores[f"histogram_{name}"] for name in ("edges", "eligible", "chosen"))
    filled = np.flatnonzero(eligible)
    first, last = max(int(filled[0]) - 2, 0), min(int(filled[-1]) + 3, len(eligible))
    peak, labelled = max(eligible), max(1, (last - first) // 10)
    bars = [
        {"eligible": 260 * eligible[k] / peak, "chosen": 260 * chosen[k] / peak,
         "label": "" if (k - first) % labelled else f"{edges[k]:.2f}",
         "title": f"{edges[k]:.2f} to {edges[k + 1]:.2f}: {chosen[k]:,} of {eligible[k]:,} chosen"}
        for k in range(first, last)
    ]  # fmt: skip
    cut = (scores["lowest_chosen"] - edges[first]) / (edges[last] - edges[first])
    return {"bars": bars, "peak": peak, "cut": cut, "lowest": f"{scores['lowest_chosen']:.3f}"}


def evenly(total: int, count: int) -> NDArray[np.int64]:
    """So many numbers below `total`, from the first to the last."""
    return np.linspace(0, total - 1, min(count, total)).round().astype(np.int64)


def write_sheets(inputs: Inputs, out: Path, examples: int) -> list[dict[str, str]]:
    """Write the pictures of the chosen, the borderline, the rejected and the neighbours; what the page says of each."""
    others = inputs.passed.filter(pc.equal(inputs.passed["chosen"], 0))
    gated = inputs.closed.filter(pc.not_equal(inputs.closed["reason"], _DUPLICATE))
    gated = gated.sort_by([("reason", "ascending"), ("name", "ascending")])
    chosen, half = inputs.chosen, examples // 2
    groups = (
        ("chosen.png", "The chosen", "Evenly over the ranks, the most similar first; right, the nearest query.",
         chosen.take(evenly(len(chosen), examples))),
        ("borderline.png", "The borderline", "The last that were chosen, then the first that were not.",
         pa.concat_tables([chosen.slice(max(0, len(chosen) - half)), others.slice(0, half)])),
        ("rejected.png", "The rejected", "The least similar of those that passed the gates.",
         others.slice(max(0, len(others) - examples))),
        ("gates.png", "Kept out by the gates", "Whatever their similarity.",
         gated.take(evenly(len(gated), examples))),
    )  # fmt: skip
    sheets = []
    for file, heading, lead, rows in groups:
        if not len(rows):
            (out / file).unlink(missing_ok=True)  # of a former run
            continue
        write_png(out / file, sheet([_beside_query(row) for row in rows.to_pylist()], 3))
        sheets.append({"file": file, "heading": heading, "lead": lead})
    lead = "Left a query, then the nearest images of the whole pool, duplicates and all."
    write_png(out / "neighbours.png", _neighbours(inputs))
    return [*sheets, {"file": "neighbours.png", "heading": "What nearness looks like", "lead": lead}]


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


def map_of(inputs: Inputs) -> list[dict[str, Any]]:
    """The points of pool, choice and queries in [0, 1], each with its name."""
    mean, axes = principal_axes(inputs.pool)
    names, query_names = np.array(inputs.pool.column("name")), np.array(inputs.queries.column("name"))
    chosen = np.isin(names, inputs.chosen["name"].to_pylist())
    groups = []
    for kind, radius, features, known, rows in (
        ("pool", 2.2, inputs.pool, names, np.flatnonzero(~chosen)),
        ("chosen", 2.6, inputs.pool, names, np.flatnonzero(chosen)),
        ("queries", 4.0, inputs.queries, query_names, np.arange(len(query_names))),
    ):
        drawn = rows[evenly(len(rows), POINTS)]
        texts = f"{kind}: {len(drawn):,} of {len(rows):,} drawn"
        groups.append((kind, radius, texts, (features.vectors(drawn) - mean) @ axes, known[drawn]))
    every = np.concatenate([places for *_, places, _ in groups])
    low, size = every.min(0), np.maximum(np.ptp(every, axis=0), 1e-9)
    return [
        {"kind": kind, "radius": radius, "words": texts,
         "points": [(*place, Path(name).name) for place, name in zip((places - low) / size, labels, strict=True)]}
        for kind, radius, texts, places, labels in groups
    ]  # fmt: skip


def duplicates_of(inputs: Inputs, out: Path) -> dict[str, Any]:
    """The table of removed images; their picture is copied."""
    (out / "duplicates.png").unlink(missing_ok=True)  # of a former run
    if inputs.removed:
        write_bytes(out / "duplicates.png", inputs.picture.read_bytes())
    count = len({row["pool"] for row in inputs.removed})
    candidates = sum(inputs.duplicates["counts"]["candidates"].values())
    rows = [[Path(row[key]).name if key in ("pool", "partner") else row[key] for key in _PAIR]
            for row in inputs.removed[:LISTED]]  # fmt: skip
    return {
        "lead": f"Of {candidates:,} pairs that were compared; images of the pool removed: {count:,}.",
        "head": [name.replace("_", " ") for name in ("removed", *_PAIR[1:])],
        "rows": rows,
        "more": len(inputs.removed) - LISTED,
    }


def parameters_of(inputs: Inputs) -> list[tuple[str, str, str]]:
    """Stage, name and value of every parameter."""
    stages = {"dedup": inputs.duplicates["parameters"], "select": inputs.selection["parameters"],
              "embed": inputs.selection["pool"]}  # fmt: skip
    return [(stage, name, json.dumps(value)) for stage, result in stages.items() for name, value in result.items()
            if value is not None]  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Write the report, the page last.

    Raises:
        DataError, ImageError, OSError: naming what is missing.
    """
    inputs = Inputs(args.selection, args.duplicates)
    make_folder(args.out)
    counts, removed, model = inputs.selection["counts"], inputs.duplicates["counts"], inputs.pool.settings.model
    share = inputs.selection["images_per_query"]
    figures = (
        (counts["pool"], "images in the pool"),
        (counts["queries"], "queries"),
        (removed["removed_for_evaluation"] + removed["removed_within_pool"], "duplicates removed"),
        (counts["chosen"], "chosen"),
        (counts["queries"] - share["without"], "queries with images"),
    )  # fmt: skip
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    text = templates.get_template("page.html.jinja").render(
        model=model,
        figures=[
            *((f"{count:,}", what) for count, what in figures),
            (f"{share['min']:,} / {share['median']:,g} / {share['max']:,}", "images a query: least, median, most"),
        ],
        notes=[*_no_clip(model), *inputs.duplicates["warnings"], *inputs.selection["warnings"]],
        flow=flow(inputs),
        whole=max(counts["pool"], 1),
        histogram=histogram(inputs.selection["scores"]),
        sheets=write_sheets(inputs, args.out, args.examples),
        map=map_of(inputs),
        duplicates=duplicates_of(inputs, args.out),
        parameters=parameters_of(inputs),
    )
    write_gallery(args.out, inputs.chosen, inputs.pool, inputs.queries, args.workers)
    write_bytes(args.out / "index.html", text.encode())
    print(f"{args.out / 'index.html'}: {counts['chosen']} of {counts['pool']} images chosen")


@command("data_curation.report", ImageError)
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="data_curation.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--selection", type=Path, required=True, help=f"folder of select: {NAME}.csv and .json")
    parser.add_argument("--duplicates", type=Path, required=True, help="folder of dedup")
    parser.add_argument("--out", type=Path, required=True, help="folder for index.html and its pictures")
    parser.add_argument("--workers", type=positive, default=os.cpu_count() or 1, help="threads (default %(default)s)")
    parser.add_argument("--examples", type=int, default=12, help="images a sheet (default %(default)s)")
    args = parser.parse_args(argv)
    if args.examples < 2:
        parser.error(f"--examples must be at least 2, not {args.examples}")
    run(args)


def _no_clip(model: str) -> list[str]:
    texts = f"These embeddings are {model}: the convolutions of AlexNet, not CLIP. They tell textures from each other."
    return [texts] if model.startswith("alexnet") else []


def _neighbours(inputs: Inputs) -> NDArray[np.uint8]:
    """Some queries, each with the images of the pool that are nearest to it."""
    names, pool_names = inputs.queries.column("name"), inputs.pool.columns("name")["name"]
    order = sorted(range(len(names)), key=lambda row: names[row].encode())
    shown = [order[place] for place in evenly(len(order), QUERIES)]
    boxes = []
    near = nearest(inputs.pool.shards(), inputs.queries.vectors(shown), NEIGHBOURS)
    for query, (rows, cosines) in zip(shown, near, strict=True):
        boxes.append(_box(names[query], "query"))
        boxes += [_box(pool_names[int(row)].as_py(), f"cosine {cosine:.3f}")
                  for row, cosine in zip(rows, cosines, strict=True)]  # fmt: skip
    return sheet(boxes, 1 + min(NEIGHBOURS, len(inputs.pool)))


def _beside_query(row: dict[str, Any]) -> NDArray[np.uint8]:
    place = f"rank {row['rank']}" if row["rank"] else row["reason"]
    name, query = row["name"], row["nearest_query"]
    lines = [f"{place}, score {row['score']:.3f}", Path(name).name, f"query {Path(query).name}"]
    return side_by_side(find_image(name).read_rgb(), find_image(query).read_rgb(), BOX, lines)


def _box(name: str, texts: str) -> NDArray[np.uint8]:
    return captioned(fitted(find_image(name).read_rgb(), BOX, BOX), [texts, Path(name).name])


def _read_json(path: Path, stage: str) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): run {stage}") from error


def _read_removed(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row["decision"] == REMOVED]
    except (OSError, UnicodeDecodeError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}): run data_curation.dedup") from error


def _read_table(path: Path) -> pa.Table:
    """data_ldcc.csv; see select.COLUMNS. `rank` is null where a gate closed."""
    kinds = {"name": pa.string(), "score": pa.float64(), "nearest_query": pa.string(), "rank": pa.int64(),
             "chosen": pa.int64(), "reason": pa.string(), "quota_of": pa.string()}  # fmt: skip
    options = arrow_csv.ConvertOptions(column_types=kinds, include_columns=list(kinds), null_values=[""])
    try:
        return arrow_csv.read_csv(path, convert_options=options)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}): run data_curation.select") from error
