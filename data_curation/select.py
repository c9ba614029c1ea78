"""Stage 3: choose the images of a pool that are most similar to the queries.

    python -m data_curation.select --pool features/pool --queries features/queries --top_k 40000 \\
        --duplicates duplicates --out data_ldcc

Writes `data_ldcc.txt`, the names of the chosen images in the order of their rank (what the trainer reads; its first N
names are the choice of N), `data_ldcc.csv`, a row for every image of the pool, and `data_ldcc.json`, every parameter
and count. An image's score is its cosine with the nearest query. Equal scores are ordered by name, so the same features
give the same bytes.
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha1
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data_curation.choice import Choice, choose, images_per_query, wanted
from data_curation.coverage import REMOVED, check_coverage, check_unchanged
from data_curation.embed.run import positive
from data_curation.features import Features, FeaturesError
from data_curation.joined import open_features
from data_curation.neighbours import Nearest, Shards, by_name, products
from image_data.sources import IN_SHARD, DataError, expand
from models.team08_HATFreq.image_io import ImageError
from utils.files import atomic_write, command, make_folder, write_bytes

NAME = "data_ldcc"
COLUMNS = ("name", "score", "nearest_query", "rank", "chosen", "reason", "quota_of")
_BINS = 200  # of the histogram of scores, from -1 to 1
_NEARLY_EQUAL = 0.98  # score from which on an image may well be the query itself


def gates(table: pa.Table, removed: set[str], args: argparse.Namespace) -> dict[str, NDArray[np.bool_]]:
    """What keeps images out of the choice: reason -> which rows it holds for.

    Args:
        table: name, height, width, bytes, sha1, blockiness and sharpness of every row.
        removed: names of duplicates.
    """
    result: dict[str, NDArray[np.bool_]] = {}
    if removed:
        result["duplicate"] = np.asarray(pc.is_in(table["name"], pa.array(sorted(removed), pa.string())))
    if args.trained_on:
        result["trained on anyway"] = among(table, args.trained_on)
    if args.min_side:
        sides = np.minimum(np.asarray(table["height"]), np.asarray(table["width"]))
        result[f"side below {args.min_side}"] = sides < args.min_side
    if args.max_blockiness is not None:
        result[f"blockiness above {args.max_blockiness:g}"] = np.asarray(table["blockiness"]) > args.max_blockiness
    if args.min_sharpness is not None:
        result[f"sharpness below {args.min_sharpness:g}"] = np.asarray(table["sharpness"]) < args.min_sharpness
    return result


def among(table: pa.Table, sources: Sequence[str]) -> NDArray[np.bool_]:
    """Which rows are images of these folders or lists: the same file, or one of the same bytes.

    Args:
        table: name, bytes and sha1 of every row.
        sources: see `expand`.

    Raises:
        DataError, ImageError: a source without images, or an image that cannot be read.
    """
    images = [image for source in sources for image in expand(source)]
    files = {_resolved(image.name) for image in images}
    same = np.array([_resolved(name) in files for name in table["name"].to_pylist()])
    sizes = set(table["bytes"].to_pylist())  # only files of an equal size are read
    alike = (image for image in images if (image.size if image.member else image.path.stat().st_size) in sizes)
    digests = pa.array({sha1(image.content()).hexdigest() for image in alike}, pa.string())
    return same | np.asarray(pc.is_in(table["sha1"], digests))


def score_pool(
    shards: Shards,
    count: int,
    queries: NDArray[np.floating[Any]],
    nearest: Nearest | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Score every row of a pool by the largest cosine with a query.

    Args:
        shards: float16 `n d`, rows of length one.
        count: rows of all shards.
        queries: `m d`.
        nearest: filled with every query's nearest rows, if given.

    Returns:
        `count` scores, and the number of each row's nearest query, the first of equals.

    Raises:
        FeaturesError: an embedding that is not finite.
    """
    scores, which = np.empty(count), np.empty(count, np.int64)
    for start, block in products(shards, queries):
        rows = slice(start, start + block.shape[1])
        which[rows] = block.argmax(axis=0)
        scores[rows] = block.max(axis=0)
        if nearest:
            nearest.add(start, block)
    if not np.isfinite(scores).all():
        raise FeaturesError(
            f"row {int(np.argmin(np.isfinite(scores)))} of the pool has an embedding that is not finite"
        )
    return scores, which


