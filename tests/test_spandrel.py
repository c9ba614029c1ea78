"""spandrel opens our files as HATFreq and plain HAT's as its own."""

import importlib.util
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed (pip install -e .[dev])")

from integrations import spandrel_hatfreq  # noqa: E402
from integrations.spandrel_hatfreq import install, is_hatfreq  # noqa: E402
from models.team08_HATFreq import PRESETS, HATFreq, build_model, override  # noqa: E402
from models.team08_HATFreq.image_io import read_rgb  # noqa: E402
from models.team08_HATFreq.tiling import to_tensor  # noqa: E402
from models.team08_HATFreq.weights import describe, load_weights, save_weights  # noqa: E402
from training.checkpoint import KEYS, LAST, save_checkpoint  # noqa: E402

SMALL = {"depths": (2, 1), "num_heads": (2, 2), "squeeze_factor": 3, "compress_ratio": 3}
NARROW = {
    "light": {"embed_dim": 16, "depths": (2, 1), "num_heads": (2, 2)},
    "small": {"embed_dim": 24, **SMALL, "compress_ratio": 24},
    "base": {"embed_dim": 12, **SMALL},
    "large": {"embed_dim": 12, "depths": (1,) * 12, "num_heads": (2,) * 12, "squeeze_factor": 3},
}


def saved(path: Path, preset: str, **changes: object) -> HATFreq:
    """A narrow network of a preset's kind with no zeros in it, and its file."""
    torch.manual_seed(0)
    model = HATFreq(override(PRESETS[preset], {**NARROW[preset], **changes})).eval()
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    save_weights(model, path, {})
    return model


def opened(path: Path) -> "spandrel.ImageModelDescriptor":
    install()
    model = spandrel.ModelLoader(device="cpu").load_from_file(path)
    assert isinstance(model, spandrel.ImageModelDescriptor)
    return model


@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_is_opened_and_restores_the_same(tmp_path: Path, preset: str) -> None:
    own = saved(tmp_path / "w.safetensors", preset)
    reference = opened(tmp_path / "w.safetensors")
    assert reference.architecture.id == "HATFreq" and reference.model.config == own.config
    lq = torch.rand(1, 3, 19, 23)
    with torch.inference_mode():
        assert torch.equal(reference(lq), own(lq).clamp(0, 1))


@pytest.mark.parametrize("scale", [2, 3])
def test_other_scales_are_read_off_the_tensors(tmp_path: Path, scale: int) -> None:
    saved(tmp_path / "w.safetensors", "base", scale=scale)
    assert opened(tmp_path / "w.safetensors").scale == scale


@pytest.mark.parametrize(
    "preset", ["light", *(pytest.param(name, marks=pytest.mark.slow) for name in list(PRESETS)[1:])]
)
def test_every_preset_at_its_full_size_is_described(preset: str) -> None:
    for frequency in ("bands", "none"):
        config = override(PRESETS[preset], {"frequency": frequency})
        with torch.device("meta"):
            state = HATFreq(config).state_dict()
        assert describe(state) == config
        assert is_hatfreq(state) == (frequency != "none")


def test_the_descriptor_says_what_the_network_can(tmp_path: Path) -> None:
    saved(tmp_path / "w.safetensors", "base")
    reference = opened(tmp_path / "w.safetensors")
    assert (reference.purpose, reference.scale, reference.input_channels, reference.output_channels) == ("SR", 4, 3, 3)
    assert (reference.supports_half, reference.supports_bfloat16) == (False, True)
    assert reference.size_requirements.none and reference.tiling is spandrel.ModelTiling.SUPPORTED
    assert reference.tags == ["custom", "frequency-bands", "12dim", "w16", "2groups"]
    with pytest.raises(spandrel.UnsupportedDtypeError):
        reference.half()


@pytest.mark.parametrize("size", [(1, 1), (7, 33), (16, 8)])
def test_any_size_goes_in(tmp_path: Path, size: tuple[int, int]) -> None:
    own = saved(tmp_path / "w.safetensors", "light")
    lq = torch.rand(1, 3, *size)
    with torch.inference_mode():
        assert torch.equal(opened(tmp_path / "w.safetensors")(lq), own(lq).clamp(0, 1))


