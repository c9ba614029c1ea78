"""Does the selection of Data-LDCC help? Fine-tuning on chosen images, with equal steps, patches and seeds.

    python -m benchmarks.selection --pool $DATA/train/hq480-a $DATA/train/hq480-b $DATA/train/bsds-sun \\
        --queries $DATA/bench/BSD100 --encoder "--backbone alexnet --weights alexnet_features.safetensors" \\
        --work runs/selection

A seed splits the evaluation images (`LRbicx4` and `HR` in the folder --queries) in two halves. `data_curation` sees
the LR images of the first half and chooses k images of the pool, after it has removed the pool's duplicates of both
halves: the k most similar, and k of which every query is dealt as many. They are compared with k random images and the
k least similar ones: the weights --init are fine-tuned on each by train.py and scored on the second half (PSNR-Y, whole
images, fp32). They start from trained weights because stage 3 of the submission does, and because a fresh network
learns in its first minutes what any photograph teaches; weights that have not seen the pool show most. A seed draws the
split, the random images and the order of the patches, so that differences are paired. Finished runs are kept in --work.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import WEIGHTS, file_sha256, open_network, publish, restorer, setting
from benchmarks.render import RESULTS
from benchmarks.short_runs import add_options, call, described, parse, scored_run, training_words
from benchmarks.tables import CHOICES
from evaluation.score import mean, score
from image_data.pairs import Pair, load_pairs, match_lr
from image_data.sources import expand
from models.team08_HATFreq import PRESETS
from models.team08_HATFreq.system import write_bytes
from utils.resize import SCALE

# ---------------------------------------------------------------------------------------------------------------------
# The choices: all that is known of data_curation here are its commands and the files that they write
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curation:
    """What `data_curation` is told.

    Attributes:
        pool: folders of images to choose from.
        queries: folder of the evaluation set, with `LRbicx4` and `HR`.
        encoder: words for `data_curation.embed`.
        work: folder for features, duplicates and lists.
        workers: processes.
    """

    pool: tuple[Path, ...]
    queries: Path
    encoder: tuple[str, ...]
    work: Path
    workers: int

    def prepare(self) -> None:
        """Embed pool and evaluation images, and find the pool's duplicates of both halves, in LR and in HR."""
        self._embed("queries", [self.queries / "LRbicx4"])
        self._embed("guard", [self.queries / "HR"], "--downscale", str(SCALE))
        self._embed("pool", list(self.pool), "--downscale", str(SCALE))
        features = self.work / "features"
        words = ["--pool", features / "pool", "--evaluation", features / "queries", features / "guard"]
        call("-m", "data_curation.dedup", *words, "--workers", self.workers, "--out", self.work / "duplicates")

    def look(self, seed: int, queries: list[str]) -> None:
        """Embed the LR images that a seed's choices are made for."""
        folder = self.work / f"seed_{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        write_list(folder / "queries.txt", queries)
        self._embed(f"queries_{seed}", [folder / "queries.txt"])

    def ranking(self, seed: int, name: str, count: int, *words: object) -> tuple[list[str], list[str]]:
        """What `data_curation.select` chooses for a seed's LR images, and all that pass, the most similar first.

        Args:
            name: of its folder.
            count: images to choose.
            words: more for `data_curation.select`.
        """
        folder, features = self.work / f"seed_{seed}" / name, self.work / "features"
        words = ("--pool", features / "pool", "--queries", features / f"queries_{seed}", "--top_k", count, *words)
        call("-m", "data_curation.select", *words, "--exclude", self.work / "duplicates" / "removed.txt",
             "--out", folder)  # fmt: skip
        with (folder / "data_ldcc.csv").open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["rank"]]
        return [row["name"] for row in rows if row["chosen"] == "1"], [row["name"] for row in rows]

    def encoder_name(self) -> str:
        """The encoder as the features' settings name it."""
        return str(json.loads((self.work / "features" / "pool" / "features.json").read_text())["model"])

    def flow(self, seed: int) -> dict[str, int]:
        """How many images each step of the selection saw and let pass."""
        found = json.loads((self.work / "duplicates" / "duplicates.json").read_text())["counts"]
        chosen = json.loads((self.work / f"seed_{seed}" / "similar" / "data_ldcc.json").read_text())["counts"]
        return {
            "pool": found["pool"],
            "readable": found["readable"],
            "evaluation images guarded": found["evaluation"],
            "pairs verified against evaluation": found["candidates"]["evaluation"],
            "pairs verified within the pool": found["candidates"]["pool"],
            "removed for evaluation": found["removed_for_evaluation"],
            "removed within the pool": found["removed_within_pool"],
            "queries": chosen["queries"],
            "eligible": chosen["eligible"],
            "chosen": chosen["chosen"],
        }

    def _embed(self, name: str, images: list[Path], *words: str) -> None:
        out = self.work / "features" / name
        call("-m", "data_curation.embed", *images, *self.encoder, *words, "--workers", self.workers, "--out", out)


def halves(queries: Path, seed: int) -> tuple[list[str], list[Pair]]:
    """LR files of the half that the selection sees, and the pairs of the other half, which are scored."""
    targets = expand(str(queries / "HR"))
    lows = match_lr(targets, expand(str(queries / "LRbicx4")), str(queries))
    pairs = load_pairs(queries / "HR", queries / "LRbicx4")
    order, half = np.random.default_rng(seed).permutation(len(pairs)).tolist(), len(pairs) // 2
    return [lows[i].name for i in sorted(order[:half])], [pairs[i] for i in sorted(order[half:])]


