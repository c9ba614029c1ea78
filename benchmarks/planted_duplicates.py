"""How many planted near-duplicates `data_curation.deduplicate` finds, and how many others it takes for duplicates.

    python -m benchmarks.planted_duplicates --shared ../shared --work runs/planted --out planted_duplicates

From every image of the bench sets a near-duplicate of every kind (planting.py, fixed seeds) goes into a pool of the
training photographs; one more is known to overlap: Set5's "woman" under its name in BSDS, 302003. Embeds pool and
bench with AlexNet's convolutions (no CLIP), runs the command, and writes the recall by kind and the wrongly removed as
CSV and Markdown. With --lr the evaluation images are the sets' LR versions, as the challenge's test images are.
"""

import argparse
import csv
import io
import json
import shutil
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.planting import KINDS, plant
from data_curation import deduplicate, embed
from models.team08_HATFreq.image_io import read_rgb, write_png
from models.team08_HATFreq.system import write_bytes

SETS = ("Set5", "Set14", "BSD100")
KNOWN = "302003"  # the BSDS training photograph that Set5's woman is
BARS = {kind: 0.8 if kind.startswith("cropped") else 0.95 for kind in KINDS}
MAX_FALSE = 0.002
# Crops of one photograph from two collections, turned by 180 degrees: seen when the command found them.
TRUE_WITHIN_POOL = {"0201_pop_0.jpg", "0201_pop_1.jpg", "0201_pop_3.jpg"}


@dataclass(frozen=True)
class Planted:
    """A planted file and the evaluation image it was made from."""

    path: Path
    kind: str
    source: str


def plant_all(bench: Path, folder: Path) -> list[Planted]:
    """Write a near-duplicate of every kind of every image of the bench, and the known one; what is there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    planted = []
    for number, source in enumerate(source for name in SETS for source in sorted((bench / name / "HR").iterdir())):
        for place, kind in enumerate(KINDS):
            path = folder / f"{source.parent.parent.name}_{source.stem}_{place}.png"
            if not path.exists():
                write_png(path, plant(read_rgb(source), kind, 1000 * place + number))
            planted.append(Planted(path, kind, f"{source.parent.parent.name}/{source.stem}"))
    woman = bench / "Set5" / "HR" / "img_005.png"
    shutil.copyfile(woman, folder / f"{KNOWN}.png")
    return [*planted, Planted(folder / f"{KNOWN}.png", "the known overlap", "Set5/img_005")]


def embed_folder(words: list[Path], out: Path, weights: Path, downscale: int) -> None:
    """Run data_curation.embed with AlexNet."""
    embed.main([*map(str, words), "--out", str(out), "--backbone", "alexnet", "--weights", str(weights),
                "--downscale", str(downscale), "--shard_size", "500"])  # fmt: skip


def recall(planted: list[Planted], found: dict[str, set[str]]) -> dict[str, tuple[int, int]]:
    """By kind: how many were laid over the image they were made from, of how many."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for one in planted:
        counts[one.kind][0] += one.source in found.get(str(one.path), set())
        counts[one.kind][1] += 1
    return {kind: (hits, total) for kind, (hits, total) in counts.items()}


