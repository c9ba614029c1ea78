"""Train HATFreq (x4) on high-resolution images.

    python train.py --data photographs --out runs/light --preset light --steps 20000 --valid_hr targets
    torchrun --standalone --nproc_per_node 8 train.py ...        # the same on the GPUs of a machine

The same command resumes a run that was stopped, exactly where its last checkpoint stands. The run folder holds the
settings (`config.json`), the starts (`environment.json`), the log (`log.csv`, `tensorboard/`), sample pictures
(`samples/`), the checkpoints and the averaged weights: `last.safetensors`, and `best.safetensors` by validation PSNR.
"""

import errno
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from training.lifetime import StopSignals, exit_with, leave_with_parent, owned

if __name__ == "__main__" and "RANK" in os.environ:
    leave_with_parent()  # before PyTorch, whose import takes seconds
# PyTorch's threads spin while they wait for each other, and on a machine with other work keep each other from running:
# a pass then takes many times as long (docs/performance.md). A short spin costs nothing; it is read when PyTorch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from evaluation.score import restore_uint8
from image_data.mixture import open_sources
from image_data.sources import DataError
from image_data.workers import usable_cores
from models.team08_HATFreq import HATFreq
from models.team08_HATFreq.compiling import CompilerError, compile_blocks
from models.team08_HATFreq.system import HATFreqError, World, slow_bf16
from models.team08_HATFreq.weights import load_weights, save_weights
from training.checkpoint import check_resume, load_checkpoint, record_start, save_checkpoint, weights_of
from training.config import ConfigError, TrainConfig, changed_settings, model_config, parse_arguments
from training.data import Batch, Patches, StepBatches, loading, report_faults, to_pair
from training.distributed import joined, share
from training.losses import parse_loss, total_loss
from training.run_log import Log, Losses, NonFiniteError, Progress, draw_samples, say
from training.schedule import Schedule
from training.training_set import open_training_set
from training.validation import ValidationSet, identity, open_sets, shares, validate
from utils.files import UserError, command

BETAS = (0.9, 0.99)  # of Adam: HAT's
TIMED_OUT = 255  # beyond every signal's number
REMEDY = "the last checkpoint is untouched. Start again with a lower --lr, or with --grad_clip"


@command("train.py", HATFreqError, CompilerError)
def main(argv: list[str] | None = None) -> int:
    """Run the trainer; returns 0, or 128 + n after signal n. Errors end it with a message and status 1."""
    started = time.monotonic()
    config = parse_arguments(argv)
    with joined(config.device, config.timeout_minutes) as world, ExitStack() as stack:
        if not world.is_main:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process: only one speaks
        world.from_main(lambda: stack.enter_context(owned(Path(config.out))))
        with lacks_explained(config):
            return train(config, world, started)


@dataclass
class Run:
    """All that changes while training, and what it is trained with."""

    config: TrainConfig
    world: World
    model: HATFreq
    network: nn.Module  # the model, wrapped where several processes train it together
    ema: AveragedModel
    optimiser: torch.optim.Adam
    schedule: Schedule
    loss_weights: dict[str, float]
    losses: list[float] = field(default_factory=list)  # since the last row of the log
    step: int = 0  # steps made
    best: float = -math.inf  # PSNR
    data: str = ""  # fingerprint of the training set
    validation: str = ""  # of the validation sets
    seconds: float = 0.0  # of training, over all starts

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    @property
    def ended(self) -> bool:
        return self.step >= self.schedule.last

    @property
    def validation_due(self) -> bool:
        """Whether the step just made is to be validated, and was not: a signal may have come in between."""
        return bool(self.losses) and (self.step % self.config.valid_every == 0 or self.ended)


# ---------------------------------------------------------------------------------------------------------------------
# The story of a run
# ---------------------------------------------------------------------------------------------------------------------


