"""Checkpoints: read from any of the usual files, explained when they do not fit, written as safetensors.

Read are official HAT files (`params_ema`, `params`), this project's releases and training checkpoints, bare state
dicts, with the prefixes that DataParallel (`module.`) and torch.compile (`_orig_mod.`) leave. A file of ours says what
network it belongs to; the shape of others is read off their tensors. No file can run code: `weights_only=True`.
"""

import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from .network import PRESETS, HATConfig, HATFreq, override
from .system import HATFreqError, write_bytes

StateDict = dict[str, Tensor]
CONFIG = "model"  # the key of a safetensors file's metadata that holds its HATConfig as JSON
# Where checkpoints keep the weights, the most useful first: averages before the raw ones.
_NESTS = ("params_ema", "params", "ema", "model", "state_dict", "model_state_dict")
_FIRST = "conv_first.weight"
_BLOCK = "layers.0.residual_group.blocks.0."
_OVERLAP = "layers.{}.residual_group.overlap_attn.relative_position_bias_table"
_SHAPE_FREE = ("scale", "frequency", "drop_path_rate", "num_feat")  # what presets of one name may differ in


class WeightsError(HATFreqError):
    """A checkpoint that cannot be used; the message names the file, the cause and the remedy."""


@dataclass(frozen=True)
class LoadedWeights:
    """A weights file, read once.

    Attributes:
        path: the file.
        state: its tensors by name, on the CPU, without wrappers and prefixes.
        config: the shape that the file says it has; None for a foreign file.
        sha256: of the file.
        source: where in the file the tensors were: `safetensors`, `params_ema`, ..., `a bare state dict`.
        metadata: of a safetensors file.
    """

    path: Path
    state: StateDict
    config: HATConfig | None
    sha256: str
    source: str
    metadata: dict[str, str]

    @property
    def shape(self) -> HATConfig:
        """The shape that the file says it has, or else its tensors.

        Raises:
            WeightsError: not a HAT or HATFreq.
        """
        try:
            return describe(self.state) if self.config is None else _confirmed(self.config, self.state)
        except WeightsError as error:
            raise WeightsError(f"{self.path}: {error}") from error


def load(path: str | os.PathLike[str]) -> LoadedWeights:
    """Read a weights file, once, and compare it with the `.sha256` file beside it if there is one.

    Raises:
        WeightsError: missing, empty, truncated, not a checkpoint, a pickle that holds code, tensors that are not
            floating-point or not finite, or not the released file.
    """
    path = Path(path)
    content = _read_bytes(path)
    sha256 = hashlib.sha256(content).hexdigest()
    beside = path.with_name(path.name + ".sha256")
    if beside.exists() and beside.read_text().split()[:1] != [sha256]:
        raise WeightsError(
            f"{path} is not the released file (its sha256 is {sha256}, not {beside.name}'s): get it again"
        )
    metadata: dict[str, str] = {}
    if content[8:9] == b"{":  # after the header's length
        state, source, metadata = _load_safetensors(path, content), "safetensors", _metadata(content)
    else:
        state, source = _find_weights(path, _load_torch(path, content))
    state = _without_prefix(state)
    _check_tensors(path, state)
    return LoadedWeights(path, state, _config(path, metadata), sha256, source, metadata)


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """The tensors of a checkpoint by name; errors as `load`."""
    return load(path).state


def load_weights(model: HATFreq, path: str | os.PathLike[str]) -> str:
    """`load_into(model, load(path))`."""
    return load_into(model, load(path))


def build(result: LoadedWeights, preset: str | None = None) -> tuple[HATFreq, str]:
    """The network of a weights file with its weights, and one line for the log.

    Args:
        preset: the preset that the file must hold; None for whatever it holds.

    Raises:
        WeightsError: not a HAT or HATFreq, or not of this preset.
        ValueError: an unknown preset.
    """
    if preset is None:
        config = result.shape
    elif preset in PRESETS:
        # A plain HAT file runs without fusion blocks: fresh ones would change nothing but the time.
        config = override(PRESETS[preset], {"frequency": result.shape.frequency})
    else:
        raise ValueError(f"unknown preset {preset!r}: choose from {', '.join(PRESETS)}")
    model = HATFreq(config)
    return model, load_into(model, result)


