"""Train HATFreq (x4) on folders of high-resolution photographs.

    python train.py --data photographs --out runs/light --preset light --steps 20000 --valid_hr targets
    torchrun --standalone --nproc_per_node 8 train.py ...        # the same on the GPUs of a machine

The same command resumes a run that was stopped, exactly where its last checkpoint stands. The run folder holds the
settings (`config.json`), the machine (`environment.json`), the log (`log.csv`, `curves.png`), the checkpoints and the
averaged
weights: `last.safetensors`, and `best.safetensors` by validation PSNR.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
from training.data import DataError, Patches, StepBatches, audit, by_step, fingerprint, make_loader, to_network
from training.distributed import World, joined
from training.ema import ExponentialMovingAverage
from training.losses import parse_loss, total_loss
from training.progress import REMEDY, Losses, NonFiniteError, Progress, StopSignals, say
from training.schedule import Schedule, planned, resumed
from training.validation import ValidationPair, append_log, digests, load_pairs, start_log, validate

TIMED_OUT = 255  # beyond every signal's number
EXPLAINED = (ConfigError, DataError, CheckpointError, ImageError, WeightsError, NonFiniteError, OSError)


def main(argv: list[str] | None = None) -> int:
    """Run the trainer; returns 0, or 128 + n after signal n. Errors end it with a message and status 1."""
    started = time.monotonic()
    config = parse_arguments(argv)
    try:
        with joined(config.device) as world:
            if not world.main:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process: only one speaks
            return train(config, world, started)
    except EXPLAINED as error:
        raise SystemExit(f"train.py: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# The run's state
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """All that changes while training, and what it is trained with."""

    config: TrainConfig
    world: World
    model: HATFreq
    network: nn.Module  # the model, wrapped where several processes train it together
    ema: ExponentialMovingAverage
    optimiser: torch.optim.Adam
    schedule: Schedule
    data: str = ""  # fingerprint of the training set
    step: int = 0  # steps made
    losses: list[float] = field(default_factory=list)  # since the last row of the log
    best_psnr: float = -math.inf
    seconds: float = 0.0  # of training, in steps, over all starts

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.world.device

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.out)


def start(config: TrainConfig, world: World) -> Run:
    """A run before its first step (weights from the seed or from `--init`), or where its folder's checkpoint stands."""
    state, message = world.from_main(lambda: load_checkpoint(Path(config.out)))
    if state is not None:
        check_same(state["config"], config)
        check_same_network(state.get("network", {}), model_config(config))
    elif config.finish_in:
        raise ConfigError(f"finish_in reshapes a run that has begun, and {config.out} holds no checkpoint")
    torch.manual_seed(config.seed)
    model = HATFreq(model_config(config))
    if config.init and state is None:
        message = load_weights(model, Path(config.init))
    model.to(world.device).train()
    beta1, beta2 = config.betas
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, betas=(beta1, beta2), fused=True)
    schedule = planned(config.lr, config.min_lr, config.warmup, config.steps)
    run = Run(config, world, model, model, ExponentialMovingAverage(model, config.ema), optimiser, schedule)
    if state is not None:
        restore(run, state)
    if world.size > 1:
        run.network = DistributedDataParallel(model, [world.device] if world.device.type == "cuda" else None)
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
    """Write the checkpoint and the averaged weights, in the main process."""
    if not run.world.main:
        return
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


def train(config: TrainConfig, world: World, started: float) -> int:
    """Set up, resume, train to the end of the schedule or to a stop; returns the exit status."""
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.backends.cudnn.allow_tf32 = config.precision == "bf16"  # fp32 means fp32, in convolutions too
    micro, passes = world.share(config.batch, config.micro_batch)
    run = start(config, world)
    pairs = load_pairs(config.valid_hr, config.valid_lr)
    patches = prepare_data(run, pairs)
    if run.step >= run.schedule.end:
        say(f"finished: {run.folder} stands at step {run.step} of {run.schedule.end}")
        return 0
    world.from_main(lambda: open_folder(run))
    millions = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    say(f"settings that differ from the defaults: {changed_settings(config)}")
    say(f"{millions:.2f} M parameters on {run.device}, {config.precision}; steps {run.step} to {run.schedule.end}")
    say(f"a step: {config.batch} patches = {world.size} process(es) x {passes} pass(es) x {micro}")
    return loop(run, patches, pairs, StepBatches(run.step, run.schedule.end, micro, passes, world.rank), started)


