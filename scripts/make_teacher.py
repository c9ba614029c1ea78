"""Restore a folder by any x4 network that spandrel opens, as pairs to learn from.

    python -m scripts.make_teacher --teacher DAT_light_x4.pth --data images --out teacher/images
    python train.py --data hr=teacher/images,lr=teacher/images/lr ...

Every image is made smaller by MATLAB's bicubic (`OUT/lr`) and restored whole (`OUT`), cut to multiples of 4. What
exists is skipped: the same command resumes. `OUT/teacher.json` names the teacher; another one is refused.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale
from image_data.sources import expand
from models.team08_HATFreq.image_io import write_png
from models.team08_HATFreq.system import HATFreqError, choose_device
from models.team08_HATFreq.tiling import restore_samples
from utils.files import UserError, command, file_sha256, make_folder, refuse_doubled, write_bytes
from utils.resize import imresize


def open_teacher(file: Path, device: torch.device) -> torch.nn.Module:
    """The network of a weights file.

    Raises:
        UserError: spandrel is missing or does not open the file, or it is not an x4 network of colour images.
    """
    try:
        from spandrel import ImageModelDescriptor, ModelLoader
    except ImportError as error:
        raise UserError("teachers are opened by spandrel: pip install spandrel") from error

    from integrations.spandrel_hatfreq import install

    install()
    if not file.is_file():
        raise UserError(f"--teacher {file} is not a file: name the weights of an x4 network")
    try:
        network = ModelLoader(device=device).load_from_file(file)
    except Exception as error:  # its many loaders raise whatever they stumble over
        raise UserError(f"{file} is not a network that spandrel opens ({error})") from error
    if not isinstance(network, ImageModelDescriptor) or (network.scale, network.input_channels) != (SCALE, 3):
        raise UserError(f"{file} is not an x{SCALE} network of colour images: choose another teacher")
    return network.model.eval()


@command("make_teacher", UserError, HATFreqError)
@torch.inference_mode()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--teacher", type=Path, required=True, help="weights of an x4 network: what spandrel opens, or a HATFreq")
    add("--data", nargs="+", required=True, help="images, named as for train.py")
    add("--out", type=Path, required=True, help="folder for the restorations")
    add("--tile", type=int, default=0, help="side of a tile in LR pixels; 0: whole images (default)")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--threads", type=int, default=0, help="of the CPU; 0: PyTorch's choice")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    network = open_teacher(args.teacher, device)
    images = [image for word in args.data for image in expand(word)]
    refuse_doubled([image.stem for image in images], "restorations are named by them: give each folder its own --out")
    make_folder(args.out)
    make_folder(args.out / "lr")
    record = {"name": args.teacher.stem, "sha256": file_sha256(args.teacher), "tile": args.tile}
    known = args.out / "teacher.json"
    if not known.exists():
        write_bytes(known, (json.dumps(record) + "\n").encode())
    elif (before := json.loads(known.read_text(encoding="utf-8"))) != record:
        raise UserError(f"{known} tells of {before}, this run is of {record}: choose another --out")

    def restore(lq: Tensor) -> Tensor:
        return network(lq.to(device)).float().cpu()

    for image in tqdm(images, unit="image", disable=None):
        result = args.out / f"{image.stem}.png"
        if result.exists():
            continue
        lq = imresize(cut_to_scale(image.read_rgb()), 1 / SCALE)
        write_png(args.out / "lr" / result.name, lq)
        write_png(result, restore_samples(restore, lq, SCALE, args.tile, min(32, args.tile // 2)))
    print(f"{len(images)} images restored in {args.out}, their low-resolution ones in {args.out / 'lr'}")


if __name__ == "__main__":
    sys.exit(main())