def train(config: TrainConfig, world: World, started: float) -> int:
    """Set up, resume, train to the end of the schedule or to a stop; returns the exit status."""
    # --- Settings
    if config.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError("tensorboard is not installed: pip install tensorboard, or --no-tensorboard")
    micro, accumulation_steps = share(config.batch, config.micro_batch, world.size)
    if config.threads:
        torch.set_num_threads(config.threads)
    # fp32 means fp32: convolutions have TF32 by default, and some containers set it for products too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if config.precision == "auto":
        slow = world.from_main(lambda: slow_bf16(world.device))
        config = replace(config, precision="fp32" if slow else "bf16")
    elif config.precision == "bf16" and slow_bf16(world.device):
        say("warning: this processor computes bf16 slower than fp32: give --precision fp32 (or auto)")

    # --- Model, and where the run stands
    state, message = world.from_main(lambda: load_checkpoint(Path(config.out)))
    changes = check_resume(state, config, model_config(config)) if state else {}
    run = start(config, world, state)
    if message:
        say(message)
    for name, (before, now) in changes.items():
        say(f"given anew: {name} {now} (was {before})")
    if run.ended and not run.validation_due:
        say(f"finished: {run.folder} stands at step {run.step} of {run.schedule.last}")
        return 0

    # --- Data
    sets = open_sets(config.valid_hr, config.valid_lr)
    if sets:
        say(f"reading {sum(map(len, sets))} validation images")
    for _, valid, index in shares(sets, world):
        valid[index]
    if run.validation != (validation := identity(sets)) and run.step:
        say("other validation sets than before: the best PSNR begins anew")
        run.best = -math.inf
    run.validation = validation
    say(f"listing the training images: {' '.join(config.data)}")
    targets = [image for valid in sets for image in valid.files.targets]
    skip = config.bad_images == "skip"
    images = world.from_main(
        lambda: open_training_set(open_sources(config.data), config.patch, targets, skip, run.folder)
    )
    if run.data not in ("", images.fingerprint):
        raise DataError(f"the training images or their weights have changed since {run.folder} began: restore --data")
    run.data = images.fingerprint
    megapixels = float((images.heights.astype(np.int64) * images.widths).sum()) / 1e6
    say(f"{len(images):,} training images, {megapixels:.1f} megapixels; none is a file that is validated on")
    patches = Patches(images, config.patch, config.seed, skip)
    patches.keep_decoded(config.cache_gb)

    # --- What is going to happen
    world.from_main(lambda: record_start(config, run.model.config, run.step, changes))
    millions = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    say(f"settings that differ from the defaults: {changed_settings(config)}")
    say(f"{millions:.2f} M parameters on {run.device}, {config.precision}; steps {run.step} to {run.schedule.last}")
    say(f"a step: {config.batch} patches = {world.size} process(es) x {accumulation_steps} pass(es) x {micro}")
    if config.workers > max(1, cores := usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))):
        say(f"{config.workers} workers share {cores} core(s): that helps only where they wait for a slow disk")

    # --- Loop
    def explain(what: str, step: int) -> str:
        files = patches.files_at(step, config.batch)
        return f"{what} at step {step}, lr {run.schedule.lr_at(step):.3g}, files {files}; {REMEDY}"

    began, seconds_before = time.monotonic(), run.seconds
    owed = run.validation_due  # its row may stand in the log already, if the run was killed after it
    log = Log(run.folder, run.step - owed, [one.name for one in sets], config.tensorboard) if world.is_main else None
    losses = Losses(run.losses, explain, lazy=run.device.type == "cuda")
    progress = Progress(run.schedule.last, config.batch, config.log_every, run.device)
    keys, told = StepBatches(run.step, micro, accumulation_steps, world.rank), set[str]()
    with StopSignals() as stop, loading(patches, keys, config.workers, 60 * config.timeout_minutes) as steps:
        stopped = 0
        if sets and config.init and not state:
            validated = validate_and_log(run, sets, log, math.inf, 0.0, stop)
            (stopped,) = world.max(0 if validated else stop.received)
        while not stopped:
            due = owed or (run.step > keys.start and (run.step % config.valid_every == 0 or run.ended))
            saving = run.step > keys.start and (run.step % config.save_every == 0 or run.ended)
            if due or saving:
                losses.read()
                check_weights(run, explain)
            if due:
                validated = validate_and_log(run, sets, log, losses.mean, progress.images_per_second, stop)
                (stopped,) = world.max(0 if validated else stop.received)
            if saving and not stopped:
                save(run)
            if stopped or run.ended:
                break
            owed, tick = False, time.monotonic()
            parts = stop.next(steps)
            waited = time.monotonic() - tick
            timed_out = 0 < config.max_minutes <= (time.monotonic() - started) / 60
            # What one process was told, by a signal or by its clock, all obey: before a step, which takes them all.
            (stopped,) = world.max(stop.received or (TIMED_OUT if timed_out and run.step > keys.start else 0))
            if stopped or parts is None:
                break
            report_faults(parts, told)
            losses.add(run.step, train_step(run, parts))
            run.seconds = seconds_before + time.monotonic() - began
            lr = run.schedule.lr_at(run.step - 1)
            progress.show(run.step, time.monotonic() - tick, waited, losses.latest, lr)

        # --- End
        if stopped:
            stop.relax()
            losses.read()
            check_weights(run, explain)
            save(run)
    if stopped:
        say(f"stopped at step {run.step} of {run.schedule.last}; checkpoint in {run.folder}")
    else:
        say(f"done: {run.folder}" + (f": {gain}" if log and (gain := log.gain()) else ""))
    return 0 if stopped in (0, TIMED_OUT) else 128 + stopped


