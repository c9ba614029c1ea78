"""Does the frequency module help? Networks that differ in it alone, with equal steps, patches and seeds.

    python benchmarks/ablation.py --data $DATA/train/hq480-a $DATA/train/hq480-b $DATA/train/bsds-sun \\
        --bench $DATA/bench --work runs/ablation --out benchmarks/results/ablation.md

Every variant of the module is trained by train.py from scratch, for every seed, on a narrow `light` that is small
enough for many runs; a seed gives all variants the same patches and the same start, so that differences are paired.
`none` is HAT without the module; `identity` has the module's parameters with every FFT replaced by the identity: what
`both` gains over it is the transform's own share. Scored on every set of --bench (folders with `HR` and `LRbicx4`):
PSNR-Y of whole images in fp32, and the energy of the error by radial frequency.

Finished runs are kept in --work and a stopped one goes on. Writes the table, the figures (.csv), the bands
(_bands.csv) and two pictures (.png, _bands.png).
"""

import argparse
import csv
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

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
from benchmarks.quality import find_sets
from benchmarks.results_file import publish
from benchmarks.scored_runs import Runs, Score
from benchmarks.spectrum import band_edges
from evaluation.pairing import Pair
from models.team08_HATFreq.network import HATFreq
from models.team08_HATFreq.system import write_bytes
from models.team08_HATFreq.weights import save_weights
from training.config import TrainConfig, model_config

VARIANTS = ("none", "identity", "global", "window", "both")
COMPARED = [(variant, "none") for variant in VARIANTS[1:]] + [("both", "identity")]


Scores = dict[tuple[str, int], dict[str, Score]]  # (variant, seed) -> set -> score


def network(args: argparse.Namespace, variant: str) -> HATFreq:
    """A variant with fresh weights. Weights alone do not tell `identity` from `both`."""
    settings = TrainConfig(
        data=("none",), out="none", preset="light", frequency=variant, model_overrides=tuple(args.shape)
    )
    return HATFreq(model_config(settings)).eval()


