"""The trainer's settings: one frozen dataclass, read from the command line and from a YAML file.

The groups below make the sections of `--help`; the comment behind a setting is its line there.
"""

import math
import re
import sys
from ast import literal_eval
from collections.abc import Hashable, Iterable
from dataclasses import asdict, dataclass, fields, make_dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from image_data.mixture import check_mixture
from models.team08_HATFreq import PRESETS, HATConfig, override
from training.losses import parse_loss
from utils.files import UserError, refuse_doubled

DESCRIPTION = "Train HATFreq on high-resolution images. --config FILE reads settings from YAML; the command line wins."
FIXED = ("preset", "frequency", "model_overrides", "seed", "batch", "patch")  # a run keeps them, and its data, for life


class ConfigError(UserError):
    """A setting that cannot be used; the message says which and what to do."""


@dataclass(frozen=True, kw_only=True)
class Data:
    data: tuple[str, ...]  # folders, folder/**, lists, tar shards; or hr=...,lr=...,weight=...
    bad_images: Literal["stop", "skip"] = "stop"  # unusable images: stop, or skip them (left_out.csv lists them)
    workers: int = 2  # processes that make patches; 0: in the main process
    cache_gb: float = 2.0  # memory of each process for decoded images, in GB; the first ones take it


@dataclass(frozen=True, kw_only=True)
class Network:
    preset: str = "light"  # network size: light, small, base or large
    frequency: str = "bands"  # fusion blocks: bands or none
    model_overrides: tuple[str, ...] = ()  # fields of the preset to change, as key=value
    init: str = ""  # weights, or the folder of a finished run, to start from; empty: from scratch


@dataclass(frozen=True, kw_only=True)
class Steps:
    steps: int = 20_000  # optimiser steps in all
    batch: int = 16  # patches in a step, over all processes
    patch: int = 48  # side of a low-resolution patch in pixels
    seed: int = 0  # decides initial weights, sample order and stochastic depth
    finish_in: int = 0  # cool down and end within so many steps from where the run stands (1 - sqrt); 0: as planned
    max_minutes: float = 0.0  # stop with a checkpoint after so many minutes; 0: no limit


@dataclass(frozen=True, kw_only=True)
class Optimiser:
    lr: float = 1e-3  # peak learning rate
    schedule: Literal["cosine", "constant", "milestones"] = "cosine"  # of the rate, after the warm-up
    min_lr: float = 1e-6  # rate of the last step of a cosine decay or a cool-down
    warmup: int = 100  # steps of linear warm-up
    milestones: tuple[int, ...] = ()  # steps at which the rate is halved
    grad_clip: float = 0.0  # largest gradient norm; 0: no clipping
    loss: tuple[str, ...] = ("l1=1",)  # losses and weights, as l1=1 frequency=0.1; also charbonnier, mse
    ema: float = 0.999  # decay of the moving average of the weights


@dataclass(frozen=True, kw_only=True)
class Validation:
    valid_hr: tuple[str, ...] = ()  # targets to validate on, a word a set; empty: no validation
    valid_lr: tuple[str, ...] = ()  # their low-resolution images, a word a set; empty: made from the targets
    valid_tile: int = 0  # validate tile by tile, of so many LR pixels a side; 0: whole images
    valid_every: int = 500  # steps between validations


@dataclass(frozen=True, kw_only=True)
class Output:
    out: str  # run folder; one that holds a checkpoint is resumed
    save_every: int = 200  # steps between checkpoints
    log_every: float = 30.0  # seconds between lines of progress
    tensorboard: bool = True  # write the log for TensorBoard too


@dataclass(frozen=True, kw_only=True)
class Machine:
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    precision: Literal["fp32", "bf16", "auto"] = "fp32"  # of the training step; auto: bf16 where it is faster
    micro_batch: int = 0  # patches that a process takes at once; 0: its whole share of a step
    checkpointing: bool = False  # recompute activations in the backward pass: less memory, a third more time
    compile: bool = False  # compile the attention blocks first, which takes minutes
    threads: int = 0  # CPU threads of the network; 0: PyTorch's choice
    timeout_minutes: float = 10.0  # how long a process waits for its data, or for the others in a step


