"""The moving average of the weights, which is what is validated and shipped."""

from copy import deepcopy

import torch
from torch import nn


class ExponentialMovingAverage:
    """Keeps `model`, a copy whose parameters follow those of a network in training.

    The decay rises with the step as (1 + t) / (10 + t) up to its final value, so that the average of the first steps
    does not lag behind at the random start.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = deepcopy(network).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """The decay after the step with this number; the first is 0."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move the average towards the network's parameters, after the step with this number."""
        torch._foreach_lerp_(list(self.model.parameters()), list(network.parameters()), 1 - self.decay_at(step))
