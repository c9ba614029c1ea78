"""What a CUDA device would be given, shown without one: fake CUDA tensors and a spy on every operator.

PyTorch's fake tensors have a device, a type, a shape and strides, but no values. An operator that mixes devices fails
on them; what else would fail or stall on a GPU, `Spy` finds. Speed and values need a GPU: scripts/gpu_check.sh.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from data_curation.embed.encoders import Encoder, _alexnet, _timm
from image_data import degradation
from image_data.degradation import bicubic_downscale
from image_data.pairs import Pair
from models.team08_HATFreq import PRESETS, HATFreq, attention, frequency, layers, tiling
from models.team08_HATFreq.inference import HATFreqRestorer
from models.team08_HATFreq.network import HATConfig, override
from models.team08_HATFreq.system import World
from models.team08_HATFreq.tiling import restore_tiled, self_ensemble
from tests.fake_cuda import CUDA, FaultError, Spy, cuda_autocast, fake_tensors, fused_attention, on_cuda
from training import losses, validation
from training.data import Batch, to_pair
from training.losses import LOSSES, total_loss

SIZES = [(1, 16, 40), (2, 23, 9)]  # b h w: whole windows of 8, and padded ones that wrap in both directions


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_tensors(monkeypatch):
        yield


def shortened(preset: str, frequency: str = "bands") -> HATConfig:
    """A preset cut to one group of each parity, with and without a shifted block: every kind of block it has."""
    config = PRESETS[preset]
    return override(config, {"frequency": frequency, "depths": (2, 1), "num_heads": config.num_heads[:2]})


def check_pass(config: HATConfig, bf16: bool, training: bool, sizes: list[tuple[int, int, int]]) -> None:
    """A pass at every size under the spy: where, of what type and shape the result is; one attention a block."""
    model = on_cuda(HATFreq(config)).train(training)
    blocks = sum(config.depths) + len(config.depths)
    fusions = len(config.depths) if config.frequency == "bands" else 0
    for b, h, w in sizes:
        lq = torch.empty(b, 3, h, w, device=CUDA)
        with torch.set_grad_enabled(training), cuda_autocast(bf16), Spy() as spy:
            sr = model(lq)
        assert (sr.device.type, tuple(sr.shape)) == ("cuda", (b, 3, 4 * h, 4 * w)) and sr.requires_grad == training
        assert sr.dtype in (torch.float32, torch.bfloat16 if bf16 else torch.float32)
        calls = spy.seen["_scaled_dot_product_efficient_attention"]
        assert calls == blocks or (training and calls > blocks)  # in eval one a block
        assert (spy.seen["rfft2"], spy.seen["irfft2"]) == (2 * fusions, fusions)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    "preset", ["light", *(pytest.param(name, marks=pytest.mark.slow) for name in ("small", "base"))]
)
def test_a_pass_stays_on_the_device(preset: str, training: bool, bf16: bool, fake: None) -> None:
    check_pass(shortened(preset), bf16, training, SIZES)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_pass_of_large_stays_on_the_device(training: bool, fake: None) -> None:
    check_pass(PRESETS["large"], training, training, [SIZES[0]])  # `base`'s blocks, twelve groups of them


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_a_pass_without_fusion_stays_on_the_device(bf16: bool, fake: None) -> None:
    check_pass(shortened("light", "none"), bf16, True, SIZES)


def test_a_checkpointed_pass_stays_on_the_device(fake: None) -> None:
    model = on_cuda(HATFreq(shortened("light"))).train()
    model.set_grad_checkpointing()
    with cuda_autocast(True), pytest.MonkeyPatch.context() as patch:
        # The states of random numbers, which the recomputation repeats, are a GPU's own.
        patch.setattr("torch.utils.checkpoint.get_device_states", lambda *_: ([], []))
        lq = torch.empty(1, 3, 16, 16, device=CUDA)
        with Spy(inside=False):  # the CPU's state is kept too
            assert model(lq).requires_grad


@pytest.mark.parametrize("h, w, ensemble, bits", [(40, 52, 1, np.uint8), (33, 70, 8, np.uint16)])
@pytest.mark.slow
def test_tiles_are_restored_in_batches_and_quantised_on_the_device(
    h: int, w: int, ensemble: int, bits: Any, fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned, written, batches = [], [], []
    empty = torch.empty

    def host(*shape: Any, pin_memory: bool = False, **words: Any) -> Tensor:
        pinned.append(pin_memory)
        return empty(*shape, **words)

    model = on_cuda(HATFreq(shortened("light"))).eval()
    restorer = HATFreqRestorer(model, CUDA, "fp32", 32, 8, ensemble)
    restorer.free = 10**9
    model.register_forward_hook(lambda _module, inputs, _sr: batches.append(len(inputs[0])))
    monkeypatch.setattr(tiling.torch, "empty", host)
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    monkeypatch.setattr(tiling._SampleWriter, "_write", lambda _self, top, left, part: written.append(part))
    monkeypatch.setattr(tiling._SampleWriter, "finish", tiling._SampleWriter._fetch)  # its one look at a value
    with Spy(inside=False):
        restorer(np.zeros((h, w, 3), bits))
    rows, columns = (len(tiling.tile_starts(n, 32, 8)) for n in (h, w))
    assert batches == [columns] * rows * ensemble  # all tiles of a row at once
    assert {part.dtype for part in written} == {np.dtype(bits)} and sum(part.size for part in written) == 48 * h * w
    assert any(pinned)


@pytest.mark.parametrize("h, w", [(20, 33), (40, 17)])
@pytest.mark.slow
def test_tiles_and_ensemble_of_tensors(h: int, w: int, fake: None) -> None:
    model = on_cuda(HATFreq(shortened("light"))).eval()
    lq = torch.empty(1, 3, h, w, device=CUDA)
    with Spy(), torch.inference_mode():
        sr = self_ensemble(model, lq)
    assert (sr.device.type, sr.dtype, tuple(sr.shape)) == ("cuda", torch.float32, (1, 3, 4 * h, 4 * w))
    tiled = restore_tiled(model, lq, 4, 16, 4)
    assert (tiled.device.type, tuple(tiled.shape)) == ("cpu", (1, 3, 4 * h, 4 * w))


@pytest.mark.parametrize("b, patch", [(2, 8), (3, 12)])
def test_pairs_and_losses_are_made_on_the_device(b: int, patch: int, fake: None) -> None:
    side = 4 * patch
    region = torch.empty(b, side + 12, side + 12, 3, dtype=torch.uint8)
    on_device = torch.empty_like(region, device=CUDA)
    with Spy():
        lq = bicubic_downscale(on_device)
    assert (lq.device.type, lq.dtype, tuple(lq.shape)) == ("cuda", torch.uint8, (b, patch, patch, 3))
    for given in (None, True, False):
        batch = Batch(region)  # type: ignore[arg-type]
        if given is not None:
            lr = torch.empty(b, patch, patch, 3, dtype=torch.uint8)
            batch = batch._replace(lq=lr, has_lq=torch.empty(b, dtype=torch.bool))  # type: ignore[arg-type]
        with Spy(inside=False), pytest.MonkeyPatch.context() as patched:
            patched.setattr(FakeTensor, "__bool__", lambda _, answer=given: answer)
            lq, gt = to_pair(batch, CUDA)
        assert {(one.device.type, one.dtype) for one in (lq, gt)} == {("cuda", torch.float32)}
        assert tuple(lq.shape) == (b, 3, patch, patch) and tuple(gt.shape) == (b, 3, side, side)
    with Spy(), cuda_autocast(True):
        loss = total_loss(dict.fromkeys(LOSSES, 1.0), gt.clone(), gt)
    assert (loss.device.type, loss.dtype, loss.ndim) == ("cuda", torch.float32, 0)


@pytest.mark.parametrize("tile", [0, 16])
def test_validation_on_the_device(tile: int, fake: None) -> None:
    model = on_cuda(HATFreq(shortened("light"))).eval()
    pairs = [Pair(str(h), np.zeros((h, 24, 3), np.uint8), np.zeros((4 * h, 96, 3), np.uint8)) for h in (16, 20)]
    result = validation.ValidationSet("set", pairs)  # type: ignore[arg-type]
    assert validation.validate(model, [result], World(0, 1, CUDA), tile) == {"set": 0.0}


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["alexnet", "vit_tiny_patch16_224", "clip"])
def test_encoders_stay_on_the_device(name: str, bf16: bool, fake: None) -> None:
    if name == "clip":
        open_clip = pytest.importorskip("open_clip")
        tower = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
        text = {"context_length": 8, "vocab_size": 16, "width": 64, "heads": 1, "layers": 1}
        whole = open_clip.CLIP(32, tower, text)
        network, preprocess, side = on_cuda(whole).eval().encode_image, _alexnet()[1], 32
    else:
        with unset_fake_temporarily():
            result, preprocess = _alexnet() if name == "alexnet" else _timm(name)
        network, side = on_cuda(result).eval(), preprocess.crop

    def spied(x: Tensor) -> Tensor:
        with cuda_autocast(bf16), Spy():  # inside, as the encoder's own switches itself off without a GPU
            return network(x)

    for batch in (2, 3):
        encoder = Encoder(name, "", preprocess, spied, 64, CUDA, bf16, batch)
        result = encoder.embed(np.zeros((batch, side, side, 3), np.uint8))
        assert result.dtype == np.float32 and len(result) == batch


# ---------------------------------------------------------------------------------------------------------------------
# Backward: fake CUDA tensors have no device context for it, meta tensors take the same path
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["bands", "none"])
def test_backward_of_the_devices_path_on_meta(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it knows no meta device
    model = HATFreq(shortened("light", mode)).to("meta").train()
    for b, h, w in SIZES:
        sr = model(torch.empty(b, 3, h, w, device="meta"))
        total_loss({"l1": 1.0, "frequency": 1.0}, sr, torch.empty_like(sr)).backward()
        for name, weight in model.named_parameters():
            assert weight.grad is not None and weight.grad.shape == weight.shape, name


@pytest.mark.parametrize("preset", list(PRESETS))
def test_backward_in_bf16_on_the_cpu(preset: str) -> None:
    model = HATFreq(override(shortened(preset), {"embed_dim": 48, "squeeze_factor": 4})).train()
    with torch.autocast("cpu", torch.bfloat16):
        sr = model(torch.rand(1, 3, 16, 16))
    total_loss(dict.fromkeys(LOSSES, 1.0), sr.float(), torch.rand(1, 3, 64, 64)).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.dtype == torch.float32 and weight.grad.isfinite().all(), name


# ---------------------------------------------------------------------------------------------------------------------
# The tests above fail where a fault is planted
# ---------------------------------------------------------------------------------------------------------------------


def a_pass() -> None:
    check_pass(override(shortened("base"), {"depths": (2,), "num_heads": (6,)}), True, False, SIZES[:1])


def tiles() -> None:
    with pytest.MonkeyPatch.context() as patch:
        test_tiles_are_restored_in_batches_and_quantised_on_the_device(40, 52, 1, np.uint8, None, patch)


def pairs() -> None:
    test_pairs_and_losses_are_made_on_the_device(2, 8, None)


def valid() -> None:
    test_validation_on_the_device(0, None)


def encoder() -> None:
    test_encoders_stay_on_the_device("alexnet", False, None)


def cpu_mask(mask: Tensor, _size: int) -> Tensor:
    return mask.cpu().to(CUDA)


def bf16_fft(u: Tensor, *_: Tensor) -> Tensor:
    return torch.view_as_real(torch.fft.rfft2(u.bfloat16(), norm="ortho"))


def mixed(x: Tensor, weight: Tensor, _bias: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        torch.set_autocast_enabled("cuda", False)
        return torch.mm(x.flatten(0, -2).double(), weight.t().float())


def float_mask(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, scale: float) -> Tensor:
    return fused_attention(q, k, v, attn_mask.double(), scale=scale)


FAULTS: list[tuple[Callable[[], None], Any, str, Any, str]] = [
    (a_pass, attention, "shifted", cpu_mask, "tensor on"),
    (a_pass, frequency, "rfft2", bf16_fft, "fft|BFloat16"),
    (a_pass, F, "gelu", lambda x, **_: x * float(x.flatten()[0]), "waits"),
    (a_pass, layers, "linear", mixed, "mixed types"),
    (a_pass, attention, "pad_heads", lambda weight, _heads: weight, "plain attention: heads"),
    (a_pass, attention, "position_bias", lambda table, index: table[index].permute(2, 0, 1), "plain attention: a mask"),
    (a_pass, F, "scaled_dot_product_attention", float_mask, "plain attention: a mask"),
    (tiles, tiling, "_quantised", lambda sr, _dtype: (sr[0] * float(sr.max())).byte(), "waits"),
    (tiles, tiling, "_to_float", lambda part, device: torch.from_numpy(part).to(device), "blocks"),
    (pairs, degradation, "_downscale_axis", lambda image, _axis: image * torch.ones(3).to(CUDA), "tensor on"),
    (pairs, losses, "charbonnier", bf16_fft, "fft|BFloat16"),
    (valid, validation, "restore_uint8", lambda network, *_, **__: network(torch.empty(1, 3, 8, 8)), "device"),
    (encoder, F, "relu", lambda x, **_: torch.mm(x.flatten(1).double(), x.flatten(1).t()), "mixed types"),
]


@pytest.mark.parametrize("test, module, name, faulty, message", FAULTS, ids=[f"{one[2]}" for one in FAULTS])
def test_a_planted_fault_is_found(
    test: Callable[[], None], module: Any, name: str, faulty: Any, message: str, fake: None, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, name, faulty)
    monkeypatch.setitem(LOSSES, "charbonnier", losses.charbonnier)
    with pytest.raises((FaultError, RuntimeError), match=message):
        test()
