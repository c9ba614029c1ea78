"""Carry trained weights over to the blocks of `band_gate`: the old blocks' place is taken by the new ones.

    python -m benchmarks.frequency.carry --weights FILE --photographs FOLDER [--count 60] --out FILE

The new block's path is linear in its last layer and stands beside a 3x3 convolution. Both are fitted to what the
group's convolution and its old block give together (least squares, on the LR of the photographs), with the path's first
layer from the old block; group after group, each on what the changed ones before it give. The gates stand open by a
half everywhere: the new block mixes two equal parts at first, as the old one added them. The file is for the network
of commit e5d0833, whose own block this is; the present one does not open it.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale
from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.network import AttentionGroup, HATFreq
from models.team08_HATFreq.weights import CONFIG, build, load, save_weights
from utils.resize import imresize

from .blocks import BandGate
from .data import to_tensor
from .diagnose import inner, neighbourhoods, solve

SIDE = 3
OPEN = 0.5  # what the gates let through: that share of the path, the rest of the convolution


def carried(model: HATFreq, images: Sequence[Tensor]) -> HATFreq:
    """Put `band_gate` in place of the blocks, as near as the fit comes on these LR images `1 3 h w`; in place."""
    for layer in model.layers:
        recorded: list[tuple[Tensor, Tensor]] = []
        handle = layer.freq.register_forward_hook(lambda _module, x, y, to=recorded: to.append((x[0], y)))
        for image in images:
            model(image)
        handle.remove()
        layer.conv = _fitted(layer, recorded)
        layer.freq = None
    return model


def _fitted(layer: AttentionGroup, recorded: Sequence[tuple[Tensor, Tensor]]) -> BandGate:
    """The block whose convolution and path come nearest to the group's convolution and old block."""
    conv, reduce = layer.conv, layer.freq.reduce
    taps = conv.in_channels * SIDE**2
    size = taps + reduce[0].out_channels + 1  # the neighbourhood, the path's features, a bias
    gram, moment = torch.zeros(size, size).double(), torch.zeros(size, conv.out_channels).double()
    for x, y in recorded:
        x, y = (one.permute(0, 3, 1, 2) for one in (x, y))
        columns = torch.cat([neighbourhoods(x, SIDE).flatten(1), inner(reduce(x))], dim=1)
        columns = F.pad(columns, (0, 1), value=1.0).double()
        gram += columns.t() @ columns
        moment += columns.t() @ inner(y).double()
    found = solve(gram, moment).float().t()
    block = BandGate(conv, transform=True)
    block.path[0].load_state_dict(reduce[0].state_dict())
    conv.weight.copy_((conv.weight + found[:, :taps].view_as(conv.weight)) / (1 - OPEN))
    conv.bias.copy_((conv.bias + found[:, -1]) / (1 - OPEN))  # type: ignore[union-attr]
    block.path[2].weight.copy_(found[:, taps:-1, None, None] / OPEN)
    nn.init.zeros_(block.path[2].bias)
    nn.init.constant_(block.gates.bias, math.atanh(OPEN))
    return block


def named(model: HATFreq) -> dict[str, Tensor]:
    """The weights under the names of a network whose own block is `band_gate`."""
    state = {}
    for name, tensor in model.state_dict().items():
        words = name.split(".")
        if words[2:3] == ["conv"]:
            words[2:4] = ["conv"] if words[3] == "conv" else ["freq", words[3]]
        state[".".join(words)] = tensor
    return state


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Fit, and write the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="weights with blocks of the kind `both`")
    parser.add_argument("--photographs", type=Path, required=True, help="folder of HR photographs to fit on")
    parser.add_argument("--count", type=int, default=60, help="the first so many (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="safetensors to write")
    args = parser.parse_args(argv)
    found = load(args.weights)
    model, line = build(found)
    print(line)
    if model.config.frequency != "both":
        raise SystemExit(
            f"{args.weights} has frequency blocks of the kind {model.config.frequency}: name one with `both`"
        )
    paths = sorted(args.photographs.iterdir())[: args.count] if args.photographs.is_dir() else []
    if not paths:
        raise SystemExit(f"{args.photographs} is not a folder of photographs: give one to --photographs")
    images = [to_tensor([imresize(cut_to_scale(read_rgb(path)), 1 / SCALE)]) for path in paths]
    fitted = f"fitted on the first {len(paths)} photographs of {args.photographs.name}"
    about = {
        "changed_from": found.sha256,
        "changed": f"its frequency blocks carried over to band gates (benchmarks/frequency/carry.py), {fitted}",
        CONFIG: json.dumps({**asdict(model.config), "frequency": "bands"}),
    }
    print(save_weights(named(carried(model.eval(), images)), args.out, about))


if __name__ == "__main__":
    main()
