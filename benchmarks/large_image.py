"""Peak memory and time of test.py on a small and a large image: what grows with the image, and what does not.

    python benchmarks/large_image.py --out benchmarks/results/large_image.md

`light`, single pass, on the CPU: a 750x500 and a 3000x2000 image (scikit-image's astronaut, enlarged) at one tile size
and with `--tile auto`, each in a process of its own. The images' own size is the samples of input and result, 3 and
48 bytes a LR pixel. The large image takes minutes.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import cv2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_sets import machine, run_measured
from benchmarks.results_file import publish
from models.team08_HATFreq.image_io import write_png

COLUMNS = ["tile", "image", "cpu_seconds", "peak_mb", "growth_mb", "own_growth_mb"]
OWN = 3 * (1 + 16)  # bytes of samples a LR pixel


def measure(width: int, height: int, tile: str, ensemble: int) -> tuple[float, int]:
    """Seconds of CPU and peak resident bytes of test.py on one image."""
    from skimage.data import astronaut

    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "LR").mkdir()
        image = cv2.resize(astronaut(), (width, height), interpolation=cv2.INTER_CUBIC)
        write_png(Path(scratch) / "LR" / "a.png", image)
        words = ["test.py", "--test_dir", f"{scratch}/LR", "--save_dir", f"{scratch}/out", "--device", "cpu"]
        words += ["--preset", "light", "--tile", tile, "--ensemble", str(ensemble)]
        done = run_measured(words)
    return done.cpu_seconds, done.peak


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["750x500", "3000x2000"], help="LR width x height, small first")
    parser.add_argument("--tiles", nargs="+", default=["256", "auto"], help="values of --tile")
    parser.add_argument("--ensemble", type=int, choices=(1, 8), default=1, help="1: single pass (default); 8")
    parser.add_argument("--out", type=Path, help="Markdown file to write; a CSV is written beside it")
    args = parser.parse_args(argv)
    rows = []
    lines = [
        "| tile | LR image | CPU seconds | peak, MB | growth, MB | the images' own, MB |",
        "|---|---|---|---|---|---|",
    ]
    for tile in args.tiles:
        first: tuple[int, int] | None = None
        for size in args.sizes:
            width, height = map(int, size.split("x"))
            seconds, peak = measure(width, height, tile, args.ensemble)
            first = first or (peak, width * height)
            growth, own = (peak - first[0]) / 1e6, OWN * (width * height - first[1]) / 1e6
            rows.append([tile, size, round(seconds, 1), round(peak / 1e6, 1), round(growth, 1), round(own, 1)])
            lines.append(f"| {tile} | {size} | {seconds:.1f} | {peak / 1e6:.0f} | {growth:.0f} | {own:.0f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    passes = "x8 ensemble" if args.ensemble == 8 else "single pass"
    text = "\n".join([*lines, "", f"`light`, fp32, {passes}; tiles overlap by 32", machine()]) + "\n"
    publish(text, args.out, COLUMNS, rows)


if __name__ == "__main__":
    main()
