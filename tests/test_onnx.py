"""The ONNX graph computes what the network computes, on images of any size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.team08_HATFreq import PRESETS, HATFreq, override
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


def need(*names: str) -> None:
    """Skip where a package is not installed."""
    for name in names:
        pytest.importorskip(name, reason=f"{name} is not installed (pip install -e .[onnx])")


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
    record = {entry.key: entry.value for entry in proto.metadata_props}
    assert record["weights"] == "w.safetensors" and record["scale"] == "4" and len(record["weights_sha256"]) == 64


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
    assert export_onnx.largest_difference(content, model, sizes) < 5e-5  # other processors sum in another order
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
    with pytest.raises(SystemExit, match=r"onnxscript not installed: pip install -e '\.\[onnx\]'"):
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


def test_tiles_with_numpy_alone_cover_the_picture_once() -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install -e .[onnx])")
    from integrations import onnx_tiles

    class Nearest:
        def run(self, names: object, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [feeds["lq"].repeat(4, 2).repeat(4, 3)]

    for shape in ((5, 7, 3), (256, 300, 3), (700, 257, 3)):
        rgb = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        np.testing.assert_array_equal(onnx_tiles.enlarge(Nearest(), rgb), rgb.repeat(4, 0).repeat(4, 1))
