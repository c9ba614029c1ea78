"""Train HATFreq (x4) on folders of high-resolution photographs.

    python train.py --data photographs --out runs/light --preset light --steps 20000 --valid_hr targets

The same command resumes a run that was stopped, exactly where its last checkpoint stands. The run folder holds the
settings (`config.json`), the machine (`environment.json`), the log (`log.csv`, `curves.png`), the checkpoints and the
averaged
weights: `last.safetensors`, and `best.safetensors` by validation PSNR.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.team08_HATFreq import HATFreq
from models.team08_HATFreq.images import ImageError
from models.team08_HATFreq.weights import WeightsError, load_weights, save_weights
from training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.config import (
    ConfigError,
    TrainConfig,
    changed_settings,
    check_same,
    check_same_network,
    config_dict,
    model_config,
    parse_arguments,
    write_run_record,
)
from training.curves import draw_curves
from training.data import DataError, Patches, StepBatches, audit, fingerprint, make_loader, to_network
from training.ema import ExponentialMovingAverage
from training.losses import parse_loss, total_loss
from training.progress import REMEDY, Losses, NonFiniteError, Progress, StopSignals, say
from training.schedule import Schedule, planned, resumed
from training.validation import ValidationPair, append_log, digests, load_pairs, start_log, validate

EXPLAINED = (ConfigError, DataError, CheckpointError, ImageError, WeightsError, NonFiniteError, OSError)


def main(argv: list[str] | None = None) -> int:
    """Run the trainer; returns 0, or 128 + n after signal n. Errors end it with a message and status 1."""
    started = time.monotonic()
    config = parse_arguments(argv)
    try:
        return train(config, started)
    except EXPLAINED as error:
        raise SystemExit(f"train.py: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# The run's state
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """All that changes while training, and what it is trained with."""

    config: TrainConfig
    device: torch.device
    model: HATFreq
    ema: ExponentialMovingAverage
    optimiser: torch.optim.Adam
    schedule: Schedule
    data: str = ""  # fingerprint of the training set
    step: int = 0  # steps made
    losses: list[float] = field(default_factory=list)  # since the last row of the log
    best_psnr: float = -math.inf
    seconds: float = 0.0  # of training, in steps, over all starts

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.out)


def start(config: TrainConfig) -> Run:
    """A run before its first step (weights from the seed or from `--init`), or where its folder's checkpoint stands."""
    state, message = load_checkpoint(Path(config.out))
    if state is not None:
        check_same(state["config"], config)
        check_same_network(state.get("network", {}), model_config(config))
    elif config.finish_in:
        raise ConfigError(f"finish_in reshapes a run that has begun, and {config.out} holds no checkpoint")
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    model = HATFreq(model_config(config))
    if config.init and state is None:
        message = load_weights(model, Path(config.init))
    model.to(device).train()
    beta1, beta2 = config.betas
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, betas=(beta1, beta2), fused=True)
    schedule = planned(config.lr, config.min_lr, config.warmup, config.steps)
    run = Run(config, device, model, ExponentialMovingAverage(model, config.ema), optimiser, schedule)
    if state is not None:
        restore(run, state)
    if message:
        say(message)
    return run


