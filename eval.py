"""Score a folder of restored images, with the organisers' flags.

    python eval.py --output_folder results/08_HATFreq/test --target_folder DIV2K_test_HR \\
        --metrics_save_path ./IQA_results

Writes `<parent>--<folder>.csv` (a row an image), `.txt` (averages and the total score) and two pictures: the worst,
median and best image beside bicubic and target, and the radial power spectra. Without --target_folder, only the metrics
that need no target are computed.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from evaluation.pairing import RGB, EvaluationError, Pair, find_pairs
from evaluation.perceptual import PERCEPTUAL, MetricError, make_metrics, measure
from evaluation.pictures import draw_comparison, draw_spectrum
from evaluation.tables import Rows, averages, result_stem, score_line, write_tables
from models.team08_HATFreq.image_io import ImageError
from models.team08_HATFreq.system import HATFreqError
from utils.files import command
from utils.metrics import psnr_y, ssim_y

FIDELITY = {"psnr": psnr_y, "ssim": ssim_y}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; the first four flags are the organisers'."""
    parser = argparse.ArgumentParser(
        "eval.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--output_folder", type=Path, required=True, metavar="DIR", help="restored PNG files")
    add(
        "--target_folder", type=optional_folder, metavar="DIR", help="ground truth; left out: no-reference metrics only"
    )
    add("--metrics_save_path", type=Path, default=Path("./IQA_results"), metavar="DIR", help="default: %(default)s")
    add("--gpu_ids", default="0", help="CUDA devices to share the images over, as 0,1; without CUDA the CPU is used")
    add("--lq_folder", type=Path, metavar="DIR", help="LR inputs for the pictures; default: made from the target")
    add("--metrics", type=metric_names, default=[*FIDELITY, *PERCEPTUAL], metavar="NAME,NAME",
        help=f"of {', '.join([*FIDELITY, *PERCEPTUAL])}; default: all")  # fmt: skip
    add("--no_pictures", action="store_true", help="tables only")
    return parser.parse_args(argv)


def optional_folder(text: str) -> Path | None:
    """A folder, or nothing for `None` and an empty text, which shell scripts pass on."""
    return None if text in ("None", "none", "") else Path(text)


def metric_names(text: str) -> list[str]:
    """The keys of the metrics named, whatever their case."""
    known = {key.lower(): key for key in (*FIDELITY, *PERCEPTUAL)}
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"unknown metric {unknown[0]!r}: choose from {', '.join(known.values())}")
    if not names:
        raise argparse.ArgumentTypeError(f"no metric is named: choose from {', '.join(known.values())}")
    return [known[name] for name in dict.fromkeys(names)]


def choose_devices(gpu_ids: str) -> list[torch.device]:
    """The devices that --gpu_ids names; the CPU where there is no CUDA.

    Raises:
        EvaluationError: not numbers, or devices that do not exist.
    """
    try:
        numbers = sorted({int(number) for number in gpu_ids.split(",")})
    except ValueError as error:
        raise EvaluationError(f"--gpu_ids takes numbers such as 0,1; got {gpu_ids!r}") from error
    if not torch.cuda.is_available():
        if len(numbers) > 1:
            print(f"--gpu_ids {gpu_ids}: there is no CUDA device, scoring on the CPU", file=sys.stderr)
        return [torch.device("cpu")]
    if numbers[0] < 0 or numbers[-1] >= torch.cuda.device_count():
        raise EvaluationError(f"--gpu_ids {gpu_ids}: PyTorch sees {torch.cuda.device_count()} CUDA devices, from 0 on")
    return [torch.device("cuda", number) for number in numbers]


@dataclass
class Scored:
    """What became of a share of the pairs."""

    rows: Rows  # values by file name and key
    missing: dict[str, str]  # metrics that are unavailable, with the reason
    failed: dict[str, str] = field(default_factory=dict)  # images that could not be scored, with the reason


def score_pairs(pairs: list[Pair], names: list[str], device: torch.device) -> Scored:
    """Score pairs one by one; one that cannot be scored is noted, and the others are scored."""
    metrics, missing = make_metrics([name for name in names if name in PERCEPTUAL], device)
    scored = Scored({}, missing)
    for pair in tqdm(pairs, desc=f"scoring on {device}", disable=not sys.stderr.isatty()):
        try:
            restored, target = pair.read()
            values = measure(metrics, restored, target, pair.name)
            if target is not None:
                values |= measure_fidelity(names, restored, target, pair.restored)
        except (EvaluationError, MetricError, ImageError) as error:
            scored.failed[pair.name] = str(error)
        else:
            scored.rows[pair.name] = values
    return scored