def choose(curation: Curation, seed: int, queries: list[str], count: int) -> dict[str, list[str]]:
    """Choice -> names of `count` images; the same ones for the same seed."""
    curation.look(seed, queries)
    similar, ranked = curation.ranking(seed, "similar", count)
    dealt, _ = curation.ranking(seed, "quota", count, "--per_query", count // len(queries))
    drawn = np.random.default_rng((seed, 1)).choice(len(ranked), count, replace=False)
    random = [ranked[i] for i in sorted(drawn.tolist())]
    return {"similar": similar, "quota": dealt, "random": random, "dissimilar": ranked[-count:]}


def write_list(path: Path, names: list[str]) -> None:
    """A list of images as data_curation and train.py read it."""
    write_bytes(path, ("\n".join(names) + "\n").encode())


# ---------------------------------------------------------------------------------------------------------------------
# The measurement
# ---------------------------------------------------------------------------------------------------------------------


def shape_words(weights: Path) -> list[str]:
    """The network of a weights file in the words of train.py: its frequency blocks, and what differs from `light`."""
    shape, preset = asdict(open_network(weights).config), asdict(PRESETS["light"])
    own = {key: value for key, value in shape.items() if value != preset[key] and key != "frequency"}
    changes = [f"{key}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in own.items()]
    return ["--frequency", shape["frequency"], *(["--model_overrides", *changes] if changes else [])]


def psnr(weights: Path, pairs: list[Pair]) -> float:
    """Mean PSNR-Y in dB."""
    return mean(score(restorer(open_network(weights)), pairs)).psnr


def fine_tuned(args: argparse.Namespace, choice: str, seed: int, names: list[str], scored: list[Pair]) -> float:
    """PSNR-Y in dB after fine-tuning on a list of images."""
    words = [*shape_words(args.init), *training_words(args, seed)]
    shown = [str(Path(*Path(name).parts[-2:])) for name in names]  # folder and file: they stay when a pool is moved
    facts = [file_sha256(args.init), *words, *shown, *(pair.name for pair in scored)]
    chosen = args.work / f"seed_{seed}" / f"{choice}.txt"
    write_list(chosen, names)
    words += ["--data", str(chosen.resolve()), "--init", str(args.init.resolve())]
    return scored_run(args.work / "runs" / f"{choice}_{seed}", words, facts, lambda weights: psnr(weights, scored))


def measure(args: argparse.Namespace, curation: Curation) -> tuple[list[dict[str, Any]], dict[str, dict[str, float]]]:
    """All runs, seed by seed; also which share of each choice comes from which folder, over all seeds."""
    curation.prepare()
    rows: list[dict[str, Any]] = []
    folders: dict[str, Counter[str]] = {choice: Counter() for choice in CHOICES}
    for seed in args.seeds:
        queries, scored = halves(curation.queries, seed)
        chosen = choose(curation, seed, queries, args.k)
        rows.append({"seed": seed, "choice": "start", "psnr": psnr(args.init, scored)})
        for choice, names in chosen.items():
            folders[choice].update(Path(name).parent.name for name in names)
            rows.append({"seed": seed, "choice": choice, "psnr": fine_tuned(args, choice, seed, names, scored)})
            print(f"seed {seed}, {CHOICES[choice]}: {rows[-1]['psnr']:.4f} dB", file=sys.stderr, flush=True)
    shares = {c: {name: n / found.total() for name, n in sorted(found.items())} for c, found in folders.items()}
    return rows, shares


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pool", type=Path, nargs="+", required=True, help="folders of HR photographs to choose from")
    add("--queries", type=Path, required=True, help="evaluation set: a folder with HR and LRbicx4")
    add("--encoder", type=shlex.split, default=[], help="words for data_curation.embed; default: its own, CLIP")
    add("--init", type=Path, default=WEIGHTS, help="weights to start from (default: the shipped light ones)")
    add("--seen", default="they may have seen the pool", help="what --init was trained on, for the results")
    add("--k", type=int, default=100, help="images to train on (default %(default)s)")
    add("--curation_workers", type=int, default=1, help="processes of data_curation (default %(default)s)")
    add("--out", type=Path, default=RESULTS / "selection.json", help="results file (default: %(default)s)")
    add_options(parser, steps=300, lr=2e-4)
    return parse(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Choose, fine-tune, score, and write the results."""
    args = arguments(argv)
    torch.set_num_threads(1)
    encoder = tuple(str(Path(word).resolve()) if Path(word).is_file() else word for word in args.encoder)
    pool = tuple(folder.resolve() for folder in args.pool)
    curation = Curation(pool, args.queries.resolve(), encoder, args.work.resolve(), args.curation_workers)
    try:
        rows, folders = measure(args, curation)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"selection: {shlex.join(error.cmd)} ended with status {error.returncode}") from error
    facts = setting(
        argv,
        args.init,
        data=f"{args.queries.name}: one half, drawn by the seed, is what the selection sees, the other is scored",
        training=f"{args.k} images; {described(args)}; from the weights below ({args.seen})",
        seeds=", ".join(map(str, args.seeds)),
        tile="whole images",
        precision="fp32",
        encoder=curation.encoder_name(),
    )
    flow = curation.flow(args.seeds[0])
    print(publish(args.out, "selection", rows, facts, flow=flow, folders=folders))


if __name__ == "__main__":
    main()
