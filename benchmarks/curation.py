"""What data curation finds and what it costs.

    python -m benchmarks.curation copies --work runs/copies      # recall by kind of copy, and what is wrongly removed
    python -m benchmarks.curation dedup                          # seconds an image and a pair, peak memory
    python -m benchmarks.curation select                         # beside numpy and faiss: time, memory, the same choice
    python -m benchmarks.curation embed                          # images a second, beside a plain DataLoader

Each writes `results/curation_<what>.json`, and its table beside it. `copies` plants copies of the evaluation images
(planting.py) in the training photographs, runs the commands as scripts/build_data_ldcc.sh does, with AlexNet as the
encoder, and splits evaluation images and photographs in halves: thresholds are fitted on the first, recall is told of
both. Times are CPU seconds, which depend least on what else a machine does.
"""

import argparse
import csv
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.planting import HELD_OUT, KINDS, plant
from data_curation import dedup, embed, select
from data_curation.dedup.agreement import MIN_AGREEING, MIN_LEAK, MIN_SHARE, verify
from data_curation.dedup.decisions import REMOVED
from data_curation.dedup.judging import EVALUATION_SIDE
from data_curation.dedup.keypoint_index import EvaluationIndex, sharing_within
from data_curation.dedup.registration import COUNT, view
from data_curation.embed.decode import decode
from data_curation.embed.encoders import Encoder
from data_curation.embed.keypoints import HASHED, find_keypoints, hashed
from data_curation.embed.preprocess import Preprocess
from data_curation.embed.reader import read
from data_curation.embed.run import embed_shard
from data_curation.features import SETTINGS, Features, Record, Settings, normalised, write_shard
from data_curation.neighbours import by_name
from image_data.sources import ImageFile, expand
from models.team08_HATFreq.image_io import list_images, read_rgb, write_png
from models.team08_HATFreq.system import write_bytes

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SHARED = Path(os.environ.get("HATFREQ_SHARED", ROOT.parent / "shared"))
SETS = ("Set5", "Set14", "BSD100")
MAX_WRONG = 0.002  # of the photographs
KNOWN = "302003"  # the BSDS training photograph that Set5's woman is
# Crops of one photograph from two collections, turned by 180 degrees: seen when the command found them.
TRUE_WITHIN_POOL = {"0201_pop_0.jpg", "0201_pop_1.jpg", "0201_pop_3.jpg"}

Row = dict[str, Any]


