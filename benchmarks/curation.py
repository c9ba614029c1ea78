"""What data curation finds, what it removes wrongly, and what it costs.

    python -m benchmarks.curation copies --work runs/copies    # planted copies by kind, and photographs removed wrongly
    python -m benchmarks.curation cost                         # CPU time of each step for an image or a pair
    python -m benchmarks.curation recall                       # copies found within pools of 10,000 to 100 million
    python -m benchmarks.curation select                       # beside numpy and faiss: time, memory, the same choice

`copies` plants copies of the evaluation images among training photographs and runs the commands that
scripts/build_data_ldcc.sh runs, with AlexNet as the encoder; --work keeps what is done. Evaluation images and
photographs are split in halves: thresholds are fitted on the first.
"""

import argparse
import csv
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import BENCH, Image, in_child, publish, setting
from benchmarks.planted_copies import HELD_OUT, KINDS, plant
from benchmarks.render import RESULTS
from data_curation import dedup, embed, select
from data_curation.dedup.agreement import MIN_AGREEING, MIN_LEAK, MIN_SHARE, verify
from data_curation.dedup.candidates import Limits, near_hashes
from data_curation.dedup.cells import neighbours_by_cells
from data_curation.dedup.decisions import REMOVED
from data_curation.dedup.judging import EVALUATION_SIDE
from data_curation.dedup.keypoint_index import (
    POOL_SHARED,
    WITHIN,
    EvaluationIndex,
    key_masks,
    shared_keypoints,
    sharing_within,
)
from data_curation.dedup.registration import COUNT, view
from data_curation.embed.decode import measure
from data_curation.embed.encoders import backbone_encoder
from data_curation.embed.keypoints import HASHED, POOL_COUNT, find_keypoints, hashed
from data_curation.embed.phash import distance, phash8
from data_curation.features import SETTINGS, Features, Record, Settings, normalised, write_shard
from data_curation.neighbours import by_name, nearest
from models.team08_HATFreq.image_io import list_images, read_rgb, write_png
from models.team08_HATFreq.system import peak_memory, write_bytes

SETS = ("Set5", "Set14", "BSD100")
ALEXNET = BENCH.parents[1] / "iqa" / "alexnet_features.safetensors"
CROP = 128  # pixels a side, of the crops
MAX_WRONG = 0.002  # of the photographs
KNOWN = "302003"  # the BSDS training photograph that Set5's woman is
PACKAGES = ("numpy", "opencv-python-headless", "faiss-cpu")
DIMENSION, QUERIES, NEIGHBOURS, SHARD, CHOSEN = 768, 100, 100, 100_000, 10_000  # of `select`

Row = dict[str, Any]
Ranking = tuple[NDArray[np.int64], NDArray[np.float64]]  # rows by rank, their scores


# ---------------------------------------------------------------------------------------------------------------------
# Copies: what is found
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copy:
    """A planted file, its kind, and the number of the evaluation image that it was made from."""

    path: Path
    kind: str
    source: int


@dataclass(frozen=True)
class Judged:
    """What duplicates.csv says of an image and an evaluation image."""

    share: float
    agreeing: int
    common: float
    removed: bool

    @property
    def decisive(self) -> float:
        """The share that MIN_SHARE is compared with; 0 where another bar keeps the image."""
        return self.share if self.agreeing >= MIN_AGREEING and self.common >= MIN_LEAK else 0.0