def restore(run: Run, state: dict[str, Any]) -> None:
    """Bring a new run to where a checkpoint stands."""
    run.model.load_state_dict(state["model"])
    run.ema.model.load_state_dict(state["ema"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.step, run.data, run.losses = state["step"], state["data"], state["losses"]
    run.best_psnr, run.seconds = state["best_psnr"], state["seconds"]
    run.schedule = resumed(run.schedule, state["schedule"], run.step, run.config.finish_in)


def save(run: Run) -> None:
    """Write the checkpoint and the averaged weights."""
    state = {
        "step": run.step,
        "model": run.model.state_dict(),
        "ema": run.ema.model.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "config": config_dict(run.config),
        "network": asdict(run.model.config),
        "schedule": run.schedule.state(),
        "data": run.data,
        "losses": run.losses,
        "best_psnr": run.best_psnr,
        "seconds": run.seconds,
    }
    save_average(run, "last.safetensors")  # first: a finished run's restart makes no step that would write it again
    save_checkpoint(run.folder, state)


def save_average(run: Run, name: str) -> None:
    """Write the averaged weights with what is needed to know them by."""
    metadata = {"step": str(run.step), "preset": run.config.preset, "model": json.dumps(asdict(run.model.config))}
    save_weights(run.ema.model, run.folder / name, metadata)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def train(config: TrainConfig, started: float) -> int:
    """Set up, resume, train to the end of the schedule or to a stop; returns the exit status."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.backends.cudnn.allow_tf32 = config.precision == "bf16"  # fp32 means fp32, in convolutions too
    run = start(config)
    pairs = load_pairs(config.valid_hr, config.valid_lr)
    patches = prepare_data(run, pairs)
    if run.step >= run.schedule.end:
        say(f"finished: {run.folder} stands at step {run.step} of {run.schedule.end}")
        return 0
    run.folder.mkdir(parents=True, exist_ok=True)
    write_run_record(config, run.model.config, run.folder)
    start_log(run.folder / "log.csv", run.step)
    millions = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    say(f"settings that differ from the defaults: {changed_settings(config)}")
    say(f"{millions:.2f} M parameters on {run.device}, {config.precision}; steps {run.step} to {run.schedule.end}")
    return loop(run, patches, pairs, started)


def prepare_data(run: Run, pairs: list[ValidationPair]) -> Patches:
    """Audit the training set, and on resume check that it is the one that the run began with."""
    config = run.config
    photographs = audit(config.data, config.patch, digests(pairs), config.cache_gb)
    found = fingerprint(photographs)
    if run.data and run.data != found:
        raise DataError(
            f"the training images have changed since {run.folder} began: restore them, or start another --out"
        )
    run.data = found
    pixels = sum(photograph.height * photograph.width for photograph in photographs)
    cached = sum(photograph.pixels is not None for photograph in photographs)
    say(f"{len(photographs)} training images, {pixels / 1e6:.1f} megapixels, {cached} kept decoded")
    return Patches(photographs, config.patch, config.seed)


def loop(run: Run, patches: Patches, pairs: list[ValidationPair], started: float) -> int:
    """Train until the schedule ends, the minutes are over or a signal comes; a checkpoint ends it in each case."""
    config, end = run.config, run.schedule.end
    batches = make_loader(
        patches, StepBatches(run.step, end, config.batch), config.workers, pin_memory=run.device.type == "cuda"
    )
    losses = Losses(run.losses, lambda step: explain_step(run, patches, step), lazy=run.device.type == "cuda")
    with StopSignals() as stop, Progress(run.step, end, config.batch, config.log_every) as progress:
        tick = time.monotonic()
        for lq, gt in batches:
            losses.add(run.step, train_step(run, to_network(lq, run.device), to_network(gt, run.device)))
            seconds = time.monotonic() - tick
            run.seconds += seconds
            progress.show(seconds, losses.latest, run.schedule.lr_at(run.step - 1))
            minutes = (time.monotonic() - started) / 60
            last = run.step == end or bool(stop.received) or 0 < config.max_minutes <= minutes
            validating = run.step % config.valid_every == 0 or run.step == end
            saving = last or run.step % config.save_every == 0
            if validating or saving:
                losses.read()
                check_weights(run, losses.explain)
            if validating:
                record(run, pairs, losses.take_mean(), progress.images_per_second)
            if saving:
                save(run)
            if last:
                break
            tick = time.monotonic()
    say(f"stopped at step {run.step} of {end}; checkpoint in {run.folder}" if run.step < end else f"done: {run.folder}")
    return 128 + stop.received if stop.received else 0


def train_step(run: Run, lq: Tensor, gt: Tensor) -> Tensor:
    """One optimiser step; returns the loss, still on the device. Stochastic depth draws from (seed, step) too."""
    config, device = run.config, run.device
    torch.manual_seed(int(np.random.SeedSequence((config.seed, run.step)).generate_state(1)[0]))
    for group in run.optimiser.param_groups:
        group["lr"] = run.schedule.lr_at(run.step)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        sr = run.model(lq)
    loss = total_loss(parse_loss(config.loss), sr.float(), gt)
    run.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if config.grad_clip:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.grad_clip)
    run.optimiser.step()
    run.ema.update(run.model, run.step)
    run.step += 1
    return loss.detach()


def record(run: Run, pairs: list[ValidationPair], loss: float, images_per_second: float) -> None:
    """Validate the averaged weights (PSNR is nan without a validation set), log a row, keep the best."""
    psnr = validate(run.ema.model, pairs, run.device) if pairs else math.nan
    row = {"step": run.step, "loss": loss, "lr": run.schedule.lr_at(run.step - 1), "psnr": psnr}
    append_log(run.folder / "log.csv", {**row, "images_per_s": images_per_second, "seconds": run.seconds})
    draw_curves(run.folder / "log.csv", run.folder / "curves.png")
    best = psnr > run.best_psnr
    if best:
        run.best_psnr = psnr
        save_average(run, "best.safetensors")
    say(f"step {run.step}: loss {loss:.5f}, PSNR-Y {psnr:.3f} dB{' (best)' if best else ''}")


def check_weights(run: Run, explain: Callable[[int], str]) -> None:
    """Refuse to go on with weights that are not finite: a gradient can overflow under a finite loss."""
    if not all(bool(torch.isfinite(weight).all()) for weight in run.ema.model.parameters()):
        step = run.step - 1
        raise NonFiniteError(f"weights are not finite after step {step}, {explain(step)}; {REMEDY}")


def explain_step(run: Run, patches: Patches, step: int) -> str:
    """Rate and files of a step, for an error."""
    files = ", ".join(patches.files_at(step, run.config.batch))
    return f"lr {run.schedule.lr_at(step):.3g}, files {files}"


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not name.startswith("cuda"):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} asks for CUDA and PyTorch finds none: use --device auto")
    return torch.device(name)


if __name__ == "__main__":
    sys.exit(main())
