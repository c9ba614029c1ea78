"""Train HATFreq (x4) on high-resolution photographs.

    python train.py --data photographs --out runs/light --preset light --steps 20000 --valid_hr targets
    torchrun --standalone --nproc_per_node 8 train.py ...        # the same on the GPUs of a machine

The same command resumes a run that was stopped, exactly where its last checkpoint stands. The run folder holds the
settings (`config.json`), the machine (`environment.json`), the log (`log.csv`, `curves.png`, `tensorboard/`), sample
pictures (`samples/`), the checkpoints and the averaged weights: `last.safetensors`, and `best.safetensors` by
validation PSNR.
"""

import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

# PyTorch's threads spin while they wait for each other, and on a machine with other work keep each other from running:
# a pass then takes many times as long (docs/performance.md). A short spin costs nothing; it is read when PyTorch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from evaluation.score import restore_uint8
from image_data.mixture import open_sources
from image_data.sources import DataError
from image_data.workers import usable_cores
from models.team08_HATFreq import HATFreq
from models.team08_HATFreq.compiling import CompilerError, compile_blocks
from models.team08_HATFreq.image_io import ImageError
from models.team08_HATFreq.system import available_memory, slow_bf16
from models.team08_HATFreq.weights import WeightsError, load_weights, save_weights
from training.audit import Audit, audit, default_cache, resume
from training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from training.config import ConfigError, TrainConfig, changed_settings, config_dict, model_config, parse_arguments
from training.data import Batch, LoaderError, Patches, StepBatches, loading, to_pair
from training.distributed import World, joined
from training.lifetime import FolderError, PeerError, StopSignals, exit_with, owned
from training.losses import parse_loss, total_loss
from training.photographs import Photographs
from training.run_log import REMEDY, Log, Losses, NonFiniteError, Progress, draw_samples, say, write_list
from training.run_record import check_resume, finished_weights, init_file, recorded_teacher, write_run_record
from training.schedule import Pace, Schedule, parse_finish_in, planned, resumed
from training.step_memory import OutOfMemoryError, check_step_fits, explained
from training.validation import ValidationSet, open_sets, read_sets, validate

TIMED_OUT = 255  # beyond every signal's number
EXPLAINED = (
    *(ConfigError, DataError, CheckpointError, ImageError, WeightsError, NonFiniteError, OSError),
    *(CompilerError, FolderError, LoaderError, OutOfMemoryError, PeerError),
)


def main(argv: list[str] | None = None) -> int:
    """Run the trainer; returns 0, or 128 + n after signal n. Errors end it with a message and status 1."""
    started = time.monotonic()
    config = parse_arguments(argv)
    try:
        with joined(config.device, config.timeout_minutes) as world, ExitStack() as stack:
            if not world.is_main:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process: only one speaks
            world.from_main(lambda: stack.enter_context(owned(Path(config.out))))
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
    ema: AveragedModel
    optimiser: torch.optim.Adam
    schedule: Schedule
    pace: Pace
    loss_weights: dict[str, float]
    losses: list[float] = field(default_factory=list)  # since the last row of the log
    step: int = 0  # steps made
    best_psnr: float = -math.inf
    data: str = ""  # fingerprint of the training set
    sampling: str = ""  # hash of how often each image is drawn; empty in older checkpoints
    validation: str = ""  # hash of the validation sets; likewise
    changes: dict[str, list[Any]] = field(default_factory=dict)  # what this start changed: before and now

    @property
    def device(self) -> torch.device:
        return self.world.device

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    @property
    def validation_due(self) -> bool:
        """Whether the step just made is to be validated, and was not: a signal may have come in between."""
        at_end = self.step >= self.schedule.end
        return bool(self.losses) and (self.step % self.config.valid_every == 0 or at_end)


def start(config: TrainConfig, world: World) -> Run:
    """A run before its first step (weights from the seed or from `--init`), or where its folder's checkpoint stands."""
    state, message = world.from_main(lambda: load_checkpoint(Path(config.out)))
    config = settled(config, world, state)
    changes: dict[str, list[Any]] = {}
    if state is not None:
        changes = check_resume(state, config, model_config(config))
    elif parse_finish_in(config.finish_in)[0]:
        raise ConfigError(f"finish_in {config.finish_in} reshapes a run that has begun, and {config.out} holds none")
    torch.manual_seed(config.seed)
    model = HATFreq(model_config(config))
    model.set_grad_checkpointing(config.checkpointing)
    if config.init and state is None:
        message = load_weights(model, Path(config.init))
    model.to(world.device).train()
    beta1, beta2 = config.betas
    groups = parameter_groups(model, config.fusion_lr_scale)
    optimiser = torch.optim.Adam(groups, lr=config.lr, betas=(beta1, beta2), fused=True)
    schedule = planned(config.lr, config.min_lr, config.warmup, config.steps, config.milestones)
    ema = moving_average(model, config.ema)
    losses = parse_loss(config.loss)
    run = Run(config, world, model, model, ema, optimiser, schedule, Pace(0, 0.0), losses, changes=changes)
    if state is not None:
        restore(run, state)
    elif config.finish_in:
        run.schedule = schedule.finishing(0, config.finish_in, 0.0)
    if config.compile:  # after the average was copied: it validates images of many sizes
        compile_blocks(model, world.device, sizes_vary=False)
    if world.size > 1:
        devices = [world.device] if world.device.type == "cuda" else None
        # Buffers are constant; gradients live in the buckets that are exchanged, not a second time beside them.
        run.network = DistributedDataParallel(model, devices, broadcast_buffers=False, gradient_as_bucket_view=True)
    if message:
        say(message)
    for name in sorted(changes.keys() & {"steps", *config.change}):
        say(f"changed on purpose: {name} from {changes[name][0]} to {changes[name][1]}")
    return run


