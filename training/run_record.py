"""What a run folder says of its run: settings, network, each start's machine and changes; what a resume may change."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from models.team08_HATFreq import HATConfig
from models.team08_HATFreq.system import write_bytes
from training.checkpoint import load_checkpoint
from training.config import ConfigError, TrainConfig, config_dict
from training.run_log import say
from training.schedule import planned

JUMP = 0.01  # relative change of the rate from which on another --steps needs --change
AVERAGE = "last.safetensors"


def check_resume(state: dict[str, Any], config: TrainConfig, network: HATConfig) -> dict[str, list[Any]]:
    """Refuse to resume a run with other settings, but for those that are free or named by `--change`.

    Args:
        state: the run's checkpoint; settings it does not know count as their default.
        config, network: of the restart.

    Returns:
        What differs: before and now, by the setting's name.

    Raises:
        ConfigError: names every setting that differs and may not, or fields of the preset that have changed.
    """
    now, saved = config_dict(config), state["config"]
    changes, refused = {}, []
    for f in fields(TrainConfig):
        before = saved.get(f.name, list(f.default) if isinstance(f.default, tuple) else f.default)
        if before == now[f.name] or (f.name == "init" and before == init_file(config.init)):
            continue
        changes[f.name] = [before, now[f.name]]
        if f.name in ("steps", "warmup", "milestones") and (reshaped := state["schedule"]["finish_in"]):
            text = f"{f.name} was {before!r} and is now {now[f.name]!r} (--finish_in {reshaped} has set the end since)"
            refused.append((text, False))
        elif f.name == "steps":
            refused += _rate_jump(state, config, before)
        elif f.name not in config.change and not _is_free(f.name, f.metadata, changes, state):
            refused.append((f"{f.name} was {before!r} and is now {now[f.name]!r}", bool(f.metadata.get("changeable"))))
    if refused:
        names = " ".join(text.partition(" ")[0] for text, changeable in refused if changeable)
        remedy = f", or name what you change on purpose: --change {names}" if names else ""
        raise ConfigError(
            f"{config.out} holds another run: {'; '.join(text for text, _ in refused)}. Restore these or choose "
            f"another --out{remedy}"
        )
    _check_network(state.get("network", {}), network)
    return changes


def _is_free(name: str, metadata: Mapping[str, Any], changes: dict[str, list[Any]], state: dict[str, Any]) -> bool:
    """Whether a setting may differ at every start; an older checkpoint does not know how its sources are weighted."""
    unknown = name == "data" and "sampling" not in state and "weight=" in str(changes[name])
    return bool(metadata.get("free")) and not unknown


def _rate_jump(state: dict[str, Any], config: TrainConfig, before: int) -> list[tuple[str, bool]]:
    """Another number of steps stretches the cosine: why not, if the rate would jump by it."""
    saved, step = state["config"], state["step"]
    if step >= config.steps or "steps" in config.change:
        return []
    plan = planned(saved["lr"], saved["min_lr"], saved["warmup"], before, tuple(saved["milestones"]))
    old, new = plan.lr_at(step), replace(plan, end=config.steps).lr_at(step)
    if abs(new - old) <= JUMP * old:
        return []
    jump = f"the rate would jump from {old:.3g} to {new:.3g} at step {step}; --finish_in ends without a jump"
    return [(f"steps was {before} and is now {config.steps} ({jump})", True)]


def _check_network(saved: dict[str, Any], network: HATConfig) -> None:
    """Refuse to resume when a preset has another shape than when the run began; how a result is computed may differ."""
    now = asdict(network)
    shape = sorted(saved.keys() & now.keys())
    differing = [f"{key} was {saved[key]} and is now {now[key]}" for key in shape if saved[key] != now[key]]
    if differing:
        raise ConfigError(
            f"the network differs from the run's: {'; '.join(differing)}. Restore these or start another --out"
        )


def init_file(word: str) -> str:
    """The weights that `--init` names: a file, or a run folder's average."""
    return str(Path(word) / AVERAGE) if word and (Path(word).is_dir() or not Path(word).suffix) else word


def finished_weights(word: str) -> Path:
    """The weights file that `--init` names; of a run folder, the averaged weights of the run that has come to its end.

    Raises:
        ConfigError: the folder holds no run, or one that has not come to its end.
    """
    folder = Path(word)
    if not folder.is_dir() and folder.suffix:
        return folder
    state, _ = load_checkpoint(folder)
    if state is None:
        raise ConfigError(f"{folder} holds no run: train that stage first, or name weights to start from")
    step, end = state["step"], state["schedule"]["end"]
    if step < end:
        raise ConfigError(f"{folder} stands at step {step} of {end}: let that stage finish first")
    return folder / AVERAGE


def write_run_record(
    config: TrainConfig, model: HATConfig, start: dict[str, Any], teacher: dict[str, str] | None = None
) -> None:
    """Write `config.json` (settings and network as resolved) and add this start to `environment.json`.

    Args:
        start: what to note of it beside `environment()`.
        teacher: name and sha256 of the weights that the run is distilled from.
    """
    folder = Path(config.out)
    settings = {"training": config_dict(config), "model": asdict(model)}
    _write_json(folder / "config.json", settings | ({"teacher": teacher} if teacher else {}))
    record = folder / "environment.json"
    _write_json(record, [*_starts(record), environment() | start])


def recorded_teacher(folder: Path) -> dict[str, str] | None:
    """The teacher that a run's `config.json` names; None for none.

    Raises:
        ConfigError: it is damaged.
    """
    record = folder / "config.json"
    try:
        found: dict[str, dict[str, str]] = json.loads(record.read_text()) if record.exists() else {}
        return found.get("teacher")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"{record} is damaged ({error}): move it away, and start again") from error


def _starts(record: Path) -> list[Any]:
    """What earlier starts have noted; a damaged file, which the run can do without, is set aside."""
    try:
        found = json.loads(record.read_text()) if record.exists() else []
        if not isinstance(found, list):
            raise ValueError("not a list of starts")
        return found
    except ValueError as error:
        aside = record.with_name("environment.damaged.json")
        os.replace(record, aside)
        say(f"{record} is damaged ({error}): set aside as {aside.name}, and begun anew")
        return []


def environment() -> dict[str, Any]:
    """Where and with what this process runs: command, commit, versions, machine."""
    cuda = torch.cuda.is_available()
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "processes": dist.get_world_size() if dist.is_initialized() else 1,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "gpus": torch.cuda.device_count(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if cuda else None,
        "driver": _driver(),
    }


def _driver() -> str | None:
    """NVIDIA's driver, in the words of Linux."""
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None


def _write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


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