def read_findings(path: Path) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Of duplicates.csv: the evaluation images that each removed image duplicates, and the side it was removed for."""
    found: dict[str, set[str]] = defaultdict(set)
    sides: dict[str, str] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["decision"] != deduplicate.REMOVED:
                continue
            sides.setdefault(row["pool"], row["side"])
            if row["side"] == "evaluation":
                partner = Path(row["partner"])
                found[row["pool"]].add(f"{partner.parent.parent.name}/{partner.stem.removesuffix('x4')}")
    return found, sides


def wrong_removals(sides: dict[str, str], planted: list[Planted]) -> tuple[list[str], list[str]]:
    """Removed images that are no duplicates of what they were removed for, and those that truly are, unplanted."""
    ours = {str(one.path) for one in planted}
    others = [name for name in sorted(sides) if name not in ours]
    true = [name for name in others if sides[name] == "pool" and Path(name).name in TRUE_WITHIN_POOL]
    return [name for name in others if name not in true], true


def table(counts: dict[str, tuple[int, int]]) -> list[tuple[str, int, int, float, float]]:
    """Kind, found, planted, recall, bar."""
    return [(kind, hits, total, hits / total, BARS.get(kind, 1.0)) for kind, (hits, total) in counts.items()]


def main(argv: list[str] | None = None) -> int:
    """Plant, deduplicate, report; 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/bench, data/train and iqa")
    parser.add_argument("--work", type=Path, required=True, help="folder for the planted images and the features")
    parser.add_argument("--out", type=Path, required=True, help="the report without suffix: .csv and .md are written")
    parser.add_argument("--lr", action="store_true", help="the evaluation images are the sets' LR versions")
    parser.add_argument("--workers", type=int, default=2, help="processes of deduplicate (default %(default)s)")
    args = parser.parse_args(argv)
    bench, train = args.shared / "data" / "bench", args.shared / "data" / "train"
    weights = args.shared / "iqa" / "alexnet_features.safetensors"
    planted = plant_all(bench, args.work / "planted")
    folders = sorted(folder for folder in train.iterdir() if folder.is_dir())
    side = "LRbicx4" if args.lr else "HR"
    pool, evaluation, out = (args.work / f"{name}_{side}" for name in ("pool", "bench", "duplicates"))
    embed_folder([*folders, args.work / "planted"], pool, weights, 4 if args.lr else 1)
    embed_folder([bench / name / side for name in SETS], evaluation, weights, 1)
    start = time.perf_counter()
    deduplicate.main(["--pool", str(pool), "--evaluation", str(evaluation), "--out", str(out),
                      "--workers", str(args.workers)])  # fmt: skip
    seconds = time.perf_counter() - start
    found, sides = read_findings(out / "duplicates.csv")
    rows = table(recall(planted, found))
    wrong, true = wrong_removals(sides, planted)
    counts = json.loads((out / "duplicates.json").read_text())["counts"]
    others = counts["readable"] - len(planted) - len(true)
    write_report(args.out, rows, wrong, true, others, side, seconds, counts)
    missed = [row for row in rows if row[3] < row[4]]
    return int(bool(missed) or len(wrong) / others > MAX_FALSE)


def write_report(
    out: Path,
    rows: list[tuple[str, int, int, float, float]],
    wrong: list[str],
    true: list[str],
    others: int,
    side: str,
    seconds: float,
    counts: dict[str, int],
) -> None:
    """CSV and Markdown, the latter printed too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("kind", "found", "planted", "recall", "bar"))
    writer.writerows((kind, hits, total, f"{rate:.4f}", bar) for kind, hits, total, rate, bar in rows)
    writer.writerow(("wrongly removed", len(wrong), others, f"{len(wrong) / others:.4f}", MAX_FALSE))
    write_bytes(out.with_suffix(".csv"), text.getvalue().encode())
    lines = [
        f"Planted near-duplicates of {', '.join(SETS)} ({side}) in a pool of {counts['readable']} images; embeddings",
        f"of AlexNet's convolutions. `data_curation.deduplicate` took {seconds:.0f} s.",
        "",
        "| kind | found | planted | recall | bar |",
        "|---|---|---|---|---|",
        *(f"| {kind} | {hits} | {total} | {rate:.1%} | {bar:.0%} |" for kind, hits, total, rate, bar in rows),
        "",
        f"Wrongly removed: {len(wrong)} of {others} ({len(wrong) / others:.2%}; bar {MAX_FALSE:.1%}).",
        *(f"- {Path(name).name}" for name in wrong),
        f"Truly duplicates within the pool, not planted: {', '.join(Path(name).name for name in true) or 'none'}.",
    ]
    write_bytes(out.with_suffix(".md"), ("\n".join(lines) + "\n").encode())
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
