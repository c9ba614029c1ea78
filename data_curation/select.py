"""Stage 3: choose the images of a pool that are most similar to the queries.

    python -m data_curation.select --pool features/pool --queries features/queries --top_k 40000 \\
        --exclude duplicates/removed.txt --out data_ldcc

Writes `data_ldcc.txt`, the names of the chosen images in the order of their rank (what the trainer reads; its first N
names are the choice of N), `data_ldcc.csv`, a row for every image of the pool, and `data_ldcc.json`, every parameter
and count. Equal scores are ordered by name, so the same features give the same bytes.
"""

import argparse
import csv
import json
import os
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_curation.features import Features, FeaturesError
from data_curation.scoring import Nearest, places, ranked, score_pool
from image_data.sources import IN_SHARD, DataError
from models.team08_HATFreq.system import TEMPORARY, write_bytes

NAME = "data_ldcc"
COLUMNS = ("name", "score", "nearest_query", "rank", "chosen", "reason")
_ENDS_LINE = r"[\n\r\v\f\x1c-\x1e\x{85}\x{2028}\x{2029}]"  # what str.splitlines takes for the end of a line
_BINS = 200  # of the histogram of scores, from -1 to 1


def gates(table: pa.Table, removed: set[str], args: argparse.Namespace) -> dict[str, NDArray[np.bool_]]:
    """What keeps images out of the choice: reason -> which rows it holds for.

    Raises:
        DataError: an image to leave out that the pool does not hold.
    """
    names = table["name"]
    found = {"its name cannot stand in a list": np.asarray(pc.match_substring_regex(names, _ENDS_LINE))}
    if removed:
        out = np.asarray(pc.is_in(names, pa.array(sorted(removed), pa.string())))
        if int(out.sum()) != len(removed):
            lost = sorted(removed - set(names.filter(pa.array(out)).to_pylist()))
            raise DataError(f"{args.exclude} names {lost[0]}, which the pool does not hold: give this pool's own list")
        found["duplicate"] = out
    if args.min_side:
        sides = np.minimum(np.asarray(table["height"]), np.asarray(table["width"]))
        found[f"side below {args.min_side}"] = sides < args.min_side
    if args.max_blockiness is not None:
        found[f"blockiness above {args.max_blockiness:g}"] = np.asarray(table["blockiness"]) > args.max_blockiness
    if args.min_sharpness is not None:
        found[f"sharpness below {args.min_sharpness:g}"] = np.asarray(table["sharpness"]) < args.min_sharpness
    return found


def choose(
    args: argparse.Namespace, scores: NDArray[np.float64], order: NDArray[np.int64], nearest: Nearest | None
) -> tuple[NDArray[np.bool_], str]:
    """Which rows are chosen, and why the other eligible ones are not.

    Args:
        order: the eligible rows by rank.

    Raises:
        DataError: fewer are eligible than asked for, or none is chosen.
    """
    chosen = np.zeros(len(scores), bool)
    if nearest:
        chosen[np.concatenate(nearest.rows)] = True
        why = f"not among the {args.per_query} nearest of any query"
    elif args.top_k:
        if args.top_k > len(order):
            raise DataError(
                f"--top_k {args.top_k} of {len(order)} images that pass: ask for fewer, or loosen the gates"
            )
        chosen[order[: args.top_k]] = True
        why = f"not among the {args.top_k} most similar"
    else:
        chosen[order[scores[order] >= args.threshold]] = True
        why = f"score below {args.threshold:g}"
    if not chosen.any():
        raise DataError(
            f"no image is chosen: of {len(order)} that pass the gates, none is similar enough; lower the bar"
        )
    return chosen, why


def run(args: argparse.Namespace) -> None:
    """Select.

    Raises:
        DataError: features that do not belong together, a list of another pool, or nothing to choose.
    """
    pool, queries = Features(args.pool), Features(args.queries)
    check_same_encoder(pool, queries)
    removed = read_names(args.exclude) if args.exclude else set()
    table = pool.columns("name", "height", "width", "blockiness", "sharpness")
    closed = gates(table, removed, args)
    eligible = ~np.logical_or.reduce(list(closed.values()))
    place = places(table["name"])
    query_names, vectors = _queries_by_name(queries)
    nearest = Nearest(args.per_query, eligible, place) if args.per_query else None
    scores, which = score_pool(pool.shards(), len(pool), vectors, args.score, args.top_m, nearest)
    order = ranked(scores, place)
    order = order[eligible[order]]
    chosen, why = choose(args, scores, order, nearest)
    reasons = _reasons(closed, chosen, why)
    out = np.flatnonzero(~eligible)
    rows = np.concatenate([order, out[np.argsort(place[out])]])

    args.out.mkdir(parents=True, exist_ok=True)
    names = table["name"].combine_chunks()
    write_table(args.out / f"{NAME}.csv", names, query_names, scores, which, rows, len(order), chosen, reasons)
    summary = summarise(args, pool, queries, closed, scores, eligible, chosen)
    write_bytes(args.out / f"{NAME}.json", (json.dumps(summary, indent=2) + "\n").encode())
    listed = [names[int(row)].as_py() for row in order[chosen[order]]]
    write_list(args.out / f"{NAME}.txt", listed, args)
    print(f"{args.out / NAME}.txt: {len(listed)} of {len(pool)} images, {len(order)} of which passed the gates")


def check_same_encoder(pool: Features, queries: Features) -> None:
    """Raise FeaturesError if the two folders' embeddings cannot be compared."""
    if pool.settings.model != queries.settings.model:
        raise FeaturesError(
            f"{pool.folder} was embedded by {pool.settings.model}, {queries.folder} by {queries.settings.model}: "
            "embed both with one encoder"
        )


