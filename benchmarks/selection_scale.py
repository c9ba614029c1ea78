"""Selection from 2,000,000 embeddings of length 768 by 100 queries: time and peak memory beside plain numpy.

    python benchmarks/selection_scale.py                 # 3.3 GB of disk, and 12 GiB of memory for plain numpy
    python benchmarks/selection_scale.py --pool 200000

Every way is a process of its own, as a process's peak never falls, and reads the same synthetic pool (100 planted
neighbours a query), just written and so, as far as memory allows, in the system's file cache for all of them. All have
to give the same images in the same order, or the command fails.

    select    data_curation.scoring: blocks of memory-mapped shards, float64
    command   the same in `python -m data_curation.select`, which also writes a row for every image of the pool
    numpy     the whole pool in float32, one product, the maximum over the queries, argsort
    faiss     faiss.knn of blocks in float32, argsort
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data_curation import select
from data_curation.features import SETTINGS, Features, Record, Settings, normalised, write_shard
from data_curation.scoring import places, ranked, score_pool
from models.team08_HATFreq.system import write_bytes

DIMENSION, QUERIES, PLANTED, SHARD = 768, 100, 100, 100_000
CHOSEN = 10_000
NAME = "/data/pool/{:09}.png"
Ranking = tuple[np.ndarray, np.ndarray]  # rows by rank, their scores


def make_features(folder: Path, count: int) -> None:
    """Write the features folders `pool` and `queries`; the same for every call with the same count."""
    rng = np.random.default_rng(0)
    queries = normalised(rng.standard_normal((QUERIES, DIMENSION), np.float32))
    write(folder / "queries", 0, queries, 0, QUERIES)
    for number, start in enumerate(range(0, count, SHARD)):
        rows = rng.standard_normal((min(SHARD, count - start), DIMENSION), np.float32)
        planted = rng.integers(0, len(rows), PLANTED * QUERIES * SHARD // count)
        nearby = np.float32(DIMENSION**0.5) * queries[rng.integers(0, QUERIES, len(planted))].astype(np.float32)
        rows[planted] += nearby * rng.uniform(0.5, 3, (len(planted), 1)).astype(np.float32)
        write(folder / "pool", number, normalised(rows), start, count)


def write(folder: Path, number: int, vectors: np.ndarray, start: int, count: int) -> None:
    """A shard with the names of an image set."""
    folder.mkdir(exist_ok=True)
    settings = Settings("synthetic:none", "none", 1, DIMENSION, "fp32", ("synthetic",), SHARD, count)
    write_bytes(folder / SETTINGS, settings.encode())
    records = [Record(NAME.format(start + row), 480, 480, 400_000, "", [0] * 8, 1, 100) for row in range(len(vectors))]
    write_shard(folder, number, vectors, records, [], settings.model, "")


def shards_of(folder: Path) -> list[Path]:
    """The shards' files in order."""
    return sorted(folder.glob("shard_*.npy"))


def by_select(folder: Path) -> Ranking:
    """This project's way, with the names' order that breaks ties."""
    pool, queries = Features(folder / "pool"), Features(folder / "queries")
    scores, _ = score_pool(pool.shards(), len(pool), queries.vectors(range(QUERIES)))
    order = ranked(scores, places(pool.columns("name")["name"]))
    return order[:CHOSEN], scores[order[:CHOSEN]]


def by_command(folder: Path) -> Ranking:
    """All of `python -m data_curation.select`, its table of every pool image included."""
    words = ["--pool", str(folder / "pool"), "--queries", str(folder / "queries"), "--out", str(folder / "out")]
    with contextlib.redirect_stdout(sys.stderr):
        select.main([*words, "--top_k", str(CHOSEN)])
    with (folder / "out" / "data_ldcc.csv").open() as file:
        rows = [line.split(",")[:2] for line in islice(file, 1, CHOSEN + 1)]
    return np.array([int(Path(name).stem) for name, _ in rows]), np.array([float(score) for _, score in rows])