def load_into(model: HATFreq, result: LoadedWeights) -> str:
    """Load weights into a model, all of them or nothing.

    A plain HAT file fits a model with fresh fusion blocks too: they are zero, so the result is exactly HAT's.

    Returns:
        One line for the log: file, preset or shape, parameters, where in the file they were, fusion fresh or loaded.

    Raises:
        WeightsError: the file does not fit, with the reason.
    """
    own, state = model.state_dict(), result.state
    fusion = list(model.fusion_parameters())
    fresh = [] if any(".freq." in key for key in state) else fusion
    buffers = [key for key in own if key.startswith("relative_position_index") and key not in state]
    if reason := _misfit(result, model, optional={*fresh, *buffers}):
        raise WeightsError(f"{result.path} does not fit: {reason}")
    if any(own[key].any() for key in fresh if ".freq.gates." in key):
        raise WeightsError(f"{result.path} has no fusion blocks and this model's are not fresh: use a new model")
    model.load_state_dict(state, strict=False)
    parameters = f"{sum(p.numel() for p in model.parameters()):,} parameters from {result.source}"
    note = "fresh (the result is exactly HAT's)" if fresh else "loaded" if fusion else "none"
    return f"{result.path.name}: {describe_config(model.config)}, {parameters}, fusion blocks {note}"


def preset_name(config: HATConfig) -> str | None:
    """The preset that a shape belongs to, whatever its scale and fusion; None for a shape of its own."""
    shape = {key: value for key, value in asdict(config).items() if key not in _SHAPE_FREE}
    for name, preset in PRESETS.items():
        if all(asdict(preset)[key] == value for key, value in shape.items()):
            return name
    return None


def describe_config(config: HATConfig) -> str:
    """A shape in words, for people: `base x4, frequency bands`."""
    name = preset_name(config)
    tail = f", {config.embed_dim} channels, groups of {config.depths} blocks, windows of {config.window_size}"
    return f"{name or 'custom'} x{config.scale}, frequency {config.frequency}{'' if name else tail}"


def save_weights(
    model: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str], metadata: dict[str, str]
) -> str:
    """Write weights as safetensors, floating-point ones as fp32, whole or not at all; equal weights give equal bytes.

    No `.sha256` file is written: a training run replaces its weights often, and a kill between two files would leave a
    checksum that condemns good weights. A release writes it.

    Args:
        model: a module or its state dict.
        path: file to write.
        metadata: what to know the file by; a HATFreq's shape is added.

    Returns:
        The file's sha256.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    if isinstance(model, HATFreq):
        metadata = {**metadata, CONFIG: json.dumps(asdict(model.config))}
    content = save_safetensors({key: _storable(tensor) for key, tensor in state.items()}, metadata)
    content = _with_sorted_header(content)
    write_bytes(Path(path), content)
    return hashlib.sha256(content).hexdigest()


def describe(state: Mapping[str, Tensor]) -> HATConfig:
    """The shape of the network that a state dict belongs to, read off its tensors.

    Tensors do not tell everything: conv_scale and drop_path_rate follow the presets
    (1 and 0 with `pixelshuffledirect`, 0.01 and 0.1 with `pixelshuffle`).

    Raises:
        WeightsError: not a HAT or HATFreq.
    """
    try:
        return HATConfig(**_attention_shape(state), **_upsampler_shape(state), frequency=_frequency_of(state))
    except KeyError as error:
        raise WeightsError(f"not a HAT or HATFreq checkpoint: it has no {error.args[0]}") from error
    except (ValueError, IndexError, ZeroDivisionError) as error:  # the latter two: tensors without the usual axes
        raise WeightsError(f"not a shape that HATFreq builds: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise WeightsError(f"{path} is a folder: name the weights file in it")
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in (".safetensors", ".pth", ".pt"))
        there = f"there are {', '.join(near)}" if near else f"there are no weights in {path.parent}"
        raise WeightsError(f"{path} does not exist; {there}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): check the file and its permissions") from error


def _load_safetensors(path: Path, content: bytes) -> StateDict:
    try:
        return load_safetensors(content)
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is a damaged or truncated safetensors file ({error}): get it again") from error


def _header(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def _metadata(content: bytes) -> dict[str, str]:
    return _header(content).get("__metadata__") or {}


def _with_sorted_header(content: bytes) -> bytes:
    """A safetensors file with the keys of its metadata sorted: the library writes them in an order of chance."""
    size = int.from_bytes(content[:8], "little")
    header = _header(content)
    header["__metadata__"] = dict(sorted((header.get("__metadata__") or {}).items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def _config(path: Path, metadata: dict[str, str]) -> HATConfig | None:
    """The shape in a file's metadata."""
    try:
        result = json.loads(metadata.get(CONFIG, "null"))
    except ValueError:  # another program's word
        return None
    if not isinstance(result, dict):
        return None
    try:
        shape: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in result.items()}
        return HATConfig(**shape)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise WeightsError(f"{path} describes a network that cannot be built ({error}): get it again") from error