def read_names(path: Path) -> set[str]:
    """The names of a list, one a line, `#` starting a comment.

    Raises:
        DataError: it cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): give the removed.txt of data_curation.deduplicate"
        ) from error
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def write_table(
    path: Path,
    names: pa.StringArray,
    queries: list[str],
    scores: NDArray[np.float64],
    which: NDArray[np.int64],
    rows: NDArray[np.int64],
    eligible: int,
    chosen: NDArray[np.bool_],
    reasons: NDArray[np.object_],
) -> None:
    """A row an image, written as it goes: the eligible ones by rank, then the others by name, without a rank."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for place, row in enumerate(rows.tolist(), start=1):
            rank = place if place <= eligible else ""
            writer.writerow((names[row].as_py(), f"{scores[row]:.6f}", queries[which[row]], rank, int(chosen[row]),
                             reasons[row]))  # fmt: skip
    os.replace(temporary, path)


def write_list(path: Path, names: list[str], args: argparse.Namespace) -> None:
    """What the trainer reads: comments that say what it is, then a name a line."""
    head = [
        f"# Data-LDCC: {len(names)} images chosen by their similarity to the test images, the most similar first.",
        f"# python -m data_curation.select {' '.join(_words(args))}",
    ]
    lines = [_relative(name, path.parent) if args.relative else name for name in names]
    write_bytes(path, ("\n".join([*head, *lines]) + "\n").encode())


def summarise(
    args: argparse.Namespace,
    pool: Features,
    queries: Features,
    closed: dict[str, NDArray[np.bool_]],
    scores: NDArray[np.float64],
    eligible: NDArray[np.bool_],
    chosen: NDArray[np.bool_],
) -> dict[str, Any]:
    """Every parameter and count; an image that several gates close to counts for the first."""
    left, by_gate = np.ones(len(pool), bool), {}
    for reason, held in closed.items():
        by_gate[reason] = int((left & held).sum())
        left &= ~held
    edges = np.linspace(-1, 1, _BINS + 1)
    clipped = np.clip(scores, -1, 1)  # float16 rounds lengths to 1 +- 0.0003
    return {
        "parameters": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()},
        "pool": asdict(pool.settings),
        "queries": asdict(queries.settings),
        "counts": {
            "pool": pool.settings.images,
            "readable": len(pool),
            "queries": len(queries),
            "left_out": by_gate,
            "eligible": int(eligible.sum()),
            "chosen": int(chosen.sum()),
        },
        "scores": {
            "highest": float(scores[chosen].max()),
            "lowest_chosen": float(scores[chosen].min()),
            "median_eligible": float(np.median(scores[eligible])),
            "histogram_edges": [round(float(edge), 2) for edge in edges],
            "histogram_eligible": np.histogram(clipped[eligible], edges)[0].tolist(),
            "histogram_chosen": np.histogram(clipped[chosen], edges)[0].tolist(),
        },
    }


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    parser = argparse.ArgumentParser(
        prog="data_curation.select", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pool", type=Path, required=True, help="features folder to choose from")
    add("--queries", type=Path, required=True, help="features folder of the images to be similar to")
    add("--out", type=Path, required=True, help=f"folder for {NAME}.txt, .csv and .json")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--top_k", type=_positive, help="choose this many, the most similar")
    how.add_argument("--threshold", type=float, help="choose all of at least this score")
    how.add_argument("--per_query", type=_positive, help="choose the nearest so many of every query, together")
    add("--score", choices=("max", "mean", "top"), default="max",
        help="over the queries: the nearest, the mean of all, or of the --top_m nearest (default: max)")  # fmt: skip
    add("--top_m", type=_positive, help="with --score top: how many queries")
    add("--exclude", type=Path, help="names to leave out: removed.txt of data_curation.deduplicate")
    add("--min_side", type=_positive, help="least pixels of the shorter side")
    add("--max_blockiness", type=float, help="JPEG's grid: 1 without, 1.2 visible, 1.5 strong")
    add("--min_sharpness", type=float, help="variance of the Laplacian: a few tens are a blurred photograph")
    add("--relative", action="store_true", help="names relative to the list's folder, which may then be moved along")
    args = parser.parse_args(argv)
    if (args.score == "top") != bool(args.top_m):
        parser.error("--score top and --top_m go together")
    if args.per_query and args.score != "max":
        parser.error("--per_query takes each query's nearest images: --score has no part in it")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    args = arguments(argv)
    try:
        run(args)
    except (DataError, OSError) as error:
        raise SystemExit(f"data_curation.select: {error}") from error


def _queries_by_name(queries: Features) -> tuple[list[str], NDArray[np.float32]]:
    names = queries.columns("name")["name"].to_pylist()
    order = sorted(range(len(names)), key=lambda row: names[row].encode())
    return [names[row] for row in order], queries.vectors(order)


def _reasons(closed: dict[str, NDArray[np.bool_]], chosen: NDArray[np.bool_], why: str) -> NDArray[np.object_]:
    """Why each row is not chosen; empty if it is."""
    found = np.full(len(chosen), why, object)
    found[chosen] = ""
    for reason, held in reversed(closed.items()):
        found[held] = reason
    return found


def _relative(name: str, folder: Path) -> str:
    file, separator, member = name.partition(IN_SHARD)
    relative = os.path.relpath(file, folder.absolute())
    plain = PurePosixPath(relative).parts[0] == ".."
    return f"{relative if plain else f'./{relative}'}{separator}{member}"  # ./ before what could look like a comment


def _words(args: argparse.Namespace) -> list[str]:
    """The arguments that were given, as words."""
    given = {key: value for key, value in vars(args).items() if value is not None and value is not False}
    return [f"--{key}" if value is True else f"--{key} {value}" for key, value in given.items()]


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is not positive")
    return number


if __name__ == "__main__":
    main()
