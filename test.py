"""Restore folders of low-resolution images x4, with the organisers' flags.

    python test.py --test_dir DIV2K_test_LR_bicubic/X4 --save_dir results            # the submission: x8 ensemble, fp32
    python test.py --test_dir my_photographs --save_dir results --ensemble 1         # eight times faster
    python test.py --test_dir photo.jpg other.png --save_dir results                 # files instead of a folder

    torchrun --standalone --nproc_per_node 8 test.py --test_dir my_photographs --save_dir results       # eight GPUs

Writes `save_dir/08_HATFreq/test/*.png` (and `valid/` for --valid_dir) with a record of how they were made. The same
command resumes a run that was stopped. Several processes share a folder's images out by their pixels.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# PyTorch's threads spin while they wait for each other, and on a machine with other work keep each other from running:
# a pass then takes many times as long (docs/performance.md). A short spin costs nothing; it is read when PyTorch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch

from utils.files import command

Restore = Callable[..., None]


def select_model(args: argparse.Namespace) -> tuple[Restore, str | None, str]:
    """The restoring function of a model id, its weights and the name of its results.

    Raises:
        ValueError: no model has this id, or bicubic is given the network's options.
    """
    model_id = args.model_id
    if model_id == 0:
        from models.team00_Bicubic import main as restore_bicubic

        usual = parse_arguments(["--test_dir", "."])
        for option in ("precision", "tile", "tile_overlap", "ensemble", "preset", "weights", "compile"):
            if getattr(args, option) != getattr(usual, option):
                raise ValueError(f"model 0 is bicubic, which has no --{option}: leave it out")
        return partial(restore_bicubic, overwrite=args.overwrite), None, f"{model_id:02}_Bicubic"
    elif model_id == 8:
        from models.team08_HATFreq import main as restore_hatfreq

        options = {
            "preset": args.preset,
            "precision": args.precision,
            "tile": args.tile,
            "tile_overlap": args.tile_overlap,
            "ensemble": args.ensemble,
            "compiled": args.compile,
            "overwrite": args.overwrite,
        }
        weights = args.weights or str(Path(__file__).parent / "model_zoo" / "team08_HATFreq")
        return partial(restore_hatfreq, **options), weights, f"{model_id:02}_HATFreq"
    raise ValueError(f"model {model_id} does not exist: 0 is bicubic, 8 is HATFreq")


def run(
    model_func: Restore,
    model_name: str,
    model_dir: str | None,
    inputs: list[str],
    save_dir: str,
    mode: str,
    device: torch.device,
) -> None:
    """Restore one folder or some files; the first process prints the time it took, with reading and writing."""
    start = time.perf_counter()
    input_path = inputs[0] if len(inputs) == 1 else inputs
    model_func(
        model_dir=model_dir, input_path=input_path, output_path=str(Path(save_dir) / model_name / mode), device=device
    )
    if os.environ.get("RANK", "0") == "0":
        print(f"Model {model_name} runtime (Including I/O): {1000 * (time.perf_counter() - start):.1f} ms")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; the first four flags are the organisers'."""
    parser = argparse.ArgumentParser(
        "test.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--valid_dir", nargs="+", metavar="DIR", help="folder of low-resolution images, or files; results in valid/")
    add("--test_dir", nargs="+", metavar="DIR", help="folder of low-resolution images, or files; results in test/")
    add("--save_dir", metavar="DIR", default="NTIRE2025-ImageSRx4/results", help="default: %(default)s")
    add("--model_id", type=int, default=8, help="0 bicubic, 8 HATFreq (default)")
    add("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda or cuda:N")
    add("--precision", type=precision, default="fp32", metavar="fp32|bf16", help="default: %(default)s")
    add(
        "--tile",
        type=tile_size,
        default=None,
        metavar="auto|N|0",
        help="side of a tile in LR pixels; 0: whole image; auto (default): the largest that fits into memory",
    )
    add(
        "--tile_overlap",
        type=int,
        default=None,
        metavar="N",
        help="LR pixels shared by tiles, at most half of one (default: 32, or that half)",
    )
    add("--ensemble", type=int, choices=(1, 8), default=8, help="8: self-ensemble (default); 1: single pass")
    add(
        "--preset",
        default=None,
        metavar="NAME",
        help="which weights of model_zoo/team08_HATFreq: light (default, the ones that ship), small, base or large",
    )
    add("--weights", metavar="FILE", help="a weights file instead, ours or an official HAT's; its shape is read off it")
    add(
        "--compile",
        action="store_true",
        help="compile its blocks first: minutes; slower on a CPU",
    )
    add("--overwrite", action="store_true", help="begin anew: what the results folder's record names is removed")
    args = parser.parse_args(argv)
    if not (args.valid_dir or args.test_dir):
        parser.error("name a folder of low-resolution images with --test_dir or --valid_dir")
    return args


def precision(text: str) -> str:
    """Itself, if the network can compute in it."""
    if text not in ("fp32", "bf16"):
        why = ": HAT's activations overflow in fp16" if text == "fp16" else ""
        raise argparse.ArgumentTypeError(f"'fp32' or 'bf16', got {text!r}{why}")
    return text


def tile_size(text: str) -> int | None:
    """`auto` -> None, a number -> itself."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'auto' or a number of pixels, 0 for the whole image; got {text!r}")
    return int(text)


@command("test.py", ValueError, RuntimeError)
def main(argv: list[str] | None = None) -> int:
    """Upscale the folders; 0 if every image was upscaled, else 1 with the reasons on stderr."""
    from models.team08_HATFreq.folder import FailedImagesError
    from models.team08_HATFreq.system import choose_device

    args = parse_arguments(argv)
    failed = False
    device = choose_device(args.device)
    model_func, model_dir, model_name = select_model(args)
    for mode, inputs in (("valid", args.valid_dir), ("test", args.test_dir)):
        if inputs:
            try:
                run(model_func, model_name, model_dir, inputs, args.save_dir, mode, device)
            except FailedImagesError as error:  # the other folder is upscaled all the same
                failed = True
                print(f"test.py: error: {error}", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
