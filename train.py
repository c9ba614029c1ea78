"""Train HATFreq (x4) on high-resolution photographs.

    python train.py --data photographs --out runs/light --preset light --steps 20000 --valid_hr targets
    torchrun --standalone --nproc_per_node 8 train.py ...        # the same on the GPUs of a machine

The same command resumes a run that was stopped, exactly where its last checkpoint stands. The run folder holds the
settings (`config.json`), the machine (`environment.json`), the log (`log.csv`, `curves.png`, `tensorboard/`), sample
pictures (`samples/`), the checkpoints and the averaged weights: `last.safetensors`, and `best.safetensors` by
validation PSNR.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

# PyTorch's threads spin while they wait for each other, and on a machine with other work keep each other from running:
# a pass then takes many times as long (docs/performance.md). A short spin costs nothing; it is read when PyTorch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from evaluation.score import restore_uint8
from image_data.mixture import Source, open_source
from image_data.sources import DataError
from models.team08_HATFreq import HATFreq
from models.team08_HATFreq.image_io import ImageError
from models.team08_HATFreq.weights import WeightsError, load_weights, save_weights
from training.audit import Audit, audit, default_cache, fingerprint
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
from training.data import Batch, Patches, StepBatches, by_step, make_loader, to_pair
from training.decoded import DecodedImages
from training.distributed import World, joined
from training.ema import ExponentialMovingAverage
from training.log import Log, write_left_out
from training.losses import parse_loss, total_loss
from training.progress import REMEDY, Losses, NonFiniteError, Progress, StopSignals, Unreadable, say
from training.samples import draw_samples
from training.schedule import REPLAN_AFTER, Schedule, parse_finish_in, planned, resumed
from training.validation import ValidationSet, digests, load_sets, validate

TIMED_OUT = 255  # beyond every signal's number
FUSION = ".freq."  # in the names of the fusion blocks' weights
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
    seconds: float = 0.0  # of training, over all starts

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
    elif parse_finish_in(config.finish_in)[0]:
        raise ConfigError(f"finish_in {config.finish_in} reshapes a run that has begun, and {config.out} holds none")
    torch.manual_seed(config.seed)
    model = HATFreq(model_config(config))
    if config.init and state is None:
        message = load_weights(model, Path(config.init))
    model.to(world.device).train()
    beta1, beta2 = config.betas
    groups = parameter_groups(model, config.fusion_lr_scale)
    optimiser = torch.optim.Adam(groups, lr=config.lr, betas=(beta1, beta2), fused=True)
    schedule = planned(config.lr, config.min_lr, config.warmup, config.steps, config.milestones)
    run = Run(config, world, model, model, ExponentialMovingAverage(model, config.ema), optimiser, schedule)
    if state is not None:
        go_on(run, state)
    elif config.finish_in:
        run.schedule = schedule.finishing(0, config.finish_in, 0.0)
    if world.size > 1:
        run.network = DistributedDataParallel(model, [world.device] if world.device.type == "cuda" else None)
    if message:
        say(message)
    return run


def parameter_groups(model: HATFreq, fusion_lr_scale: float) -> list[dict[str, Any]]:
    """The weights as the optimiser takes them; the fusion blocks' apart where they have a rate of their own."""
    if fusion_lr_scale == 1:
        return [{"params": list(model.parameters())}]
    fusion = [weight for name, weight in model.named_parameters() if FUSION in name]
    others = [weight for name, weight in model.named_parameters() if FUSION not in name]
    if not fusion:
        raise ConfigError("fusion_lr_scale is set and the network has no fusion blocks: choose another --frequency")
    return [{"params": others}, {"params": fusion, "scale": fusion_lr_scale}]


