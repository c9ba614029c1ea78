"""A page on which to drop a picture and see it enlarged x4.

    pip install -e .[demo]           # scripts/demo.sh has done so
    python app.py                    # http://127.0.0.1:7860

Pictures stay on this machine: uploads and results lie in a temporary folder that is removed at the end, no statistics
are sent, and a public link is made only with --share.
"""

import argparse
import atexit
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

# Everything that this process writes, Gradio's files and PyTorch's caches included, lies here and goes with it.
FOLDER = Path(tempfile.mkdtemp(prefix="hatfreq-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
if __name__ == "__main__":  # before the slow imports: an exit that removes the folder
    for name in ("SIGTERM", "SIGHUP"):  # the latter when the terminal is closed; Windows has none
        number = getattr(signal, name, None)
        if number and signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, lambda *_: sys.exit(0))
tempfile.tempdir = os.environ["TMPDIR"] = os.environ["GRADIO_TEMP_DIR"] = str(FOLDER)
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # see test.py
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr

from models.team08_HATFreq.cli import default_weights
from models.team08_HATFreq.folder import restore_picture
from models.team08_HATFreq.image_io import (
    IMAGE_SUFFIXES,
    ImageError,
    Picture,
    read_picture,
    size_of,
    write_picture,
    write_png,
)
from models.team08_HATFreq.inference import HATFreqRestorer, load_restorer
from models.team08_HATFreq.system import choose_device
from utils.resize import SCALE, imresize

PASSES = {"one pass": 1, "x8 self-ensemble (a little better, eight times as long)": 8}
BEFORE = ("bicubic", "nearest")
QUEUE = 16  # people who may wait
EXAMPLES = ("astronaut", "chelsea", "coffee", "rocket")  # photographs that scikit-image ships

Restore = Callable[..., tuple[tuple[str, str], str, str]]


def make_page(restorer: HATFreqRestorer, folder: Path, max_pixels: int) -> gr.Blocks:
    """The page; `folder` takes what it shows."""
    with gr.Blocks(title="HATFreq x4", delete_cache=(600, 1800)) as page:
        gr.Markdown(
            "# HATFreq: pictures enlarged x4\n"
            "For sharp pictures that were made smaller. Noise and JPEG blocks are enlarged with everything else."
        )
        with gr.Row():
            with gr.Column(scale=1):
                file = gr.File(label=f"Picture (up to {max_pixels / 1e6:g} megapixels)", file_types=[*IMAGE_SUFFIXES])
                passes = gr.Radio([*PASSES], value=next(iter(PASSES)), label="Quality")
                before = gr.Radio([*BEFORE], value=BEFORE[0], label="Compare with")
                start = gr.Button("Enlarge", variant="primary")
                said = gr.Textbox(label="Result", interactive=False)
                download = gr.DownloadButton("Download PNG", interactive=False)
            with gr.Column(scale=2):
                slider = gr.ImageSlider(
                    label="before | after", type="filepath", format="png", max_height=700, buttons=["fullscreen"]
                )
        gr.Examples([str(path) for path in make_examples(folder / "examples")], inputs=[file], label="Examples")
        restore = restoring(restorer, folder, max_pixels)
        start.click(restore, [file, passes, before], [slider, said, download], concurrency_limit=1)
    page.queue(max_size=QUEUE, api_open=False)
    return page


def restoring(restorer: HATFreqRestorer, folder: Path, max_pixels: int) -> Restore:
    """What the button does, for Gradio: picture, quality and comparison -> the two images, a line, the download."""

    def restore(
        path: str | None,
        passes: str,
        before: str,
        progress: Any = gr.Progress(),  # noqa: B008 - Gradio's way
    ) -> tuple[tuple[str, str], str, Any]:
        picture, name = open_picture(path, max_pixels)
        restorer.ensemble, restorer.progress = PASSES[passes], with_time_left(progress)
        started = time.monotonic()
        try:
            result, _ = restore_picture(restorer, picture)
        except (RuntimeError, FloatingPointError) as error:
            raise gr.Error(f"The picture could not be enlarged: {error}") from error
        finally:
            restorer.progress = None
        target = Path(tempfile.mkdtemp(dir=folder))
        write_picture(target / f"{name}_x4.png", result)
        write_picture(target / f"{before}.png", enlarged(picture, before))
        h, w = result.rgb.shape[:2]
        lost = f"; not kept: {', '.join(picture.metadata.lost)}" if picture.metadata.lost else ""
        line = f"{w // SCALE}x{h // SCALE} -> {w}x{h} in {time.monotonic() - started:.1f} s{lost}"
        shown = str(target / f"{name}_x4.png")
        return (str(target / f"{before}.png"), shown), line, gr.DownloadButton(value=shown, interactive=True)

    return restore


def open_picture(path: str | None, max_pixels: int) -> tuple[Picture, str]:
    """The uploaded picture and its name without suffix; what is wrong with it is shown on the page."""
    if not path:
        raise gr.Error("Choose a picture first.")
    name = Path(path).name
    try:
        height, width = size_of(path)
        if height * width > max_pixels:
            raise gr.Error(
                f"{name} has {width}x{height} pixels; this page takes up to {max_pixels / 1e6:g} million. "
                "Start it with a larger --max_pixels, or use the command hatfreq."
            )
        return read_picture(path), Path(path).stem
    except ImageError as error:
        raise gr.Error(str(error).replace(str(path), name)) from error  # without the server's folders


def enlarged(picture: Picture, method: str) -> Picture:
    """The picture as it is seen without the network, x4, with its profile and alpha."""
    rgb = picture.rgb if picture.rgb.dtype == np.uint8 else (picture.rgb >> 8).astype(np.uint8)
    alpha = picture.alpha
    if alpha is not None:
        alpha = (alpha if alpha.dtype == np.uint8 else (alpha >> 8).astype(np.uint8)).repeat(SCALE, 0).repeat(SCALE, 1)
    rgb = imresize(rgb, SCALE, "clamp") if method == "bicubic" else rgb.repeat(SCALE, 0).repeat(SCALE, 1)
    return replace(picture, rgb=rgb, alpha=alpha)


def with_time_left(progress: Any) -> Callable[[int, int], None]:
    """Shows passes over tiles, and the time that the others will take."""
    started = time.monotonic()

    def show(done: int, total: int) -> None:
        left = (time.monotonic() - started) * (total - done) / done
        progress((done, total), desc=f"about {left:.0f} s left", unit="tiles")

    return show


def make_examples(folder: Path) -> list[Path]:
    """Small versions of photographs that scikit-image ships; none without it."""
    try:
        from skimage import data
    except ImportError:
        return []
    folder.mkdir(parents=True)
    for name in EXAMPLES:
        photograph = getattr(data, name)()
        h, w = (length // SCALE * SCALE for length in photograph.shape[:2])
        write_png(folder / f"{name}.png", imresize(np.ascontiguousarray(photograph[:h, :w]), 1 / SCALE))
    return [folder / f"{name}.png" for name in EXAMPLES]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine only)")
    add("--port", type=int, default=7860, help="default: %(default)s")
    add("--share", action="store_true", help="make a public link through Gradio's server")
    add("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda or cuda:N")
    add("--weights", type=Path, help="other weights: a file of ours or of an official HAT (x4)")
    add("--max_pixels", type=int, default=2_000_000, help="of an upload (default: %(default)s)")
    add("--max_file_size", default="30mb", help="of an upload (default: %(default)s)")
    args = parser.parse_args(argv)
    if not 0 < args.port < 2**16 or args.max_pixels < 1:
        parser.error("--port takes 1 to 65535, and --max_pixels 1 or more")
    return args


def main(argv: list[str] | None = None) -> None:
    """Serve the page until it is stopped."""
    args = parse_arguments(argv)
    try:
        restorer = load_restorer(args.weights or default_weights(), choose_device(args.device), ensemble=1)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"app.py: error: {error}")
    page = make_page(restorer, FOLDER, args.max_pixels)
    try:
        page.launch(
            server_name=args.host,
            server_port=args.port,
            share=args.share,
            max_file_size=args.max_file_size,
            allowed_paths=[str(FOLDER)],
            footer_links=[],
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),  # none from the web
        )
    except OSError:  # whose text names an option that is not ours
        sys.exit(f"app.py: error: cannot listen on port {args.port} of {args.host}, or it is taken: try another --port")
    except ValueError as error:
        sys.exit(f"app.py: error: --host {args.host}, --max_file_size {args.max_file_size}: {error}")


if __name__ == "__main__":
    main()