def settled(config: TrainConfig, world: World, state: dict[str, Any] | None) -> TrainConfig:
    """The settings with `auto` and folders resolved; a resumed run keeps what it began with."""
    if config.precision == "auto":
        slow = world.from_main(lambda: slow_bf16(world.device))
        chosen = state["config"]["precision"] if state else "fp32" if slow else "bf16"
        config = replace(config, precision=chosen)
    if config.precision == "bf16" and slow_bf16(world.device):
        say("warning: this processor computes bf16 several times slower than fp32: give --precision fp32 (or auto)")
    if config.init:
        begun = state is not None  # then the weights are not read any more
        init = init_file(config.init) if begun else world.from_main(lambda: str(finished_weights(config.init)))
        config = replace(config, init=init)
    return config


def parameter_groups(model: HATFreq, fusion_lr_scale: float) -> list[dict[str, Any]]:
    """The weights as the optimiser takes them; the fusion blocks' apart where they have a rate of their own."""
    if fusion_lr_scale == 1:
        return [{"params": list(model.parameters())}]
    fusion = model.fusion_parameters()
    others = [weight for name, weight in model.named_parameters() if name not in fusion]
    if not fusion:
        raise ConfigError("fusion_lr_scale is set and the network has no fusion blocks: choose another --frequency")
    return [{"params": others}, {"params": list(fusion.values()), "scale": fusion_lr_scale}]


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


def restore(run: Run, state: dict[str, Any]) -> None:
    """Bring a new run to where a checkpoint stands."""
    config, saved = run.config, state["config"]
    run.model.load_state_dict(state["model"])
    run.ema.module.load_state_dict(state["ema"])
    run.optimiser.load_state_dict(state["optimiser"])
    run.step, run.losses, run.best_psnr = state["step"], state["losses"], state["best_psnr"]
    run.data, run.sampling, run.validation = (state.get(key, "") for key in ("data", "sampling", "validation"))
    run.ema.n_averaged.fill_(run.step + 1)
    run.pace = Pace(run.step, state["seconds"])
    factor = config.lr / saved["lr"] if saved["lr"] else 1.0
    run.schedule = resumed(run.schedule, state["schedule"], run.step, config.finish_in, state["seconds"], factor)


def save(run: Run) -> None:
    """Write the checkpoint and the averaged weights, in the main process."""
    if not run.world.is_main:
        return
    state = {
        "step": run.step,
        "model": run.model.state_dict(),
        "ema": run.ema.module.state_dict(),
        "optimiser": run.optimiser.state_dict(),
        "config": config_dict(run.config),
        "network": asdict(run.model.config),
        "schedule": run.schedule.state(),
        "data": run.data,
        "sampling": run.sampling,
        "validation": run.validation,
        "losses": run.losses,
        "best_psnr": run.best_psnr,
        "seconds": run.pace.seconds,
    }
    save_average(run, "last.safetensors")  # first: a finished run's restart makes no step that would write it again
    save_checkpoint(run.folder, state)


def save_average(run: Run, name: str) -> None:
    """Write the averaged weights with what they are known by."""
    save_weights(run.ema.module, run.folder / name, {"step": str(run.step), "preset": run.config.preset})


# ---------------------------------------------------------------------------------------------------------------------
# The data
# ---------------------------------------------------------------------------------------------------------------------


