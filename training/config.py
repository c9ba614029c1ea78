"""The trainer's settings: one frozen dataclass, from which the command line is generated."""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from ast import literal_eval
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import torch

from image_data.mixture import check_mixture
from models.team08_HATFreq import PRESETS, HATConfig, override
from training.losses import parse_loss
from training.schedule import parse_finish_in
from training.settings_file import settings_words


class ConfigError(ValueError):
    """A setting that cannot be used; the message says which and what to do."""


def setting(default: Any = MISSING, *, text: str, **metadata: Any) -> Any:
    """A field of the configuration: its default, its help text, and `free=True` if a resumed run may change it."""
    return field(default=default, metadata={"text": text, **metadata})


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes. Patch sizes are in pixels of the low-resolution image."""

    data: tuple[str, ...] = setting(
        text="training images: folders (folder/** with sub-folders), lists, tar shards; or hr=...,lr=...,weight=..."
    )
    out: str = setting(text="run folder; one that holds a checkpoint is resumed", free=True)
    preset: str = setting("light", text="network size", choices=tuple(PRESETS))
    frequency: str = setting("both", text="fusion blocks: both, global, window, identity or none")
    model_overrides: tuple[str, ...] = setting((), text="fields of the preset to change, as key=value")
    init: str = setting("", text="weights to start from (fine-tuning); empty: from scratch")
    steps: int = setting(20_000, text="optimiser steps in all", free=True)
    batch: int = setting(16, text="patches in a step, over all processes")
    micro_batch: int = setting(0, text="patches that a process takes at once; 0: its whole share of a step", free=True)
    patch: int = setting(48, text="side of a low-resolution patch")
    bad_images: str = setting(
        "stop",
        text="unusable images: stop, or skip (left out, listed in left_out.csv, and passed over when drawn)",
        choices=("stop", "skip"),
        free=True,
    )
    lr: float = setting(1e-3, text="peak learning rate")
    min_lr: float = setting(1e-6, text="learning rate of the last step of the cosine decay")
    warmup: int = setting(100, text="steps of linear warm-up")
    milestones: tuple[int, ...] = setting(
        (), text="steps from which on the rate is halved each time, instead of the cosine decay"
    )
    fusion_lr_scale: float = setting(1.0, text="rate of the frequency fusion blocks in relation to the other weights'")
    betas: tuple[float, ...] = setting((0.9, 0.99), text="Adam's two decay rates")
    grad_clip: float = setting(0.0, text="largest gradient norm; 0: no clipping")
    loss: tuple[str, ...] = setting(
        ("l1=1",), text="losses and weights: l1, charbonnier, mse, frequency, as l1=1 mse=0.1"
    )
    ema: float = setting(0.999, text="decay of the moving average of the weights")
    seed: int = setting(0, text="decides initial weights, sample order and stochastic depth")
    precision: str = setting("fp32", text="arithmetic of the training step", choices=("fp32", "bf16"))
    checkpointing: bool = setting(
        False, text="recompute activations in the backward pass: less memory, a third more time", free=True
    )
    valid_hr: tuple[str, ...] = setting((), text="targets to validate on, a word a set; empty: no validation")
    valid_lr: tuple[str, ...] = setting(
        (), text="their low-resolution images, a word a set; empty: made from the targets"
    )
    valid_tile: int = setting(0, text="validate tile by tile, of so many LR pixels a side; 0: whole images", free=True)
    valid_every: int = setting(500, text="steps between validations", free=True)
    save_every: int = setting(200, text="steps between checkpoints", free=True)
    log_every: int = setting(50, text="steps between log lines when there is no terminal", free=True)
    tensorboard: bool = setting(True, text="write the log for TensorBoard too", free=True)
    sample_images: int = setting(
        3, text="validation images to draw restored at every validation, into samples/", free=True
    )
    max_minutes: float = setting(0.0, text="stop with a checkpoint after so many minutes; 0: no limit", free=True)
    finish_in: str = setting(
        "",
        text="decay to min_lr and end within so many steps (of a run that has begun), or minutes, as 90min; empty: as "
        "planned",
        free=True,
    )
    device: str = setting("auto", text="auto, cpu, cuda or cuda:N")
    threads: int = setting(0, text="CPU threads of the network; 0: PyTorch's choice", free=True)
    workers: int = setting(2, text="processes that make patches; 0: in the main process", free=True)
    cache_gb: float = setting(
        2.0, text="memory of each process for decoded photographs, in GB; the first ones take it", free=True
    )
    decoded: str = setting(
        "", text="folder for the decoded pixels of the others; empty: decode them at every use", free=True
    )
    audit_cache: str = setting(
        "auto", text="file in which the audit keeps what it found, auto (of this user), or none", free=True
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        for name in ("steps", "batch", "patch", "valid_every", "save_every", "log_every"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "micro_batch",
            "warmup",
            "grad_clip",
            "max_minutes",
            "valid_tile",
            "sample_images",
            "threads",
            "workers",
            "cache_gb",
            "seed",
        ):
            _require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        _require(0 <= self.min_lr <= self.lr, f"min_lr {self.min_lr} must lie between 0 and lr {self.lr}")
        _require(0 <= self.ema < 1, f"ema must lie in [0, 1), got {self.ema}")
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"betas must be two numbers in [0, 1), got {self.betas}",
        )
        try:
            parse_loss(self.loss)
            check_mixture(self.data)
            parse_finish_in(self.finish_in)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        _require(0 < self.fusion_lr_scale < math.inf, f"fusion_lr_scale must be positive, got {self.fusion_lr_scale}")
        _require(
            all(0 < before < after for before, after in pairwise((*self.milestones, math.inf))),
            f"milestones must rise from 1 on, got {' '.join(map(str, self.milestones))}",
        )
        _require(
            len(self.valid_lr) in (0, len(self.valid_hr)),
            f"valid_lr must name as many sets as valid_hr, or none: got {len(self.valid_lr)} and {len(self.valid_hr)}",
        )
        for f in fields(self):
            choices, value = f.metadata.get("choices"), getattr(self, f.name)
            _require(not choices or value in choices, f"{f.name} must be one of {choices}, got {value!r}")


def parse_arguments(argv: list[str] | None = None) -> TrainConfig:
    """The configuration that a command line asks for; it wins over the settings file of `--config`.

    Raises:
        SystemExit: an argument or a setting is unknown or unusable (argparse's message, status 2).
    """
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings; the command line wins")
    chosen, words = chooser.parse_known_args(argv)
    parser = argparse.ArgumentParser(
        "train.py",
        description="Train HATFreq on high-resolution photographs.",
        allow_abbrev=False,
        parents=[chooser],
    )
    for f in fields(TrainConfig):
        _add_argument(parser, f)
    try:
        from_file = settings_words(chosen.config, TrainConfig) if chosen.config else []
        arguments = vars(parser.parse_args([*from_file, *words]))
        del arguments["config"]
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
        return TrainConfig(**values)
    except ValueError as error:
        parser.error(str(error))


def changed_settings(config: TrainConfig) -> str:
    """What differs from the defaults, for the log: `batch 8, lr 0.0002`."""
    differing = [f.name for f in fields(TrainConfig) if getattr(config, f.name) != f.default]
    shown = {name: getattr(config, name) for name in differing}
    return ", ".join(f"{name} {' '.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in shown.items())


def model_config(config: TrainConfig) -> HATConfig:
    """The network's shape: the preset with `frequency` and `model_overrides` applied.

    Raises:
        ConfigError: an unknown key (the nearest name is suggested) or a value that cannot be used.
    """
    preset = PRESETS[config.preset]
    changes: dict[str, Any] = {"frequency": config.frequency, "checkpointing": config.checkpointing}
    for item in config.model_overrides:
        key, equals, text = item.partition("=")
        _require(bool(equals), f"model_overrides takes key=value, got {item!r}")
        _require(key not in _OWN_SETTING, f"{key} is not for model_overrides: {_OWN_SETTING.get(key)}")
        changes[key] = _parse_value(key, text, getattr(preset, key, None))
    try:
        return override(preset, changes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def config_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration in JSON's types, as checkpoints and the run folder hold it."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(config).items()}


def check_same_network(saved: dict[str, Any], network: HATConfig) -> None:
    """Refuse to resume when a preset has another shape than when the run began.

    Args:
        saved: `asdict` of the run's network; empty in checkpoints that do not hold it.
        network: the network of the restart.

    Raises:
        ConfigError: names the fields that differ; how a result is computed (`fused_attention`, `checkpointing`) may.
    """
    now = asdict(network)
    shape = saved.keys() & now.keys() - {"fused_attention", "checkpointing"}
    differing = [f"{key} was {saved[key]} and is now {now[key]}" for key in sorted(shape) if saved[key] != now[key]]
    _require(
        not differing,
        f"the network differs from the run's: {'; '.join(differing)}. Restore these or start another --out",
    )


def check_same(saved: dict[str, Any], config: TrainConfig) -> None:
    """Refuse to resume a run whose settings differ.

    Args:
        saved: `config_dict` of the run's checkpoint; settings it does not know count as their default.
        config: the configuration of the restart.

    Raises:
        ConfigError: names every setting that differs and is not free to change.
    """
    now = config_dict(config)
    differing = []
    for f in fields(TrainConfig):
        before = saved.get(f.name, list(f.default) if isinstance(f.default, tuple) else f.default)
        if not f.metadata.get("free") and before != now[f.name]:
            differing.append(f"{f.name} was {before!r} and is now {now[f.name]!r}")
    _require(
        not differing, f"{config.out} holds another run: {'; '.join(differing)}. Restore these or choose another --out"
    )


def write_run_record(config: TrainConfig, model: HATConfig, folder: Path) -> None:
    """Write `config.json` (settings and network as resolved) and add this start to `environment.json`."""
    write_json(folder / "config.json", {"training": config_dict(config), "model": asdict(model)})
    record = folder / "environment.json"
    starts = json.loads(record.read_text()) if record.exists() else []
    write_json(record, [*starts, environment()])


def environment() -> dict[str, Any]:
    """Where and with what this process runs: command, commit, versions, machine."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(temporary, path)


_OWN_SETTING = {
    "frequency": "use --frequency",
    "checkpointing": "use --checkpointing",
    "scale": "the trainer makes pairs at x4",
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _add_argument(parser: argparse.ArgumentParser, f: Field[Any]) -> None:
    """Add the option of one field, typed after its annotation; the default stands in the help text."""
    several = get_origin(f.type) is tuple
    kind: Any = get_args(f.type)[0] if several else f.type
    required = f.default is MISSING
    text = f.metadata["text"] + ("" if required else f" (default: {f.default!r})")
    if kind is bool:
        switch = argparse.BooleanOptionalAction
        parser.add_argument(f"--{f.name}", action=switch, default=f.default, help=f.metadata["text"])
        return
    parser.add_argument(
        f"--{f.name}",
        type=kind,
        required=required,
        default=None if required else f.default,
        nargs=("+" if required else "*") if several else None,
        choices=f.metadata.get("choices"),
        help=text.replace("%", "%%"),
    )


def _parse_value(key: str, text: str, current: Any) -> Any:
    """A value of `model_overrides`, of the kind that the preset's field has; `depths=2,2` is a tuple."""
    try:
        value = literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(current, tuple) and isinstance(value, int):
        value = (value,)
    if isinstance(current, float) and type(value) is int:
        value = float(value)
    _require(
        current is None or type(value) is type(current),
        f"model_overrides: {key} takes a value such as {current!r}, got {text!r}",
    )
    return value


def _git_commit() -> str:
    """The commit of the code, with `-dirty` when tracked files differ from it; `unknown` outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"