def test_wrapped_files_of_torch_save_are_opened(tmp_path: Path) -> None:
    own = saved(tmp_path / "w.safetensors", "light")
    state = {f"module.{key}": tensor for key, tensor in own.state_dict().items()}
    torch.save({"params_ema": state}, tmp_path / "w.pth")
    lq = torch.rand(1, 3, 9, 8)
    with torch.inference_mode():
        assert torch.equal(opened(tmp_path / "w.pth")(lq), own(lq).clamp(0, 1))


def test_of_a_training_checkpoint_spandrel_takes_the_raw_weights(tmp_path: Path) -> None:
    raw = saved(tmp_path / "w.safetensors", "light").state_dict()
    averaged = {key: tensor + 1 for key, tensor in raw.items()}
    save_checkpoint(tmp_path, {**dict.fromkeys(KEYS - {"format"}, 0), "model": raw, "ema": averaged})
    assert torch.equal(opened(tmp_path / LAST).model.conv_first.weight, raw["conv_first.weight"])


def test_a_light_network_without_frequency_blocks_is_opened_by_nobody(tmp_path: Path) -> None:
    saved(tmp_path / "w.safetensors", "light", frequency="none")
    with pytest.raises(spandrel.UnsupportedModelError):
        opened(tmp_path / "w.safetensors")


def test_installing_twice_registers_once() -> None:
    install()
    install()
    order = [support.architecture.id for support in spandrel.MAIN_REGISTRY.architectures("detection")]
    assert order.count("HATFreq") == 1 and order.index("HATFreq") < order.index("HAT")


@pytest.mark.parametrize("preset", ["small", "base", "large"])
def test_a_plain_hat_stays_spandrels(tmp_path: Path, preset: str) -> None:
    own = saved(tmp_path / "hat.safetensors", preset, frequency="none")
    reference = opened(tmp_path / "hat.safetensors")
    assert reference.architecture.id == "HAT"
    lq = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(reference(lq), own(lq).clamp(0, 1), atol=1e-5, rtol=0)


def test_other_files_are_not_taken_for_ours() -> None:
    assert not is_hatfreq({})
    assert not is_hatfreq({"layers.0.freq.gates.weight": torch.zeros(1)})
    assert not is_hatfreq({"conv_first.weight": torch.zeros(4, 3, 3, 3)})


def test_the_shipped_weights_restore_a_photograph(root: Path, photos: Path) -> None:
    weights = root / "model_zoo" / "team08_HATFreq" / "hatfreq_light_x4.safetensors"
    reference = opened(weights)
    assert reference.scale == 4 and not reference.supports_half and reference.tags[0] == "light"
    own = build_model("light").eval()
    load_weights(own, weights)
    lq = to_tensor(read_rgb(photos / "valid" / "cat.png")[:40, :52])
    with torch.inference_mode():
        expected = own(lq).clamp(0, 1)
    assert torch.equal(reference(lq), expected)
    reference.bfloat16()
    assert (reference(lq.bfloat16()).float() - expected).abs().max() < 0.02


def test_comfyuis_folder_registers_and_its_loaders_call_opens(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """What ComfyUI does: import the folder under custom_nodes by its path, then load the tensors of the file."""
    monkeypatch.setitem(sys.modules, "spandrel_hatfreq", spandrel_hatfreq)  # as pip installs it
    path = root / "integrations" / "comfyui_hatfreq" / "__init__.py"
    result = importlib.util.spec_from_file_location("comfyui_hatfreq", path)
    assert result is not None and result.loader is not None
    module = importlib.util.module_from_spec(result)
    result.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS == {}
    own = saved(tmp_path / "w.safetensors", "light")
    state = safetensors.torch.load_file(tmp_path / "w.safetensors", device="cpu")
    model = spandrel.ModelLoader().load_from_state_dict(state).eval()
    assert model.architecture.id == "HATFreq" and model.scale == 4
    lq = torch.rand(1, 3, 9, 8)
    with torch.inference_mode():
        assert torch.equal(model(lq), own(lq).clamp(0, 1))