def by_numpy(folder: Path) -> Ranking:
    """What a notebook would do."""
    pool = np.concatenate([np.load(path).astype(np.float32) for path in shards_of(folder / "pool")])
    queries = np.load(shards_of(folder / "queries")[0]).astype(np.float32)
    scores = (pool @ queries.T).max(axis=1)
    order = np.argsort(-scores, kind="stable")
    return order[:CHOSEN], scores[order[:CHOSEN]]


def by_faiss(folder: Path) -> Ranking:
    """The nearest query of every pool image, block by block."""
    import faiss

    queries = np.load(shards_of(folder / "queries")[0]).astype(np.float32)
    found = []
    for path in shards_of(folder / "pool"):
        shard = np.load(path, mmap_mode="r")
        for start in range(0, len(shard), 10_000):
            block = shard[start : start + 10_000].astype(np.float32)
            found.append(faiss.knn(block, queries, 1, metric=faiss.METRIC_INNER_PRODUCT)[0][:, 0])
        del shard
    scores = np.concatenate(found)
    order = np.argsort(-scores, kind="stable")
    return order[:CHOSEN], scores[order[:CHOSEN]]


WAYS: dict[str, Callable[[Path], Ranking]] = {
    "select": by_select,
    "command": by_command,
    "numpy": by_numpy,
    "faiss": by_faiss,
}


def measure(way: str, folder: Path) -> None:
    """Run one way and print what it took; its ranking goes to a file."""
    since = time.monotonic()
    order, scores = WAYS[way](folder)
    seconds = time.monotonic() - since
    np.savez(folder / f"{way}.npz", order=order, scores=scores)
    print(json.dumps({"seconds": seconds, "peak": _peak()}))


def differing(folder: Path, way: str) -> int:
    """Places of the ranking where a way disagrees with `select` by more than float32's rounding explains."""
    ours, other = (np.load(folder / f"{name}.npz") for name in ("select", way))
    exact = dict(zip(ours["order"].tolist(), ours["scores"].tolist(), strict=True))
    lowest = float(ours["scores"].min())
    off = [abs(exact.get(row, lowest) - score) > 1e-6
           for row, score in zip(other["order"].tolist(), ours["scores"].tolist(), strict=True)]  # fmt: skip
    return int(sum(off))


def _peak() -> float:
    """GiB of this process at most so far; its resource usage would begin at its parent's peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def main(argv: list[str] | None = None) -> None:
    """Make the pool and measure every way; exit status 1 if they disagree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=int, default=2_000_000, help="embeddings (default %(default)s)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=2, help="runs of each way, by turns; the fastest counts")
    parser.add_argument("--folder", type=Path, help="for the pool (default: a temporary one, removed)")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        return measure(args.measure, args.folder)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        make_features(Path(folder), args.pool)
        command = [sys.executable, __file__, "--pool", str(args.pool), "--folder", folder, "--measure"]
        runs = {way: [] for way in args.ways}
        for _ in range(args.repeats):
            for way in args.ways:
                done = subprocess.run([*command, way], check=True, capture_output=True, text=True)
                runs[way].append(json.loads(done.stdout))
        print(f"{args.pool:,} x {DIMENSION}, {QUERIES} queries, {os.cpu_count()} cores, best of {args.repeats}\n")
        print("| way | seconds | peak memory, GiB | places of the first 10,000 that differ |\n|---|---|---|---|")
        wrong = {way: differing(Path(folder), way) for way in args.ways}
        for way, found in runs.items():
            peak = max(run["peak"] for run in found)
            print(f"| {way} | {min(run['seconds'] for run in found):.1f} | {peak:.2f} | {wrong[way]} |", flush=True)
    if any(wrong.values()):
        raise SystemExit("the ways disagree")
    return None


if __name__ == "__main__":
    main()
