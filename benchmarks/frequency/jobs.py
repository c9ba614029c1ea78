"""One training: a candidate or a control with a seed, from a shared start; it resumes, and its score is kept.

A job's folder holds its checkpoint while it runs and its weights afterwards. Its result is a file of the repository, so
that a machine goes on where another stopped.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.common import cpu_name
from image_data.pairs import Pair
from models.team08_HATFreq import PRESETS, HATFreq, override
from models.team08_HATFreq.fourier import rfft2
from models.team08_HATFreq.system import atomic_write, write_bytes
from utils.metrics import BORDER, psnr_y, rgb_to_y

from .blocks import attach
from .data import batch, to_tensor

SHAPES: dict[str, dict[str, Any]] = {
    "narrow": {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 2)},  # for many runs on a CPU
    "light": {},
}
SAVE_EVERY = 250  # steps
BANDS, HIGHEST = 10, 0.5  # of the error's spectrum, cycles/pixel of the HR image


@dataclass(frozen=True)
class Job:
    """What a training depends on.

    Attributes:
        candidate: a candidate or `none`.
        control: its control instead.
        seed: of the start and of the patches.
        shape: `narrow` or `light`.
        steps: of Adam.
        patch: LR pixels a side.
        patches: a step.
        place: of the blocks (`blocks.attach`).
        frequency_loss: weight of the mean amplitude of the error's spectrum, added to L1.
    """

    candidate: str
    control: bool = False
    seed: int = 0
    shape: str = "narrow"
    steps: int = 1500
    patch: int = 32
    patches: int = 8
    place: str = "tail"
    frequency_loss: float = 0.0

    @property
    def name(self) -> str:
        """Of its folder."""
        words = [self.candidate + ("-control" if self.control else ""), self.shape, f"seed{self.seed}"]
        words += [f"{self.steps}x{self.patches}x{self.patch}", self.place]
        return "_".join([*words, f"loss{self.frequency_loss:g}"] if self.frequency_loss else words)

    @property
    def lr(self) -> float:
        """Peak rate."""
        return 2e-3 if self.shape == "narrow" else 1e-3

    def lr_at(self, step: int) -> float:
        """Linear warm-up over a twentieth of the steps, then half a cosine to 0."""
        warmup = max(1, self.steps // 20)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        return self.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup))) / 2


def build(job: Job) -> HATFreq:
    """The network at its start: HAT's weights are those of every job of the seed, and its results too."""
    torch.manual_seed(job.seed)
    model = HATFreq(override(PRESETS["light"], {**SHAPES[job.shape], "frequency": "none"}))
    torch.manual_seed(job.seed + 1_000_000)  # a candidate and its control have the same fresh weights
    return attach(model, job.candidate, job.control, job.place)


def run(job: Job, work: Path, results: Path, pool: Sequence[Pair], sets: dict[str, list[Pair]]) -> dict[str, Any]:
    """Train and score, from the checkpoint if there is one; the kept result if the job is finished.

    Args:
        work: folder of checkpoints and weights.
        results: folder of results, one file a job.
    """
    folder, kept = work / job.name, results / f"{job.name}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    model, seconds, losses = _train(job, folder / "checkpoint.pt", pool)
    began = time.process_time()
    scores = score(model, sets)
    result = {
        "job": asdict(job),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "train_cpu_seconds": round(seconds, 1),
        "score_cpu_seconds": round(time.process_time() - began, 1),
        "machine": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "loss": float(np.mean(losses)),
        "sets": scores,
    }
    torch.save(model.state_dict(), folder / "weights.pt")
    results.mkdir(parents=True, exist_ok=True)
    write_bytes(kept, f"{json.dumps(result)}\n".encode())
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    return result


def _train(job: Job, checkpoint: Path, pool: Sequence[Pair]) -> tuple[HATFreq, float, list[float]]:
    """The averaged network, the CPU seconds of all steps, and the losses of the last hundred."""
    model, average = build(job).train(), build(job).eval().requires_grad_(False)
    optimiser = torch.optim.Adam(model.parameters(), lr=job.lr, betas=(0.9, 0.99), fused=True)
    first, before, losses = 0, 0.0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        first, before, losses = state["step"], state["seconds"], state["losses"]
    began = time.process_time()
    for step in range(first, job.steps):
        lq, gt = batch(pool, job.seed, step, job.patches, job.patch)
        losses = [*losses[-99:], _step(job, model, optimiser, step, lq, gt)]
        decay = min(0.99, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if (step + 1) % SAVE_EVERY == 0:
            state = {"model": model.state_dict(), "average": average.state_dict(), "step": step + 1, "losses": losses}
            state |= {"optimiser": optimiser.state_dict(), "seconds": before + time.process_time() - began}
            with atomic_write(checkpoint) as file:
                torch.save(state, file)
    return average, before + time.process_time() - began, losses


def _step(job: Job, model: nn.Module, optimiser: torch.optim.Optimizer, step: int, lq: Tensor, gt: Tensor) -> float:
    for group in optimiser.param_groups:
        group["lr"] = job.lr_at(step)
    error = model(lq) - gt
    loss = error.abs().mean()
    if job.frequency_loss:
        amplitude = (rfft2(error).square().sum(dim=-1) + 1e-12).sqrt()
        loss = loss + job.frequency_loss * amplitude.mean()
    if not torch.isfinite(loss):
        raise FloatingPointError(f"{job.name}: the loss of step {step} is {loss.item()}")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return loss.item()


@torch.inference_mode()
def score(model: nn.Module, sets: dict[str, list[Pair]]) -> dict[str, dict[str, Any]]:
    """PSNR-Y of every image (whole, one pass, rounded to uint8) and the mean energy of the error in each band."""
    scores: dict[str, dict[str, Any]] = {}
    for name, pairs in sets.items():
        images, bands = {}, []
        for pair in pairs:
            sr = model(to_tensor([pair.lq]))[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
            images[pair.name] = round(psnr_y(sr, pair.target, BORDER), 4)
            bands.append(error_bands(sr, pair.target))
        scores[name] = {"images": images, "bands": [float(f"{one:.5g}") for one in np.mean(bands, axis=0)]}
    return scores


def error_bands(sr: NDArray[np.uint8], hr: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Energy of the error of Y in each band of radial frequency, under a Hann window: `BANDS`."""
    error = (rgb_to_y(sr) - rgb_to_y(hr))[BORDER:-BORDER, BORDER:-BORDER]
    h, w = error.shape
    window = np.hanning(h)[:, None] * np.hanning(w)[None]
    powers = np.abs(np.fft.fft2(error * window)) ** 2 / (h * w * np.sum(window**2))
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None])
    return np.histogram(radius, bins=np.linspace(0, HIGHEST, BANDS + 1), weights=powers)[0]