def prepare_data(run: Run, sets: list[ValidationSet]) -> tuple[Patches, Audit]:
    """Read the validation sets, audit the training set, and on resume check that both are the run's."""
    config, world = run.config, run.world
    if sets:
        say(f"reading {sum(map(len, sets))} validation images")
    excluded, validation = read_sets(sets, world)
    if run.step and run.validation not in ("", validation):
        run.best_psnr = -math.inf
        say("other validation sets than before: the best PSNR so far counts no more")
    found = world.from_main(lambda: audited(run, excluded))
    skip = config.bad_images == "skip"
    patches = Patches(found.photographs, config.patch, config.seed, skip, config.teacher_decay)
    sampling = patches.sampling_hash()
    if run.sampling not in ("", sampling):
        raise DataError(f"the sources or their weights have changed since {run.folder} began: restore them in --data")
    run.data, run.sampling, run.validation = found.fingerprint, sampling, validation
    say(found.summary())
    if duplicates := found.duplicates_summary():
        say(duplicates)
    if sets:
        say(
            "no training image equals a validation image, turned or mirrored ones included; copies that were cropped, "
            "resized or compressed are found by data_curation.dedup (docs/training.md)"
        )
    room = min(config.cache_gb, available_memory(torch.device("cpu")) / 2e9)  # no more than half of what is free
    if count := patches.keep_decoded(room):
        say(f"{count} of them are kept decoded in memory (--cache_gb, {room:.2g} GB)")
    return patches, found


def audited(run: Run, excluded: dict[bytes, str]) -> Audit:
    """What can be trained on, in the main process."""
    config, record, skip = run.config, run.folder / "images.npz", run.config.bad_images == "skip"
    caches = {"auto": default_cache(), "none": None}
    cache = caches[config.audit_cache] if config.audit_cache in caches else Path(config.audit_cache)
    found = audit(open_sources(config.data), config.patch, excluded, skip, cache)
    if config.teacher_decay and not found.teacher:
        raise ConfigError("teacher_decay is set and no source has a teacher: add teacher=FOLDER to --data")
    if run.data and run.data != found.fingerprint:
        photographs = resume(found, Photographs.load(record), run.folder, skip)
        found = replace(found, photographs=photographs, fingerprint=run.data)
    elif run.step < run.schedule.end:
        found.photographs.save(record)
    return found


