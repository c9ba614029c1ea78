"""Image encoders: open_clip's models, timm's backbones and torchvision's AlexNet, behind one interface."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data_curation.embed.preprocess import Preprocess
from utils.files import UserError, file_sha256

LOCAL_MODEL, _HUB = "local-dir:", "hf-hub:"  # open_clip's schemes of a model's name
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class EncoderError(UserError):
    """An encoder that is unavailable; the message names it and the remedy."""


@dataclass(frozen=True)
class Encoder:
    """From pixels to embeddings.

    Attributes:
        model: what tells encoders apart: `ViT-L-14:openai`, `alexnet:sha256-8ca1...`.
        weights: the pretrained tag, or the sha256 of the weights.
        preprocess: how it takes images.
        network: float `b 3 h w`, normalised -> `b d`.
        dimension: d, the length of an embedding.
        device: where the network lies.
        bf16: whether it computes in bfloat16.
        batch: images it takes at once, always: results do not depend on how many are left.
    """

    model: str
    weights: str
    preprocess: Preprocess
    network: Callable[[Tensor], Tensor]
    dimension: int
    device: torch.device
    bf16: bool
    batch: int

    @torch.inference_mode()
    def embed(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 `n h w 3`, n at most `batch` -> float32 `n d`, of any length."""
        padded = np.zeros((self.batch, *pixels.shape[1:]), np.uint8)
        padded[: len(pixels)] = pixels
        x = torch.from_numpy(padded).to(self.device).permute(0, 3, 1, 2).float() / 255  # b h w 3 -> b 3 h w
        mean, std = (
            torch.tensor(v, device=self.device)[:, None, None] for v in (self.preprocess.mean, self.preprocess.std)
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            result = self.network((x - mean) / std)
        return result.float().cpu().numpy()[: len(pixels)]


def clip_encoder(name: str, pretrained: str, device: torch.device, bf16: bool, batch: int) -> Encoder:
    """An open_clip model's image tower.

    Args:
        name: of open_clip, as `ViT-L-14`, or `local-dir:folder` with `open_clip_config.json` and weights.
        pretrained: one of the model's tags, or a file of its weights; unused with `local-dir:`.

    Raises:
        EncoderError: no such model or tag, weights that cannot be downloaded or do not fit, or a preprocessing that is
            unknown.
    """
    import open_clip

    scheme = next((scheme for scheme in (LOCAL_MODEL, _HUB) if name.startswith(scheme)), "")
    file = Path(pretrained) if not scheme and Path(pretrained).is_file() else None
    if not scheme:
        _check_names(name, pretrained, file)
    try:
        result = open_clip.create_model(name, None if scheme else pretrained, require_pretrained=True)
    except Exception as error:  # of the hub's client, of the network, of torch: no common ancestor
        raise EncoderError(_why_no_clip(name, pretrained, bool(file or scheme == LOCAL_MODEL), error)) from error
    weights = _clip_weights(name, pretrained, file)
    short = Path(name.removeprefix(LOCAL_MODEL)).name if scheme == LOCAL_MODEL else name
    preprocess, tower = _clip_preprocess(result), result.to(device).eval()
    dimension = _dimension(tower.encode_image, preprocess, device)
    model = f"{short}:{_short(weights)}"
    return Encoder(model, weights, preprocess, tower.encode_image, dimension, device, bf16, batch)


def backbone_encoder(name: str, weights: Path, device: torch.device, bf16: bool, batch: int) -> Encoder:
    """A timm backbone without its classifier, or torchvision's AlexNet: the mean of its last convolution.

    Args:
        name: `alexnet`, or any model of timm.
        weights: .safetensors, or a file of `torch.save`.

    Raises:
        EncoderError: no such backbone, or weights that cannot be read or do not fit.
    """
    network, preprocess = _alexnet() if name == "alexnet" else _timm(name)
    state = _state(weights)
    missing, unexpected = network.load_state_dict(state, strict=False) if _fits(network, state) else (["a shape"], [])
    surplus = [key for key in unexpected if not key.startswith(_classifier(network))]
    if missing or surplus:
        raise EncoderError(
            f"{weights} does not fit {name}: missing {missing[:3]}, not known {surplus[:3]}; give this backbone's file"
        )
    digest = file_sha256(weights)
    network = network.to(device).eval()
    dimension = _dimension(network, preprocess, device)
    return Encoder(f"{name}:{_short(digest)}", digest, preprocess, network, dimension, device, bf16, batch)


@torch.inference_mode()
def _dimension(network: Callable[[Tensor], Tensor], preprocess: Preprocess, device: torch.device) -> int:
    """Length of an embedding, found by embedding one image."""
    return network(torch.zeros(1, 3, preprocess.crop, preprocess.crop, device=device)).shape[1]


def _check_names(name: str, pretrained: str, file: Path | None) -> None:
    import open_clip

    models = open_clip.list_models()
    if name not in models:
        near = difflib.get_close_matches(name, models, 3)
        raise EncoderError(f"open_clip has no model {name}: {_meant(near)}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not file and pretrained not in tags:
        raise EncoderError(
            f"{pretrained} is neither a file nor pretrained weights of {name} (which has {', '.join(tags) or 'none'})"
        )


def _meant(near: list[str]) -> str:
    return f"did you mean {' or '.join(near)}?" if near else "the library's list_models() names them"


def _why_no_clip(name: str, pretrained: str, local: bool, error: Exception) -> str:
    cause = f"{type(error).__name__}: {error}".splitlines()[0]
    if local:
        which = name if name.startswith(LOCAL_MODEL) else pretrained
        return f"the weights {which} do not load as {name} ({cause}): give this model's"
    return (
        f"the weights {pretrained} of {name} cannot be downloaded ({cause}): download them where there is a network, "
        f"and give the file: --pretrained /path/to/weights (OpenAI's weights need --model {name}-quickgelu)"
    )


def _clip_weights(name: str, pretrained: str, file: Path | None) -> str:
    """The tag, or a hash of what was loaded."""
    if name.startswith(LOCAL_MODEL):
        folder = Path(name.removeprefix(LOCAL_MODEL))
        parts = [f"{path.name} {file_sha256(path)}\n" for path in sorted(folder.iterdir()) if path.is_file()]
        return sha256("".join(parts).encode()).hexdigest()
    return file_sha256(file) if file else pretrained


def _short(weights: str) -> str:
    return f"sha256-{weights[:16]}" if len(weights) == 64 else weights


def _clip_preprocess(model: Any) -> Preprocess:
    """From open_clip's own record of the preprocessing."""
    import open_clip

    result = open_clip.get_model_preprocess_cfg(model)
    size = result["size"]
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise EncoderError(f"an encoder of {size} pixels is unknown: take one of square input")
    side = sides.pop()
    return _preprocess(side, side, result["resize_mode"], result["interpolation"], result["mean"], result["std"])


def _preprocess(resize: int, crop: int, mode: str, interpolation: str, mean: Any, std: Any) -> Preprocess:
    try:
        return Preprocess(resize, crop, mode, interpolation, tuple(mean), tuple(std))  # type: ignore[arg-type]
    except ValueError as error:
        raise EncoderError(str(error)) from error


def _alexnet() -> tuple[nn.Module, Preprocess]:
    """A. Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014): 256 channels."""
    from torchvision.models import alexnet

    network = nn.Sequential()
    network.add_module("features", alexnet().features[:12])  # without the last pooling
    network.add_module("pool", nn.AdaptiveAvgPool2d(1))
    network.add_module("flat", nn.Flatten())
    return network, _preprocess(256, 224, "shortest", "bilinear", _IMAGENET_MEAN, _IMAGENET_STD)


def _timm(name: str) -> tuple[nn.Module, Preprocess]:
    import timm

    if not timm.is_model(name):
        raise EncoderError(
            f"timm has no model {name}: {_meant(difflib.get_close_matches(name, timm.list_models(), 3))}"
        )
    network = timm.create_model(name, num_classes=0)
    data = timm.data.resolve_model_data_config(network)
    side = data["input_size"][-1]
    mode = {"center": "shortest", "squash": "squash"}.get(data["crop_mode"], data["crop_mode"])
    resize = math.floor(side / data["crop_pct"])
    return network, _preprocess(resize, side, mode, data["interpolation"], data["mean"], data["std"])


def _classifier(network: nn.Module) -> tuple[str, ...]:
    """What a file may hold beyond the backbone: the keys' beginnings."""
    names = getattr(network, "default_cfg", {}).get("classifier", "classifier")
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _fits(network: nn.Module, state: dict[str, Tensor]) -> bool:
    """Whether the tensors of the same name have the same shape."""
    own = network.state_dict()
    return all(own[key].shape == value.shape for key, value in state.items() if key in own)


def _state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        result = torch.load(path, map_location="cpu", weights_only=True)
        return dict(result.get("state_dict", result))
    except (OSError, SafetensorError, RuntimeError, ValueError, AttributeError, EOFError, UnpicklingError) as error:
        raise EncoderError(f"{path} cannot be read as weights ({error}): give a .safetensors or .pth file") from error
