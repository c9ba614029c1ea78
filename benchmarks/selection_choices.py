"""The images that the selection's measurement compares: chosen by data_curation, at random, by loss, or least similar.

Everything is made by the commands that a user would type (`python -m data_curation.embed`, `.deduplicate`, `.select`);
what is not chosen by them is drawn from the images that they let pass.
"""

import csv
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from evaluation.pairing import Pair, find_pairs
from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.system import write_bytes
from models.team08_HATFreq.tiling import to_tensor
from models.team08_HATFreq.weights import build, load
from utils.resize import imresize

ROOT = Path(__file__).resolve().parents[1]
CHOICES = ("similar", "random", "hardest", "dissimilar")
SCALE = 4
SAVED = 100  # losses between two writings of their file


@dataclass(frozen=True)
class Split:
    """The evaluation pairs of one seed: those whose LR images the selection sees, and those that are scored."""

    queries: list[Pair]
    scored: list[Pair]


@dataclass(frozen=True)
class Curation:
    """What `data_curation` is told.

    Attributes:
        pool: folders of images to choose from.
        queries_lr, queries_hr: LR images and their targets.
        encoder: words for `data_curation.embed`.
        work: folder for features, duplicates and lists.
        workers: processes.
    """

    pool: tuple[Path, ...]
    queries_lr: Path
    queries_hr: Path
    encoder: tuple[str, ...]
    work: Path
    workers: int

    def prepare(self) -> None:
        """Embed pool and evaluation images, and find the pool's duplicates of both halves, in LR and in HR.

        Raises:
            subprocess.CalledProcessError: a stage failed; it has said why.
        """
        self._embed([self.queries_lr], "queries")
        self._embed([self.queries_hr], "guard", "--downscale", str(SCALE))
        self._embed(list(self.pool), "pool", "--downscale", str(SCALE))
        features = self.work / "features"
        words = ["--pool", features / "pool", "--evaluation", features / "queries", features / "guard"]
        call("-m", "data_curation.deduplicate", *words, "--workers", self.workers, "--out", self.work / "duplicates")

    def split(self, seed: int) -> Split:
        """Two halves of the evaluation pairs, drawn by the seed."""
        pairs = find_pairs(self.queries_lr, self.queries_hr, None)  # the LR images carry the restored images' names
        order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
        half = len(pairs) // 2
        return Split([pairs[i] for i in sorted(order[:half])], [pairs[i] for i in sorted(order[half:])])

    def ranking(self, seed: int, count: int) -> tuple[list[str], list[str]]:
        """What `data_curation.select` chooses for a seed's queries, and all that pass, the most similar first."""
        folder = self.work / f"seed_{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        queries = [str(pair.restored.resolve()) for pair in self.split(seed).queries]
        write_list(folder / "queries.txt", queries)
        self._embed([folder / "queries.txt"], f"queries_{seed}")
        features = self.work / "features"
        words = ["--pool", features / "pool", "--queries", features / f"queries_{seed}", "--top_k", count]
        words += ["--exclude", self.work / "duplicates" / "removed.txt", "--out", folder]
        call("-m", "data_curation.select", *words)
        with (folder / "data_ldcc.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["rank"]]
        return [row["name"] for row in rows if row["chosen"] == "1"], [row["name"] for row in rows]

    def _embed(self, images: list[Path], name: str, *words: str) -> None:
        out = self.work / "features" / name
        call("-m", "data_curation.embed", *images, *self.encoder, *words, "--workers", self.workers, "--out", out)


def choose(curation: Curation, seed: int, count: int, losses: dict[str, float]) -> dict[str, list[str]]:
    """Choice -> the names of `count` images; the same ones for the same seed.

    Args:
        losses: of every image of the pool.
    """
    similar, ranked = curation.ranking(seed, count)
    drawn = np.random.default_rng((seed, 1)).choice(len(ranked), count, replace=False)
    hardest = sorted(ranked, key=lambda name: (-losses[name], name))[:count]
    return {
        "similar": similar,
        "random": [ranked[i] for i in sorted(drawn.tolist())],
        "hardest": hardest,
        "dissimilar": ranked[-count:],
    }


def pool_losses(names: list[str], weights: Path, crop: int, file: Path) -> dict[str, float]:
    """The weights' L1 loss on the middle of every image, kept in a CSV file that a stopped run goes on from.

    Args:
        names: image files.
        weights: the network.
        crop: side of the middle part in HR pixels, or what the image has.
        file: of these weights and this crop.
    """
    losses = {}
    if file.exists():
        losses = {
            row["name"]: float(row["loss"]) for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))
        }
    model = build(load(weights))[0].eval()
    missing = [name for name in names if name not in losses]
    for done, name in enumerate(tqdm(missing, desc="losses of the pool", disable=not sys.stderr.isatty()), start=1):
        gt = middle(read_rgb(name), crop)
        with torch.inference_mode():
            error = model(to_tensor(imresize(gt, 1 / SCALE))) - to_tensor(gt)
        losses[name] = float(error.abs().mean())
        if done % SAVED == 0 or done == len(missing):
            text = io.StringIO()
            csv.writer(text).writerows([("name", "loss"), *losses.items()])
            write_bytes(file, text.getvalue().encode())
    return losses


def middle(image: np.ndarray, side: int) -> np.ndarray:
    """The middle of an image, `h w 3`, at most `side` pixels a side and a multiple of the scale."""
    sides = [min(side, length) // SCALE * SCALE for length in image.shape[:2]]
    top, left = ((length - one) // 2 for length, one in zip(image.shape[:2], sides, strict=True))
    return np.ascontiguousarray(image[top : top + sides[0], left : left + sides[1]])


def write_list(path: Path, names: list[str]) -> None:
    """A list of images as data_curation and train.py read it."""
    write_bytes(path, ("\n".join(names) + "\n").encode())


def call(*words: object) -> None:
    """Run a Python command of this repository.

    Raises:
        subprocess.CalledProcessError: it failed; what it said has been shown.
    """
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)
