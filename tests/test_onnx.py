"""The ONNX graph computes what the network computes, on images of any size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from integrations.onnx_network import exportable, irfft2, padded, plain_steps, radial_gain, rfft2, rolled
from models.team08_HATFreq import PRESETS, HATFreq, override
from models.team08_HATFreq.frequency import inverse_rfft2, radial_interpolation
from models.team08_HATFreq.network import pad_to_multiple
from models.team08_HATFreq.weights import save_weights
from scripts import export_onnx

TINY = {"embed_dim": 8, "depths": (2, 1), "num_heads": (2, 2), "squeeze_factor": 4}


def network(preset: str = "light", **changes: object) -> HATFreq:
    """A tiny network with no zeros in it."""
    torch.manual_seed(0)
    model = HATFreq(override(PRESETS[preset], {**TINY, **changes})).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (9, 16), (37, 50)])
def test_the_transforms_are_those_of_complex_numbers(size: tuple[int, int]) -> None:
    u = torch.randn(2, 3, *size)
    expected = torch.fft.rfft2(u, norm="ortho")
    real, imag = rfft2(u)
    torch.testing.assert_close(torch.complex(real, imag), expected, atol=2e-6, rtol=0)
    other = torch.complex(torch.randn_like(real), torch.randn_like(imag))  # no real image's spectrum
    found = irfft2(other.real, other.imag, size[1])
    torch.testing.assert_close(found, inverse_rfft2(other, size[1]), atol=5e-6, rtol=0)


def test_long_transforms_keep_their_precision() -> None:
    u = torch.randn(1, 1, 8, 4000)
    real, imag = rfft2(u)
    torch.testing.assert_close(torch.complex(real, imag), torch.fft.rfft2(u, norm="ortho"), atol=2e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (8, 24), (9, 13)])
def test_gains_padding_and_rolls_are_the_networks(size: tuple[int, int]) -> None:
    gain = torch.randn(4, 16)
    expected = (gain @ radial_interpolation(*size, torch.device("cpu"))).view(4, size[0], size[1] // 2 + 1)
    torch.testing.assert_close(radial_gain(gain, *size), expected, atol=1e-5, rtol=0)
    x = torch.randn(2, 3, *size)
    for multiple in (8, 16):
        assert torch.equal(padded(x, multiple), pad_to_multiple(x, multiple))
    y = torch.randn(1, 9, 11, 2)
    for shift in (-4, 0, 3):
        assert torch.equal(rolled(y, shift), y.roll((shift, shift), (1, 2)))


@pytest.mark.parametrize("frequency", ["both", "global", "window", "none"])
@pytest.mark.parametrize("preset", ["light", "base"])
def test_the_plain_network_is_the_network(preset: str, frequency: str) -> None:
    model = network(preset, frequency=frequency, window_size=8)
    plain = exportable(model)
    for size in ((1, 1), (8, 8), (19, 23), (40, 17)):
        lq = torch.rand(2, 3, *size)
        with plain_steps(), torch.no_grad():
            found = plain(lq)
        with torch.inference_mode():
            torch.testing.assert_close(found, model(lq), atol=5e-6, rtol=0)


def test_the_ablations_control_is_refused() -> None:
    with pytest.raises(ValueError, match="identity"):
        exportable(network(frequency="identity"))


def need(*names: str) -> None:
    """Skip where a package is not installed."""
    for name in names:
        pytest.importorskip(name, reason=f"{name} is not installed (requirements-onnx.txt)")


def check_interface(content: bytes, root: Path) -> None:
    """Names, free axes and opset of a graph; nothing in it tells where it was made."""
    import onnx

    proto = onnx.load_from_string(content)
    onnx.checker.check_model(proto, full_check=True)
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", export_onnx.OPSET)]
    axes = [[d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim] for end in both_ends(proto)]
    assert axes == [["batch", 3, "height", "width"], ["batch", 3, "height*4", "width*4"]]
    assert [end.name for end in both_ends(proto)] == ["lq", "sr"]
    assert str(root).encode() not in content and b"site-packages" not in content
    assert not proto.graph.value_info  # by which onnxruntime would take twice the memory
    facts = {entry.key: entry.value for entry in proto.metadata_props}
    assert facts["weights"] == "w.safetensors" and facts["scale"] == "4" and len(facts["weights_sha256"]) == 64


def both_ends(proto: Any) -> list[Any]:
    """A graph's inputs and outputs."""
    return [*proto.graph.input, *proto.graph.output]


@pytest.mark.slow
def test_a_file_runs_in_onnxruntime_on_any_size(tmp_path: Path, root: Path) -> None:
    need("onnx", "onnxscript", "onnxruntime")
    model = network()
    save_weights(model, tmp_path / "w.safetensors", {})
    export_onnx.main(["--weights", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "w.onnx")])
    content = (tmp_path / "w.onnx").read_bytes()
    sizes = [(1, 16, 16), (3, 19, 23), (1, 40, 33), (1, 8, 8), (1, 1, 1), (2, 3, 20)]
    assert export_onnx.largest_difference(content, model, sizes) < 1e-5
    check_interface(content, root)
    # Another network's graph is no match, and leaves no file.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_onnx, "onnx_model", lambda model, metadata: content)
        save_weights(network(embed_dim=12), tmp_path / "other.safetensors", {})
        with pytest.raises(SystemExit, match="differs from PyTorch's by"):
            export_onnx.main(["--weights", str(tmp_path / "other.safetensors"), "--out", str(tmp_path / "other.onnx")])
    assert not (tmp_path / "other.onnx").exists()


def test_missing_packages_and_bad_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_onnx.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else 1)
    with pytest.raises(SystemExit, match=r"onnxscript not installed: pip install -r requirements-onnx\.txt"):
        export_onnx.main(["--out", str(tmp_path / "w.onnx")])
    monkeypatch.setattr(export_onnx.importlib.util, "find_spec", lambda name: 1)
    with pytest.raises(SystemExit, match=r"absent\.safetensors does not exist"):
        export_onnx.main(["--weights", str(tmp_path / "absent.safetensors"), "--out", str(tmp_path / "w.onnx")])
    assert not list(tmp_path.iterdir())


def test_a_graph_that_onnxruntime_refuses_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("onnx", "onnxscript", "onnxruntime")
    monkeypatch.setattr(export_onnx, "onnx_model", lambda model, metadata: b"no graph")
    save_weights(network(), tmp_path / "w.safetensors", {})
    with pytest.raises(SystemExit, match="refuses the graph"):
        export_onnx.main(["--weights", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "w.onnx")])
    assert not (tmp_path / "w.onnx").exists()


def test_failures_of_the_exporter_and_of_the_runtime_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(export_onnx.ExportError, match="could not export the network: no such operator"):
        export_onnx.onnx_model(network(), {})
    monkeypatch.setattr(export_onnx, "session_of", lambda content: type("Session", (), {"run": fail}))
    with pytest.raises(export_onnx.ExportError, match=r"fails in the graph on \(1, 3, 48, 64\): no such operator"):
        export_onnx.largest_difference(b"", network())


def test_a_result_that_is_not_finite_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def run(self, names: object, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            lq = feeds["lq"]
            return [np.full((len(lq), 3, 4 * lq.shape[2], 4 * lq.shape[3]), np.nan, np.float32)]

    monkeypatch.setattr(export_onnx, "session_of", lambda content: Session())
    assert export_onnx.largest_difference(b"", network()) == np.inf
