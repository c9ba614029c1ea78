"""What the frequency blocks of trained weights do: their gains, their outputs, and what convolutions make of them.

    python -m benchmarks.frequency.diagnose --weights FILE --bench $SHARED/data/bench

Prints the tables of docs/frequency.md, `Why the present module does not help`. Fits are least squares on every second
image of Set14 and are judged on the others.
"""

import argparse
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from image_data.pairs import Pair, load_pairs
from models.team08_HATFreq.fourier import rfft2
from models.team08_HATFreq.frequency import KNOTS, FrequencyFusion
from models.team08_HATFreq.network import HATFreq
from models.team08_HATFreq.weights import build, load

from .data import to_tensor
from .jobs import score
from .spectra import band_power, power, ring_bands

MARGIN = 8  # pixels left out of fits at the borders, where a convolution sees zeros
RINGS = 6
Images = list[Tensor]
Change = Callable[[int, FrequencyFusion], object]


class Convolution(nn.Module):
    """A k x k convolution that was fitted to a branch."""

    def __init__(self, weight: Tensor, groups: int) -> None:
        super().__init__()
        self.weight, self.groups = weight, groups

    def forward(self, u: Tensor) -> Tensor:
        side = self.weight.shape[-1]
        return F.conv2d(F.pad(u, (side // 2,) * 4, mode="replicate"), self.weight, groups=self.groups)


def neighbourhoods(u: Tensor, side: int) -> Tensor:
    """`1 c h w` -> `pixels c side*side`, without the margin."""
    columns = F.unfold(u, side, padding=side // 2).unflatten(1, (u.shape[1], side * side))
    columns = columns.unflatten(3, u.shape[2:])[..., MARGIN:-MARGIN, MARGIN:-MARGIN]
    return columns[0].flatten(2).permute(2, 0, 1)


def inner(y: Tensor) -> Tensor:
    """`1 c h w` -> `pixels c`, without the margin."""
    return y[0, :, MARGIN:-MARGIN, MARGIN:-MARGIN].flatten(1).t()


def solve(gram: Tensor, moment: Tensor) -> Tensor:
    """Least squares from the normal equations, with a ridge that keeps rounding out."""
    ridge = 1e-6 * gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None] * torch.eye(gram.shape[-1])
    return torch.linalg.solve(gram + ridge.double(), moment)


def fit(inputs: Images, outputs: Images, side: int, depthwise: bool) -> Convolution:
    """The convolution nearest to a branch."""
    gram, moment = torch.zeros(()), torch.zeros(())
    for u, y in zip(inputs, outputs, strict=True):
        columns, target = neighbourhoods(u, side).double(), inner(y).double()
        if depthwise:
            columns = columns.permute(1, 0, 2)  # c pixels taps
            gram = gram + columns.transpose(1, 2) @ columns
            moment = moment + columns.transpose(1, 2) @ target.t()[..., None]
        else:
            columns = columns.flatten(1)
            gram, moment = gram + columns.t() @ columns, moment + columns.t() @ target
    channels = inputs[0].shape[1]
    weight = solve(gram, moment).float()
    weight = weight[..., 0][:, None] if depthwise else weight.t().unflatten(1, (channels, side * side))
    return Convolution(weight.unflatten(-1, (side, side)).contiguous(), channels if depthwise else 1)


def explained(branch: Convolution, inputs: Images, outputs: Images) -> float:
    """The share of a branch's energy that a convolution gives, the mean taken out."""
    left = total = 0.0
    for u, y in zip(inputs, outputs, strict=True):
        target = inner(y)
        left += (inner(branch(u)) - target).square().sum().item()
        total += (target - target.mean(dim=0)).square().sum().item()
    return 1 - left / total


def shift_error(branch: Callable[[Tensor], Tensor], u: Tensor, shift: tuple[int, int]) -> float:
    """How much a branch changes when the image is moved around its border: the relative RMS difference."""
    still = branch(u)
    moved = branch(u.roll(shift, (2, 3))).roll((-shift[0], -shift[1]), (2, 3))
    return ((moved - still).square().mean() / (still - still.mean((2, 3), True)).square().mean()).sqrt().item()


class Recorded:
    """Inputs and outputs of the parts of each group's end, over the images."""

    def __init__(self, model: HATFreq, pairs: Sequence[Pair]) -> None:
        self.blocks = [layer.freq for layer in model.layers]
        if not all(isinstance(b, FrequencyFusion) and b.global_branch and b.window_branch for b in self.blocks):
            raise SystemExit("the weights have no frequency blocks with both branches: nothing to look at")
        self.u: list[Images] = [[] for _ in self.blocks]
        self.tail: list[Images] = [[] for _ in self.blocks]
        self.out: list[Images] = [[] for _ in self.blocks]
        handles = []
        for i, layer in enumerate(model.layers):
            for module, kept in ((layer.freq.reduce, self.u[i]), (layer.conv, self.tail[i])):
                handles.append(module.register_forward_hook(lambda m, x, y, kept=kept: kept.append(y)))
            handles.append(layer.freq.register_forward_hook(lambda m, x, y, i=i: self.out[i].append(channels_first(y))))
        for pair in pairs:
            model(to_tensor([pair.lq]))
        for handle in handles:
            handle.remove()


def channels_first(y: Tensor) -> Tensor:
    """`b h w c` -> `b c h w`."""
    return y.permute(0, 3, 1, 2)


def gains_table(blocks: Sequence[FrequencyFusion]) -> list[str]:
    """How far the learned gains are from the ones that they began with."""
    lines = ["| group | window gains: RMS of gain - 1 | range | global gains: RMS of gain - 1 | range | "]
    lines = [lines[0].rstrip() + " lowest / middle / highest knot |", "|---|---|---|---|---|---|"]
    for i, block in enumerate(blocks):
        window, whole = block.window_branch.gain, block.global_branch.gain
        cells = []
        for gain in (window, whole):
            cells += [f"{(gain - 1).square().mean().sqrt():.3f}", f"{gain.min():.2f} to {gain.max():.2f}"]
        means = whole.mean(dim=0)
        cells.append(" / ".join(f"{means[k]:.2f}" for k in (0, KNOTS // 2, KNOTS - 1)))
        lines.append(f"| {i} | {' | '.join(cells)} |")
    return lines


def spectra_table(recorded: Recorded) -> list[str]:
    """The block's output by frequency, against that of the convolution beside it."""
    edges = np.linspace(0, 0.5**0.5, RINGS)
    lines = ["| group | all | " + " | ".join(f"{edge:.2f}" for edge in edges) + " |", "|" + "---|" * (RINGS + 2)]
    for i, (outs, tails) in enumerate(zip(recorded.out, recorded.tail, strict=True)):
        energy = torch.zeros(2, RINGS)
        for out, tail in zip(outs, tails, strict=True):
            rings = ring_bands(RINGS, out)
            for row, y in enumerate((out, tail)):
                y = y - y.mean((2, 3), True)
                energy[row] += band_power(power(rfft2(y)), rings).mean(dim=(0, 1)) * rings.sum(dim=1)
        ratio = 10 * (energy[0] / energy[1]).log10()
        total = 10 * (energy[0].sum() / energy[1].sum()).log10()
        lines.append(f"| {i} | {total:+.1f} | {' | '.join(f'{one:+.1f}' for one in ratio.tolist())} |")
    return lines


def fits_table(recorded: Recorded) -> tuple[list[str], dict[tuple[int, str], Convolution]]:
    """How much of each branch a convolution of its input gives; the 5x5 ones are returned as well."""
    lines = ["| group | branch | 1x1 | 3x3 | 5x5 | 7x7 |", "|---|---|---|---|---|---|"]
    fitted = {}
    for i, block in enumerate(recorded.blocks):
        u = recorded.u[i]
        for name, branch, depthwise in (
            ("window, each channel from itself", block.window_branch, True),
            ("window less its input", lambda x, b=block.window_branch: b(x) - x, True),
            ("global, from all channels", block.global_branch, False),
        ):
            inputs = [x - x.mean((2, 3), True) for x in u] if name.startswith("global") else u
            outputs, cells = [branch(x) for x in inputs], []
            for side in (1, 3, 5, 7):
                if side == 7 and not depthwise:
                    cells.append("")
                    continue
                found = fit(inputs[::2], outputs[::2], side, depthwise)
                cells.append(f"{explained(found, inputs[1::2], outputs[1::2]):.1%}")
                if side == 5:
                    fitted[i, name.split(",")[0]] = found
            lines.append(f"| {i} | {name} | {' | '.join(cells)} |")
    return lines, fitted


def shifts_table(recorded: Recorded) -> list[str]:
    """The branches under cyclic shifts of their input, mean over the images."""
    shifts = [(1, 0), (3, 5), (8, 8)]
    lines = ["| group | branch | " + " | ".join(map(str, shifts)) + " |", "|---|---|---|---|---|"]
    for i, block in enumerate(recorded.blocks):
        for name, branch in (("window", block.window_branch), ("global", block.global_branch)):
            errors = [np.mean([shift_error(branch, u, shift) for u in recorded.u[i]]) for shift in shifts]
            lines.append(f"| {i} | {name} | {' | '.join(f'{error:.1%}' for error in errors)} |")
    return lines


class Centred(nn.Module):
    """A fitted global branch: it takes the mean out, as the branch does."""

    def __init__(self, convolution: Convolution) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, u: Tensor) -> Tensor:
        return self.convolution(u - u.mean((2, 3), True))


class Nothing(nn.Module):
    """A branch that is left out."""

    def forward(self, u: Tensor) -> Tensor:
        return torch.zeros_like(u)


def replacements(fitted: dict[tuple[int, str], Convolution]) -> dict[str, Change]:
    """What is changed in every block for the last table."""

    def ones(branch: str) -> Change:
        return lambda i, block: getattr(block, branch).gain.fill_(1.0)

    def put(branch: str, make: Callable[[int], nn.Module]) -> Change:
        return lambda i, block: setattr(block, branch, make(i))

    return {
        "as trained": lambda i, block: None,
        "window gains set to one": ones("window_branch"),
        "global gains set to one": ones("global_branch"),
        "window branch replaced by the fitted depthwise 5x5": put("window_branch", lambda i: fitted[i, "window"]),
        "global branch replaced by the fitted 5x5": put("global_branch", lambda i: Centred(fitted[i, "global"])),
        "without the window branch": put("window_branch", lambda i: Nothing()),
        "without the global branch": put("global_branch", lambda i: Nothing()),
        "without the block": lambda i, block: [parameter.zero_() for parameter in block.fuse.parameters()],
    }


def psnr_table(model: HATFreq, changes: dict[str, Change], sets: dict[str, list[Pair]]) -> list[str]:
    """PSNR-Y with parts of the blocks changed and nothing trained after it."""
    lines = [f"| blocks | {' | '.join(sets)} |", "|" + "---|" * (len(sets) + 1)]
    first: dict[str, float] = {}
    for name, change in changes.items():
        changed = deepcopy(model)
        for i, layer in enumerate(changed.layers):
            change(i, layer.freq)
        found = {one: float(np.mean(list(s["images"].values()))) for one, s in score(changed, sets).items()}
        first = first or found
        cells = [f"{v:.3f} ({v - first[one]:+.3f})" if name != "as trained" else f"{v:.3f}" for one, v in found.items()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="weights with frequency blocks (`both`)")
    parser.add_argument("--bench", type=Path, required=True, help="folder with Set5 and Set14")
    args = parser.parse_args(argv)
    model, _ = build(load(args.weights))
    model.eval()
    sets = {name: load_pairs(args.bench / name / "HR", args.bench / name / "LRbicx4") for name in ("Set5", "Set14")}
    recorded = Recorded(model, sets["Set14"])
    fits, fitted = fits_table(recorded)
    for lines in (gains_table(recorded.blocks), spectra_table(recorded), fits, shifts_table(recorded)):
        print("\n".join(lines), end="\n\n", flush=True)
    print("\n".join(psnr_table(model, replacements(fitted), sets)))


if __name__ == "__main__":
    main()
