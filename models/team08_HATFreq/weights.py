"""Checkpoints: read from any of the usual files, explained when they do not fit, written as safetensors.

Read are official HAT files (`params_ema`, `params`), this project's releases and training checkpoints, bare state
dicts, with the prefixes that DataParallel (`module.`) and torch.compile (`_orig_mod.`) leave. No file can run code:
`torch.load(weights_only=True)` always.
"""

import hashlib
import math
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from .images import write_bytes
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
    path = Path(path)
    content = _read_bytes(path)
    if content[8:9] == b"{":  # after the header's length
        state = _load_safetensors(path, content)
    elif content[:4] == b"PK\x03\x04" or content[:1] == b"\x80":  # a zip of torch.save, or an older pickle
        state = _find_weights(path, _load_torch(path))
    else:
        raise WeightsError(f"{path} {_what_else(content)}")
    return {_without_prefixes(key): tensor for key, tensor in state.items()}


def load_weights(model: HATFreq, path: str | os.PathLike[str]) -> str:
    """Load a checkpoint into a model, all of it or nothing.

    A plain HAT file fits a model with fusion too: the fresh fusion blocks are zero, so the result is exactly HAT's.

    Returns:
        One line for the log.

    Raises:
        WeightsError: the file cannot be read or does not fit, with the reason.
    """
    path = Path(path)
    state = read_state_dict(path)
    own = model.state_dict()
    fresh = [key for key in own if ".freq." in key] if not any(".freq." in key for key in state) else []
    buffers = [key for key in own if key.startswith("relative_position_index") and key not in state]
    if reason := _misfit(state, model, optional={*fresh, *buffers}):
        raise WeightsError(f"{path} does not fit: {reason}")
    if bad := [key for key, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]:
        raise WeightsError(
            f"{path} holds values that are not finite in {bad[0]}: download it again, or use another file"
        )
    model.load_state_dict(state, strict=False)
    note = ", fusion blocks fresh (the result is exactly HAT's)" if fresh else ""
    return f"{path.name}: {preset_of(model.config)}, {sum(p.numel() for p in model.parameters()):,} parameters{note}"


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
    except ValueError as error:
        raise WeightsError(f"not a shape that HATFreq builds: {error}") from error


def preset_of(config: HATConfig) -> str:
    """The preset that a shape belongs to, or `custom`, with scale and fusion: `base x4, frequency both`."""
    free = ("scale", "frequency", "fused_attention", "checkpointing", "drop_path_rate", "num_feat")
    shape = {key: value for key, value in asdict(config).items() if key not in free}
    names = [name for name, preset in PRESETS.items() if shape == {key: asdict(preset)[key] for key in shape}]
    return f"{names[0] if names else 'custom'} x{config.scale}, frequency {config.frequency}"


def save_weights(
    model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str]
) -> str:
    """Write weights as safetensors, whole or not at all.

    Args:
        model: a module or its state dict.
        path: file to write.
        metadata: what to know the file by; strings.

    Returns:
        The file's sha256.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    content = save_safetensors({key: t.detach().cpu().contiguous().clone() for key, t in state.items()}, metadata)
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
    if content.lstrip()[:1] == b"<":
        return "is a web page, not weights: the download failed; get it again in a browser"
    return "is not a checkpoint (neither safetensors nor a file of torch.save), or its beginning is damaged"


def _load_safetensors(path: Path, content: bytes) -> StateDict:
    try:
        return load_safetensors(content)
    except SafetensorError as error:
        raise WeightsError(f"{path} is a damaged or truncated safetensors file ({error}): get it again") from error


def _load_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is a pickle that holds more than tensors, which could run code, and is refused: "
            "where you trust it, load it there and save its state_dict() with torch.save or safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path} is damaged or truncated ({str(error).splitlines()[0][:100]}): get it again"
        ) from error


def _find_weights(path: Path, loaded: Any) -> StateDict:
    """The state dict inside what torch.load gave."""
    if isinstance(loaded, Mapping):
        for nest in _NESTS:
            if isinstance(loaded.get(nest), Mapping):
                return _find_weights(path, loaded[nest])
        if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
            return dict(loaded)
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
    reshaped = [key for key in state if key in own and state[key].shape != own[key].shape]
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
    key = (missing + foreign + reshaped)[0]
    where = "the file lacks" if missing else "the model has no" if foreign else "the shapes differ in"
    return f"{where} {key} (and {len(missing + foreign + reshaped) - 1} more keys differ)"


def _weights_first(key: str) -> tuple[bool, str]:
    """Sorts what a reader recognises, weights, before biases and buffers."""
    return not key.endswith(".weight"), key


def _differences(file: HATConfig, model: HATConfig, foreign: list[str], missing: list[str]) -> list[str]:
    """In words, how the shape in a file differs from a model's; `identity` has the tensors of `both`."""
    ours, theirs = asdict(model), asdict(file)
    if ours["frequency"] == "identity" or theirs["frequency"] == "none":
        ours["frequency"] = theirs["frequency"]
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
