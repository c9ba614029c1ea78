"""What data curation finds, what it removes wrongly, and what it costs.

    python -m benchmarks.curation copies --work runs/copies    # planted copies by kind, and photographs removed wrongly
    python -m benchmarks.curation cost                         # CPU time of each step for an image or a pair

`copies` plants copies of the evaluation images among training photographs and runs the commands that
scripts/build_data_ldcc.sh runs, with AlexNet as the encoder; --work keeps what is done. Evaluation images and
photographs are split in halves: thresholds are fitted on the first.
"""

import argparse
import csv
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import BENCH, RESULTS, Row, publish, setting
from benchmarks.planted_copies import HELD_OUT, KINDS, plant
from data_curation import dedup, embed
from data_curation.dedup.agreement import MIN_AGREEING, MIN_LEAK, MIN_SHARE, verify
from data_curation.dedup.decisions import REMOVED
from data_curation.dedup.judging import EVALUATION_SIDE
from data_curation.dedup.keypoint_index import EvaluationIndex
from data_curation.dedup.registration import COUNT, view
from data_curation.embed.decode import measure
from data_curation.embed.keypoints import find_keypoints, hashed
from data_curation.features import Features
from models.team08_HATFreq.image_io import list_images, read_rgb, write_png
from models.team08_HATFreq.system import HATFreqError
from utils.files import command, write_bytes

SETS = ("Set5", "Set14", "BSD100")
ALEXNET = BENCH.parents[1] / "iqa" / "alexnet_features.safetensors"
CROP = 128  # pixels a side, of the crops
MAX_WRONG = 0.002  # of the photographs
KNOWN = "302003"  # the BSDS training photograph that Set5's woman is
PACKAGES = ("numpy", "opencv-python-headless", "faiss-cpu")


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
        arguments = [str(work / f"{name}.txt"), "--out", str(work / f"features_{name}")]
        embed.main([*arguments, "--downscale", "1" if name == "lr" else "4", *encoder])
        if lost := Features(work / f"features_{name}").unreadable():
            raise SystemExit(f"curation: {lost[0][0]} {lost[0][1]}")
    arguments = ["--pool", str(work / "features_pool"), "--keep_pool_duplicates", "--evaluation"]
    arguments += [str(work / f"features_{side}") for side in sides]
    dedup.main([*arguments, "--out", str(work / "duplicates"), "--workers", str(workers)])
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
    """A row a kind: the share of copies found to be of the image that they were made from.

    In all, and of the second half of the images, on which nothing was fitted.
    """
    rows: list[Row] = []
    for kind in dict.fromkeys(copy.kind for copy in copies):
        group = [copy for copy in copies if copy.kind == kind]
        second = [copy for copy in group if copy.source % 2]
        row: dict[str, object] = {"copy": kind, "planted": len(group)}
        for side, images in sides.items():
            keys = {copy.path: (str(copy.path), str(images[copy.source])) for copy in group}
            hits = {path for path, key in keys.items() if key in pairs and pairs[key].removed}
            row[f"{side.upper()} known"] = percent(sum(copy.path in hits for copy in group), len(group))
            row[f"{side.upper()} known, second half"] = percent(sum(copy.path in hits for copy in second), len(second))
        row["removed, both known"] = percent(sum(str(copy.path) in removed for copy in group), len(group))
        rows.append(row)
    return rows


def percent(count: int, total: int) -> str:
    """`99.2%`, or nothing of nothing."""
    return f"{count / total:.1%}" if total else ""


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
    result = {
        "images removed wrongly": f"{len(wrong)} of {len(photographs)} ({len(wrong) / len(photographs):.2%}) "
        f"{', '.join(wrong)}",
        "highest shares of images": ", ".join(f"{share:.2f}" for share in sorted(innocent)[:-6:-1]),
        "least share of a copy": f"{MIN_SHARE} in the code, {fitted:.2f} fitted on the first half; with the latter, of "
        f"the second half {sum(share >= fitted for share in unseen)} of {len(unseen)} copies go and "
        f"{sum(share >= fitted for share in innocent[1::2])} of {len(innocent[1::2])} images",
    }
    data = (
        f"{len(copies)} copies of {len({copy.source for copy in copies})} images of {', '.join(SETS)} among "
        f"{len(photographs)} photographs; {len(sources)} evaluation images"
    )
    rows = count_found(copies, sides, pairs, removed)
    tables = {
        "Kinds that the method was chosen on": [row for row in rows if row["copy"] not in HELD_OUT],
        "Kinds held out": [row for row in rows if row["copy"] in HELD_OUT],
    }
    record = setting(args.argv, threads=args.workers, packages=PACKAGES, data=data) | result
    publish(args.out, {title: part for title, part in tables.items() if part}, record)
    if len(wrong) > MAX_WRONG * len(photographs):
        raise SystemExit("too many photographs were removed wrongly")


# ---------------------------------------------------------------------------------------------------------------------
# What deduplication costs
# ---------------------------------------------------------------------------------------------------------------------


def measure_cost(args: argparse.Namespace) -> None:
    """CPU time of each step on photographs."""
    cv2.setNumThreads(1)
    paths = list_images(BENCH.parent / "train" / "bsds-sun")[: args.count]
    images, evaluation = ([read_rgb(path) for path in group] for group in (paths, list_images(BENCH / "BSD100" / "HR")))
    rows: list[Row] = [cost("an image of the pool decoded and measured", len(paths),
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
    data = f"{len(images)} photographs of 481x321, {len(evaluation)} evaluation images"
    publish(args.out, {"": rows}, setting(args.argv, packages=PACKAGES, data=data))


def cost(step: str, count: int, work: Callable[[], object]) -> Row:
    """A row: CPU seconds of `work`, which is for `count`."""
    began = time.process_time()
    work()
    return {"step": step, "count": count, "CPU ms each": f"{1000 * (time.process_time() - began) / count:.2f}"}


@command("benchmarks.curation", HATFreqError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("what", choices=("copies", "cost"))
    add("--work", type=Path, help="folder for images and features (copies: needed)")
    add("--out", type=Path, help="results file (default: benchmarks/results/curation_WHAT.md)")
    add("--workers", type=int, default=2, help="copies: processes (default %(default)s)")
    add("--step", type=int, default=1, help="copies: planted of every n-th evaluation image")
    add("--held_out_step", type=int, default=3, help="copies: held-out kinds of every n-th of these")
    add("--count", type=int, default=100, help="cost: images (default %(default)s)")
    args = parser.parse_args(argv)
    if args.what == "copies" and not args.work:
        parser.error("copies needs --work")
    args.argv, args.out = argv, args.out or RESULTS / f"curation_{args.what}.md"
    {"copies": measure_copies, "cost": measure_cost}[args.what](args)


if __name__ == "__main__":
    sys.exit(main())
