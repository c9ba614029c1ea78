"""What a run folder keeps of its run: two checkpoints that survive a kill at any moment, and the record of its starts.

A new checkpoint is written beside the last, synced to the disk and only then renamed; the last becomes the previous.
"""

import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from models.team08_HATFreq import HATConfig
from training.config import FIXED, ConfigError, TrainConfig
from utils.environment import environment
from utils.files import UserError, atomic_write, write_bytes

ROOT = Path(__file__).resolve().parents[1]
LAST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
DAMAGED = "checkpoint.damaged.pt"
NEW = "checkpoint.new.pt"  # for a moment
AVERAGE = "last.safetensors"
FORMAT = 2  # rises when the contents change in a way that old readers cannot follow
KEYS = {"format", "step", "model", "ema", "optimiser", "config", "network", "schedule", "data", "validation", "losses",
        "best", "seconds"}  # fmt: skip


class CheckpointError(UserError):
    """A run folder whose checkpoints cannot be used; the message says what to do."""


class _DamagedError(CheckpointError):
    """A file that does not hold a whole checkpoint."""


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint (tensors, containers and plain values under `KEYS`, without `format`), and keep the last.

    Raises:
        OSError: it cannot be written (a full disk, say); both checkpoints then stay as they were.
    """
    new = folder / NEW
    try:
        with atomic_write(new, sync=True) as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        raise OSError(f"cannot write {new}: {error}; the checkpoints before it are untouched") from error
    if (folder / LAST).exists():
        os.replace(folder / LAST, folder / PREVIOUS)
    os.replace(new, folder / LAST)
    if hasattr(os, "O_DIRECTORY"):  # makes the renames last through a power failure
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(descriptor)
        os.close(descriptor)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The newest good checkpoint of a run folder, on the CPU, and a line about it; (None, "") if there is none.

    A damaged last checkpoint is set aside under `DAMAGED`, so that it never replaces the good one before it.

    Raises:
        CheckpointError: checkpoints exist and none is whole, or one was written by another program or version.
        OSError: one cannot be read; the message names it.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if last.exists():
        try:
            state = _read(last)
            return state, f"resuming {last} at step {state['step']}"
        except _DamagedError as damage:
            message = str(damage)
    elif previous.exists():
        message = f"{last} is missing (a kill while it was replaced)"
    else:
        return None, ""
    remedy = "delete what is damaged to start from the beginning, or choose another --out"
    if not previous.exists():
        raise CheckpointError(f"{message}, and there is no {previous.name}: {remedy}")
    try:
        state = _read(previous)
    except _DamagedError as damage:
        raise CheckpointError(f"{message}, and {damage}: {remedy}") from damage
    if last.exists():
        os.replace(last, last.with_name(DAMAGED))
        message += f": set aside as {DAMAGED}"
    return state, f"{message}; using {previous}, step {state['step']}"


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()  # first, so that an error of the disk is not taken for a damaged file
    except OSError as error:
        raise OSError(
            error.errno, f"cannot read {path} ({error.strerror}): look at the disk, the file is untouched"
        ) from error
    try:
        # PyTorch's files are zip archives with checksums. A changed byte in the archive's directory can raise nearly
        # anything, here and there; a lack of memory says nothing of the file.
        with ZipFile(io.BytesIO(content)) as archive:
            if torn := archive.testzip():
                raise BadZipFile(f"wrong checksum of {torn}")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise _DamagedError(f"{path} is damaged ({cause})") from error
    if isinstance(state, dict) and state.get("format", FORMAT) != FORMAT:
        remedy = f"start a new run with --init {path.with_name(AVERAGE)}, or use the code that wrote it"
        raise CheckpointError(f"{path} has format {state['format']}, this trainer reads {FORMAT}: {remedy}")
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise CheckpointError(f"{path} is not a checkpoint of this trainer: move it away, or choose another --out")
    return state


# ---------------------------------------------------------------------------------------------------------------------
# Starts
# ---------------------------------------------------------------------------------------------------------------------


def check_resume(state: dict[str, Any], config: TrainConfig, network: HATConfig) -> dict[str, list[Any]]:
    """Refuse to resume with another network, seed, batch or patch; the rest may be given anew.

    Returns:
        What differs: before and now, by the setting's name.

    Raises:
        ConfigError: names every setting that differs and may not.
    """
    before, now = state["config"], asdict(config)
    changes = {name: [before.get(name), value] for name, value in now.items() if before.get(name) != value}
    shape = asdict(network)
    other = [f"{key} was {state['network'].get(key)} and is now {shape[key]}"
             for key in shape if state["network"].get(key) != shape[key]]  # fmt: skip
    other += [f"{name} was {changes[name][0]!r} and is now {changes[name][1]!r}" for name in FIXED if name in changes]
    if other:
        remedy = f"restore these, or start another --out with --init {config.out}/{AVERAGE}"
        raise ConfigError(f"{config.out} holds another run: {'; '.join(other)}: {remedy}")
    return changes


def weights_of(word: str) -> Path:
    """The file that `--init` names: weights, or the average of a run that has come to its end, by its folder.

    Raises:
        ConfigError: the folder holds no run, or one that has not come to its end.
    """
    folder = Path(word)
    if not folder.exists() and (ROOT / word).exists():  # configs/ name the model zoo
        folder = ROOT / word
    if not folder.is_dir():
        return folder
    state, _ = load_checkpoint(folder)
    if state is None:
        raise ConfigError(f"{folder} holds no run: train that stage first, or name weights to start from")
    step, end = state["step"], state["schedule"]["last"]
    if step < end:
        raise ConfigError(f"{folder} stands at step {step} of {end}: let that stage finish first")
    return folder / AVERAGE


def record_start(config: TrainConfig, network: HATConfig, step: int, changes: dict[str, list[Any]]) -> None:
    """Write `config.json` (settings and network) and add this start to `environment.json`."""
    folder = Path(config.out)
    _write_json(folder / "config.json", {"training": asdict(config), "model": asdict(network)})
    record = folder / "environment.json"
    try:
        starts = json.loads(record.read_text()) if record.exists() else []
    except ValueError as error:
        raise CheckpointError(f"{record} is damaged ({error}): move it away, and start again") from error
    processes = int(os.environ.get("WORLD_SIZE", 1))
    start = environment() | {"processes": processes, "step": step, "changes": changes}
    _write_json(record, [*starts, start])


def _write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())
