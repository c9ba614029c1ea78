"""Enlarge photographs x4 with the weights that come with the package.

hatfreq photo.jpg                          # -> photo_x4.png beside it
hatfreq photo.jpg -o large.webp            # PNG, JPEG or WebP by the suffix
hatfreq a.jpg b.png holidays/ -o results/  # several pictures and folders
"""

import argparse
import io
import os.path
import sys
from pathlib import Path

from tqdm import tqdm

from . import __version__
from .folder import RestorationError, passed_over, refuse_inputs, restore_picture, unique_names
from .image_io import OUTPUT_SUFFIXES, ImageError, check_format, list_images, read_picture, write_picture
from .inference import HATFreqRestorer, load_restorer
from .system import choose_device, make_folder


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "hatfreq", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, metavar="IMAGE", help="PNG, JPEG, BMP, TIFF, WebP; or a folder of them")
    add("--version", action="version", version=f"hatfreq {__version__}")
    add("-o", "--output", type=Path, help="a file for one picture, a folder for several (default: NAME_x4.png beside)")
    add("--ensemble", type=int, choices=(1, 8), default=1, help="8: a little better, eight times as long (default: 1)")
    add("--quality", type=int, default=95, metavar="1-100", help="of JPEG and WebP; 100 is lossless WebP (default: 95)")
    add("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda or cuda:N")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="default: %(default)s")
    add("--tile", type=int, metavar="N", help="side of a tile in pixels; 0: whole image (default: what fits)")
    add("--weights", type=Path, help="other weights: a file of ours or of an official HAT (x4)")
    add("--overwrite", action="store_true", help="replace results that exist")
    args = parser.parse_args(argv)
    if not 1 <= args.quality <= 100:
        parser.error("--quality takes 1 to 100")
    return args


def default_weights() -> Path:
    """The weights in the installed package, or else in the repository."""
    here = Path(__file__).parent
    installed = here / "model_zoo"
    return installed if installed.is_dir() else here.parents[1] / "model_zoo" / "team08_HATFreq"


def plan(inputs: list[Path], output: Path | None) -> dict[Path, Path]:
    """Result -> input.

    Raises:
        RestorationError: nothing to restore, or results that would share a name or replace an input.
    """
    files: list[Path] = []
    for entry in inputs:
        matches = list_images(entry) if entry.is_dir() else [entry]
        if not matches:
            raise RestorationError(f"{entry} holds no images (PNG, JPEG, BMP, TIFF or WebP)")
        if entry.is_dir() and (others := passed_over(entry)):
            print(f"{entry}: skipped {others}")
        if entry.is_dir():  # the results of a run before may stand there, too
            made = {f"{path.stem}_x4.png" for path in matches}
            matches = [path for path in matches if path.name not in made]
        files += matches
    results = name_results(files, output)
    refuse_inputs(results, files)
    return results


def name_results(files: list[Path], output: Path | None) -> dict[Path, Path]:
    """Result -> input."""
    if output is None:
        folders: dict[Path, list[Path]] = {}
        for path in files:
            folders.setdefault(path.parent.resolve(), []).append(path)
        named = [unique_names(paths, "_x4.png") for paths in folders.values()]
        return {path.with_name(name): path for one in named for name, path in one.items()}
    if output.suffix.lower() in OUTPUT_SUFFIXES and not output.is_dir():
        if len(files) > 1:
            raise RestorationError(f"{output} is one file and there are {len(files)} pictures: name a folder with -o")
        return {output: files[0]}
    if output.suffix and not output.is_dir():
        raise RestorationError(f"{output}: results can be {', '.join(OUTPUT_SUFFIXES)}, or name a folder")
    return {output / name: path for name, path in unique_names(files, ".png").items()}


def restore_file(restorer: HATFreqRestorer, source: Path, target: Path, quality: int) -> str:
    """Restore one file; returns a line for the screen.

    Raises:
        ImageError, RestorationError, ValueError, OSError: naming the file.
    """
    picture = read_picture(source)
    make_folder(target.parent)  # before the minutes that the network may take
    check_format(target, picture, restorer.scale)
    with tqdm(total=1, desc=source.name, unit="pass", leave=False, disable=not sys.stderr.isatty()) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        restorer.progress = progress
        result, _ = restore_picture(restorer, picture)
    write_picture(target, result, quality)
    lost = f" (not kept: {', '.join(matches)})" if (matches := picture.metadata.lost_in(target)) else ""
    return f"{target}  {result.rgb.shape[1]}x{result.rgb.shape[0]}{lost}"


def main(argv: list[str] | None = None) -> int:
    """Enlarge the pictures named; 0 if all were, else 1 with the reasons on stderr."""
    args = parse_arguments(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what a terminal cannot show
    failed = False
    try:
        files = plan(args.inputs, args.output)
        # os.path's answers no for a name that is too long: that picture is named when its turn comes.
        if there := [target for target in files if os.path.exists(target) and not args.overwrite]:
            if not any(entry.is_dir() for entry in args.inputs):
                raise RestorationError(f"{there[0]} exists: choose another -o, or --overwrite")
            files = {target: source for target, source in files.items() if target not in there}
            print(f"{len(there)} of {len(there) + len(files)} results exist and stay; --overwrite makes them again")
        device = choose_device(args.device)
        weights = args.weights or default_weights()
        restorer = load_restorer(weights, device, None, args.precision, args.tile, ensemble=args.ensemble)
        for target, source in files.items():
            try:
                print(restore_file(restorer, source, target, args.quality))
            except (ImageError, RestorationError, FloatingPointError, ValueError, OSError, MemoryError) as error:
                failed = True  # the other pictures are restored
                named = source.name in str(error) or target.name in str(error)
                print(f"hatfreq: {error if named else f'{source}: {error or type(error).__name__}'}", file=sys.stderr)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"hatfreq: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hatfreq: stopped; what is finished stays", file=sys.stderr)
        return 130
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