def plant_all(sources: list[Path], photographs: list[Path], folder: Path, step: int, held_out_step: int) -> list[Copy]:
    """Write copies of every kind of every `step`-th evaluation image, and the known one; what is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for place, kind in enumerate([*KINDS, *HELD_OUT]):
        for number, source in list(enumerate(sources))[:: step * (held_out_step if kind in HELD_OUT else 1)]:
            path = folder / f"{kind.replace(' ', '_')}_{number:03}.png"
            if not path.exists():
                other = read_rgb(photographs[(7 * number + place) % len(photographs)])
                write_png(path, plant(read_rgb(source), kind, 1000 * place + number, other))
            copies.append(Copy(path, kind, number))
    for number, source in enumerate(sources):
        if source.match("Set5/HR/img_005.png"):
            write_png(folder / f"{KNOWN}.png", read_rgb(source))
            copies.append(Copy(folder / f"{KNOWN}.png", "the known overlap", number))
    return copies


def run_commands(work: Path, workers: int, pool: list[Path], sides: dict[str, list[Path]]) -> Path:
    """Embed and deduplicate as scripts/build_data_ldcc.sh does; returns duplicates.csv."""
    encoder = ["--backbone", "alexnet", "--weights", str(ALEXNET), "--workers", str(workers), "--shard_size", "500"]
    for name, images in {"pool": pool, **sides}.items():
        write_bytes(work / f"{name}.txt", "".join(f"{path}\n" for path in images).encode())
        words = [str(work / f"{name}.txt"), "--out", str(work / f"features_{name}")]
        embed.main([*words, "--downscale", "1" if name == "lr" else "4", *encoder])
        if lost := Features(work / f"features_{name}").unreadable():
            raise SystemExit(f"curation: {lost[0][0]} {lost[0][1]}")
    words = ["--pool", str(work / "features_pool"), "--keep_pool_duplicates", "--evaluation"]
    words += [str(work / f"features_{side}") for side in sides]
    dedup.main([*words, "--out", str(work / "duplicates"), "--workers", str(workers)])
    return work / "duplicates" / "duplicates.csv"


def read_pairs(path: Path) -> dict[tuple[str, str], Judged]:
    """Of duplicates.csv: (image, evaluation image) -> what was judged."""
    with path.open(newline="") as file:
        return {
            (row["pool"], row["partner"]): Judged(
                float(row["agreeing_share"]), int(row["agreeing_pixels"]), float(row["common_area"]),
                row["decision"] == REMOVED,
            )
            for row in csv.DictReader(file)
        }  # fmt: skip


def fitted_threshold(copies: list[float], innocents: list[float]) -> float:
    """Halfway, in proportion, between the share that few enough innocents exceed and the copies' lower end.

    Args:
        copies, innocents: an image's highest share each, 0 where it was not a candidate.
    """
    highest = max(sorted(innocents, reverse=True)[int(MAX_WRONG * len(innocents))], 0.01)  # 0 leaves no proportion
    return float(np.sqrt(highest * np.percentile([share for share in copies if share > highest], 0.5)))


def count_found(
    copies: list[Copy], sides: dict[str, list[Path]], pairs: dict[tuple[str, str], Judged], removed: set[str]
) -> list[Row]:
    """A row a kind: how many copies were found to be of the image that they were made from."""
    rows = []
    for kind in dict.fromkeys(copy.kind for copy in copies):
        group = [copy for copy in copies if copy.kind == kind]
        row: Row = {"copy": kind, "held_out": kind in HELD_OUT, "planted": len(group)}
        row["planted_second"] = sum(copy.source % 2 for copy in group)
        for side, images in sides.items():
            keys = [(copy, (str(copy.path), str(images[copy.source]))) for copy in group]
            found = [copy for copy, key in keys if key in pairs and pairs[key].removed]
            row[side], row[f"{side}_second"] = len(found), sum(copy.source % 2 for copy in found)
        row["removed"] = sum(str(copy.path) in removed for copy in group)
        rows.append(row)
    return rows


def measure_copies(args: argparse.Namespace) -> None:
    """Plant, run the commands, and tell what was found by kind and what was removed wrongly.

    Raises:
        SystemExit: more photographs than MAX_WRONG were removed.
    """
    sources = [path for name in SETS for path in list_images(BENCH / name / "HR")]
    folders = sorted(path for path in (BENCH.parent / "train").iterdir() if path.is_dir())
    photographs = [path for folder in folders for path in list_images(folder)]
    work = args.work.resolve()  # names in a list are relative to it
    copies = plant_all(sources, photographs, work / "planted", args.step, args.held_out_step)
    sides = {"hr": sources, "lr": [path.parents[1] / "LRbicx4" / f"{path.stem}x4.png" for path in sources]}
    pool = [*photographs, *(copy.path for copy in copies)]
    pairs = read_pairs(run_commands(work, args.workers, pool, sides))
    removed = {image for (image, _), judged in pairs.items() if judged.removed}

    highest: dict[str, float] = defaultdict(float)  # share of an image with any evaluation image
    for (image, _), judged in pairs.items():
        highest[image] = max(highest[image], judged.decisive)
    innocent, planted = ([highest[str(path)] for path in group] for group in (photographs, pool[len(photographs) :]))
    known = [share for share, copy in zip(planted, copies, strict=True) if copy.source % 2 == 0]
    unseen = [share for share, copy in zip(planted, copies, strict=True) if copy.source % 2]
    fitted = fitted_threshold(known, innocent[::2])
    wrong = [path.name for path in photographs if str(path) in removed]
    notes = [
        f"photographs removed wrongly: {len(wrong)} of {len(photographs)} ({len(wrong) / len(photographs):.2%}) "
        f"{', '.join(wrong)}",
        f"highest shares of photographs: {', '.join(f'{share:.2f}' for share in sorted(innocent)[:-6:-1])}",
        f"least share of a copy: {MIN_SHARE} in the code, {fitted:.2f} fitted on the first half; with the latter, of "
        f"the second half {sum(share >= fitted for share in unseen)} of {len(unseen)} copies go and "
        f"{sum(share >= fitted for share in innocent[1::2])} of {len(innocent[1::2])} photographs",
    ]
    data = (
        f"{len(copies)} copies of {len({copy.source for copy in copies})} images of {', '.join(SETS)} among "
        f"{len(photographs)} photographs; {len(sources)} evaluation images"
    )
    found = setting(args.argv, threads=args.workers, packages=PACKAGES, data=data, notes=notes)
    print(publish(args.out, "curation_copies", count_found(copies, sides, pairs, removed), found))
    if len(wrong) > MAX_WRONG * len(photographs):
        raise SystemExit("too many photographs were removed wrongly")


# ---------------------------------------------------------------------------------------------------------------------
# What deduplication costs
# ---------------------------------------------------------------------------------------------------------------------


def measure_cost(args: argparse.Namespace) -> None:
    """CPU time of each step on photographs, and of look-ups in pools of random keypoints."""
    cv2.setNumThreads(1)
    paths = list_images(BENCH.parent / "train" / "bsds-sun")[: args.count]
    images, evaluation = ([read_rgb(path) for path in group] for group in (paths, list_images(BENCH / "BSD100" / "HR")))
    rows = [cost("an image of the pool decoded and measured", len(paths),
                 lambda: [measure(str(path), path.read_bytes(), read_rgb(path)) for path in paths])]  # fmt: skip
    keypoints = [hashed(find_keypoints(rgb), *rgb.shape[:2]) for rgb in images]
    dense: list[NDArray[np.void]] = []
    rows.append(cost("an evaluation image's keypoints", len(evaluation), lambda: dense.extend(
        hashed(find_keypoints(rgb, EVALUATION_SIDE, COUNT), *rgb.shape[:2]) for rgb in evaluation)))  # fmt: skip
    index = EvaluationIndex(dense)
    rows.append(cost(f"an image looked up in {len(dense)} evaluation images", len(images),
                     lambda: index.sharing(keypoints)))  # fmt: skip
    views = [(view(one), view(other, EVALUATION_SIDE)) for one, other in zip(images[::2], evaluation, strict=False)]
    rows.append(cost("a pair registered and judged", len(views), lambda: [verify(*pair, MIN_LEAK) for pair in views]))
    rows += [in_child(look_up_within, size) for size in args.sizes]
    rows += [in_child(near_by_hashes, size) for size in args.hashes]
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        if args.crops:
            in_child(make_crops, Path(folder) / "crops", args.crops)
            rows.append(in_child(near_by_cells, Path(folder) / "crops", 2000, "near crops, by AlexNet,"))
        for size in args.pools:
            in_child(make_pool, Path(folder) / str(size), size)
            rows += [in_child(way, Path(folder) / str(size)) for way in (near_by_cells, scored)]
    data = f"{len(images)} photographs of 481x321, {len(evaluation)} evaluation images"
    print(publish(args.out, "curation_cost", rows, setting(args.argv, packages=PACKAGES, data=data)))


def look_up_within(size: int) -> Row:
    """Look up a pool of random keypoints in itself; the peak is this process's."""
    rng = np.random.default_rng(0)
    pool = [np.zeros(256, HASHED) for _ in range(size)]
    for one in pool:
        one["code"] = rng.integers(0, 256, one["code"].shape, dtype=np.uint8)
    row = cost(f"an image looked up in a pool of {size:,}", size, lambda: sharing_within(pool))
    return row | {"peak_bytes": peak_memory(None)[0]}