def publish(name: str, rows: list[Row], setting: Row) -> None:
    """Write `results/NAME.json`, and the table of its rows beside it as Markdown."""
    facts = {
        "command": " ".join(["python -m benchmarks.curation", *sys.argv[1:]]),
        "measured": time.strftime("%Y-%m-%d"),
        **setting,
        "machine": f"{_processor()}, {os.cpu_count()} threads, no GPU",
        "versions": {
            package: version(package) for package in ("torch", "numpy", "opencv-python-headless", "faiss-cpu")
        },
    }
    content = json.dumps({"setting": facts, "rows": rows}, indent=1, ensure_ascii=False)
    write_bytes(RESULTS / f"{name}.json", f"{content}\n".encode())
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    lines += [f"| {' | '.join('' if row[key] is None else str(row[key]) for key in head)} |" for row in rows]
    lines += ["", *(f"- {key.replace('_', ' ')}: {value}" for key, value in facts.items())]
    write_bytes(RESULTS / f"{name}.md", ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process of its own: a process's peak of memory never falls."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


# Copies


@dataclass(frozen=True)
class Copy:
    """A planted file, its kind, and the number of the evaluation image that it was made from."""

    path: Path
    kind: str
    source: int


def plant_all(sources: list[Path], photographs: list[Path], folder: Path, held_out_step: int) -> list[Copy]:
    """Write a copy of every kind of every evaluation image, and the known one; what is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    copies = []
    for place, kind in enumerate([*KINDS, *HELD_OUT]):
        for number, source in enumerate(sources):
            if kind in HELD_OUT and number % held_out_step:
                continue
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


@dataclass
class Judged:
    """What duplicates.csv says of the pair of an image and an evaluation image."""

    share: float
    agreeing: int
    common: float
    removed: bool

    def passes(self, threshold: float) -> bool:
        """Whether it would be removed with another MIN_SHARE."""
        return self.share >= threshold and self.agreeing >= MIN_AGREEING and self.common >= MIN_LEAK


def read_pairs(path: Path) -> tuple[dict[tuple[str, str], Judged], dict[str, str]]:
    """Of duplicates.csv: (image, evaluation image) -> verdict, and image -> the side it was removed for."""
    pairs, removed = {}, {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["decision"] == REMOVED:
                removed.setdefault(row["pool"], row["side"])
            if row["side"] == "evaluation":
                pairs[row["pool"], row["partner"]] = Judged(
                    float(row["agreeing_share"]), int(row["agreeing_pixels"]), float(row["common_area"]),
                    row["decision"] == REMOVED)  # fmt: skip
    return pairs, removed


def fitted_threshold(copies: list[float], innocents: list[float]) -> float:
    """Halfway, in proportion, between the share that few enough innocents exceed and the copies' lower end.

    Args:
        copies, innocents: an image's highest share each, 0 where it was no candidate.
    """
    allowed = int(MAX_WRONG * len(innocents))
    highest = max(sorted(innocents, reverse=True)[allowed], 0.01)  # 0 would leave no proportion
    found = [share for share in copies if share > highest]
    return float(np.sqrt(highest * np.percentile(found, 0.5)))


def prepare_copies(
    args: argparse.Namespace, photographs: list[Path], copies: list[Copy], sides: dict[str, list[Path]]
) -> None:
    """Embed as scripts/build_data_ldcc.sh does, and run dedup."""
    weights = SHARED / "iqa" / "alexnet_features.safetensors"
    pool = [*photographs, *(copy.path for copy in copies)]
    for name, images, downscale in (("pool", pool, 4), ("hr", sides["hr"], 4), ("lr", sides["lr"], 1)):
        write_bytes(args.work / f"{name}.txt", "".join(f"{path}\n" for path in images).encode())
        words = [
            str(args.work / f"{name}.txt"),
            "--out",
            str(args.work / f"features_{name}"),
            "--downscale",
            str(downscale),
        ]
        words += ["--backbone", "alexnet", "--weights", str(weights), "--workers", str(args.workers)]
        embed.main([*words, "--shard_size", "500"])
    words = ["--pool", str(args.work / "features_pool"), "--evaluation"]
    words += [str(args.work / f"features_{side}") for side in sides]
    dedup.main([*words, "--out", str(args.work / "duplicates"), "--workers", str(args.workers)])


def tabulate(
    copies: list[Copy], sides: dict[str, list[Path]], pairs: dict[tuple[str, str], Judged], removed: dict[str, str]
) -> list[Row]:
    """A row a kind: how many copies were found to be of the image that they were made from."""
    rows = []
    for kind in [*KINDS, *HELD_OUT, "the known overlap"]:
        group = [copy for copy in copies if copy.kind == kind]
        row: Row = {"kind": kind, "held out": "yes" if kind in HELD_OUT else "", "planted": len(group)}
        for side, images in sides.items():
            keys = {copy: (str(copy.path), str(images[copy.source])) for copy in group}
            found = {copy for copy, key in keys.items() if key in pairs and pairs[key].removed}
            second = {copy for copy in group if copy.source % 2}
            row[f"found, {side.upper()} known"] = _percent(len(found), len(group))
            row[f"{side.upper()}, second half"] = _percent(len(found & second), len(second))
        row["removed, both known"] = _percent(sum(str(copy.path) in removed for copy in group), len(group))
        rows.append(row)
    return [row for row in rows if row["planted"]]


def measure_copies(args: argparse.Namespace) -> None:
    """Plant, embed, run dedup, and tell what was found by kind and what was removed wrongly."""
    bench, train = SHARED / "data" / "bench", SHARED / "data" / "train"
    sources = [path for name in SETS for path in list_images(bench / name / "HR")][:: args.step]
    photographs = [path for folder in sorted(train.iterdir()) if folder.is_dir() for path in list_images(folder)]
    photographs = photographs[:: args.step]
    copies = plant_all(sources, photographs, args.work / "planted", args.held_out_step)
    sides = {"hr": sources, "lr": [path.parents[1] / "LRbicx4" / f"{path.stem}x4.png" for path in sources]}
    prepare_copies(args, photographs, copies, sides)
    pairs, removed = read_pairs(args.work / "duplicates" / "duplicates.csv")

    highest: dict[str, float] = defaultdict(float)  # share of an image with any evaluation image
    for (image, _), judged in pairs.items():
        highest[image] = max(highest[image], judged.share if judged.passes(0) else 0)
    first, second = ([path for path in photographs[half::2]] for half in (0, 1))
    known = [highest[str(copy.path)] for copy in copies if not copy.source % 2]
    fitted = fitted_threshold(known, [highest[str(path)] for path in first])
    others = [highest[str(copy.path)] for copy in copies if copy.source % 2]
    wrong = [path.name for path in photographs if removed.get(str(path)) == "evaluation"]
    within = [path.name for path in photographs if removed.get(str(path)) == "pool"]
    publish(
        "curation_copies",
        tabulate(copies, sides, pairs, removed),
        {
            "data": f"{len(copies)} copies of {len(sources)} images of {', '.join(SETS)}, {len(photographs)} photographs",
            "wrongly_removed": f"{len(wrong)} of {len(photographs)} photographs ({len(wrong) / len(photographs):.2%}): "
            f"{', '.join(wrong) or 'none'}",
            "removed_within_the_pool": f"{', '.join(within) or 'none'} (true: {', '.join(sorted(TRUE_WITHIN_POOL))})",
            "highest_shares_of_photographs": sorted(round(highest[str(path)], 3) for path in photographs)[:-6:-1],
            "least_share": f"{MIN_SHARE} in the code, {fitted:.2f} fitted on the first half; at that, of the second half "
            f"{_percent(sum(share >= fitted for share in others), len(others))} of all copies are removed and "
            f"{sum(highest[str(path)] >= fitted for path in second)} of {len(second)} photographs",
        },
    )
    if len(wrong) > MAX_WRONG * len(photographs):
        raise SystemExit("too many photographs were removed wrongly")


def _percent(count: int, total: int) -> str:
    return f"{count / total:.1%}" if total else ""


# Deduplication's cost


def measure_dedup(args: argparse.Namespace) -> None:
    """CPU milliseconds of each step on photographs, and of looking up in synthetic pools."""
    cv2.setNumThreads(1)
    train, bench = SHARED / "data" / "train" / "bsds-sun", SHARED / "data" / "bench" / "BSD100" / "HR"
    images = [read_rgb(path) for path in list_images(train)[: args.count]]
    evaluation = [read_rgb(path) for path in list_images(bench)]
    keypoints, seconds = _timed(lambda: [hashed(find_keypoints(rgb), *rgb.shape[:2]) for rgb in images])
    rows: list[Row] = [_cost("keypoints of a pool image", len(images), seconds)]
    dense, seconds = _timed(
        lambda: [hashed(find_keypoints(rgb, EVALUATION_SIDE, COUNT), *rgb.shape[:2]) for rgb in evaluation]
    )
    rows.append(_cost("keypoints of an evaluation image", len(dense), seconds))
    index = EvaluationIndex(dense)
    _, seconds = _timed(lambda: index.sharing(keypoints))
    rows.append(_cost(f"look-up of a pool image among {len(dense)} evaluation images", len(images), seconds))
    pairs = list(zip(images[::2], evaluation, strict=False))
    _, seconds = _timed(lambda: [verify(view(one), view(other, EVALUATION_SIDE), MIN_LEAK) for one, other in pairs])
    rows.append(_cost("a pair verified, both prepared", len(pairs), seconds))
    for size in args.sizes:
        seconds, memory = in_child(look_up_within, size)
        rows.append(_cost(f"look-up within a synthetic pool of {size:,}", size, seconds) | {"peak, GiB": memory})
    publish("curation_dedup", rows, {"data": f"{len(images)} photographs of BSDS, {len(dense)} of BSD100"})


def look_up_within(images: int) -> tuple[float, float]:
    """CPU seconds to look up a pool of random hashes in itself, and the process's peak memory in GiB."""
    rng = np.random.default_rng(0)
    pool = []
    for _ in range(images):
        pool.append(np.zeros(256, HASHED))
        pool[-1]["code"] = rng.integers(0, 256, pool[-1]["code"].shape, dtype=np.uint8)
    _, seconds = _timed(lambda: sharing_within(pool))
    return seconds, round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return function(), time.process_time() - began


def _cost(what: str, count: int, seconds: float) -> Row:
    return {"step": what, "count": count, "CPU ms each": round(1000 * seconds / count, 2), "peak, GiB": None}


# Selection beside numpy and faiss

DIMENSION, QUERIES, PLANTED, SHARD, CHOSEN = 768, 100, 100, 100_000, 10_000
Ranking = tuple[np.ndarray, np.ndarray]  # rows by rank, their scores


def make_features(folder: Path, count: int) -> None:
    """The features folders `pool` and `queries`: synthetic, with planted neighbours of each query."""
    rng = np.random.default_rng(0)
    queries = normalised(rng.standard_normal((QUERIES, DIMENSION), np.float32))
    _write_features(folder / "queries", 0, queries, 0, QUERIES)
    for number, start in enumerate(range(0, count, SHARD)):
        rows = rng.standard_normal((min(SHARD, count - start), DIMENSION), np.float32)
        near = rng.integers(0, len(rows), PLANTED * QUERIES * len(rows) // count)
        pull = np.float32(DIMENSION**0.5) * queries[rng.integers(0, QUERIES, len(near))].astype(np.float32)
        rows[near] += pull * rng.uniform(0.5, 3, (len(near), 1)).astype(np.float32)
        _write_features(folder / "pool", number, normalised(rows), start, count)


def _write_features(folder: Path, number: int, vectors: np.ndarray, start: int, count: int) -> None:
    folder.mkdir(exist_ok=True)
    settings = Settings("synthetic:none", "none", 1, DIMENSION, "fp32", ("synthetic",), SHARD, count)
    write_bytes(folder / SETTINGS, settings.encode())
    one = Record("", 480, 480, 400_000, "", [0] * 8, 1, 100, bytes(768), b"")
    names = (f"/{folder.name}/{start + row:09}.png" for row in range(len(vectors)))
    write_shard(folder, number, vectors, [replace(one, name=name, sha1=name) for name in names], [], settings, "")


def by_select(folder: Path) -> Ranking:
    """This project's way, with the names' order that breaks ties."""
    pool, queries = Features(folder / "pool"), Features(folder / "queries")
    scores, _ = select.score_pool(pool.shards(), len(pool), queries.vectors(range(QUERIES)))
    order = np.lexsort((by_name(pool.columns("name")["name"]), -scores))[:CHOSEN]
    return order, scores[order]


def by_command(folder: Path) -> Ranking:
    """All of `python -m data_curation.select`, its table of every pool image included."""
    select.main(["--pool", str(folder / "pool"), "--queries", str(folder / "queries"), "--out", str(folder / "out"),
                 "--top_k", str(CHOSEN)])  # fmt: skip
    with (folder / "out" / "data_ldcc.csv").open() as file:
        rows = [line.split(",")[:2] for line in islice(file, 1, CHOSEN + 1)]
    return np.array([int(Path(name).stem) for name, _ in rows]), np.array([float(score) for _, score in rows])


def by_numpy(folder: Path) -> Ranking:
    """What a notebook would do."""
    pool = np.concatenate([np.load(path).astype(np.float32) for path in sorted((folder / "pool").glob("*.npy"))])
    queries = np.load(folder / "queries" / "shard_00000.npy").astype(np.float32)
    scores = (pool @ queries.T).max(axis=1)
    order = np.argsort(-scores, kind="stable")[:CHOSEN]
    return order, scores[order]


def by_faiss(folder: Path) -> Ranking:
    """The nearest query of every pool image, block by block."""
    import faiss

    queries = np.load(folder / "queries" / "shard_00000.npy").astype(np.float32)
    found = []
    for path in sorted((folder / "pool").glob("*.npy")):
        shard = np.load(path, mmap_mode="r")
        for start in range(0, len(shard), 10_000):
            block = shard[start : start + 10_000].astype(np.float32)
            found.append(faiss.knn(block, queries, 1, metric=faiss.METRIC_INNER_PRODUCT)[0][:, 0])
    scores = np.concatenate(found)
    order = np.argsort(-scores, kind="stable")[:CHOSEN]
    return order, scores[order]


WAYS = {"select": by_select, "the whole command": by_command, "numpy": by_numpy, "faiss": by_faiss}


def run_way(way: str, folder: Path) -> tuple[float, float, Ranking]:
    """Seconds, peak memory in GiB, and the ranking."""
    began = time.perf_counter()
    ranking = WAYS[way](folder)
    return time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, ranking


def measure_select(args: argparse.Namespace) -> None:
    """Time every way by turns on the same features, just written and so in the system's file cache."""
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        make_features(Path(folder), args.pool)
        runs: dict[str, list[tuple[float, float, Ranking]]] = defaultdict(list)
        for _ in range(args.repeats):
            for way in WAYS:
                runs[way].append(in_child(run_way, way, Path(folder)))
    exact = dict(zip(*(part.tolist() for part in runs["select"][0][2]), strict=True))
    lowest, rows = min(exact.values()), []
    for way, found in runs.items():
        off = sum(abs(exact.get(row, lowest) - score) > 2e-6 for row, score in zip(*found[0][2], strict=True))
        rows.append({"way": way, "seconds": round(min(one[0] for one in found), 1),
                     "peak, GiB": round(max(one[1] for one in found), 2), "places that differ": off})  # fmt: skip
    publish("curation_select", rows, {"data": f"{args.pool:,} embeddings of {DIMENSION}, {QUERIES} queries, synthetic",
                                      "repeats": f"best of {args.repeats}"})  # fmt: skip
    if any(row["places that differ"] for row in rows):
        raise SystemExit("the ways disagree")


# Embedding beside a plain DataLoader

PREPROCESS = Preprocess(224, 224, "shortest", "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
BATCH = 16


class Files(Dataset[np.ndarray]):
    """What a plain loader decodes: to be resized only, or measured as `data_curation.embed` does."""

    def __init__(self, images: list[ImageFile], whole: bool) -> None:
        self.images, self.whole = images, whole

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        if self.whole:
            return decode(self.images[index], PREPROCESS, 1).pixels
        return np.ascontiguousarray(PREPROCESS.apply(self.images[index].read_rgb()))


def by_embed(images: list[ImageFile], encoder: Encoder, workers: int) -> Iterator[int]:
    """This project's loop; first its processes are started."""
    with closing(read([*images[:workers], *images], PREPROCESS, 1, workers, 60, 4 * BATCH + workers)) as outcomes:
        yield len(list(islice(outcomes, workers)))
        yield len(embed_shard(encoder, images, outcomes)[0])


def by_loader(images: list[ImageFile], encoder: Encoder, workers: int, whole: bool) -> Iterator[int]:
    """A plain loop; first its processes are started."""
    data = Files([*images[: workers * BATCH], *images], whole)
    loader = DataLoader(data, BATCH, num_workers=workers, collate_fn=np.stack, worker_init_fn=_one_thread)
    batches = iter(loader)
    yield len(list(islice(batches, workers)))
    yield sum(len(encoder.embed(batch)) for batch in batches)


def _one_thread(_worker: int) -> None:
    cv2.setNumThreads(1)


def measure_embed(args: argparse.Namespace) -> None:
    """Images a second of each way by turns; the encoder costs next to nothing."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(147, 64)).eval()
    encoder = Encoder("tiny", "none", PREPROCESS, network, 64, torch.device("cpu"), False, BATCH)
    images = list(islice(cycle(expand(str(SHARED / "data" / "train" / "hq480-a"))), args.count))
    ways: dict[str, Callable[[], Iterator[int]]] = {
        "data_curation.embed": lambda: by_embed(images, encoder, args.workers),
        "DataLoader, the same work": lambda: by_loader(images, encoder, args.workers, True),
        "DataLoader, decode and resize only": lambda: by_loader(images, encoder, args.workers, False),
    }
    rates: dict[str, list[float]] = defaultdict(list)
    for _ in range(args.repeats):
        for way, start in ways.items():
            steps = start()
            next(steps)
            began = time.perf_counter()
            rates[way].append(next(steps) / (time.perf_counter() - began))
            list(steps)
    rows = [{"way": way, "images/s, median": round(float(np.median(found)), 1), "lowest": round(min(found), 1),
             "highest": round(max(found), 1)} for way, found in rates.items()]  # fmt: skip
    publish("curation_embed", rows, {"data": f"{args.count} JPEG of 480x480, {args.workers} decoding processes, "
                                     f"a tiny encoder, {args.repeats} repeats"})  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """Measure and publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", choices=("copies", "dedup", "select", "embed"))
    add("--work", type=Path, help="folder for images and features (copies: needed; else a temporary one)")
    add("--workers", type=int, default=2, help="processes (default %(default)s)")
    add("--step", type=int, default=1, help="copies: every n-th image only")
    add("--held_out_step", type=int, default=3, help="copies: held-out kinds of every n-th image (default %(default)s)")
    add("--count", type=int, default=200, help="dedup, embed: images (default %(default)s)")
    add("--sizes", type=int, nargs="+", default=[2000, 8000], help="dedup: synthetic pools (default %(default)s)")
    add("--pool", type=int, default=2_000_000, help="select: embeddings (default %(default)s)")
    add("--repeats", type=int, default=2, help="select, embed: runs of each way, by turns (default %(default)s)")
    args = parser.parse_args(argv)
    if args.what == "copies" and not args.work:
        parser.error("copies needs --work")
    {"copies": measure_copies, "dedup": measure_dedup, "select": measure_select, "embed": measure_embed}[args.what](
        args
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
