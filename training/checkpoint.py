"""Checkpoints that survive a kill at any moment: the last one and the one before it.

A new checkpoint is written beside the last, synced to the disk and only then renamed; the last becomes the previous.
"""

import errno
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from models.team08_HATFreq.system import atomic_write

LAST = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
DAMAGED = "checkpoint.damaged.pt"
NEW = "checkpoint.new.pt"  # for a moment
FORMAT = 1  # rises when the contents change in a way that old readers cannot follow
KEYS = {"format", "step", "model", "ema", "optimiser", "config", "schedule", "data", "losses", "best_psnr", "seconds"}
# Later keys, which older checkpoints lack: network, sampling, validation.


class CheckpointError(ValueError):
    """A run folder whose checkpoints cannot be used; the message says what to do."""


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under `LAST` and keep the one before it under `PREVIOUS`.

    Args:
        folder: the run folder.
        state: tensors, containers and plain values under `KEYS` and later keys, without `format`.

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
    _sync_folder(folder)


def load_checkpoint(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The newest good checkpoint of a run folder, on the CPU, and a line about it.

    A damaged last checkpoint is set aside under `DAMAGED`, so that it never replaces the good one before it.

    Returns:
        (state, message); (None, "") if the folder holds no checkpoint.

    Raises:
        CheckpointError: checkpoints exist and none can be read, or one was written by another program or version.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    if not last.exists() and not previous.exists():
        return None, ""
    if not last.exists():
        state = _read_left(previous)
        return state, f"{last} is missing (a kill while it was replaced): using {previous}, step {state['step']}"
    try:
        state = _read(last)
    except _DamagedError as damage:
        return _fall_back(last, previous, damage)
    return state, f"resuming {last} at step {state['step']}"


class _DamagedError(CheckpointError):
    """A file that does not hold a whole checkpoint."""


def _fall_back(last: Path, previous: Path, damage: Exception) -> tuple[dict[str, Any], str]:
    if not previous.exists():
        raise CheckpointError(f"{damage}, and there is no {previous.name}: delete it to start from the beginning")
    state = _read_left(previous, f"{damage}, and ")
    aside = last.with_name(DAMAGED)
    os.replace(last, aside)
    return state, f"{damage}: set aside as {aside.name}; using {previous}, step {state['step']}"


def _read_left(previous: Path, told: str = "") -> dict[str, Any]:
    """The one that is left; `told` says what became of the other."""
    try:
        return _read(previous)
    except _DamagedError as error:
        raise CheckpointError(
            f"{told}{error}: delete what is damaged to start from the beginning, or choose another --out"
        ) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        # PyTorch's files are zip archives with checksums. A changed byte in the archive's directory can raise nearly
        # anything, here and there; what the system or a lack of memory raises says nothing of the file.
        with ZipFile(path) as archive:
            if torn := archive.testzip():
                raise BadZipFile(f"wrong checksum of {torn}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # EINVAL: an offset that makes no sense
            raise
        raise _DamagedError(
            f"{path} is damaged ({str(error).splitlines()[0] if str(error) else type(error)})"
        ) from error
    if not isinstance(state, dict) or not state.keys() >= KEYS:
        raise CheckpointError(f"{path} is not a checkpoint of this trainer: move it away, or choose another --out")
    if state["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has format {state['format']}, this trainer reads {FORMAT}: use the code that wrote it"
        )
    return state


def _sync_folder(folder: Path) -> None:
    """Make the renames last through a power failure, where folders can be synced (not on Windows)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