def _load_torch(path: Path, content: bytes) -> Any:
    damaged = (
        f"{path} is not a checkpoint (safetensors, or tensors saved by torch.save), or it is damaged: get it again"
    )
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # torch.save stores; only an attack compresses, to make a small file fill the memory.
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise WeightsError(damaged)
    except zipfile.BadZipFile:  # the older format is one pickle after another
        if content[:1] != b"\x80":
            raise WeightsError(damaged) from None
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way: IndexError, struct.error, AssertionError, ...
        if "Unsupported" in str(error) or "weights_only" in str(error):
            damaged = f"{damaged}. If it holds more than tensors and you trust it, load it and save its state_dict()"
        raise WeightsError(damaged) from error


def _find_weights(path: Path, loaded: Any) -> tuple[StateDict, str]:
    """The state dict inside what torch.load gave, and the key that it was under: a usual one, or else the only one."""
    source = "a bare state dict"
    for _ in range(len(_NESTS)):  # a dict may hold itself
        inner = {
            str(key).replace("-", "_"): key for key, value in _items(loaded) if isinstance(value, Mapping) and value
        }
        alone = (
            list(inner) if len(inner) == 1 and not any(isinstance(value, Tensor) for _, value in _items(loaded)) else []
        )
        nest = next((name for name in (*_NESTS, *alone) if name in inner), None)
        if nest is None:
            break
        loaded, source = loaded[inner[nest]], nest
    if loaded and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in _items(loaded)) and _items(loaded):
        return dict(loaded), source
    raise WeightsError(
        f"{path} holds no state dict: expected tensors by name, bare or under one of {', '.join(_NESTS)}"
    )


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _check_tensors(path: Path, state: StateDict) -> None:
    """Refuse what would be loaded without a word and be wrong."""
    for key, tensor in state.items():
        index = key.startswith("relative_position_index")
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            raise WeightsError(f"{path} holds no values for {key} ({tensor.layout}, {tensor.device}): save it again")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise WeightsError(f"{path} repeats its storage in {key}: save it again")
        if not (index or tensor.is_floating_point()):
            raise WeightsError(f"{path} holds {tensor.dtype} in {key}: weights are floating-point numbers")
        if not (index or tensor.isfinite().all()):
            raise WeightsError(f"{path} holds values that are not finite in {key}: get it again, or use another file")


def _storable(tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares no memory; fp32 if it is floating-point."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()


def _without_prefix(state: StateDict) -> StateDict:
    """Without what wrappers (DataParallel, torch.compile, Lightning, averages) put before every name."""
    state = {key: tensor for key, tensor in state.items() if key != "n_averaged"}
    prefix = next((key.removesuffix(_FIRST) for key in state if key.endswith(f".{_FIRST}")), "")
    if not all(key.startswith(prefix) for key in state):
        return state
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}


# ---------------------------------------------------------------------------------------------------------------------
# Shapes
# ---------------------------------------------------------------------------------------------------------------------


