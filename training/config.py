"""The trainer's settings: one frozen dataclass, from which the command line is generated."""

import argparse
import math
from ast import literal_eval
from collections.abc import Hashable
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_origin

import numpy as np
import yaml

from image_data.mixture import check_mixture
from models.team08_HATFreq import PRESETS, HATConfig, override
from training.losses import LOSSES, parse_loss
from training.schedule import parse_finish_in

PRECISIONS = ("fp32", "bf16", "auto")


class ConfigError(ValueError):
    """A setting that cannot be used; the message says which and what to do."""


def fixed(default: Any, text: str, **metadata: Any) -> Any:
    """A setting that a run keeps for life.

    Args:
        default: MISSING for none.
        text: its line in the help.
        metadata: `choices`; or `least` (of numbers: 0 without) and `most`.
    """
    return field(default=default, metadata={"text": text, **metadata})


def changeable(default: Any, text: str, **metadata: Any) -> Any:
    """A setting that a resumed run may change where `--change` names it."""
    return fixed(default, text, changeable=True, **metadata)


def free(default: Any, text: str, **metadata: Any) -> Any:
    """A setting that decides no result, and may differ at every start."""
    return fixed(default, text, free=True, **metadata)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes. Patch sizes are in pixels of the low-resolution image."""

    # Free, as the fingerprint of the images decides.
    data: tuple[str, ...] = free(
        MISSING,
        "folders, folder/**, lists, tar shards; or hr=...,lr=...,teacher=...,teacher_weight=...,weight=...,"
        "image_weights=...",
    )
    out: str = free(MISSING, "run folder; one that holds a checkpoint is resumed")
    preset: str = fixed("light", "network size", choices=tuple(PRESETS))
    frequency: str = fixed("bands", "fusion blocks: bands, channels (the control) or none")
    model_overrides: tuple[str, ...] = fixed((), "fields of the preset to change, as key=value")
    init: str = changeable("", "weights, or a finished run, to start from; empty: from scratch")
    steps: int = changeable(20_000, "optimiser steps in all", least=1)
    batch: int = changeable(16, "patches in a step, over all processes", least=1)
    micro_batch: int = free(0, "patches that a process takes at once; 0: its whole share of a step")
    patch: int = changeable(48, "side of a low-resolution patch", least=1)
    bad_images: str = free("stop", "unusable images: stop, or skip (see left_out.csv)", choices=("stop", "skip"))
    lr: float = changeable(1e-3, "peak learning rate")
    min_lr: float = changeable(1e-6, "learning rate of the last step of the cosine decay")
    warmup: int = changeable(100, "steps of linear warm-up")
    milestones: tuple[int, ...] = changeable((), "steps at which the rate is halved, instead of the cosine decay")
    fusion_lr_scale: float = fixed(1.0, "rate of the frequency fusion blocks in relation to the other weights'")
    betas: tuple[float, ...] = fixed((0.9, 0.99), "Adam's two decay rates")
    grad_clip: float = changeable(0.0, "largest gradient norm; 0: no clipping")
    loss: tuple[str, ...] = changeable(("l1=1",), f"losses and weights, as l1=1 mse=0.1: {', '.join(LOSSES)}")
    teacher_decay: int = changeable(0, "steps in which the teacher's part in the target falls to nothing; 0: it stays")
    ema: float = changeable(0.999, "decay of the moving average of the weights")
    seed: int = changeable(0, "decides initial weights, sample order and stochastic depth", most=2**64 - 1)
    precision: str = changeable("fp32", "of the training step; auto: bf16 where it is faster", choices=PRECISIONS)
    checkpointing: bool = free(False, "recompute activations in the backward pass: less memory, a third more time")
    compile: bool = free(False, "compile the attention blocks first: minutes; slower on a CPU, not measured on a GPU")
    valid_hr: tuple[str, ...] = free((), "targets to validate on, a word a set; empty: no validation")
    valid_lr: tuple[str, ...] = free((), "their low-resolution images, a word a set; empty: made from the targets")
    valid_tile: int = free(0, "validate tile by tile, of so many LR pixels a side; 0: whole images")
    valid_every: int = free(500, "steps between validations", least=1)
    save_every: int = free(200, "steps between checkpoints", least=1)
    save_minutes: float = free(10.0, "minutes between checkpoints, at most; 0: by --save_every alone")
    log_every: int = free(50, "steps between log lines when there is no terminal", least=1)
    tensorboard: bool = free(True, "write the log for TensorBoard too")
    sample_images: int = free(3, "validation images to draw restored at every validation, into samples/")
    max_minutes: float = free(0.0, "stop with a checkpoint after so many minutes; 0: no limit")
    finish_in: str = free("", "decay and end within so many steps (of a run that has begun), or minutes, as 90min")
    change: tuple[str, ...] = free((), "settings that a resumed run changes on purpose, as lr grad_clip")
    device: str = free("auto", "auto, cpu, cuda or cuda:N")
    timeout_minutes: float = free(10.0, "how long a process waits for the others in a step", least=0.01)
    threads: int = free(0, "CPU threads of the network; 0: PyTorch's choice")
    workers: int = free(2, "processes that make patches; 0: in the main process")
    cache_gb: float = free(2.0, "memory of each process for decoded photographs, in GB; the first ones take it")
    audit_cache: str = free("auto", "file in which the audit keeps what it found, auto (of this user), or none")

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        for f in fields(self):
            _check_range(f, getattr(self, f.name))
        _require(self.min_lr <= self.lr, f"min_lr {self.min_lr} must lie between 0 and lr {self.lr}")
        _require(self.ema < 1, f"ema must lie in [0, 1), got {self.ema}")
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
        _require(self.fusion_lr_scale > 0, f"fusion_lr_scale must be positive, got {self.fusion_lr_scale}")
        _require(
            all(0 < before < after for before, after in pairwise((*self.milestones, math.inf))),
            f"milestones must rise from 1 on, got {' '.join(map(str, self.milestones))}",
        )
        for name, last in (("warmup", self.warmup), ("milestones", max(self.milestones, default=0))):
            _require(last <= self.steps, f"{name} {last} lies beyond the {self.steps} steps: set a lower --{name}")
        _require(
            len(self.valid_lr) in (0, len(self.valid_hr)),
            f"valid_lr must name as many sets as valid_hr, or none: got {len(self.valid_lr)} and {len(self.valid_hr)}",
        )
        known = [f.name for f in fields(self) if f.metadata.get("changeable")]
        for name in self.change:
            _require(name in known, f"change takes {', '.join(known)}; got {name!r}")


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
        from_file = settings_words(chosen.config) if chosen.config else []
        arguments = vars(parser.parse_args([*from_file, *words]))
        del arguments["config"]
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()}
        return TrainConfig(**values)
    except ValueError as error:
        parser.error(str(error))


def settings_words(path: Path) -> list[str]:
    """The command-line words that a settings file stands for: `lr: 0.001` -> `--lr 0.001`.

    A list gives several words, and a mapping words of the form key=value (`model_overrides: {window_size: 8}`); `true`
    and `false` give `--name` and `--no-name`; a name without a value leaves the default.

    Raises:
        ConfigError: unreadable, not a mapping, a doubled key, or an unknown one (the nearest name is suggested).
    """
    try:
        content = yaml.load(path.read_text(), _SettingsLoader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}): name a settings file such as configs/light.yaml"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    _require(isinstance(content, dict), f"{path} holds no settings: write one `name: value` a line")
    known = [f.name for f in fields(TrainConfig)]
    words: list[str] = []
    for key, value in content.items():
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f": did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
            raise ConfigError(f"{path}: unknown key '{key}'{hint}")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{key}")
        elif value is not None:
            words += [f"--{key}", *_items(value)]
    return words


class _SettingsLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        if doubled := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{doubled[0]} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


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
    changes: dict[str, Any] = {"frequency": config.frequency}
    for item in config.model_overrides:
        key, equals, text = item.partition("=")
        _require(bool(equals), f"model_overrides takes key=value, got {item!r}")
        _require(key not in _OWN_SETTING, f"{key} is not for model_overrides: {_OWN_SETTING.get(key)}")
        changes[key] = _parse_value(key, text, getattr(preset, key, None))
        least, most = _RANGES.get(key, (1, 10_000))
        numbers = [one for one in np.atleast_1d(changes[key]) if isinstance(one, np.number)]
        _require(
            all(least <= one <= most for one in numbers),
            f"model_overrides: {key} must lie between {least} and {most}, got {text}",
        )
    try:
        return override(preset, changes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def config_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration in JSON's types, as checkpoints and the run folder hold it."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(config).items()}


_RANGES = {"drop_path_rate": (0, 0.99), "overlap_ratio": (0, 1), "conv_scale": (0, 100), "mlp_ratio": (0.1, 100)}
_OWN_SETTING = {
    "frequency": "use --frequency",
    "checkpointing": "use --checkpointing",
    "scale": "the trainer makes pairs at x4",
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _check_range(f: Field[Any], value: Any) -> None:
    choices, least, most = (
        f.metadata.get(key, default) for key, default in (("choices", ()), ("least", 0), ("most", 0))
    )
    _require(not choices or value in choices, f"{f.name} must be one of {choices}, got {value!r}")
    if isinstance(value, int | float):
        _require(math.isfinite(value), f"{f.name} must be a finite number, got {value}")
        _require(value >= least, f"{f.name} must be at least {least}, got {value}")
        _require(not most or value <= most, f"{f.name} must be at most {most}, got {value}")


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


def _items(value: Any) -> list[str]:
    """The words of a setting's value."""
    if isinstance(value, dict):
        return [f"{key}={_text(item)}" for key, item in value.items()]
    return [_text(item) for item in value] if isinstance(value, list) else [_text(value)]


def _text(value: Any) -> str:
    """As a person would type it: `[4, 4]` -> `4,4`, `{hr: a, lr: b}` -> `hr=a,lr=b`."""
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


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
