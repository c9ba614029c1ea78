"""HATFreq: the Hybrid Attention Transformer (HAT) with frequency-domain fusion in every group.

Paper: X. Chen et al., "Activating More Pixels in Image Super-Resolution Transformer", CVPR 2023
(https://arxiv.org/abs/2205.04437). With `frequency="none"` this is HAT: same parameters, buffers, keys and results.

Changed against the reference code:

* `layers.i.freq`, a `FrequencyFusion` after the convolution that ends group i: `freq(r, conv(r))`, not `conv(r)`;
* inputs of any size: padded at the bottom and right to a multiple of the window, by reflection where the image is large
  enough and by repetition where it is not;
* gradient checkpointing (`set_grad_checkpointing`) recomputes every block; the reference ignores its option;
* the upsampler `pixelshuffledirect` of the preset `light`: one convolution, and the nearest-neighbour enlargement
  added.

Shapes: b batch, h w height and width of the low-resolution image, c channels.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import (
    OverlappingAttention,
    WindowAttention,
    is_fused,
    overlapping_index,
    pad_heads,
    pad_inputs,
    position_bias,
    self_attention_index,
    shift_masks,
)
from .frequency import FREQUENCY_MODES, FrequencyFusion, FrequencyMode
from .layers import SWITCHES, Linear, Mlp, linear

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in [0, 1]; fixed in HAT and in its checkpoints


@dataclass(frozen=True)
class HATConfig:
    """A network's shape; how it is computed are switches (`set_fused_attention`, `set_exportable`, checkpointing).

    The defaults are HAT's (the preset `base`).

    Attributes:
        embed_dim: channels c of the features, a multiple of every entry of num_heads.
        depths: attention blocks in each group.
        num_heads: attention heads in each group.
        window_size: side of the attention windows in pixels of the low-resolution image.
        compress_ratio: width reduction inside the convolutional branch of a block.
        squeeze_factor: width reduction inside its channel attention.
        conv_scale: weight of the convolutional branch.
        overlap_ratio: growth of the key windows in the overlapping attention; window_size * overlap_ratio must be even.
        mlp_ratio: hidden width of the MLPs over embed_dim.
        drop_path_rate: stochastic depth of the last block, rising linearly from 0 at the first; in training only.
        num_feat: channels of the `pixelshuffle` upsampler.
        upsampler: `pixelshuffle` (HAT's) or `pixelshuffledirect` (one convolution; `light`).
        scale: 2, 3 or 4.
        frequency: the fusion blocks: `bands` or `none` (HAT).
    """

    embed_dim: int = 180
    depths: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    num_heads: tuple[int, ...] = (6, 6, 6, 6, 6, 6)
    window_size: int = 16
    compress_ratio: int = 3
    squeeze_factor: int = 30
    conv_scale: float = 0.01
    overlap_ratio: float = 0.5
    mlp_ratio: float = 2.0
    drop_path_rate: float = 0.1
    num_feat: int = 64
    upsampler: Literal["pixelshuffle", "pixelshuffledirect"] = "pixelshuffle"
    scale: int = 4
    frequency: FrequencyMode = "bands"

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built, naming the field and its remedy."""
        for name in ("depths", "num_heads"):  # lists, where a config was read from JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.depths) != len(self.num_heads):
            raise ValueError(f"depths {self.depths} and num_heads {self.num_heads} must have one entry a group each")
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"depths must hold at least one block a group, got {self.depths}")
        if any(self.embed_dim % heads for heads in self.num_heads):
            raise ValueError(
                f"embed_dim {self.embed_dim} must be a multiple of every entry of num_heads {self.num_heads}"
            )
        if self.window_size % 2:
            raise ValueError(f"window_size must be even (windows are shifted by half), got {self.window_size}")
        if int(self.window_size * self.overlap_ratio) % 2:
            raise ValueError(
                f"window_size {self.window_size} * overlap_ratio {self.overlap_ratio} must be even: "
                "key windows grow by the same margin on both sides"
            )
        if min(self.embed_dim // self.compress_ratio, self.embed_dim // self.squeeze_factor) < 1:
            raise ValueError(f"compress_ratio and squeeze_factor must not exceed embed_dim {self.embed_dim}")
        if self.scale not in (2, 3, 4):
            raise ValueError(f"scale must be 2, 3 or 4, got {self.scale}")
        if self.upsampler not in ("pixelshuffle", "pixelshuffledirect"):
            raise ValueError(f"upsampler must be 'pixelshuffle' or 'pixelshuffledirect', got {self.upsampler!r}")
        if self.frequency not in FREQUENCY_MODES:
            raise ValueError(f"frequency must be one of {', '.join(FREQUENCY_MODES)}, got {self.frequency!r}")

    @property
    def overlapping_size(self) -> int:
        """Side of the key windows of the overlapping attention."""
        return self.window_size + int(self.window_size * self.overlap_ratio)

    @property
    def overlapping_rows(self) -> int:
        """Rows of its table of position biases: one for each distance of a query and a key."""
        return (self.window_size + self.overlapping_size - 1) ** 2


PRESETS: dict[str, HATConfig] = {
    "light": HATConfig(
        embed_dim=32,
        depths=(4, 4, 4),
        num_heads=(2, 2, 2),
        window_size=8,
        compress_ratio=1,
        squeeze_factor=8,
        conv_scale=1.0,
        drop_path_rate=0.0,
        upsampler="pixelshuffledirect",
    ),
    "small": HATConfig(embed_dim=144, compress_ratio=24, squeeze_factor=24),
    "base": HATConfig(),
    "large": HATConfig(depths=(6,) * 12, num_heads=(6,) * 12),
}


def override(config: HATConfig, changes: dict[str, Any]) -> HATConfig:
    """A copy of `config` with some fields changed.

    Raises:
        ValueError: an unknown field (the nearest name is suggested) or a value that cannot be built.
    """
    known = asdict(config)
    for key in changes:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f": did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"unknown key '{key}'{hint}")
    return replace(config, **changes)


class HATFreq(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="hatfreq",
    license="mit",
    pipeline_tag="image-to-image",
    tags=["super-resolution", "image-super-resolution", "hat", "x4"],
):
    """Float `b 3 h w` in [0, 1] -> the enlarged image, `b 3 h*scale w*scale`, not clamped; for any h, w >= 1.

    `save_pretrained(folder)`, `push_to_hub(name)` and `HATFreq.from_pretrained(folder or name)` are Hugging Face's.
    The model zoo's files are read by `weights.load_weights`.
    """

    mean: Tensor
    shift_masks: Tensor
    relative_position_index_SA: Tensor
    relative_position_index_OCA: Tensor

    def __init__(self, config: HATConfig) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("relative_position_index_SA", self_attention_index(c.window_size))
        self.register_buffer("relative_position_index_OCA", overlapping_index(c.window_size, c.overlapping_size))
        self.register_buffer("shift_masks", shift_masks(c.window_size, c.window_size // 2), persistent=False)
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, c.embed_dim, 3, padding=1)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(c.embed_dim)})
        self.layers = nn.ModuleList(AttentionGroup(c, i) for i in range(len(c.depths)))
        self.norm = nn.LayerNorm(c.embed_dim)
        self.conv_after_body = nn.Conv2d(c.embed_dim, c.embed_dim, 3, padding=1)
        if c.upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(c.embed_dim, c.num_feat, 3, padding=1), nn.LeakyReLU())
            self.upsample = pixelshuffle(c.scale, c.num_feat)
            self.conv_last = nn.Conv2d(c.num_feat, 3, 3, padding=1)
        else:
            self.upsample = pixelshuffledirect(c.scale, c.embed_dim)
        self.apply(_initialise_linear)
        if c.frequency != "none":  # after the others, whose fresh weights are those of a plain HAT
            for layer in self.layers:
                layer.freq = FrequencyFusion(c.embed_dim)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "HATFreq":
        if "config" not in options:
            if os.path.isdir(model_id):
                why = "holds no config.json: name a folder that save_pretrained has written"
            else:
                why = "is no folder, and the Hub gives no config.json of it: check its name, access and connection"
            raise ValueError(f"{model_id} {why}, or read a weights file with weights.load_weights")
        return super()._from_pretrained(model_id=model_id, **options)

    def set_grad_checkpointing(self, enabled: bool = True) -> None:
        """Recompute every block in the backward pass: less memory, about a third more time."""
        for module in self.modules():
            if isinstance(module, AttentionBlocks):
                module.checkpointing = enabled

    def fusion_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters of the frequency blocks, which a plain HAT has not, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if ".freq." in name}

    def forward(self, lq: Tensor) -> Tensor:
        if lq.ndim != 4 or lq.shape[1] != 3 or not lq.is_floating_point():
            raise ValueError(f"the network takes float `b 3 h w` in [0, 1], not {lq.dtype} of shape {tuple(lq.shape)}")
        h, w = lq.shape[-2:]
        x = pad_to_multiple(lq, self.config.window_size) - self.mean.to(lq.dtype)
        shallow = self.conv_first(x)
        features = self.conv_after_body(self._deep_features(shallow)) + shallow
        sr = self._reconstruct(features, x) + self.mean.to(lq.dtype)
        return sr[..., : h * self.config.scale, : w * self.config.scale]

    def _deep_features(self, x: Tensor) -> Tensor:
        x = self.patch_embed["norm"](x.permute(0, 2, 3, 1))  # b h w c
        index_oca = self.relative_position_index_OCA % self.config.overlapping_rows  # some count from the end
        for layer in self.layers:
            x = layer(x, self.relative_position_index_SA, index_oca, self.shift_masks)
        return self.norm(x).permute(0, 3, 1, 2)  # b c h w

    def _reconstruct(self, features: Tensor, x: Tensor) -> Tensor:
        if self.config.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(self.conv_before_upsample(features)))
        return self.upsample(features) + F.interpolate(x, scale_factor=self.config.scale, mode="nearest")