def _misfit(result: LoadedWeights, model: HATFreq, optional: set[str]) -> str:
    """Why weights do not fit a model, in one sentence; empty if they do."""
    own, state = model.state_dict(), result.state
    missing = [key for key in own if key not in state and key not in optional]
    foreign = [key for key in state if key not in own]
    reshaped = [key for key in state if key in own and state[key].shape != own[key].shape]
    if not (missing or foreign or reshaped):
        indices = [key for key in own if key.startswith("relative_position_index") and key not in optional]
        unequal = [key for key in indices if not torch.equal(state[key], own[key])]
        return f"its {unequal[0]} belongs to another window or overlap" if unequal else ""
    try:
        theirs, own_shape = asdict(result.shape), asdict(model.config)
    except WeightsError as error:
        return str(error)
    if theirs["frequency"] == "none":
        theirs["frequency"] = own_shape["frequency"]
    # Ratios that give the same overlap are one, as they are to `describe`.
    own_shape["overlap_ratio"] = _ratio(
        model.config.overlapping_size - model.config.window_size, model.config.window_size
    )
    key = sorted(missing + foreign + reshaped, key=lambda name: not name.endswith(".weight"))[0]
    if differences := [
        f"{n} is {theirs[n]!r} in the file, {own_shape[n]!r} here" for n in own_shape if own_shape[n] != theirs[n]
    ]:
        return f"{'; '.join(differences)} (first key: {key}); build the model that the file describes"
    more = len(missing) + len(foreign) + len(reshaped) - 1
    kind = "lacks" if key in missing else "has a foreign" if key in foreign else "has another shape of"
    return f"it {kind} {key}{f' (and {more} more keys differ)' if more else ''}: use a file made for this model"


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
    """Number of blocks in each group, from the keys: every block must be there, so that no name makes a huge network.

    Raises:
        ValueError: blocks are missing.
    """
    blocks: dict[int, set[int]] = {}
    for key in state:
        if match := re.fullmatch(r"layers\.(\d{1,6})\.residual_group\.blocks\.(\d{1,6})\.attn\.qkv\.weight", key):
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    if sorted(blocks) != list(range(len(blocks))) or any(max(result) >= len(result) for result in blocks.values()):
        raise ValueError("groups or blocks are missing between those that it names")
    return tuple(len(blocks[group]) for group in sorted(blocks))


def _confirmed(config: HATConfig, state: Mapping[str, Tensor]) -> HATConfig:
    """A shape that a file claims, held against its tensors before memory is taken for it.

    Raises:
        WeightsError: it is not theirs.
    """
    claimed, result = _widths(config), _widths(describe(state))
    if wrong := [name for name in claimed if claimed[name] != result.get(name)]:
        raise WeightsError(f"its metadata describes another network than its tensors ({wrong[0]}): get it again")
    return config


def _widths(config: HATConfig) -> dict[str, Any]:
    """What tensors tell of a shape, whatever ratio it was made by; not the frequency blocks, which are small."""
    ratios = ("overlap_ratio", "mlp_ratio", "compress_ratio", "squeeze_factor", "conv_scale", "drop_path_rate")
    plain = {k: v for k, v in asdict(config).items() if k not in (*ratios, "frequency")}
    if config.upsampler != "pixelshuffle":
        del plain["num_feat"]
    return plain | {
        "overlap_ratio": config.overlapping_size,
        "mlp_ratio": int(config.embed_dim * config.mlp_ratio),
        "compress_ratio": config.embed_dim // config.compress_ratio,
        "squeeze_factor": config.embed_dim // config.squeeze_factor,
    }


def _upsampler_shape(state: Mapping[str, Tensor]) -> dict[str, Any]:
    first = state["upsample.0.weight"].shape[0]
    if "conv_last.weight" not in state:
        scale = math.isqrt(first // 3)
        return {"upsampler": "pixelshuffledirect", "scale": scale, "conv_scale": 1.0, "drop_path_rate": 0.0}
    num_feat = state["conv_last.weight"].shape[1]
    scale = 4 if "upsample.2.weight" in state else math.isqrt(first // num_feat)
    return {"upsampler": "pixelshuffle", "scale": scale, "num_feat": num_feat}


def _frequency_of(state: Mapping[str, Tensor]) -> Any:
    return "bands" if "layers.0.freq.gates.weight" in state else "none"


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