def open_folder(run: Run) -> None:
    """Make the run folder, with its record and its log up to the run's step."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_run_record(run.config, run.model.config, run.folder)
    start_log(run.folder / "log.csv", run.step)


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


def loop(run: Run, patches: Patches, pairs: list[ValidationPair], keys: StepBatches, started: float) -> int:
    """Train until the schedule ends, the minutes are over or a signal comes; a checkpoint ends it in each case."""
    config, world, end, lazy = run.config, run.world, run.schedule.end, run.device.type == "cuda"
    batches = make_loader(patches, keys, config.workers, pin_memory=lazy)
    losses = Losses(run.losses, lambda step: explain_step(run, patches, step), lazy)
    with StopSignals() as stop, Progress(run.step, end, config.batch, config.log_every, not world.main) as progress:
        tick = time.monotonic()
        for parts in by_step(batches, keys.passes):
            losses.add(run.step, train_step(run, parts))
            seconds = time.monotonic() - tick
            run.seconds += seconds
            progress.show(seconds, losses.latest, run.schedule.lr_at(run.step - 1))
            timed_out = 0 < config.max_minutes <= (time.monotonic() - started) / 60
            stopped = world.largest(stop.received or (TIMED_OUT if timed_out else 0), run.step)
            last = run.step == end or bool(stopped)
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
    return 0 if stopped in (0, TIMED_OUT) else 128 + stopped


def train_step(run: Run, parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One optimiser step over this process's parts of the global batch, uint8 (lq, gt) each.

    Returns the loss over the whole batch, still on the device. Every gradient is the mean over parts and processes, so
    the step does not depend on how the batch is shared out; stochastic depth, which does, draws from (seed, step,
    rank).
    """
    config, world = run.config, run.world
    torch.manual_seed(int(np.random.SeedSequence((config.seed, run.step, world.rank)).generate_state(1)[0]))
    for group in run.optimiser.param_groups:
        group["lr"] = run.schedule.lr_at(run.step)
    run.optimiser.zero_grad(set_to_none=True)
    weights, total = parse_loss(config.loss), torch.zeros((), device=world.device)
    for number, (lq, gt) in enumerate(parts):
        with gradients_shared(run.network, number == len(parts) - 1):
            with torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                sr = run.network(to_network(lq, world.device))
            loss = total_loss(weights, sr.float(), to_network(gt, world.device)) / len(parts)
            loss.backward()
        total += loss.detach()
    if config.grad_clip:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.grad_clip)
    run.optimiser.step()
    run.ema.update(run.model, run.step)
    run.step += 1
    return world.sum(total) / world.size


def gradients_shared(network: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Processes exchange gradients in the last pass of a step only."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not now else nullcontext()


def record(run: Run, pairs: list[ValidationPair], loss: float, images_per_second: float) -> None:
    """Validate the averaged weights (PSNR is nan without a validation set), log a row, keep the best."""
    psnr = validate_together(run, pairs)
    if not run.world.main:
        return
    row = {"step": run.step, "loss": loss, "lr": run.schedule.lr_at(run.step - 1), "psnr": psnr}
    append_log(run.folder / "log.csv", {**row, "images_per_s": images_per_second, "seconds": run.seconds})
    draw_curves(run.folder / "log.csv", run.folder / "curves.png")
    best = psnr > run.best_psnr
    if best:
        run.best_psnr = psnr
        save_average(run, "best.safetensors")
    say(f"step {run.step}: loss {loss:.5f}, PSNR-Y {psnr:.3f} dB{' (best)' if best else ''}")


def validate_together(run: Run, pairs: list[ValidationPair]) -> float:
    """Mean PSNR-Y of the averaged weights, the images shared out over the processes; nan without any."""
    mine = pairs[run.world.rank :: run.world.size]
    total = validate(run.ema.model, mine, run.device) * len(mine) if mine else 0.0
    summed = run.world.sum(torch.tensor(total, dtype=torch.float64, device=run.device))
    return float(summed) / len(pairs) if pairs else math.nan


def check_weights(run: Run, explain: Callable[[int], str]) -> None:
    """Refuse to go on with weights that are not finite: a gradient can overflow under a finite loss."""
    if not all(bool(torch.isfinite(weight).all()) for weight in run.ema.model.parameters()):
        step = run.step - 1
        raise NonFiniteError(f"weights are not finite after step {step}, {explain(step)}; {REMEDY}")


def explain_step(run: Run, patches: Patches, step: int) -> str:
    """Rate and files of a step, for an error."""
    files = ", ".join(patches.files_at(step, run.config.batch))
    return f"lr {run.schedule.lr_at(step):.3g}, files {files}"


if __name__ == "__main__":
    sys.exit(main())
