"""Take the frequency blocks out of trained weights: each becomes part of the 3x3 convolution beside it.

    python -m benchmarks.frequency.fold --weights FILE --photographs FOLDER [--count 40] --out FILE

A block's output is fitted by a 3x3 convolution of its input (least squares, on the LR of the photographs), which is
added to the group's own; group after group, each on what the changed ones before it give. The result is a plain HAT:
a start for other blocks, and far nearer to the trained network than one whose blocks are left out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale
from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.network import AttentionGroup, HATFreq, override
from models.team08_HATFreq.weights import build, load, save_weights
from utils.resize import imresize

from .data import to_tensor
from .diagnose import inner, neighbourhoods, solve

SIDE = 3


def folded(model: HATFreq, images: Sequence[Tensor]) -> HATFreq:
    """The plain HAT that is nearest to a network with frequency blocks, on these LR images `1 3 h w`."""
    for layer in model.layers:
        recorded: list[tuple[Tensor, Tensor]] = []
        handle = layer.freq.register_forward_hook(lambda _module, x, y, to=recorded: to.append((x[0], y)))
        for image in images:
            model(image)
        handle.remove()
        _add_to_convolution(layer, recorded)
        layer.freq = None
    plain = HATFreq(override(model.config, {"frequency": "none"})).eval()
    plain.load_state_dict(model.state_dict())
    return plain


def _add_to_convolution(layer: AttentionGroup, recorded: Sequence[tuple[Tensor, Tensor]]) -> None:
    conv: nn.Conv2d = layer.conv
    size = conv.in_channels * SIDE**2 + 1  # and a bias
    gram, moment = torch.zeros(size, size).double(), torch.zeros(size, conv.out_channels).double()
    for x, y in recorded:
        x, y = (one.permute(0, 3, 1, 2) for one in (x, y))
        columns = F.pad(neighbourhoods(x, SIDE).flatten(1), (0, 1), value=1.0).double()
        gram += columns.t() @ columns
        moment += columns.t() @ inner(y).double()
    found = solve(gram, moment).float()
    conv.weight += found[:-1].t().view_as(conv.weight)
    conv.bias += found[-1]  # type: ignore[operator]


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Fold, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="weights with frequency blocks")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of HR photographs to fit on")
    parser.add_argument("--count", type=int, default=40, help="the first so many (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="safetensors to write")
    args = parser.parse_args(argv)
    found = load(args.weights)
    model, line = build(found)
    print(line)
    if model.config.frequency == "none":
        raise SystemExit(f"{args.weights} has no frequency blocks: nothing to fold")
    paths = sorted(args.photographs.iterdir())[: args.count] if args.photographs.is_dir() else []
    if not paths:
        raise SystemExit(f"{args.photographs} is not a folder of photographs: give one to --photographs")
    images = [to_tensor([imresize(cut_to_scale(read_rgb(path)), 1 / SCALE)]) for path in paths]
    fitted = f"fitted on the first {len(paths)} photographs of {args.photographs.name}"
    about = {
        "changed_from": found.sha256,
        "changed": f"its frequency blocks folded into the convolutions (benchmarks/frequency/fold.py), {fitted}",
    }
    print(save_weights(folded(model.eval(), images), args.out, about))


if __name__ == "__main__":
    main()