def training_words(args: argparse.Namespace, variant: str, seed: int) -> list[str]:
    """One run's settings in the words of train.py."""
    words = ["--preset", "light", "--frequency", variant, "--model_overrides", *args.shape, "--steps", args.steps]
    words += ["--batch", args.batch, "--patch", args.patch, "--lr", args.lr, "--warmup", args.steps // 20]
    words += ["--grad_clip", 1.0, "--ema", args.ema, "--seed", seed, "--precision", args.precision, "--device", "cpu"]
    words += ["--threads", 1, "--workers", 1, "--no-tensorboard", "--log_every", 100, "--sample_images", 0]
    return [str(word) for word in [*words, "--valid_every", args.steps]]


def trained(args: argparse.Namespace, variant: str, seed: int, runs: Runs) -> dict[str, Score]:
    """The scores of one variant and seed."""
    start = args.work / f"start_{seed}.safetensors"
    write_start(args, seed, start)
    return runs.scored(f"{variant}_{seed}", network(args, variant), training_words(args, variant, seed), start)


def write_start(args: argparse.Namespace, seed: int, path: Path) -> None:
    """Write the weights that all variants of a seed start from: those of `none`; fresh modules add nothing to them."""
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(network(args, "none"), path, {"seed": str(seed)})


def measure(args: argparse.Namespace, sets: dict[str, list[Pair]]) -> Scores:
    """All runs, seed by seed, so that a stopped command leaves whole pairs."""
    scores: Scores = {}
    runs = Runs(args.work, args.data, sets)
    for seed in args.seeds:
        for variant in VARIANTS:
            scores[variant, seed] = trained(args, variant, seed, runs)
            shown = ", ".join(f"{name} {score.psnr:.3f}" for name, score in scores[variant, seed].items())
            print(f"seed {seed}, {variant}: {shown} dB", file=sys.stderr, flush=True)
    return scores


# ---------------------------------------------------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------------------------------------------------


def over_seeds(scores: Scores, variant: str, name: str) -> list[float]:
    """PSNR-Y of a variant on a set, a value a seed; over all sets for the name `mean`."""
    rows = [row for (one, _), row in scores.items() if one == variant]
    return [row[name].psnr if name != "mean" else statistics.fmean(s.psnr for s in row.values()) for row in rows]


def differences(scores: Scores, name: str) -> dict[tuple[str, str], Difference]:
    """The comparisons on a set, or on the mean of all."""
    return {(a, b): paired(over_seeds(scores, a, name), over_seeds(scores, b, name)) for a, b in COMPARED}


def band_gains(scores: Scores, variant: str) -> NDArray[np.float64]:
    """How much less error than `none` a variant leaves in each band, in dB: `seeds BANDS`; above 0 is better."""
    energy = {
        one: np.array([np.sum([s.bands for s in row.values()], axis=0) for (v, _), row in scores.items() if v == one])
        for one in ("none", variant)
    }
    return 10 * np.log10(energy["none"] / energy[variant])


def table(args: argparse.Namespace, scores: Scores, sets: dict[str, list[Pair]]) -> str:
    """Markdown: the scores, the paired differences and the sentences that follow from them."""
    names = [*sets, "mean"]
    lines = [f"| module | parameters | {' | '.join(names)} |", "|" + "---|" * (len(names) + 2)]
    for variant in VARIANTS:
        values = [over_seeds(scores, variant, name) for name in names]
        cells = [f"{statistics.fmean(v):.3f} ± {statistics.stdev(v):.3f}" for v in values]
        lines.append(
            f"| {variant} | {sum(p.numel() for p in network(args, variant).parameters()):,} | {' | '.join(cells)} |"
        )
    lines += ["", f"| paired differences | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1)]
    found = {name: differences(scores, name) for name in names}
    for a, b in COMPARED:
        cells = [f"{found[n][a, b].mean:+.4f} ± {found[n][a, b].half:.4f}" for n in names]
        lines.append(f"| {a} less {b} | {' | '.join(cells)} |")
    sentences = [verdict(f"`{a}`", f"`{b}`", found["mean"][a, b]) for a, b in COMPARED]
    bands = [band_sentence(scores, variant) for variant in VARIANTS[1:]]
    return "\n".join([*lines, "", *(f"- {s}" for s in [*sentences, *bands]), "", setting(args, sets)]) + "\n"


def band_sentence(scores: Scores, variant: str) -> str:
    """Where a variant leaves less error than `none`, and where more, by the seeds' agreement."""
    gains, edges = band_gains(scores, variant), band_edges()
    found = [paired(band, [0.0] * len(band)) for band in gains.T.tolist()]
    parts = [
        f"{edges[i]:.2f} to {edges[i + 1]:.2f} ({one.mean:+.3f} dB)" for i, one in enumerate(found) if one.direction
    ]
    if not parts:
        return f"`{variant}`: the error's energy differs from that of `none` in no band."
    where = ", ".join(parts)
    return f"`{variant}`: the error's energy differs from that of `none` (above 0: less error) in {where} cycles/pixel."


def setting(args: argparse.Namespace, sets: dict[str, list[Pair]]) -> str:
    """What was measured, in sentences."""
    return (
        f"PSNR-Y in dB, mean ± standard deviation over {len(args.seeds)} seeds "
        f"({', '.join(map(str, args.seeds))}); differences: mean ± half of the {LEVEL:.0%} interval (Student's t, "
        f"{len(args.seeds) - 1} degrees of freedom). Sets: {', '.join(f'{n} ({len(p)})' for n, p in sets.items())}; "
        f"`mean` is the mean of the sets. `light` with {', '.join(args.shape)}; {args.steps} steps of {args.batch} "
        f"patches of {args.patch}x{args.patch} LR pixels of {', '.join(d.name for d in args.data)}, Adam from "
        f"{args.lr:g} (cosine decay), {args.precision}, averaged weights, from scratch; a seed's variants start from "
        f"the same weights. Whole images, fp32. CPU, one thread; torch {torch.__version__}."
    )


def draw_bands(path: Path, scores: Scores) -> None:
    """Write a PNG: each variant's gain over `none` by frequency, the mean as a line and the seeds' range as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    middles = (band_edges()[1:] + band_edges()[:-1]) / 2
    for variant in VARIANTS[1:]:
        gains = band_gains(scores, variant)
        (line,) = axes.plot(middles, gains.mean(axis=0), marker="o", markersize=4, label=variant)
        axes.fill_between(middles, gains.min(axis=0), gains.max(axis=0), color=line.get_color(), alpha=0.15)
    axes.axhline(0, color="grey", linewidth=1)
    axes.axvline(0.125, color="grey", linewidth=1, linestyle=":")
    axes.text(0.128, 0.97, "limit of the LR image", transform=axes.get_xaxis_transform(), va="top", color="grey")
    axes.set_xlabel("radial frequency, cycles per HR pixel")
    axes.set_ylabel("error less than without the module, dB")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write_bands(path: Path, scores: Scores) -> None:
    """CSV: the error's energy by variant, seed, set and band."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["variant", "seed", "set", "from_cycles_per_pixel", "to_cycles_per_pixel", "error_energy"])
    edges = band_edges()
    for (variant, seed), row in scores.items():
        for name, score in row.items():
            for i, energy in enumerate(score.bands):
                writer.writerow([variant, seed, name, edges[i], edges[i + 1], energy])
    write_bytes(path, text.getvalue().encode())


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, help="folders of HR photographs")
    add("--bench", type=Path, required=True, help="folder of evaluation sets, each with HR and LRbicx4")
    add("--work", type=Path, required=True, help="folder for the runs")
    add_repetitions(parser, steps=600, lr=2e-3)
    add("--shape", nargs="+", default=["embed_dim=16", "depths=2,2", "num_heads=2,2"], help="changes to `light`")
    add("--out", type=Path, help="Markdown file to write; its companions stand beside it")
    return parse_repetitions(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score, and write the results."""
    args = arguments(argv)
    torch.set_num_threads(1)
    sets = find_sets(args.bench)
    scores = measure(args, sets)
    rows = [[v, seed, name, args.steps, s.psnr] for (v, seed), row in scores.items() for name, s in row.items()]
    publish(table(args, scores, sets), args.out, ["variant", "seed", "set", "steps", "psnr_y"], rows)
    if args.out:
        shown = {f"{a} less {b}": one for (a, b), one in differences(scores, "mean").items()}
        draw_differences(args.out.with_suffix(".png"), shown, "PSNR-Y, mean of the sets, dB")
        write_bands(args.out.with_name(f"{args.out.stem}_bands.csv"), scores)
        draw_bands(args.out.with_name(f"{args.out.stem}_bands.png"), scores)


if __name__ == "__main__":
    main()