class Unreadable:
    """Images that could not be read when they were drawn: a lost sample ends the run, others are said and counted."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def take(self, parts: list[Batch]) -> None:
        """Look at a step's batches.

        Raises:
            DataError: a sample is lost; names the images and the remedy.
        """
        for part in parts:
            if part.lost:
                raise DataError(
                    f"{'; '.join(dict.fromkeys(part.faults))}. Restore the image and start again: the last checkpoint "
                    "is untouched; or pass unreadable images over with --bad_images skip"
                )
            for fault in part.faults:
                self.counts[fault] += 1
                if self.counts[fault] == 1:
                    text = f"unreadable image number {len(self.counts)}, other images are drawn instead: {fault}"
                    tqdm.write(text, file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def train(config: TrainConfig, world: World, started: float) -> int:
    """Set up, resume, train to the end of the schedule or to a stop; returns the exit status."""
    if config.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError(
            "tensorboard is not installed: pip install -c requirements.txt tensorboard, or --no-tensorboard"
        )
    if config.threads:
        torch.set_num_threads(config.threads)
    # fp32 means fp32: convolutions have TF32 by default, and some containers set it for products too.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    micro, accumulation_steps = world.share(config.batch, config.micro_batch)
    run = start(config, world)
    if run.step >= run.schedule.end and not run.validation_due:
        if "steps" in run.changes:
            note_end(run)
        say(f"finished: {run.folder} stands at step {run.step} of {run.schedule.end}")
        return 0
    config, sets = run.config, open_sets(config.valid_hr, config.valid_lr)
    patches, found = prepare_data(run, sets)
    world.from_main(lambda: open_folder(run, found))
    millions = sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
    say(f"settings that differ from the defaults: {changed_settings(config)}")
    say(f"{millions:.2f} M parameters on {run.device}, {config.precision}; steps {run.step} to {run.schedule.end}")
    say(f"a step: {config.batch} patches = {world.size} process(es) x {accumulation_steps} pass(es) x {micro}")
    cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if config.workers > max(1, cores):
        say(f"{config.workers} workers share {cores} core(s): that helps only where they wait for a slow disk")
    check_step_fits(run.model, config.patch, micro, config.precision == "bf16", run.device)
    return loop(run, patches, sets, StepBatches(run.step, micro, accumulation_steps, world.rank), started)


def note_end(run: Run) -> None:
    """Write that a run has come to another end, of which its checkpoint and record do not tell yet."""
    if run.world.is_main:
        teacher = recorded_teacher(run.folder)
        save(run)
        write_run_record(run.config, run.model.config, {"step": run.step, "changes": run.changes}, teacher)


def open_folder(run: Run, found: Audit) -> None:
    """Fill the run folder with its record and the lists of images left out and of duplicates."""
    write_run_record(run.config, run.model.config, {"step": run.step, "changes": run.changes}, found.teacher)
    write_list(run.folder / "left_out.csv", ("name", "reason"), [(one.name, one.reason) for one in found.left_out])
    write_list(run.folder / "duplicates.csv", ("name", "equals"), found.duplicates)


def loop(run: Run, patches: Patches, sets: list[ValidationSet], keys: StepBatches, started: float) -> int:
    """Train until the schedule ends, the minutes are over or a signal comes; a checkpoint ends it in each case."""
    config, world, lazy = run.config, run.world, run.device.type == "cuda"
    log = Log(run.folder, run.step, [one.name for one in sets], config.tensorboard) if world.is_main else None
    losses = Losses(run.losses, lambda step: explain_step(run, patches, step), lazy)
    progress = Progress(run.step, run.schedule.end, config.batch, config.log_every, run.device, not world.is_main)
    unreadable, saved = Unreadable(), time.monotonic()
    stop, batches = StopSignals(), loading(patches, keys, config.workers, pin_memory=lazy)
    with stop, progress, log or nullcontext(), batches as steps:
        while True:
            if not run.validation_due:  # a resumed run may owe one
                tick = time.monotonic()
                parts = next(steps)
                waited = time.monotonic() - tick
                unreadable.take(parts)
                with explained(f"--micro_batch to a divisor of {keys.micro}, or --checkpointing"):
                    losses.add(run.step, train_step(run, parts))
                run.schedule = run.pace.replanned(run.schedule, run.step, world.from_main)
                progress.end = run.schedule.end
                progress.show(time.monotonic() - tick, waited, losses.latest, run.schedule.lr_at(run.step - 1))
            timed_out = 0 < config.max_minutes <= (time.monotonic() - started) / 60
            due = 0 < config.save_minutes <= (time.monotonic() - saved) / 60
            # What one process was told, by a signal or by its clock, all obey.
            stopped, overdue = world.all_reduce_max(stop.received or (TIMED_OUT if timed_out else 0), int(due))
            ended = run.step >= run.schedule.end
            validating = (run.step % config.valid_every == 0 or ended) and stopped in (0, TIMED_OUT)
            saving = bool(stopped or ended or overdue or run.step % config.save_every == 0)
            if validating or saving:
                losses.read()
                check_weights(run, losses.explain)
            if validating and not record(run, sets, log, losses.mean, progress.images_per_second, stop):
                (stopped,) = world.all_reduce_max(stop.received)
            if saving or stopped:
                save(run)
                saved = time.monotonic()
            if stopped or ended:
                break
    end = run.schedule.end
    say(f"stopped at step {run.step} of {end}; checkpoint in {run.folder}" if stopped else f"done: {run.folder}")
    return 0 if stopped in (0, TIMED_OUT) else 128 + stopped


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


def record(
    run: Run, sets: list[ValidationSet], log: Log | None, loss: float, images_per_second: float, stop: StopSignals
) -> bool:
    """Validate the averaged weights, log a row, keep the best; False, with nothing done, if a signal came."""
    network, tile = run.ema.module, run.config.valid_tile
    with explained("--valid_tile 256, or less"):
        scores = validate(network, sets, run.world, tile, lambda: bool(stop.received))
    if scores is None:
        return False
    run.losses.clear()
    psnr = math.fsum(scores.values()) / len(scores) if scores else math.nan
    best = psnr > run.best_psnr
    if best:
        run.best_psnr = psnr
    if log is None:
        return True
    row = {"step": run.step, "loss": loss, "lr": run.schedule.lr_at(run.step - 1), "psnr": psnr}
    log.add({**row, "images_per_s": images_per_second, "seconds": run.pace.seconds}, scores)
    if scores and run.config.sample_images:
        picture = run.folder / "samples" / f"step_{run.step:07d}.png"
        draw_samples(lambda lq: restore_uint8(network, lq, run.device, tile), sets, run.config.sample_images, picture)
    if best:
        save_average(run, "best.safetensors")
    each = ", ".join(f"{name} {one:.3f}" for name, one in scores.items())
    detail = f" ({each})" if len(scores) > 1 else ""
    figure = f", PSNR-Y {psnr:.3f} dB{detail}{' (best)' if best else ''}" if scores else ""
    say(f"step {run.step}: loss {loss:.5f}{figure}")
    return True


def check_weights(run: Run, explain: Callable[[int], str]) -> None:
    """Refuse to save weights that are not finite: a gradient can overflow under a finite loss."""
    if not all(bool(torch.isfinite(weight).all()) for weight in run.ema.parameters()):
        step = run.step - 1
        raise NonFiniteError(f"weights are not finite after step {step}, {explain(step)}; {REMEDY}")


def explain_step(run: Run, patches: Patches, step: int) -> str:
    """Rate and files of a step, for an error."""
    files = ", ".join(patches.files_at(step, run.config.batch))
    return f"lr {run.schedule.lr_at(step):.3g}, files {files}"


if __name__ == "__main__":
    exit_with(main)
