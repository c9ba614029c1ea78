"""Does the frequency module help? Networks that differ in it alone, with equal steps, patches and seeds.

    python -m benchmarks.ablation --data $DATA/train/hq480-a $DATA/train/bsds-sun --bench $DATA/bench \\
        --work runs/ablation --steps 1500 --seeds 0 1 2 3 4

Every variant of the module is trained by train.py from scratch, for every seed, on a narrow `light` that is small
enough for many runs. A seed gives all variants the same patches and the same start, so that differences are paired.
`none` is HAT without the module; `identity` has the module's parameters with every FFT replaced by the identity: what
`both` gains over it is the transform's own share. Scored on every set of --bench: PSNR-Y of whole images in fp32, and
the spectrum of the error. Finished runs are kept in --work.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import BENCH, find_sets, named, publish, restorer, setting
from benchmarks.render import RESULTS
from benchmarks.short_runs import add_options, described, parse, scored_run, training_words
from benchmarks.tables import BANDS, VARIANTS
from evaluation.spectrum import radial_power
from image_data.pairs import Pair
from models.team08_HATFreq.network import HATFreq
from models.team08_HATFreq.weights import load_weights, save_weights
from training.config import TrainConfig, model_config
from utils.metrics import psnr_y, rgb_to_y

BORDER = 4  # pixels that the scores leave out
Sets = dict[str, list[Pair]]


def network(args: argparse.Namespace, variant: str) -> HATFreq:
    """A variant with fresh weights."""
    settings = TrainConfig(("none",), "none", preset="light", frequency=variant, model_overrides=tuple(args.shape))
    return HATFreq(model_config(settings)).eval()


def write_start(args: argparse.Namespace, seed: int) -> Path:
    """Write the weights that all variants of a seed start from: those of `none`; fresh modules add nothing to them."""
    path = args.work / f"start_{seed}.safetensors"
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(network(args, "none"), path, {"seed": str(seed)})
    return path.resolve()


def score(model: HATFreq, sets: Sets) -> list[dict[str, Any]]:
    """Rows of a network: set, mean PSNR-Y in dB, and the mean power of the error of Y in each band."""
    restore, rows = restorer(model), []
    for name, pairs in sets.items():
        psnr, bands = [], []
        for pair in pairs:
            sr = restore(pair.lq)
            error = rgb_to_y(sr) - rgb_to_y(pair.target)
            psnr.append(psnr_y(sr, pair.target))
            bands.append(radial_power(error[BORDER:-BORDER, BORDER:-BORDER], BANDS)[1])
        rows.append({"set": name, "psnr": float(np.mean(psnr)), "bands": np.mean(bands, axis=0).tolist()})
    return rows


def run(args: argparse.Namespace, variant: str, seed: int, sets: Sets) -> list[dict[str, Any]]:
    """The rows of one variant and seed; weights alone do not tell `identity` from `both`, so the model is given."""
    words = ["--preset", "light", "--frequency", variant, "--model_overrides", *args.shape]
    words += training_words(args, seed)
    facts = [*words, *(folder.name for folder in args.data), *(f"{name} {len(pairs)}" for name, pairs in sets.items())]

    def scored(weights: Path) -> list[dict[str, Any]]:
        model = network(args, variant)
        load_weights(model, weights)
        return score(model, sets)

    data = ["--data", *(str(folder.resolve()) for folder in args.data), "--init", str(write_start(args, seed))]
    rows = scored_run(args.work / f"{variant}_{seed}", [*data, *words], facts, scored)
    return [{"variant": variant, "seed": seed, **row} for row in rows]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's arguments, checked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, nargs="+", required=True, help="folders of HR photographs")
    add("--bench", type=Path, default=BENCH, help="folder of evaluation sets (default: %(default)s)")
    add("--shape", nargs="+", default=["embed_dim=16", "depths=2,2", "num_heads=2,2"], help="changes to `light`")
    add("--out", type=Path, default=RESULTS / "ablation.json", help="results file (default: %(default)s)")
    add_options(parser, steps=600, lr=2e-3)
    return parse(parser, argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score, and write the results; seed by seed, so that a stopped command leaves whole pairs."""
    args = arguments(argv)
    torch.set_num_threads(1)
    sets = find_sets(args.bench)
    rows = []
    for seed in args.seeds:
        for variant in VARIANTS:
            rows += run(args, variant, seed, sets)
            shown = ", ".join(f"{row['set']} {row['psnr']:.3f}" for row in rows[-len(sets) :])
            print(f"seed {seed}, {variant}: {shown} dB", file=sys.stderr, flush=True)
    facts = setting(
        argv,
        data=f"scored on {named(sets)}; `mean` is that of the sets",
        training=f"`light` with {', '.join(args.shape)}, from scratch; {described(args)}; photographs of "
        f"{', '.join(folder.name for folder in args.data)}; the variants of a seed start from the same weights",
        seeds=", ".join(map(str, args.seeds)),
        tile="whole images",
        precision="fp32",
    )
    parameters = {one: sum(p.numel() for p in network(args, one).parameters()) for one in VARIANTS}
    print(publish(args.out, "ablation", rows, facts, parameters=parameters))


if __name__ == "__main__":
    main()