def run(args: argparse.Namespace) -> None:
    """Select.

    Raises:
        DataError: features that do not belong together, a list of another pool, or nothing to choose.
    """
    pool, queries = open_features(args.pool), Features(args.queries)
    check_same_encoder(pool, queries)
    for features in (pool, queries):
        check_unchanged(features)
    if args.duplicates:
        check_coverage(args.duplicates, pool, queries)
    removed = read_names(args.duplicates / REMOVED) if args.duplicates else set()
    table = pool.columns("name", "height", "width", "bytes", "sha1", "blockiness", "sharpness")
    closed = gates(table, removed, args)
    eligible = np.ones(len(pool), bool)
    for held in closed.values():
        eligible &= ~held
    place = by_name(table["name"])
    query_names, vectors = _queries_by_name(queries)
    if not (finite := np.isfinite(vectors).all(1)).all():
        name = query_names[int(np.argmin(finite))]
        raise FeaturesError(
            f"{queries.folder} holds an embedding of {name} that is not finite: embed the queries again"
        )
    count = min(wanted(args, len(queries)), len(pool))
    nearest = Nearest(len(queries), count, eligible=eligible, place=place) if count else None
    scores, which = score_pool(pool.shards(), len(pool), vectors, nearest)
    order = np.lexsort((place, -scores))  # equals by their names
    order = order[eligible[order]]
    choice = choose(args, pool, scores, order, nearest)
    chosen = choice.chosen
    warnings = check_choice(args, pool, queries, scores, choice)
    reasons = _reasons(closed, choice)
    quotas = np.append(np.array(query_names, object), "")[choice.query]  # the last for -1
    out = np.flatnonzero(~eligible)
    rows = np.concatenate([order, out[np.argsort(place[out])]])

    make_folder(args.out)
    names = table["name"].combine_chunks()
    write_table(args.out / f"{NAME}.csv", names, query_names, scores, which, rows, len(order), chosen, reasons,
                quotas)  # fmt: skip
    summary = summarise(args, pool, queries, closed, scores, which, eligible, choice, warnings)
    write_bytes(args.out / f"{NAME}.json", (json.dumps(summary, indent=2) + "\n").encode())
    listed = order[chosen[order]]
    write_list(args.out / f"{NAME}.txt", [names[int(row)].as_py() for row in listed], args)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{args.out / NAME}.txt: {len(listed)} of {len(pool)} images, {len(order)} of which passed the gates")


def check_choice(
    args: argparse.Namespace,
    pool: Features,
    queries: Features,
    scores: NDArray[np.float64],
    choice: Choice,
) -> list[str]:
    """Warnings of what is probably a mistake.

    Raises:
        DataError: queries are among the chosen.
    """
    chosen = choice.chosen
    same = np.asarray(pc.is_in(pool.columns("sha1")["sha1"], queries.columns("sha1")["sha1"].combine_chunks())) & chosen
    if same.any():
        raise DataError(
            f"{int(same.sum())} of the chosen images are queries themselves, {pool.column('name')[int(same.argmax())]} "
            "first: run data_curation.dedup, and give its folder as --duplicates"
        )
    warnings = []
    if not args.duplicates:
        warnings.append("no --duplicates: nothing keeps evaluation images out of the choice")
    if choice.lacking:
        warnings.append(f"{choice.lacking} queries have fewer images than --per_query, for want of cells with room")
    if near := int((scores[chosen] >= _NEARLY_EQUAL).sum()):
        warnings.append(f"{near} of the chosen images have a score of {_NEARLY_EQUAL} or more: are they test images?")
    ours, partners = (_typical_side(features) for features in (pool, queries))
    if ours >= 2 * partners:
        warnings.append(
            f"the encoder saw images of {ours:.0f} pixels a side from the pool and of {partners:.0f} as queries: for "
            "low-resolution queries, embed the pool with --downscale 4, or resolution decides as much as content"
        )
    return warnings


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
        raise DataError(f"{path} cannot be read ({error}): give the removed.txt of data_curation.dedup") from error
    return {line for line in lines if line.strip() and not line.startswith("#")}


