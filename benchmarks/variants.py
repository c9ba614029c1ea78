"""Trainings that train.py does not offer, for benchmarks.budget: train.py with one part replaced.

    python -m benchmarks.variants muon WORDS OF TRAIN.PY
    python -m benchmarks.variants features TEACHER WORDS OF TRAIN.PY

`muon` updates the matrices of the attention blocks by Muon, all other weights by Adam. `features` adds to the loss how
far the network's features are from those of the teacher, a network that spandrel opens.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train
from scripts.make_teacher import Teacher

SMALLEST = 16  # side of a matrix; tables of position biases have a column a head
AFFINITY_WEIGHT = 0.1  # a fifth of L1, at the shipped weights


class MuonAndAdam(torch.optim.Adam):
    """Muon for matrices, Adam for all other weights, both at one rate; for train.py's use of Adam.

    Source: K. Jordan et al., 2024; the rate is matched to Adam's as in J. Liu et al., arXiv 2502.16982.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, **settings: Any) -> None:
        weights = [weight for group in groups for weight in group["params"]]
        matrices = [weight for weight in weights if weight.ndim == 2 and min(weight.shape) >= SMALLEST]
        chosen = set(map(id, matrices))
        super().__init__([weight for weight in weights if id(weight) not in chosen], lr=lr, **settings)
        self.muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    def step(self, closure: Any = None) -> Any:
        for group in self.muon.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        self.muon.step()
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        self.muon.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"adam": super().state_dict(), "muon": self.muon.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["adam"])
        self.muon.load_state_dict(state_dict["muon"])


def affinity(features: Tensor) -> Tensor:
    """Cosines between the features of all pairs of positions: `b c h w` -> `b hw hw`.

    Source: Z. He et al., "FAKD: feature-affinity based knowledge distillation", ICIP 2020.
    """
    flat = F.normalize(features.float().flatten(2), dim=1)
    return flat.transpose(1, 2) @ flat


def with_features(
    teacher: nn.Module, train_step: Callable[..., Tensor], loss: Callable[..., Tensor]
) -> tuple[Any, Any]:
    """train.py's step and loss, with the distance of the last features' affinities from the teacher's added."""
    seen: dict[str, Tensor] = {}
    inputs: list[Tensor] = []

    def keep(name: str, network: nn.Module) -> None:
        network.get_submodule("conv_after_body").register_forward_hook(lambda *found: seen.update({name: found[2]}))

    keep("teacher", teacher)
    hooked: list[nn.Module] = []

    def step(run: Any, parts: Any) -> Tensor:
        if not hooked:
            hooked.append(run.model)
            keep("student", run.model)
            run.model.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        return train_step(run, parts)

    def total(weights: Any, sr: Tensor, gt: Tensor) -> Tensor:
        with torch.no_grad():
            teacher(inputs.pop())
        distance = F.l1_loss(affinity(seen["student"]), affinity(seen["teacher"]))
        return loss(weights, sr, gt) + AFFINITY_WEIGHT * distance

    return step, total


def main(argv: list[str]) -> int:
    """Train; the exit status of train.py."""
    if argv[:1] == ["muon"]:
        torch.optim.Adam = MuonAndAdam  # type: ignore[misc]
        return train.main(argv[1:])
    if argv[:1] == ["features"] and len(argv) > 1:
        teacher = Teacher(Path(argv[1]), torch.device("cpu"), tile=0).network.model
        train.train_step, train.total_loss = with_features(teacher, train.train_step, train.total_loss)
        return train.main(argv[2:])
    raise SystemExit(__doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
