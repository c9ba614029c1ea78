"""Does the selection of Data-LDCC help? Fine-tuning on chosen images, with equal steps, patches and seeds.

    python benchmarks/selection_effect.py --pool $DATA/train/hq480-a $DATA/train/hq480-b $DATA/train/bsds-sun \\
        --queries $DATA/bench/BSD100 --encoder "--backbone alexnet --weights alexnet_features.safetensors" \\
        --work runs/selection --out benchmarks/results/selection_effect.md

A seed splits the evaluation images (`LRbicx4`, `HR` in the folder --queries) in two halves. `data_curation` sees the
LR images of the first and chooses k images of the pool, after it took the pool's duplicates of both halves out; beside
them stand k random ones, the k of highest loss and the k least similar. The shipped weights are fine-tuned on each by
train.py and scored on the second half (PSNR-Y, whole images, fp32). They are the start, and not a fresh network,
because that is what stage 3 of the submission does, and because a fresh one learns in its first minutes what any
photograph teaches. The same seed draws the split, the random images and the order of the patches, so that differences
are paired by seed. Finished runs are kept in --work; a stopped one goes on. Writes the table, the figures (.csv), how
many images each step of the first seed's selection let pass (_flow.csv) and a picture (.png).
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paired import (
    LEVEL,
    Difference,
    add_repetitions,
    draw_differences,
    paired,
    parse_repetitions,
    verdict,
)
from benchmarks.results_file import publish
from benchmarks.selection_choices import CHOICES, ROOT, Curation, call, choose, pool_losses, write_list
from data_curation.encoders import file_sha256
from data_curation.features import Features
from evaluation.pairing import Pair
from models.team08_HATFreq import PRESETS
from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.inference import HATFreqRestorer
from models.team08_HATFreq.system import write_bytes
from models.team08_HATFreq.weights import build, load
from utils.metrics import psnr_y

ZOO = ROOT / "model_zoo" / "team08_HATFreq" / "hatfreq_light_x4.safetensors"
BASELINE = "random"
SHOWN = {
    "similar": "chosen by data_curation",
    "random": "random",
    "hardest": "highest loss",
    "dissimilar": "least similar",
}
SUBJECTS = {
    "similar": "The images that data_curation chooses",
    "hardest": "The images of highest loss",
    "dissimilar": "The least similar images",
}
Scores = dict[int, dict[str, float]]  # seed -> choice, or `start` -> mean PSNR-Y in dB


def score(weights: Path, pairs: list[Pair]) -> float:
    """Mean PSNR-Y in dB: whole images, one pass, fp32."""
    model = build(load(weights))[0].eval()
    restore = HATFreqRestorer(model, torch.device("cpu"), "fp32", 0, 0, 1, {})
    values = []
    for pair in pairs:
        assert pair.target is not None  # find_pairs was given targets
        sr = restore(read_rgb(pair.restored))[0]
        values.append(psnr_y(sr, read_rgb(pair.target)[: sr.shape[0], : sr.shape[1]]))
    return float(np.mean(values))


def training_words(args: argparse.Namespace, seed: int) -> list[str]:
    """The settings of every run of a seed, in the words of train.py: the network is of the weights' own shape."""
    shape, preset = asdict(load(args.init).shape), asdict(PRESETS["light"])
    own = {key: value for key, value in shape.items() if value != preset[key] and key != "frequency"}
    changes = [f"{key}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in own.items()]
    words = ["--frequency", shape["frequency"], *(["--model_overrides", *changes] * bool(changes))]
    words += ["--steps", args.steps, "--batch", args.batch, "--patch", args.patch, "--lr", args.lr, "--warmup"]
    words += [args.steps // 10, "--grad_clip", 1.0, "--ema", args.ema, "--seed", seed, "--precision", args.precision]
    words += ["--device", "cpu", "--threads", 1, "--workers", 1, "--no-tensorboard", "--log_every", 100]
    return [str(word) for word in [*words, "--valid_every", args.steps, "--sample_images", 0]]


def image_name(path: str) -> str:
    """A file's folder and name, which stay when a pool is moved."""
    return str(Path(*Path(path).parts[-2:]))


def fine_tuned(args: argparse.Namespace, choice: str, seed: int, names: list[str], scored: list[Pair]) -> float:
    """PSNR-Y in dB after fine-tuning on a list, from the run's folder if it is finished.

    Raises:
        subprocess.CalledProcessError: train.py failed; it has said why.
    """
    words = training_words(args, seed)
    facts = [file_sha256(args.init), *words, *map(image_name, names), *(pair.name for pair in scored)]
    folder = args.work / "runs" / f"{choice}_{seed}_{sha256(json.dumps(facts).encode()).hexdigest()[:12]}"
    result = folder / "result.json"
    if not result.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_list(folder / "images.txt", names)
        call(
            "train.py",
            "--data",
            (folder / "images.txt").resolve(),
            "--out",
            folder.resolve(),
            "--init",
            args.init.resolve(),
            *words,
        )
        psnr = score(folder / "last.safetensors", scored)
        write_bytes(result, json.dumps({"psnr": psnr, "words": words}).encode())
    return float(json.loads(result.read_text())["psnr"])


def measure(args: argparse.Namespace, curation: Curation) -> tuple[Scores, dict[str, Counter[str]]]:
    """All runs, seed by seed; also from which folders each choice's images come, over all seeds."""
    curation.prepare()
    names = Features(args.work / "features" / "pool").columns("name")["name"].to_pylist()
    file = args.work / f"losses_{file_sha256(args.init)[:12]}_{args.loss_crop}.csv"
    losses = pool_losses(names, args.init, args.loss_crop, file)
    scores: Scores = {}
    folders: dict[str, Counter[str]] = {choice: Counter() for choice in CHOICES}
    for seed in args.seeds:
        scored = curation.split(seed).scored
        chosen = choose(curation, seed, args.k, losses)
        scores[seed] = {"start": score(args.init, scored)}
        for choice in CHOICES:
            folders[choice].update(Path(name).parent.name for name in chosen[choice])
            scores[seed][choice] = fine_tuned(args, choice, seed, chosen[choice], scored)
            print(f"seed {seed}, {SHOWN[choice]}: {scores[seed][choice]:.4f} dB", file=sys.stderr, flush=True)
    return scores, folders


def differences(scores: Scores) -> dict[str, Difference]:
    """Every other choice less the random one, paired by seed."""
    return {
        choice: paired([row[choice] for row in scores.values()], [row[BASELINE] for row in scores.values()])
        for choice in CHOICES
        if choice != BASELINE
    }


def flow(work: Path, seed: int) -> list[tuple[str, int]]:
    """How many images each step of the selection saw and let pass, from the files that data_curation wrote."""
    found = json.loads((work / "duplicates" / "duplicates.json").read_text())["counts"]
    chosen = json.loads((work / f"seed_{seed}" / "data_ldcc.json").read_text())["counts"]
    return [
        ("pool", found["pool"]),
        ("readable", found["readable"]),
        ("evaluation images guarded", found["evaluation"]),
        ("pairs verified against evaluation", found["candidates"]["evaluation"]),
        ("pairs verified within the pool", found["candidates"]["pool"]),
        ("removed for evaluation", found["removed_for_evaluation"]),
        ("removed within the pool", found["removed_within_pool"]),
        ("queries", chosen["queries"]),
        ("eligible", chosen["eligible"]),
        ("chosen", chosen["chosen"]),
    ]


def table(args: argparse.Namespace, scores: Scores, folders: dict[str, Counter[str]], encoder: str) -> str:
    """Markdown: a row a choice, then the sentences and the setting."""
    found = differences(scores)
    columns = ["trained on", "PSNR-Y, dB", "spread", "less the start", "less random", f"{LEVEL:.0%} interval", "from"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for choice in CHOICES:
        values = [row[choice] for row in scores.values()]
        gained = statistics.fmean(row[choice] - row["start"] for row in scores.values())
        cells = [SHOWN[choice], f"{statistics.fmean(values):.3f}", f"{statistics.stdev(values):.3f}", f"{gained:+.3f}"]
        if choice in found:
            low, high = found[choice].interval
            cells += [f"{found[choice].mean:+.4f}", f"{low:+.4f} to {high:+.4f}"]
        else:
            cells += ["", ""]
        total = sum(folders[choice].values())
        cells.append(", ".join(f"{folder} {n / total:.0%}" for folder, n in sorted(folders[choice].items())))
        lines.append(f"| {' | '.join(cells)} |")
    sentences = [verdict(SUBJECTS[choice], "random ones", one) for choice, one in found.items()]
    return "\n".join([*lines, "", *(f"- {line}" for line in sentences), "", setting(args, scores, encoder)]) + "\n"


def setting(args: argparse.Namespace, scores: Scores, encoder: str) -> str:
    """What was measured, in sentences."""
    clip = "" if "ViT" in encoder or "CLIP" in encoder.upper() else " Encoder: not CLIP; no result here is with CLIP."
    return (
        f"{len(scores)} seeds ({', '.join(map(str, scores))}), each its own halves of {args.queries.name}, random "
        f"images and order of patches; spread: standard deviation over the seeds, the halves' difficulty included. "
        f"k = {args.k} images; {args.steps} steps of {args.batch} patches of {args.patch}x{args.patch} LR pixels, Adam "
        f"from {args.lr:g} (cosine decay), {args.precision}, averaged weights; start: {args.init.name}, sha256 "
        f"{file_sha256(args.init)[:12]}, which has seen the whole pool if it was trained on it. Highest loss: L1 of "
        f"the start on the middle {args.loss_crop}x{args.loss_crop} pixels. Embeddings: {encoder}.{clip} Intervals: "
        f"Student's t, {len(scores) - 1} degrees of freedom. CPU, one thread; torch {torch.__version__}."
    )


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--pool", type=Path, nargs="+", required=True, help="folders of HR photographs to choose from")
    add("--queries", type=Path, required=True, help="evaluation set: a folder with HR and LRbicx4")
    add("--encoder", type=shlex.split, default=[], help="words for data_curation.embed; default: its own, CLIP")
    add("--work", type=Path, required=True, help="folder for features, lists and runs")
    add("--init", type=Path, default=ZOO, help="weights to start from (default: the shipped light ones)")
    add("--k", type=int, default=100, help="images to train on (default %(default)s)")
    add_repetitions(parser, steps=300, lr=2e-4)
    add("--loss_crop", type=int, default=192, help="HR pixels a side that losses are taken on (default %(default)s)")
    add("--workers", type=int, default=1, help="processes of data_curation (default %(default)s)")
    add("--out", type=Path, help="Markdown file to write; .csv and .png stand beside it")
    return parse_repetitions(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Choose, fine-tune, score, and write the results."""
    args = arguments(argv)
    torch.set_num_threads(1)
    pool, queries = tuple(folder.resolve() for folder in args.pool), args.queries.resolve()
    encoder = resolved(args.encoder)
    curation = Curation(pool, queries / "LRbicx4", queries / "HR", encoder, args.work.resolve(), args.workers)
    try:
        scores, folders = measure(args, curation)
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"selection_effect.py: {shlex.join(error.cmd)} ended with status {error.returncode}"
        ) from error
    model = Features(args.work / "features" / "pool").settings.model
    rows: list[list[Any]] = [
        [seed, key, args.k, args.steps, psnr] for seed, r in scores.items() for key, psnr in r.items()
    ]
    text = table(args, scores, folders, model)
    publish(text, args.out, ["seed", "trained_on", "images", "steps", "psnr_y"], rows)
    if args.out:
        found = {SHOWN[choice]: one for choice, one in differences(scores).items()}
        draw_differences(args.out.with_suffix(".png"), found, "PSNR-Y less that of random images, dB")
        lines = ["step,images", *(f"{step},{images}" for step, images in flow(args.work, args.seeds[0]))]
        write_bytes(args.out.with_name(f"{args.out.stem}_flow.csv"), ("\n".join(lines) + "\n").encode())


def resolved(words: list[str]) -> tuple[str, ...]:
    """Words with existing files named from the root on: the commands run in the repository's folder."""
    return tuple(str(Path(word).resolve()) if Path(word).is_file() else word for word in words)


if __name__ == "__main__":
    main()