class AttentionGroup(nn.Module):
    """A residual hybrid attention group (RHAG) with its frequency block: `b h w c` -> `b h w c`."""

    def __init__(self, config: HATConfig, number: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.residual_group = AttentionBlocks(config, number)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)
        self.freq: FrequencyFusion | None = None

    def forward(self, x: Tensor, index_sa: Tensor, index_oca: Tensor, masks: Tensor) -> Tensor:
        r = self.residual_group(x, index_sa, index_oca, masks)
        r = r.permute(0, 3, 1, 2)
        tail = self.conv(r)
        if self.freq is not None:
            tail = self.freq(r, tail)
        return tail.permute(0, 2, 3, 1) + x


class AttentionBlocks(nn.Module):
    """A group's hybrid attention blocks and the overlapping cross-attention that ends it: `b h w c` -> `b h w c`."""

    def __init__(self, config: HATConfig, number: int) -> None:
        super().__init__()
        first, depth = sum(config.depths[:number]), config.depths[number]
        rates = np.linspace(0, config.drop_path_rate, sum(config.depths))[first : first + depth].tolist()
        heads = config.num_heads[number]
        shifts = [config.window_size // 2 if i % 2 else 0 for i in range(depth)]
        blocks = [HybridAttentionBlock(config, heads, *one) for one in zip(shifts, rates, strict=True)]
        self.blocks: Sequence[HybridAttentionBlock] = nn.ModuleList(blocks)  # type: ignore[assignment]
        self.overlap_attn = OverlappingAttentionBlock(config, heads)
        self.checkpointing = False

    def forward(self, x: Tensor, index_sa: Tensor, index_oca: Tensor, masks: Tensor) -> Tensor:
        for block in self.blocks:
            x = self._run(block, x, index_sa, masks, *block.drawn_factors(x))
        return self._run(self.overlap_attn, x, index_oca)

    def _run(self, block: nn.Module, *inputs: Tensor | None) -> Tensor:
        if self.checkpointing and self.training:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


class HybridAttentionBlock(nn.Module):
    """HAB: window attention and channel-attended convolutions side by side, then an MLP: `b h w c` -> `b h w c`."""

    def __init__(self, config: HATConfig, num_heads: int, shift: int, drop_path: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, config.window_size, num_heads, shift)
        self.conv_block = ChannelAttentionBlock(dim, config.compress_ratio, config.squeeze_factor)
        self.conv_scale = config.conv_scale
        self.drop_path_rate = drop_path
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))

    def drawn_factors(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Stochastic depth's factors for the attention and the MLP, `b 1 1 1`; None for one.

        Drawn outside of `forward`, which is compiled once for all rates and not for each.
        """
        if not self.training or not self.drop_path_rate:
            return None, None
        keep = 1 - self.drop_path_rate
        attention, mlp = (x.new_empty(len(x), 1, 1, 1).bernoulli_(keep).div_(keep) for _ in range(2))
        return attention, mlp

    def forward(
        self,
        x: Tensor,
        index: Tensor,
        masks: Tensor,
        attention_factor: Tensor | None = None,
        mlp_factor: Tensor | None = None,
    ) -> Tensor:
        y = self.norm1(x)
        convolved, gate = self.conv_block(y.permute(0, 3, 1, 2))
        x = torch.addcmul(x, convolved.permute(0, 2, 3, 1), gate.permute(0, 2, 3, 1), value=self.conv_scale)
        x = _add(x, self.attn(y, index, masks), attention_factor)
        return _add(x, self.mlp(self.norm2(x)), mlp_factor)


def _add(x: Tensor, branch: Tensor, factor: Tensor | None) -> Tensor:
    return x + branch if factor is None else x + branch * factor.to(branch.dtype)


class ChannelAttentionBlock(nn.Module):
    """CAB: two 3x3 convolutions through a bottleneck, and channel attention's gate for what they return.

    `b c h w` -> `b c h w`, `b c 1 1`, to be multiplied by whoever adds them up.
    """

    def __init__(self, dim: int, compress_ratio: int, squeeze_factor: int) -> None:
        super().__init__()
        self.cab = nn.Sequential(
            nn.Conv2d(dim, dim // compress_ratio, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(dim // compress_ratio, dim, 3, padding=1),
            ChannelAttention(dim, squeeze_factor),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        narrow, activation, wide, attention = self.cab
        convolved = wide(activation(narrow(x)))
        return convolved, attention(convolved)


class ChannelAttention(nn.Module):
    """A gate for every channel, from the channels' means over the whole image: `b c h w` -> `b c 1 1`.

    The means make a tile's result depend slightly on the tile: figures state the tile size.
    """

    def __init__(self, dim: int, squeeze_factor: int) -> None:
        super().__init__()
        squeezed = dim // squeeze_factor
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, dim, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


class OverlappingAttentionBlock(nn.Module):
    """OCAB: attention to overlapping windows, then an MLP: `b h w c` -> `b h w c`."""

    def __init__(self, config: HATConfig, num_heads: int) -> None:
        super().__init__()
        dim, window, overlapping = config.embed_dim, config.window_size, config.overlapping_size
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = Linear(dim, 3 * dim)
        self.num_heads = num_heads
        scale = (dim // num_heads) ** -0.5
        self.attention = OverlappingAttention(window, overlapping, num_heads, scale)
        self.relative_position_bias_table = nn.Parameter(torch.empty(config.overlapping_rows, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.proj = Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        bias = position_bias(self.relative_position_bias_table, index)  # heads n m
        x = x + self._attend(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))

    def _attend(self, x: Tensor, bias: Tensor) -> Tensor:
        if not is_fused():
            return self.proj(self.attention(self.qkv(x), bias))
        heads = self.num_heads
        qkv = linear(x, pad_heads(self.qkv.weight, 3 * heads), pad_heads(self.qkv.bias, 3 * heads))
        return linear(self.attention(qkv, bias), pad_inputs(self.proj.weight, heads), self.proj.bias)


def pixelshuffle(scale: int, num_feat: int) -> nn.Sequential:
    """HAT's upsampler, `b num_feat h w` -> `b num_feat h*scale w*scale`: steps of two, or one of three."""
    steps = [3] if scale == 3 else [2] * (scale // 2)
    layers: list[nn.Module] = []
    for step in steps:
        layers += [nn.Conv2d(num_feat, step**2 * num_feat, 3, padding=1), nn.PixelShuffle(step)]
    return nn.Sequential(*layers)


def pixelshuffledirect(scale: int, dim: int) -> nn.Sequential:
    """One convolution to all subpixels, `b dim h w` -> `b 3 h*scale w*scale`; zero at first.

    Training then starts at the nearest-neighbour enlargement, to which the result is added.
    """
    conv = nn.Conv2d(dim, 3 * scale**2, 3, padding=1)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(conv, nn.PixelShuffle(scale))


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad `b c h w` at the bottom and right to a multiple: reflected where the axis is long enough, else repeated."""
    if SWITCHES.exportable:
        return _pad_by_indices(x, multiple)
    h, w = x.shape[-2:]
    for axis, (size, pad) in enumerate([(w, -w % multiple), (h, -h % multiple)]):
        if pad:
            amount = (0, pad, 0, 0) if axis == 0 else (0, 0, 0, pad)
            x = F.pad(x, amount, mode="reflect" if pad < size else "replicate")
    return x


def _pad_by_indices(x: Tensor, multiple: int) -> Tensor:
    """The same in an exported graph, where the size decides only at run time whether the pad is reflected."""
    for axis in (2, 3):
        size = x.shape[axis]
        full = (size + multiple - 1) // multiple * multiple
        index = torch.arange(full)
        reflected = torch.where(index < size, index, 2 * (size - 1) - index).clamp(min=0)
        repeated = index.clamp(max=size - 1)
        enough = torch.ones(1).new_full((1,), 2 * size - full) > 0  # the pad is less than the size
        x = x.index_select(axis, torch.where(enough, reflected, repeated))
    return x


def _initialise_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