def write_table(
    path: Path,
    names: pa.StringArray,
    queries: Sequence[str],
    scores: NDArray[np.float64],
    which: NDArray[np.int64],
    rows: NDArray[np.int64],
    eligible: int,
    chosen: NDArray[np.bool_],
    reasons: NDArray[np.object_],
    quotas: NDArray[np.object_],
) -> None:
    """A row an image, streamed: the eligible ones by rank, then the others by name, without a rank."""
    with atomic_write(path) as binary, io.TextIOWrapper(binary, encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for place, row in enumerate(rows.tolist(), start=1):
            rank = place if place <= eligible else ""
            writer.writerow((names[row].as_py(), f"{scores[row]:.6f}", queries[which[row]], rank, int(chosen[row]),
                             reasons[row], quotas[row]))  # fmt: skip


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
    which: NDArray[np.int64],
    eligible: NDArray[np.bool_],
    choice: Choice,
    warnings: list[str],
) -> dict[str, Any]:
    """Every parameter and count, and warnings; an image that several gates close to counts for the first."""
    chosen = choice.chosen
    left, by_gate = np.ones(len(pool), bool), {}
    for reason, held in closed.items():
        by_gate[reason] = int((left & held).sum())
        left &= ~held
    edges = np.linspace(-1, 1, _BINS + 1)
    clipped = np.clip(scores, -1, 1)  # float16 rounds lengths to 1 +- 0.0003
    return {
        "parameters": {key: _plain(value) for key, value in vars(args).items()},
        "pool": asdict(pool.settings),
        "queries": asdict(queries.settings),
        "counts": {
            "pool": pool.settings.images,
            "readable": len(pool),
            "queries": len(queries),
            "left_out": by_gate,
            "eligible": int(eligible.sum()),
            "chosen": int(chosen.sum()),
            "of_full_cells": int(choice.full.sum()),
        },
        "images_per_query": images_per_query(np.where(choice.query < 0, which, choice.query)[chosen], len(queries)),
        "scores": {
            "highest": float(scores[chosen].max()),
            "lowest_chosen": float(scores[chosen].min()),
            "median_eligible": float(np.median(scores[eligible])),
            "histogram_edges": [round(float(edge), 2) for edge in edges],
            "histogram_eligible": np.histogram(clipped[eligible], edges)[0].tolist(),
            "histogram_chosen": np.histogram(clipped[chosen], edges)[0].tolist(),
        },
        "warnings": warnings,
    }


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    parser = argparse.ArgumentParser(
        prog="data_curation.select", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pool", type=Path, nargs="+", required=True, help="features folders to choose from, read as one")
    add("--queries", type=Path, required=True, help="features folder of the images to be similar to")
    add("--out", type=Path, required=True, help=f"folder for {NAME}.txt, .csv and .json")
    add("--top_k", type=positive, help="choose this many, the most similar")
    add("--per_query", type=positive,
        help="choose the nearest so many of every query; with --top_k, deal every query so many first")  # fmt: skip
    add("--diversity", type=positive, help="with --top_k: at most so many of a cell of like images (k-means)")
    add("--duplicates", type=Path, help="folder of data_curation.dedup, made of this pool and these queries: what it "
        "removed is left out")  # fmt: skip
    add("--exclude", type=Path, metavar="FILE", help="the same, by its removed.txt")
    add("--trained_on", nargs="+",
        help="folders or lists whose images are trained on beside the choice: those are left out")  # fmt: skip
    add("--min_side", type=positive, help="least pixels of the shorter side")
    add("--max_blockiness", type=number, help="JPEG's grid: 1 without, 1.2 visible, 1.5 strong")
    add("--min_sharpness", type=number, help="variance of the Laplacian: a few tens are a blurred photograph")
    add("--relative", action="store_true", help="names relative to the list's folder, which may then be moved along")
    args = parser.parse_args(argv)
    if not (args.top_k or args.per_query):
        parser.error("give --top_k, --per_query or both")
    if args.diversity and not args.top_k:
        parser.error("--diversity limits the choice of --top_k: give that too")
    if args.duplicates and args.exclude:
        parser.error("--exclude is another name of --duplicates: give one of them")
    args.duplicates = args.exclude.parent if args.exclude else args.duplicates
    del args.exclude
    return args


@command("data_curation.select", ImageError)
def main(argv: list[str] | None = None) -> None:
    run(arguments(argv))


def number(word: str) -> float:
    """A finite number."""
    if not np.isfinite(value := float(word)):
        raise argparse.ArgumentTypeError("must be a finite number")
    return value


def _queries_by_name(queries: Features) -> tuple[list[str], NDArray[np.float32]]:
    names = queries.columns("name")["name"].to_pylist()
    order = sorted(range(len(names)), key=lambda row: names[row].encode())
    return [names[row] for row in order], queries.vectors(order)


def _typical_side(features: Features) -> float:
    """The median of the shorter sides that the encoder saw, in pixels."""
    sides = np.minimum(features.column("height"), features.column("width"))
    return float(np.median(sides)) / features.settings.downscale


def _reasons(closed: dict[str, NDArray[np.bool_]], choice: Choice) -> NDArray[np.object_]:
    """Why each row is not chosen; empty if it is."""
    result = np.full(len(choice.chosen), choice.why, object)
    result[choice.full] = "its cell of like images is full"
    result[choice.chosen] = ""
    for reason, held in reversed(closed.items()):
        result[held] = reason
    return result


def _relative(name: str, folder: Path) -> str:
    """A name as seen from a folder; `..` leads from where the folder really is, if it was reached by a link."""
    file, separator, member = name.partition(IN_SHARD)
    base = Path(os.path.abspath(folder))
    common = Path(os.path.commonpath([file, base]))
    if common.resolve() / base.relative_to(common) != base.resolve():
        base = base.resolve()
    relative = os.path.relpath(file, base)
    plain = PurePosixPath(relative).parts[0] == ".."
    return f"{relative if plain else f'./{relative}'}{separator}{member}"  # ./ before what could look like a comment


def _resolved(name: str) -> str:
    file, separator, member = name.partition(IN_SHARD)
    return os.path.realpath(file) + separator + member


def _plain(value: Any) -> Any:
    """An argument as JSON holds it."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _words(args: argparse.Namespace) -> list[str]:
    """The arguments that were given, as words."""
    given = {key: value for key, value in vars(args).items() if value is not None and value is not False}
    options = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in given.items()}
    return [f"--{key}" if value is True else f"--{key} {value}" for key, value in options.items()]


if __name__ == "__main__":
    sys.exit(main())
