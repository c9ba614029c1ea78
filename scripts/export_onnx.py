"""Write a HATFreq as an ONNX file for images of any size, after checking it in onnxruntime.

    pip install -e '.[onnx]'
    python -m scripts.export_onnx --out hatfreq_light_x4.onnx

Input `lq`: float32 `b 3 h w` in [0, 1], any b, h and w. Output `sr`: `b 3 h*scale w*scale`, not clamped. One pass, no
tiles: whoever runs it cuts large images. The file is written only if onnxruntime's result is PyTorch's within 1e-4 on
three sizes.
"""

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.team08_HATFreq import HATFreq, set_exportable
from models.team08_HATFreq.weights import WeightsError, build, load
from utils.files import UserError, command, write_bytes

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT / "model_zoo" / "team08_HATFreq" / "hatfreq_light_x4.safetensors"
OPSET = 18
TOLERANCE = 1e-4
SIZES = ((1, 48, 64), (2, 33, 50), (1, 5, 7))  # b h w: whole windows, padded ones, less than a window


class ExportError(UserError):
    """The graph could not be made, or computes something else."""


def onnx_model(model: HATFreq, metadata: dict[str, str]) -> bytes:
    """The network as an ONNX file's content.

    Raises:
        ExportError: the exporter failed; the message holds its reason.
    """
    model = model.requires_grad_(False)
    batch, height, width = (torch.export.Dim(name) for name in ("batch", "height", "width"))
    try:
        with set_exportable(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about its own future
            program = torch.onnx.export(
                model,
                (torch.rand(2, 3, 19, 23),),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=({0: batch, 2: height, 3: width},),
                input_names=["lq"],
                output_names=["sr"],
                verbose=False,
            )
    except Exception as error:  # the exporter's own are many
        raise ExportError(f"PyTorch {torch.__version__} could not export the network: {error}") from error
    assert program is not None  # with dynamo it is the model
    proto = program.model_proto
    remove_notes(proto.graph)
    for axis, name in ((2, "height"), (3, "width")):
        proto.graph.output[0].type.tensor_type.shape.dim[axis].dim_param = f"{name}*{model.config.scale}"
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def remove_notes(graph: Any) -> None:
    """Take the exporter's notes out of an ONNX graph.

    Source lines of every node, with this machine's paths: nearly half of a small network's file. And the shapes of the
    intermediate tensors: onnxruntime finds its own, and 1.32 planned its buffers so badly by the exporter's that the
    shipped network took 1002 MB for 256x256 pixels instead of 439.
    """
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
        for attribute in getattr(part, "attribute", ()):
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                remove_notes(inner)


def largest_difference(content: bytes, model: HATFreq, sizes: Sequence[tuple[int, int, int]] = SIZES) -> float:
    """The largest difference of onnxruntime's result from PyTorch's on random images of some sizes `b h w`.

    Raises:
        ExportError: onnxruntime does not run the graph, or its result has another shape.
    """
    session, draw = session_of(content), np.random.default_rng(0)
    worst = 0.0
    for batch, height, width in sizes:
        lq = draw.random((batch, 3, height, width), np.float32)
        with torch.inference_mode():
            expected = model(torch.from_numpy(lq)).numpy()
        result = result_of(session, lq)
        if result.shape != expected.shape:
            raise ExportError(f"the graph makes {result.shape} of {lq.shape}, the network {expected.shape}")
        difference = float(np.abs(result - expected).max())
        worst = max(worst, difference if np.isfinite(difference) else np.inf)
    return worst


def session_of(content: bytes) -> Any:
    """An onnxruntime session on the CPU, with PyTorch's number of threads.

    Raises:
        ExportError: onnxruntime refuses the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class of their own
        raise ExportError(f"onnxruntime {onnxruntime.__version__} refuses the graph: {error}") from error


def result_of(session: Any, lq: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a session makes of `b 3 h w`.

    Raises:
        ExportError: it fails.
    """
    try:
        return session.run(None, {"lq": lq})[0]
    except Exception as error:
        raise ExportError(f"onnxruntime fails in the graph on {lq.shape}: {error}") from error


def export(weights: Path, out: Path) -> str:
    """Export, check, write; returns what to print.

    Raises:
        WeightsError, ValueError: the weights cannot be used.
        ExportError: the graph could not be made or is not the network.
        OSError: the file cannot be written.
    """
    result = load(weights)
    model = build(result)[0].eval()
    metadata = {"weights": weights.name, "weights_sha256": result.sha256, "scale": str(model.config.scale)}
    content = onnx_model(model, metadata)
    difference = largest_difference(content, model)
    if difference > TOLERANCE:
        raise ExportError(f"onnxruntime's result differs from PyTorch's by {difference:.1e}, more than {TOLERANCE:.0e}")
    write_bytes(out, content)
    sizes = ", ".join("x".join(map(str, size)) for size in SIZES)
    return f"{out}: {len(content) / 1e6:.1f} MB, opset {OPSET}; largest difference {difference:.1e} on {sizes} (b h w)"


@command("export_onnx.py", WeightsError)
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=ZOO, help="default: the model zoo's light ones")
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write")
    args = parser.parse_args(argv)
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]:
        raise ExportError(f"{', '.join(missing)} not installed: pip install -e '.[onnx]'")
    print(export(args.weights, args.out))


if __name__ == "__main__":
    sys.exit(main())