def measure_fidelity(names: list[str], restored: RGB, target: RGB, path: Path) -> dict[str, float]:
    """PSNR and SSIM, those of them that are named.

    Raises:
        EvaluationError: the image is too small, naming it.
    """
    try:
        return {name: FIDELITY[name](restored, target) for name in names if name in FIDELITY}
    except ValueError as error:
        raise EvaluationError(f"{path} cannot be scored ({error}): take it out of the folder") from error


def score_everywhere(pairs: list[Pair], names: list[str], devices: list[torch.device]) -> Scored:
    """`score_pairs`, shared out over the devices, one process each and no more than there are pairs."""
    devices = devices[: len(pairs)]
    if len(devices) == 1:
        return score_pairs(pairs, names, devices[0])
    with ProcessPoolExecutor(len(devices), mp_context=get_context("spawn")) as pool:
        parts = [pairs[i :: len(devices)] for i in range(len(devices))]
        return merge_parts(pairs, list(pool.map(score_pairs, parts, [names] * len(devices), devices)))


def merge_parts(pairs: list[Pair], parts: list[Scored]) -> Scored:
    """In the order of the pairs; a metric that one process lacks is left out of all of them."""
    missing = {key: reason for part in parts for key, reason in part.missing.items()}
    failed = {name: reason for part in parts for name, reason in part.failed.items()}
    merged = {name: values for part in parts for name, values in part.rows.items()}
    names = [pair.name for pair in pairs if pair.name in merged]
    return Scored({n: {k: v for k, v in merged[n].items() if k not in missing} for n in names}, missing, failed)


def evaluate(args: argparse.Namespace) -> None:
    """Score, write the tables and the pictures, and say where they are."""
    if args.metrics_save_path.exists() and not args.metrics_save_path.is_dir():
        raise EvaluationError(f"{args.metrics_save_path} is a file: name a folder with --metrics_save_path")
    pairs = find_pairs(args.output_folder, args.target_folder, args.lq_folder)
    names = usable(args.metrics, args.target_folder is not None)
    scored = score_everywhere(pairs, names, choose_devices(args.gpu_ids))
    rows, missing = scored.rows, scored.missing
    absent = {name: missing.get(name, "not asked for") for name in PERCEPTUAL if name not in names or name in missing}
    for reason in dict.fromkeys(missing.values()):
        affected = ", ".join(name for name in missing if missing[name] == reason)
        print(f"not available: {affected} ({reason})", file=sys.stderr)
    if any(rows.values()):
        report(args, [pair for pair in pairs if pair.name in rows], scored, absent)
    if scored.failed:
        listed = "\n".join(f"  {reason}" for reason in scored.failed.values())
        raise EvaluationError(f"{len(scored.failed)} of {len(pairs)} images could not be scored:\n{listed}")
    if not any(rows.values()):
        raise EvaluationError("no metric could be computed: see the reasons above")


def report(args: argparse.Namespace, pairs: list[Pair], scored: Scored, absent: dict[str, str]) -> None:
    """Write the tables and the pictures, and print the averages."""
    stem, rows = result_stem(args.output_folder), scored.rows
    written = list(write_tables(args.metrics_save_path, stem, rows, absent, scored.failed))
    print(f"Average of {len(pairs)} images:")
    for key, value in averages(rows).items():
        print(f"  {key:<9}{value:.4f}")
    if any(name in PERCEPTUAL for name in args.metrics):  # else nobody asked for it
        print(f"Total Score: {score_line(averages(rows), absent) if not scored.failed else 'not available'}")
    if args.target_folder is not None and not args.no_pictures:
        written += write_pictures(args.metrics_save_path / stem, pairs, rows)
    print("\n".join(f"-> {path}" for path in written))


def usable(names: list[str], with_target: bool) -> list[str]:
    """The metrics that can be computed with or without targets.

    Raises:
        EvaluationError: none of them.
    """
    blind = [name for name in names if name in PERCEPTUAL and not PERCEPTUAL[name].needs_target]
    if not (names if with_target else blind):
        raise EvaluationError(f"{', '.join(names)} need targets: give --target_folder")
    return names if with_target else blind


def write_pictures(stem: Path, pairs: list[Pair], rows: Rows) -> list[Path]:
    """Draw both pictures; the comparison is ordered by PSNR and needs it among the metrics."""
    comparison, spectrum = (stem.with_name(f"{stem.name}_{kind}.png") for kind in ("comparison", "spectrum"))
    written = []
    if all("psnr" in values for values in rows.values()):
        draw_comparison(comparison, pairs, rows)
        written.append(comparison)
    else:
        print(f"no {comparison.name}: it is ordered by PSNR, so add psnr to --metrics", file=sys.stderr)
    draw_spectrum(spectrum, pairs)
    return [*written, spectrum]


@command("eval.py", HATFreqError)
def main(argv: Sequence[str] | None = None) -> None:
    evaluate(parse_arguments(argv))


if __name__ == "__main__":
    sys.exit(main())
