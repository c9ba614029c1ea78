"""A teacher's restorations of training photographs, to be learned from (`train.py --data hr=FOLDER,teacher=OUT`).

    python -m scripts.make_teacher --teacher DAT_light_x4.pth --data photographs --out teacher/photographs

Every photograph is made smaller by MATLAB's bicubic and restored whole by the teacher: any x4 network that spandrel
opens, or a HATFreq. The results have the photograph's size (cut to a multiple of 4) and its name with `.png`. The same
command resumes; the record (`record.jsonl`) holds the teacher's sha256, and results of another teacher are refused.
"""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale
from image_data.sources import expand
from models.team08_HATFreq.folder import Progress, RestorationError, restore_files, unique_names
from models.team08_HATFreq.image_io import ImageError
from models.team08_HATFreq.system import choose_device
from models.team08_HATFreq.tiling import restore_samples
from utils.resize import imresize


class Teacher:
    """Photograph -> its restoration by a teacher from its own low-resolution image; see `folder.Restorer`."""

    scale = 1  # of the result to the photograph
    progress: Progress | None = None

    def __init__(self, file: Path, device: torch.device, tile: int) -> None:
        """Open a teacher.

        Args:
            file: its weights.
            device: where it computes.
            tile: side of a tile in LR pixels; 0 for whole images.

        Raises:
            RestorationError: spandrel does not open the file, or it is not an x4 network of colour images.
            OSError: there is no such file.
        """
        try:
            from spandrel import ImageModelDescriptor, ModelLoader
        except ImportError as error:
            raise RestorationError(
                "teachers are opened by spandrel: pip install -c requirements.txt spandrel"
            ) from error

        from integrations.spandrel_hatfreq import install

        install()
        if not file.is_file():
            raise FileNotFoundError(f"--teacher {file} is not a file: name the weights of an x4 network")
        try:
            found = ModelLoader(device=device).load_from_file(file)
        except Exception as error:  # its many loaders raise whatever they stumble over
            raise RestorationError(f"{file} is not a network that spandrel opens ({error})") from error
        if not isinstance(found, ImageModelDescriptor) or (found.scale, found.input_channels) != (SCALE, 3):
            raise RestorationError(f"{file} is not an x{SCALE} network of colour images: choose another teacher")
        self.network, self.device, self.tile = found.eval(), device, tile
        self.settings: dict[str, Any] = {
            "teacher": file.name,
            "teacher_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            "architecture": found.architecture.name,
            "degradation": "MATLAB bicubic, border mirror",
            "tile": tile,
        }

    def __call__(self, rgb: NDArray[Any]) -> tuple[NDArray[Any], dict[str, Any]]:
        """uint8 `h w 3` -> uint8 `h w 3`, its sides cut to multiples of 4."""
        if rgb.dtype != np.uint8:
            raise ImageError("the degradation is defined for 8-bit images: convert the 16-bit one first")
        target = cut_to_scale(rgb)
        if not target.size:
            raise ImageError(f"it has less than {SCALE} pixels a side")
        sr = restore_samples(self._forward, imresize(target, 1 / SCALE), SCALE, self.tile, min(32, self.tile // 2))
        assert sr.shape == target.shape
        return sr, {}

    @torch.inference_mode()
    def _forward(self, lq: Tensor) -> Tensor:
        return self.network(lq.to(self.device)).float().cpu()


def photographs(words: list[str]) -> dict[str, Path]:
    """Result -> photograph.

    Raises:
        DataError, RestorationError: nothing there, images inside tar shards, or several of one name.
    """
    files = [image for word in words for image in expand(word)]
    if members := [image.name for image in files if image.member]:
        raise RestorationError(f"{members[0]} lies in a tar shard: unpack it, teachers are made from files")
    return unique_names([image.path for image in files], ".png")


def main(argv: list[str] | None = None) -> int:
    """Make the restorations; 0, or 1 with the reasons on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="weights of an x4 network: what spandrel opens, or a HATFreq")
    add("--data", nargs="+", required=True, help="photographs: folders, lists or files, as for train.py")
    add("--out", type=Path, required=True, help="folder for the restorations")
    add("--tile", type=int, default=0, help="side of a tile in LR pixels; 0: whole images (default)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--threads", type=int, default=0, help="of the CPU; 0: PyTorch's choice")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        device = choose_device(args.device)
        restore_files(Teacher(args.teacher, device, args.tile), photographs(args.data), args.out, device=device)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"make_teacher: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("make_teacher: stopped; the same command resumes", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