def go_on(run: Run, state: dict[str, Any]) -> None:
    """Bring a new run to where a checkpoint stands."""
    run.model.load_state_dict(state["model"])
    run.ema.model.load_state_dict(state["ema"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.step, run.data, run.losses = state["step"], state["data"], state["losses"]
    run.best_psnr, run.seconds = state["best_psnr"], state["seconds"]
    run.schedule = resumed(run.schedule, state["schedule"], run.step, run.config.finish_in, run.seconds)


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
    sets = load_sets(config.valid_hr, config.valid_lr)
    patches, found = prepare_data(run, sets)
    if run.step >= run.schedule.end:
        say(f"finished: {run.folder} stands at step {run.step} of {run.schedule.end}")
        return 0
    world.from_main(lambda: open_folder(run, found))
    millions = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    say(f"settings that differ from the defaults: {changed_settings(config)}")
    say(f"{millions:.2f} M parameters on {run.device}, {config.precision}; steps {run.step} to {run.schedule.end}")
    say(f"a step: {config.batch} patches = {world.size} process(es) x {passes} pass(es) x {micro}")
    return loop(run, patches, sets, StepBatches(run.step, micro, passes, world.rank), started)


def open_folder(run: Run, found: Audit) -> None:
    """Make the run folder, with its record and the list of images left out."""
    run.folder.mkdir(parents=True, exist_ok=True)
    write_run_record(run.config, run.model.config, run.folder)
    write_left_out(run.folder / "left_out.csv", found.left_out)


def prepare_data(run: Run, sets: list[ValidationSet]) -> tuple[Patches, Audit]:
    """Audit the training set, and on resume check that it is the one that the run began with."""
    config = run.config
    sources, found = run.world.from_main(lambda: audited(config, digests(sets)))
    data = fingerprint(found.photographs)
    if run.data and run.data != data:
        raise DataError(
            f"the training images have changed since {run.folder} began: restore them, or start another --out"
        )
    run.data = data
    images = DecodedImages(Path(config.decoded) if config.decoded else None)
    say(f"{found.summary()}, {images.keep(found.photographs, config.cache_gb)} kept decoded")
    weights = [source.weight for source in sources]
    skip = config.bad_images == "skip"
    return Patches(found.photographs, config.patch, config.seed, weights if any(weights) else (), images, skip), found


def audited(config: TrainConfig, excluded: dict[str, str]) -> tuple[list[Source], Audit]:
    """The sources (without their images) and what can be trained on, in the main process."""
    caches = {"auto": default_cache(), "none": None}
    cache = caches[config.audit_cache] if config.audit_cache in caches else Path(config.audit_cache)
    sources = [open_source(word) for word in config.data]
    found = audit(sources, config.patch, excluded, config.bad_images == "skip", cache)
    return [replace(source, images=(), lows=()) for source in sources], found


def loop(run: Run, patches: Patches, sets: list[ValidationSet], keys: StepBatches, started: float) -> int:
    """Train until the schedule ends, the minutes are over or a signal comes; a checkpoint ends it in each case."""
    config, world, lazy = run.config, run.world, run.device.type == "cuda"
    log = Log(run.folder, run.step, [one.name for one in sets], config.tensorboard) if world.main else None
    batches = by_step(make_loader(patches, keys, config.workers, pin_memory=lazy), keys.passes)
    losses = Losses(run.losses, lambda step: explain_step(run, patches, step), lazy)
    progress = Progress(run.step, run.schedule.end, config.batch, config.log_every, run.device, not world.main)
    unreadable, pace = Unreadable(), Pace(run)
    with StopSignals() as stop, progress, log or nullcontext():
        while True:
            tick = time.monotonic()
            parts = next(batches)
            waited = time.monotonic() - tick
            unreadable.take(parts)
            losses.add(run.step, train_step(run, parts))
            pace.keep()
            progress.end = run.schedule.end
            progress.show(time.monotonic() - tick, waited, losses.latest, run.schedule.lr_at(run.step - 1))
            timed_out = 0 < config.max_minutes <= (time.monotonic() - started) / 60
            stopped = world.largest(stop.received or (TIMED_OUT if timed_out else 0))
            last = run.step >= run.schedule.end or bool(stopped)
            validating = run.step % config.valid_every == 0 or run.step >= run.schedule.end
            saving = last or run.step % config.save_every == 0
            if validating or saving:
                losses.read()
                check_weights(run, losses.explain)
            if validating:
                record(run, sets, log, losses.take_mean(), progress.images_per_second)
            if saving:
                pace.update()
                save(run)
            if last:
                break
    end = run.schedule.end
    say(f"stopped at step {run.step} of {end}; checkpoint in {run.folder}" if run.step < end else f"done: {run.folder}")
    return 0 if stopped in (0, TIMED_OUT) else 128 + stopped


class Pace:
    """How long the run has trained, and the end that its speed allows where it was given minutes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.began_at, self.began = run.step, time.monotonic()
        self.before = run.seconds
        self.next = run.step + REPLAN_AFTER

    def update(self) -> None:
        """Bring the run's seconds up to now."""
        self.run.seconds = self.before + time.monotonic() - self.began

    def keep(self) -> None:
        """Reshape the schedule now and then, at steps that all processes agree on."""
        run = self.run
        self.update()
        if not run.schedule.deadline or run.step < self.next:
            return
        seconds_per_step = (run.seconds - self.before) / (run.step - self.began_at)
        run.schedule = run.world.from_main(lambda: run.schedule.replanned(run.step, run.seconds, seconds_per_step))
        self.next = run.step + max(REPLAN_AFTER, (run.schedule.end - run.step) // 10)


def train_step(run: Run, parts: list[Batch]) -> Tensor:
    """One optimiser step over this process's parts of the global batch.

    Returns the loss over the whole batch, still on the device. Every gradient is the mean over parts and processes, so
    the step does not depend on how the batch is shared out; stochastic depth, which does, draws from (seed, step,
    rank).
    """
    config, world = run.config, run.world
    torch.manual_seed(int(np.random.SeedSequence((config.seed, run.step, world.rank)).generate_state(1)[0]))
    for group in run.optimiser.param_groups:
        group["lr"] = run.schedule.lr_at(run.step) * group.get("scale", 1.0)
    run.optimiser.zero_grad(set_to_none=True)
    weights, total = parse_loss(config.loss), torch.zeros((), device=world.device)
    for number, part in enumerate(parts):
        lq, gt = to_pair(part, world.device)
        with gradients_shared(run.network, number == len(parts) - 1):
            with torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                sr = run.network(lq)
            loss = total_loss(weights, sr.float(), gt) / len(parts)
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


def record(run: Run, sets: list[ValidationSet], log: Log | None, loss: float, images_per_second: float) -> None:
    """Validate the averaged weights (PSNR is nan without a validation set), log a row, keep the best."""
    scores = validate(run.ema.model, sets, run.world, run.config.valid_tile)
    if log is None:
        return
    psnr = math.fsum(scores.values()) / len(scores) if scores else math.nan
    row = {"step": run.step, "loss": loss, "lr": run.schedule.lr_at(run.step - 1), "psnr": psnr}
    log.add({**row, "images_per_s": images_per_second, "seconds": run.seconds}, scores)
    if scores and run.config.sample_images:
        picture = run.folder / "samples" / f"step_{run.step:07d}.png"
        draw_samples(lambda lq: restore_uint8(run.ema.model, lq, run.device), sets, run.config.sample_images, picture)
    best = psnr > run.best_psnr
    if best:
        run.best_psnr = psnr
        save_average(run, "best.safetensors")
    each = ", ".join(f"{name} {one:.3f}" for name, one in scores.items())
    detail = f" ({each})" if len(scores) > 1 else ""
    say(f"step {run.step}: loss {loss:.5f}, PSNR-Y {psnr:.3f} dB{detail}{' (best)' if best else ''}")


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