def make_pool(folder: Path, count: int) -> None:
    """A features folder of random embeddings, a quarter of them near another quarter: the hardest case for cells, since
    photographs lie in groups.
    """
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((count, DIMENSION), np.float32)
    quarter = count // 4
    noise = np.sqrt(1 / rng.uniform(0.95, 1, quarter).astype(np.float32) ** 2 - 1)[:, None]  # cosines of 0.95 to 1
    vectors[quarter : 2 * quarter] = vectors[:quarter] + noise * vectors[-quarter:]
    folder.mkdir(parents=True)
    settings = Settings("benchmark:none", "none", 1, DIMENSION, "fp32", ("benchmark",), SHARD, count)
    write_bytes(folder / SETTINGS, settings.encode())
    for number, start in enumerate(range(0, count, SHARD)):
        part = range(start, min(start + SHARD, count))
        records = [
            Record(f"/{row:09}.png", 480, 480, 400_000, f"{row:040}", [0] * 8, 1, 100, bytes(768),
                   rng.bytes(256 * HASHED.itemsize)) for row in part
        ]  # fmt: skip
        write_shard(folder, number, normalised(vectors[part.start : part.stop]), records, [], settings, "")


def make_crops(folder: Path, count: int) -> None:
    """A features folder of AlexNet's embeddings of random crops of the training photographs: real ones, in groups."""
    torch.set_num_threads(1)
    alexnet = backbone_encoder("alexnet", ALEXNET, torch.device("cpu"), bf16=False, batch=64)
    paths = [path for one in sorted((BENCH.parent / "train").iterdir()) if one.is_dir() for path in list_images(one)]
    rng, crops, vectors = np.random.default_rng(0), list[Image](), []
    for number, path in enumerate(paths, start=1):
        rgb = read_rgb(path)
        for _ in range(-(-count // len(paths))):
            top, left = (int(rng.integers(0, side - CROP + 1)) for side in rgb.shape[:2])
            crops.append(rgb[top : top + CROP, left : left + CROP].copy())
        while len(crops) >= alexnet.batch or (crops and number == len(paths)):
            vectors.append(alexnet.embed(np.stack(crops[: alexnet.batch])))
            del crops[: alexnet.batch]
    _write_features(folder, 0, normalised(np.concatenate(vectors)[:count]), 0, count)


def near_by_cells(folder: Path, sample: int = 2000, step: str = "near embeddings") -> Row:
    """The embeddings' neighbours within a pool; recall of the pairs that an exact search of a sample finds."""
    pool = Features(folder)
    limits, found = Limits(), list[tuple[int, int]]()
    row = cost(f"{step} in {len(pool):,}", len(pool),
               lambda: found.extend(neighbours_by_cells(pool, limits.nearest, limits.cosine)))  # fmt: skip
    row["peak_bytes"] = peak_memory(None)[0]
    rows = np.random.default_rng(1).permutation(len(pool) // 2)[:sample]
    near = nearest(pool.shards(), pool.vectors(rows), limits.nearest + 1, limits.cosine)
    exact = {(int(one), int(mine)) for mine, (partners, _) in zip(rows, near, strict=True) for one in partners} - {
        (int(mine), int(mine)) for mine in rows
    }
    disk = sum(path.stat().st_size for path in folder.iterdir()) / len(pool)
    return row | {"recall": len(exact & set(found)) / len(exact), "disk_bytes": disk}


def near_by_hashes(size: int, sample: int = 2000) -> Row:
    """The perceptual hashes' neighbours within a pool of random ones; the time is that of a sample, carried on."""
    hashes = np.random.default_rng(0).integers(0, 2**63, (size, 8), np.uint64)
    steps = [cost("", size, partial(near_hashes, hashes[:, 0], hashes[:rows], Limits.phash)) for rows in (0, sample)]
    index, both = (step["cpu_seconds"] for step in steps)
    seconds = index + (both - index) * size / sample
    row: Row = {"step": f"near hashes in {size:,}", "count": size, "cpu_seconds": seconds}
    return row | {"peak_bytes": peak_memory(None)[0]}


def scored(folder: Path) -> Row:
    """A pool's scores by 100 queries."""
    pool = Features(folder)
    queries = pool.vectors(range(QUERIES))
    row = cost(f"scored, {len(pool):,}", len(pool), lambda: select.score_pool(pool.shards(), len(pool), queries))
    return row | {"peak_bytes": peak_memory(None)[0]}


def cost(step: str, count: int, work: Callable[[], object]) -> Row:
    """A row: CPU seconds of `work`, which is for `count`."""
    began = time.process_time()
    work()
    return {"step": step, "count": count, "cpu_seconds": time.process_time() - began, "peak_bytes": None}


# ---------------------------------------------------------------------------------------------------------------------
# What the searches within a large pool miss
# ---------------------------------------------------------------------------------------------------------------------


def measure_recall(args: argparse.Namespace) -> None:
    """Copies found by the ways of pools of each size, as shares of those that a comparison of all finds."""
    cv2.setNumThreads(1)
    sources = [read_rgb(path) for path in list_images(BENCH / "BSD100" / "HR")]
    others = [read_rgb(path) for path in list_images(BENCH.parent / "train" / "bsds-sun")[: args.count]]
    kept, pairs = [_features(rgb) for rgb in sources], []
    for place, kind in enumerate([*KINDS, *HELD_OUT]):
        for number in range(place % args.step, len(sources), args.step):
            copy = plant(sources[number], kind, 1000 * place + number, others[(number + place) % len(others)])
            pairs.append((kept[number], _features(copy)))
    exact = np.array([_comparing(*pair) for pair in pairs]).T  # 2 n: by keypoints, by perceptual hash
    rows = []
    for size in (10_000, 1_000_000, 10_000_000, 100_000_000):
        found = np.array([_looking_up(*pair, size) for pair in pairs]).T
        row: Row = {"pool": size, "bits": int(np.bitwise_count(key_masks(size * POOL_COUNT)[0]).sum())}
        for kind, every, some in zip(("keypoints", "phash"), exact, found, strict=True):
            row[kind] = float((every & some).sum() / every.sum())
        row["either"] = float((exact.any(0) & found.any(0)).sum() / exact.any(0).sum())
        rows.append(row)
    data = f"{len(pairs)} copies of {len(KINDS) + len(HELD_OUT)} kinds of BSD100's images in high resolution"
    print(publish(args.out, "curation_recall", rows, setting(args.argv, packages=PACKAGES, data=data)))


Content = tuple[NDArray[np.void], NDArray[np.uint64]]  # an image's keypoints, and its perceptual hashes


def _features(rgb: Image) -> Content:
    return hashed(find_keypoints(rgb), *rgb.shape[:2]), phash8(rgb)


def _comparing(one: Content, other: Content) -> tuple[bool, bool]:
    shared = shared_keypoints(other[0], one[0], WITHIN)
    return shared >= POOL_SHARED, bool(distance(other[1], one[1][0]).min() <= Limits.phash)


def _looking_up(one: Content, other: Content, size: int) -> tuple[bool, bool]:
    near = near_hashes(one[1][:1], other[1][None], Limits.phash, size)
    return (1, 0) in sharing_within([one[0], other[0]], size), bool(near)


# ---------------------------------------------------------------------------------------------------------------------
# Selection beside numpy and faiss
# ---------------------------------------------------------------------------------------------------------------------


def make_features(folder: Path, count: int) -> None:
    """The features folders `pool` and `queries`: random, with neighbours of each query."""
    rng = np.random.default_rng(0)
    queries = normalised(rng.standard_normal((QUERIES, DIMENSION), np.float32))
    _write_features(folder / "queries", 0, queries, 0, QUERIES)
    for number, start in enumerate(range(0, count, SHARD)):
        rows = rng.standard_normal((min(SHARD, count - start), DIMENSION), np.float32)
        near = rng.integers(0, len(rows), NEIGHBOURS * QUERIES * len(rows) // count)
        pull = np.float32(DIMENSION**0.5) * queries[rng.integers(0, QUERIES, len(near))].astype(np.float32)
        rows[near] += pull * rng.uniform(0.5, 3, (len(near), 1)).astype(np.float32)
        _write_features(folder / "pool", number, normalised(rows), start, count)


def _write_features(folder: Path, number: int, vectors: NDArray[np.float16], start: int, count: int) -> None:
    folder.mkdir(exist_ok=True)
    settings = Settings("benchmark:none", "none", 1, vectors.shape[1], "fp32", ("benchmark",), SHARD, count)
    write_bytes(folder / SETTINGS, settings.encode())
    one = Record("", 480, 480, 400_000, "", [0] * 8, 1, 100, bytes(768), b"")
    names = [f"/{folder.name}/{start + row:09}.png" for row in range(len(vectors))]
    write_shard(folder, number, vectors, [replace(one, name=name, sha1=name) for name in names], [], settings, "")


def by_select(folder: Path) -> Ranking:
    """This project's scores, with the names' order that breaks ties."""
    pool, queries = Features(folder / "pool"), Features(folder / "queries")
    scores, _ = select.score_pool(pool.shards(), len(pool), queries.vectors(range(QUERIES)))
    order = np.lexsort((by_name(pool.columns("name")["name"]), -scores))[:CHOSEN]
    return order, scores[order]


def by_command(folder: Path) -> Ranking:
    """All of `python -m data_curation.select`, with its table of every image of the pool."""
    select.main(["--pool", str(folder / "pool"), "--queries", str(folder / "queries"), "--out", str(folder / "out"),
                 "--top_k", str(CHOSEN)])  # fmt: skip
    with (folder / "out" / "data_ldcc.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["chosen"] == "1"]
    return np.array([int(Path(row["name"]).stem) for row in rows]), np.array([float(row["score"]) for row in rows])


def by_numpy(folder: Path) -> Ranking:
    """What a notebook would do."""
    pool = np.concatenate([np.load(path).astype(np.float32) for path in sorted((folder / "pool").glob("*.npy"))])
    queries = np.load(folder / "queries" / "shard_00000.npy").astype(np.float32)
    scores = (pool @ queries.T).max(axis=1)
    order = np.argsort(-scores, kind="stable")[:CHOSEN]
    return order, scores[order]


def by_faiss(folder: Path) -> Ranking:
    """The nearest query of every image of the pool, block by block."""
    import faiss

    queries = np.load(folder / "queries" / "shard_00000.npy").astype(np.float32)
    shards = [np.load(path, mmap_mode="r") for path in sorted((folder / "pool").glob("*.npy"))]
    blocks = (shard[start : start + 10_000] for shard in shards for start in range(0, len(shard), 10_000))
    found = [faiss.knn(block.astype(np.float32), queries, 1, metric=faiss.METRIC_INNER_PRODUCT)[0] for block in blocks]
    scores = np.concatenate(found)[:, 0]
    order = np.argsort(-scores, kind="stable")[:CHOSEN]
    return order, scores[order]


WAYS = {"scores and order": by_select, "the whole command": by_command, "numpy": by_numpy, "faiss": by_faiss}


def run_way(way: str, folder: Path) -> tuple[float, int, Ranking]:
    """Seconds, peak of the process's memory, and the ranking."""
    began = time.perf_counter()
    ranking = WAYS[way](folder)
    return time.perf_counter() - began, peak_memory(None)[0], ranking


def measure_select(args: argparse.Namespace) -> None:
    """Time every way by turns on the same features, just written and so in the system's file cache.

    Raises:
        SystemExit: the ways choose differently.
    """
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        make_features(Path(folder), args.pool)
        turns = [{way: in_child(run_way, way, Path(folder)) for way in WAYS} for _ in range(args.rounds)]
    exact = dict(zip(*(part.tolist() for part in turns[0]["scores and order"][2]), strict=True))
    lowest, rows = min(exact.values()), []
    for way in WAYS:
        ranking = zip(*turns[0][way][2], strict=True)
        off = sum(abs(exact.get(row, lowest) - score) > 2e-6 for row, score in ranking)
        rows.append({"way": way, "seconds": min(turn[way][0] for turn in turns),
                     "peak_bytes": max(turn[way][1] for turn in turns), "differ": off})  # fmt: skip
    data = f"{args.pool:,} random embeddings of {DIMENSION}, {QUERIES} queries, best of {args.rounds}"
    print(publish(args.out, "curation_select", rows, setting(args.argv, packages=PACKAGES, data=data)))
    if any(row["differ"] for row in rows):
        raise SystemExit("the ways choose differently")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", choices=("copies", "cost", "recall", "select"))
    add("--work", type=Path, help="folder for images and features (copies: needed; select: default a temporary one)")
    add("--out", type=Path, help="results file (default: benchmarks/results/curation_WHAT.json)")
    add("--workers", type=int, default=2, help="copies: processes (default %(default)s)")
    add("--step", type=int, default=1, help="copies, recall: planted of every n-th evaluation image")
    add(
        "--held_out_step",
        type=int,
        default=3,
        help="copies: held-out kinds of every n-th of these",
    )
    add("--count", type=int, default=100, help="cost, recall: images (default %(default)s)")
    add("--sizes", type=int, nargs="+", default=[2000, 8000], help="cost: pools of random keypoints")
    add("--hashes", type=int, nargs="+", default=[1_000_000, 5_000_000, 10_000_000],
        help="cost: pools of random perceptual hashes")  # fmt: skip
    add("--pools", type=int, nargs="+", default=[10_000, 40_000], help="cost: pools of random embeddings")
    add("--crops", type=int, default=20_000, help="cost: crops of photographs, embedded by AlexNet; 0: none")
    add("--pool", type=int, default=2_000_000, help="select: embeddings (default %(default)s)")
    add("--rounds", type=int, default=2, help="select: runs of each way (default %(default)s)")
    args = parser.parse_args(argv)
    if args.what == "copies" and not args.work:
        parser.error("copies needs --work")
    args.argv, args.out = argv, args.out or RESULTS / f"curation_{args.what}.json"
    {"copies": measure_copies, "cost": measure_cost, "recall": measure_recall, "select": measure_select}[args.what](
        args
    )


if __name__ == "__main__":
    main()
