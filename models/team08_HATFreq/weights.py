"""Checkpoints: read from any of the usual files, explained when they do not fit, written as safetensors.

Read are official HAT files (`params_ema`, `params`), this project's releases and training checkpoints, bare state
dicts, with the prefixes that DataParallel (`module.`) and torch.compile (`_orig_mod.`) leave. No file can run code:
`torch.load(weights_only=True)` always.
"""

import hashlib
import io
import math
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from .image_io import write_bytes
from .network import PRESETS, HATConfig, HATFreq

StateDict = dict[str, Tensor]
# Where checkpoints keep the weights, the most useful first: averages before the raw ones.
_NESTS = ("params_ema", "params", "ema", "model", "state_dict", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")
_BLOCK = "layers.0.residual_group.blocks.0."
_OVERLAP = "layers.{}.residual_group.overlap_attn.relative_position_bias_table"
_WORDS = {
    "scale": "the file is x{0}, the model x{1}",
    "embed_dim": "the file is {0} channels wide, the model {1}",
    "depths": "the file has groups of {0} blocks, the model of {1}",
    "num_heads": "the file has {0} attention heads, the model {1}",
    "window_size": "the file's windows have {0} pixels a side, the model's {1}",
    "overlap_ratio": "the file's key windows overlap by {0}, the model's by {1}",
    "upsampler": "the file ends in the upsampler '{0}', the model in '{1}'",
    "frequency": "the file's frequency blocks are '{0}', the model's '{1}'",
}


class WeightsError(ValueError):
    """A checkpoint that cannot be used; the message names the file, the cause and the remedy."""


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """The tensors of a checkpoint by name, on the CPU, without wrappers and prefixes.

    Raises:
        WeightsError: missing, empty, truncated, not a checkpoint, or a pickle that holds code.
    """
    return _read_checkpoint(Path(path))[0]


def load_weights(model: HATFreq, path: str | os.PathLike[str]) -> str:
    """Load a checkpoint into a model, all of it or nothing.

    A plain HAT file fits a model with fresh fusion blocks too: they are zero, so the result is exactly HAT's.

    Returns:
        One line for the log: file, preset or shape, parameters, where in the file they were, fusion fresh or loaded.

    Raises:
        WeightsError: the file cannot be read or does not fit, with the reason.
    """
    path = Path(path)
    state, source = _read_checkpoint(path)
    own = model.state_dict()
    fusion = [key for key in own if ".freq." in key]
    fresh = [] if any(".freq." in key for key in state) else fusion
    buffers = [key for key in own if key.startswith("relative_position_index") and key not in state]
    if reason := _misfit(state, model, optional={*fresh, *buffers}):
        raise WeightsError(f"{path} does not fit: {reason}")
    if bad := [key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise WeightsError(
            f"{path} holds values that are not finite in {bad[0]}: download it again, or use another file"
        )
    if any(own[key].any() for key in fresh if ".freq.fuse." in key):
        raise WeightsError(f"{path} has no fusion blocks and this model's are not fresh: load it into a new model")
    model.load_state_dict(state, strict=False)
    parameters = f"{sum(p.numel() for p in model.parameters()):,} parameters from {source}"
    note = "fresh (the result is exactly HAT's)" if fresh else "loaded" if fusion else "none"
    return f"{path.name}: {preset_of(model.config)}, {parameters}, fusion blocks {note}"


def describe(state: Mapping[str, Tensor]) -> HATConfig:
    """The shape of the network that a state dict belongs to, read off its tensors.

    Tensors do not tell everything: the control `identity` reads as `both`, and conv_scale and drop_path_rate follow the
    presets (1 and 0 with `pixelshuffledirect`, 0.01 and 0.1 with `pixelshuffle`).

    Raises:
        WeightsError: not a HAT or HATFreq.
    """
    try:
        return HATConfig(**_attention_shape(state), **_upsampler_shape(state), frequency=_frequency_of(state))
    except KeyError as error:
        raise WeightsError(f"not a HAT or HATFreq checkpoint: it has no {error.args[0]}") from error
    except (ValueError, IndexError, ZeroDivisionError) as error:  # the latter two: tensors without the usual axes
        raise WeightsError(f"not a shape that HATFreq builds: {error}") from error


def preset_of(config: HATConfig) -> str:
    """The preset that a shape belongs to, with scale and fusion: `base x4, frequency both`; else the shape."""
    free = ("scale", "frequency", "fused_attention", "checkpointing", "drop_path_rate", "num_feat")
    shape = {key: value for key, value in asdict(config).items() if key not in free}
    names = [name for name, preset in PRESETS.items() if shape == {key: asdict(preset)[key] for key in shape}]
    tail = f", {config.embed_dim} channels, groups of {config.depths} blocks, windows of {config.window_size}"
    return f"{names[0] if names else 'custom'} x{config.scale}, frequency {config.frequency}{'' if names else tail}"


def save_weights(
    model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str]
) -> str:
    """Write weights as safetensors, floating-point ones as fp32, whole or not at all.

    No `.sha256` file is written: a training run replaces its weights often, and a kill between two files would leave a
    checksum that condemns good weights. A release writes it.

    Args:
        model: a module or its state dict.
        path: file to write.
        metadata: what to know the file by; strings.

    Returns:
        The file's sha256.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    content = save_safetensors({key: _storable(tensor) for key, tensor in state.items()}, metadata)
    write_bytes(Path(path), content)
    return hashlib.sha256(content).hexdigest()


def verify_checksum(path: str | os.PathLike[str]) -> str:
    """The file's sha256, after comparing it with the `.sha256` file beside it if there is one.

    Raises:
        WeightsError: they differ.
    """
    path = Path(path)
    found = hashlib.sha256(_read_bytes(path)).hexdigest()
    beside = path.with_name(path.name + ".sha256")
    if beside.exists() and beside.read_text().split()[:1] != [found]:
        raise WeightsError(
            f"{path} is not the released file (its sha256 is {found}, not that of {beside.name}): get it again"
        )
    return found


def _storable(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares no memory; fp32 if it is floating-point."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()


def _read_checkpoint(path: Path) -> tuple[StateDict, str]:
    """The tensors of a checkpoint, and where they were: `safetensors`, `params_ema`, ..., `a bare state dict`."""
    content = _read_bytes(path)
    if content[8:9] == b"{":  # after the header's length
        state, source = _load_safetensors(path, content), "safetensors"
    elif content[:4] == b"PK\x03\x04" or content[:1] == b"\x80":  # a zip of torch.save, or an older pickle
        state, source = _find_weights(path, _load_torch(path, content))
    else:
        raise WeightsError(f"{path} {_what_else(content)}")
    return {_without_prefixes(key): tensor for key, tensor in state.items()}, source


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise WeightsError(f"{path} is a folder: name the weights file in it")
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".safetensors", ".pth", ".pt"))
        there = f"there are {', '.join(near)}" if near else f"there are no weights in {path.parent}"
        raise WeightsError(f"{path} does not exist; {there}")
    return path.read_bytes()


def _what_else(content: bytes) -> str:
    """Why a file of an unknown format is no checkpoint, and what to do."""
    if not content:
        return "is empty: download or copy it again"
    if content.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the weights: run 'git lfs pull'"
    if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<":  # behind a byte order mark, perhaps
        return "is a web page, not weights: the download failed; get it again in a browser"
    return "is not a checkpoint (neither safetensors nor a file of torch.save), or its beginning is damaged"


def _load_safetensors(path: Path, content: bytes) -> StateDict:
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise WeightsError(f"{path} is a damaged or truncated safetensors file ({error}): get it again") from error


def _load_torch(path: Path, content: bytes) -> Any:
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way: IndexError, struct.error, AssertionError, ...
        raise WeightsError(f"{path} {_why_not_loaded(content, error)}") from error


def _why_not_loaded(content: bytes, error: Exception) -> str:
    """Why torch.load failed, and what to do."""
    members = _members(content)
    if members and not any(name.endswith("/data.pkl") for name in members):
        return "is a zip archive that torch.save did not write: unpack it and name the weights file in it"
    if any(name.endswith("/constants.pkl") for name in members):
        return "is a TorchScript program, not weights: save its state_dict() with torch.save or safetensors"
    if isinstance(error, pickle.UnpicklingError) and _is_whole_pickle(content):
        return (
            "is a pickle that holds more than tensors, which could run code, and is refused: "
            "where you trust it, load it there and save its state_dict() with torch.save or safetensors"
        )
    return f"is damaged or truncated ({str(error).partition(chr(10))[0][:100] or type(error).__name__}): get it again"


def _members(content: bytes) -> list[str]:
    """The names in a zip archive; none if it is no whole archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []


def _is_whole_pickle(content: bytes) -> bool:
    """Whether a pickle that torch.load refused is well-formed; walked, not run."""
    try:
        if content[:1] != b"\x80":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                content = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        stream = io.BytesIO(content)
        for _ in range(4):  # torch.save's older format: magic number, version, system, and then the object
            if stream.tell() < len(content):
                list(pickletools.genops(stream))
    except Exception:  # whatever pickletools or zipfile finds wrong: the answer is no
        return False
    return True


def _find_weights(path: Path, loaded: Any, source: str = "a bare state dict") -> tuple[StateDict, str]:
    """The state dict inside what torch.load gave, and the key that it was under."""
    if isinstance(loaded, Mapping):
        for nest in _NESTS:
            if isinstance(loaded.get(nest), Mapping):
                return _find_weights(path, loaded[nest], nest)
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return dict(loaded), source
    raise WeightsError(
        f"{path} holds no state dict: expected tensors by name, bare or under one of {', '.join(_NESTS)}"
    )


def _without_prefixes(key: str) -> str:
    while (prefix := next((p for p in _PREFIXES if key.startswith(p)), None)) is not None:
        key = key.removeprefix(prefix)
    return key


def _misfit(state: StateDict, model: HATFreq, optional: set[str]) -> str:
    """Why a state dict does not fit a model, in one sentence; empty if it does."""
    own = model.state_dict()
    missing = [key for key in own if key not in state and key not in optional]
    foreign = sorted((key for key in state if key not in own), key=_weights_first)
    reshaped = sorted((key for key in state if key in own and state[key].shape != own[key].shape), key=_weights_first)
    indices = [key for key in own if key.startswith("relative_position_index") and key not in optional]
    if not (missing or foreign or reshaped):
        unequal = [key for key in indices if not torch.equal(state[key], own[key])]
        return f"its {unequal[0]} belongs to another window or overlap" if unequal else ""
    try:
        config = describe(state)
    except WeightsError as error:
        return str(error)
    differences = _differences(config, model.config, foreign, missing)
    if differences:
        return f"{'; '.join(differences)}; build the model that the file describes ({preset_of(config)})"
    key, *more = missing + foreign + reshaped
    where = f"the file lacks {key}" if missing else f"the model has no {key}"
    if key in reshaped:
        shapes = f"{tuple(state[key].shape)} in the file and {tuple(own[key].shape)} in the model"
        where = f"the shapes differ in {key}, {shapes}"
    return f"{where}{f' (and {len(more)} more keys differ)' if more else ''}: use a file made for this model"


def _weights_first(key: str) -> tuple[bool, str]:
    """Sorts what a reader recognises, weights, before biases and buffers."""
    return not key.endswith(".weight"), key


def _differences(file: HATConfig, model: HATConfig, foreign: list[str], missing: list[str]) -> list[str]:
    """In words, how the shape in a file differs from a model's; `identity` has the tensors of `both`."""
    ours, theirs = asdict(model), asdict(file)
    if ours["frequency"] == "identity" or theirs["frequency"] == "none":
        ours["frequency"] = theirs["frequency"]
    # Ratios that give the same overlap are one, as they are to `describe`.
    ours["overlap_ratio"] = _ratio(model.overlapping_size - model.window_size, model.window_size)
    found = [words.format(theirs[key], ours[key]) for key, words in _WORDS.items() if theirs[key] != ours[key]]
    if found and foreign:
        found[0] = f"checkpoint has {foreign[0]}, this model has not: {found[0]}"
    elif found and missing:
        found[0] = f"this model has {missing[0]}, the checkpoint has not: {found[0]}"
    return found


def _attention_shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    dim = state["conv_first.weight"].shape[0]
    depths = _depths(state)
    window = (math.isqrt(state[_BLOCK + "attn.relative_position_bias_table"].shape[0]) + 1) // 2
    overlapping = math.isqrt(state[_OVERLAP.format(0)].shape[0]) + 1 - window
    return {
        "embed_dim": dim,
        "depths": depths,
        "num_heads": tuple(state[_OVERLAP.format(i)].shape[1] for i in range(len(depths))),
        "window_size": window,
        "overlap_ratio": _ratio(overlapping - window, window),
        "mlp_ratio": _ratio(state[_BLOCK + "mlp.fc1.weight"].shape[0], dim),
        "compress_ratio": _divisor(dim, state[_BLOCK + "conv_block.cab.0.weight"].shape[0]),
        "squeeze_factor": _divisor(dim, state[_BLOCK + "conv_block.cab.3.attention.1.weight"].shape[0]),
    }


def _depths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Number of blocks in each group, from the keys."""
    blocks: dict[int, int] = {}
    for key in state:
        if match := re.match(r"layers\.(\d+)\.residual_group\.blocks\.(\d+)\.", key):
            group, block = int(match[1]), int(match[2])
            blocks[group] = max(blocks.get(group, 0), block + 1)
    return tuple(blocks[group] for group in sorted(blocks))


def _upsampler_shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    first = state["upsample.0.weight"].shape[0]
    if "conv_last.weight" not in state:
        scale = math.isqrt(first // 3)
        return {"upsampler": "pixelshuffledirect", "scale": scale, "conv_scale": 1.0, "drop_path_rate": 0.0}
    num_feat = state["conv_last.weight"].shape[1]
    scale = 4 if "upsample.2.weight" in state else math.isqrt(first // num_feat)
    return {"upsampler": "pixelshuffle", "scale": scale, "num_feat": num_feat}


def _frequency_of(state: Mapping[str, Tensor]) -> Any:
    has = {name: f"layers.0.freq.{name}_branch.gain" in state for name in ("global", "window")}
    if all(has.values()):
        return "both"
    return next((name for name, present in has.items() if present), "none")


def _ratio(size: int, base: int) -> float:
    """A float r with int(base * r) == size."""
    ratio = size / base
    return ratio if int(base * ratio) == size else math.nextafter(ratio, math.inf)


def _divisor(dim: int, width: int) -> int:
    """An r with dim // r == width: the exact one, else the smallest.

    Raises:
        ValueError: there is none.
    """
    if width and dim % width == 0:
        return dim // width
    for divisor in range(1, dim + 1):
        if dim // divisor == width:
            return divisor
    raise ValueError(f"no whole ratio takes {dim} channels to {width}")