GROUPS = (Data, Network, Steps, Optimiser, Validation, Output, Machine)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Machine, Output, Validation, Optimiser, Steps, Network, Data):
    """Everything that decides what a run computes."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming the setting."""
        for name, value in asdict(self).items():
            if isinstance(value, int | float):
                least = 1 if name in ("steps", "batch", "patch", "valid_every", "save_every") else 0
                most = 2**64 - 1 if name == "seed" else 1 if name in ("lr", "min_lr", "ema") else 10**9
                _require(least <= value <= most, f"{name} must lie between {least} and {most}, got {value}")
            empty = "" in value if isinstance(value, tuple) else value == "" and name not in ("init", "frequency")
            _require(not empty, f"{name} is empty: give a value, or leave it out")
        _require(bool(self.data), "data is empty: name a folder of images")
        _require(self.preset in PRESETS, f"unknown preset {self.preset!r}: {_nearest(self.preset, PRESETS)}")
        _require(self.min_lr <= self.lr, f"min_lr {self.min_lr} must not lie above lr {self.lr}")
        _require(self.timeout_minutes > 0 and self.ema < 1, "timeout_minutes must be positive, and ema below 1")
        _require(
            bool(self.milestones) == (self.schedule == "milestones")
            and all(0 < before < after for before, after in pairwise((*self.milestones, math.inf))),
            "milestones, rising from 1 on, go with --schedule milestones, and with it alone",
        )
        for name, last in (("warmup", self.warmup), ("milestones", max(self.milestones, default=0))):
            _require(last <= self.steps, f"{name} {last} lies beyond the {self.steps} steps")
        _require(len(self.valid_lr) in (0, len(self.valid_hr)), "valid_lr must name as many sets as valid_hr, or none")
        refuse_doubled(self.valid_hr, "name each validation set once")
        parse_loss(self.loss)
        check_mixture(self.data)


def parse_arguments(argv: list[str] | None = None) -> TrainConfig:
    """The configuration of a command line; it wins over the settings file of `--config FILE`.

    Raises:
        ConfigError: a value that cannot be used, in the file (named, with its key) or on the command line.
    """
    import tyro

    arguments = sys.argv[1:] if argv is None else argv
    if "--config" in arguments[:-1]:
        position = arguments.index("--config")
        arguments = [*settings_words(Path(arguments[position + 1])), *arguments[:position], *arguments[position + 2 :]]
    omit: Any = tyro.conf.OmitArgPrefixes
    groups = omit[make_dataclass("Settings", [(kind.__name__.lower(), kind) for kind in GROUPS])]
    parsed = tyro.cli(groups, args=arguments, prog="train.py", use_underscores=True, description=DESCRIPTION)
    return TrainConfig(**{name: value for group in vars(parsed).values() for name, value in vars(group).items()})


def settings_words(path: Path) -> list[str]:
    """The command-line words of a settings file: `lr: 0.001` -> `--lr 0.001`, `{window_size: 8}` -> `window_size=8`.

    Raises:
        ConfigError: unreadable, not a mapping, a doubled or unknown key (the nearest is named), a wrong type.
    """
    try:
        content = yaml.load(path.read_text(), _SettingsLoader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"--config {path} cannot be read ({error.strerror}): try configs/light.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    _require(isinstance(content, dict), f"{path} holds no settings: write one `name: value` a line")
    kinds, arguments = get_type_hints(TrainConfig), []
    for key, value in content.items():
        if key not in kinds:
            raise ConfigError(f"{path}: unknown key {key!r}: {_nearest(key, kinds)}")
        kind = kinds[key]
        item_kind = get_args(kind)[0] if get_origin(kind) is tuple else str if get_args(kind) else kind
        items = value if isinstance(value, list) else [value]
        if isinstance(value, dict):
            items = [f"{name}={_text(item)}" for name, item in value.items()]
        fits = (get_origin(kind) is tuple or len(items) == 1) and all(_fits(item, item_kind) for item in items)
        _require(fits, f"{path}: {key} takes {item_kind.__name__}, got {_text(value)!r}")
        if kind is bool:
            arguments.append(f"--{key}" if value else f"--no_{key}")
        else:
            arguments += [f"--{key}", *map(_text, items)]
    return arguments


def _fits(item: Any, kind: type) -> bool:
    """Whether a value of YAML, which takes 1e-4 for text and a name of digits for a number, can be read as a kind."""
    if item is None or isinstance(item, bool) or kind is bool:
        return isinstance(item, bool) and kind is bool
    try:
        return kind is str or math.isfinite(kind(_text(item)))
    except ValueError:
        return False


class _SettingsLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _nearest(name: object, known: Iterable[str]) -> str:
    near = get_close_matches(str(name), known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _text(value: Any) -> str:
    """As a person would type it: `[4, 4]` -> `4,4`, `{hr: a, lr: b}` -> `hr=a,lr=b`."""
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items())
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"(?<![^=,])~(?=/)", str(Path.home()), text)  # as a shell does


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
        _require(key not in ("frequency", "scale"), f"{key} is not for model_overrides (--frequency; always x4)")
        try:
            value = literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        current = getattr(preset, key, None)
        if type(value) is int and isinstance(current, tuple | float):
            value = (value,) if isinstance(current, tuple) else float(value)
        if current is not None and type(value) is not type(current):
            raise ConfigError(f"model_overrides: {key} takes a value such as {current!r}, got {text!r}")
        changes[key] = value
    try:
        return override(preset, changes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def changed_settings(config: TrainConfig) -> str:
    """What differs from the defaults, for the log: `batch 8, lr 0.0002`."""
    values = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
    return ", ".join(f"{name} {' '.join(map(str, v)) if isinstance(v, tuple) else v}" for name, v in values.items())


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