# ---------------------------------------------------------------------------------------------------------------------
# Beginning and resuming
# ---------------------------------------------------------------------------------------------------------------------


def start(config: TrainConfig, world: World, state: dict[str, Any] | None = None) -> Run:
    """A run before its first step, with weights from the seed or from `--init`, or where a checkpoint stands."""
    torch.manual_seed(config.seed)
    model = HATFreq(model_config(config))
    model.set_grad_checkpointing(config.checkpointing)
    if config.init and state is None:
        say(load_weights(model, world.from_main(lambda: weights_of(config.init))))
    model.to(world.device).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=config.lr, betas=BETAS, fused=True)
    schedule = Schedule(config.schedule, config.lr, config.min_lr, config.warmup, config.steps, config.milestones)
    run = Run(
        config, world, model, model, moving_average(model, config.ema), optimiser, schedule, parse_loss(config.loss)
    )
    if state is not None:
        model.load_state_dict(state["model"])
        run.ema.module.load_state_dict(state["ema"])
        optimiser.load_state_dict(state["optimiser"])
        for name in ("step", "losses", "best", "data", "validation", "seconds"):
            setattr(run, name, state[name])
        run.ema.n_averaged.fill_(run.step + 1)
        saved = state["schedule"]
        finish_in = 0 if run.step >= saved["last"] else config.finish_in
        run.schedule = schedule.continued(run.step, saved["cool_from"], saved["cool_steps"], finish_in)
    elif config.finish_in:
        raise ConfigError(f"finish_in ends a run that has begun, and {config.out} holds none: set --steps")
    if config.compile:  # after the average was copied: it validates images of many sizes
        say("compiling the blocks, which takes minutes")
        compile_blocks(model, world.device, sizes_vary=False)
    if world.size > 1:
        devices = [world.device] if world.device.type == "cuda" else None
        # Buffers are constant; gradients live in the buckets that are exchanged, not a second time beside them.
        run.network = DistributedDataParallel(model, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    return run


def moving_average(model: HATFreq, decay: float) -> AveragedModel:
    """The moving average of the weights (`.module`), which is what is validated and shipped.

    Its decay rises with the step t as (1 + t) / (10 + t) up to its final value, so that the average of the first steps
    does not lag behind at the random start. PyTorch counts from 1 here: at 0 it would copy the weights.
    """

    def follow(average: Any, weights: Any, _count: Any) -> None:
        n = int(ema.n_averaged)
        get_ema_multi_avg_fn(min(decay, n / (9 + n)))(average, weights, n)

    ema = AveragedModel(model, multi_avg_fn=follow)
    ema.n_averaged.fill_(1)
    return ema.eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------
# A step, a validation, a checkpoint
# ---------------------------------------------------------------------------------------------------------------------


def train_step(run: Run, parts: list[Batch]) -> Tensor:
    """One optimiser step over this process's parts of the global batch.

    Returns the loss over the whole batch, still on the device. Every gradient is the mean over parts and processes, so
    the step does not depend on how the batch is shared out; stochastic depth, which does, draws from (seed, step,
    rank).
    """
    config, world = run.config, run.world
    torch.manual_seed(int(np.random.SeedSequence((config.seed, run.step, world.rank)).generate_state(1)[0]))
    for group in run.optimiser.param_groups:
        group["lr"] = run.schedule.lr_at(run.step)
    run.optimiser.zero_grad(set_to_none=True)
    total = torch.zeros((), device=world.device)
    for number, part in enumerate(parts):
        lq, gt = to_pair(part, world.device)
        with gradients_shared(run.network, number == len(parts) - 1):
            with torch.autocast(world.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                sr = run.network(lq)
            loss = total_loss(run.loss_weights, sr.float(), gt) / len(parts)
            loss.backward()
        total += loss.detach()
    if config.grad_clip:
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.grad_clip)
    run.optimiser.step()
    run.ema.update_parameters(run.model)
    run.step += 1
    return world.sum(total) / world.size


def gradients_shared(network: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Processes exchange gradients in the last pass of a step only."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) and not now else nullcontext()


def validate_and_log(
    run: Run, sets: list[ValidationSet], log: Log | None, loss: float, images_per_second: float, stop: StopSignals
) -> bool:
    """Validate the averaged weights, log a row, keep the best; False, with nothing done, if a signal came."""
    network, tile = run.ema.module, run.config.valid_tile
    scores = validate(network, sets, run.world, tile, lambda: bool(stop.received))
    if scores is None:
        return False
    run.losses.clear()
    psnr = math.fsum(scores.values()) / len(scores) if scores else math.nan
    best = psnr > run.best
    run.best = psnr if best else run.best
    if log is None:
        return True
    lr = run.schedule.lr_at(max(0, run.step - 1))
    row = {"step": run.step, "loss": loss, "lr": lr, "psnr": psnr, "images_per_s": images_per_second}
    log.add({**row, "seconds": run.seconds}, scores)
    if scores:
        picture = run.folder / "samples" / f"step_{run.step:07d}.png"
        draw_samples(lambda lq: restore_uint8(network, lq, run.device, tile), sets, picture)
    if best:
        save_average(run, "best.safetensors")
    each = ", ".join(f"{name} {one:.3f}" for name, one in scores.items())
    detail = f" ({each})" if len(scores) > 1 else ""
    figure = f", PSNR-Y {psnr:.3f} dB{detail}{' (best)' if best else ''}" if scores else ""
    say(f"step {run.step}: " + (f"loss {loss:.5f}" if run.step else "before training") + figure)
    return True


def check_weights(run: Run, explain: Callable[[str, int], str]) -> None:
    """Refuse to save weights that are not finite: a gradient can overflow under a finite loss."""
    if not all(bool(torch.isfinite(weight).all()) for weight in run.ema.parameters()):
        raise NonFiniteError(explain("the weights are not finite", run.step - 1))


def save(run: Run) -> None:
    """Write the checkpoint and the averaged weights, in the main process."""
    if not run.world.is_main:
        return
    save_average(run, "last.safetensors")  # first: a finished run's restart makes no step that would write it again
    names = ("step", "losses", "best", "data", "validation", "seconds")
    state = {
        **{name: getattr(run, name) for name in names},
        "model": run.model.state_dict(),
        "ema": run.ema.module.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "config": asdict(run.config),
        "network": asdict(run.model.config),
        "schedule": asdict(run.schedule) | {"last": run.schedule.last},
    }
    save_checkpoint(run.folder, state)


def save_average(run: Run, name: str) -> None:
    """Write the averaged weights with what they are known by."""
    save_weights(run.ema.module, run.folder / name, {"step": str(run.step), "preset": run.config.preset})


@contextmanager
def lacks_explained(config: TrainConfig) -> Iterator[None]:
    """Say what to set where memory or open files do not suffice.

    Raises:
        UserError: in place of the library's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        lacking = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not lacking and not any(text in str(error) for text in ("can't allocate memory", "ALLOC_FAILED")):
            raise
        remedy = "--micro_batch to half of what it is, or --checkpointing; in a validation --valid_tile 256"
        raise UserError(f"out of memory: set {remedy}. The last checkpoint is untouched. ({error})") from error
    except OSError as error:
        if error.errno != errno.EMFILE:
            raise
        raise UserError(f"{error}: raise ulimit -n, or lower --workers (now {config.workers})") from error


if __name__ == "__main__":
    exit_with(main)
