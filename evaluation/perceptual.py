"""The organisers' perceptual metrics, computed by pyiqa, and their total score.

pyiqa is optional (`pip install -e '.[iqa]'`; its licence is non-commercial), and so are its weights, which it downloads
at first use. What is unavailable is named with the reason, and the total score is then not available, never a partial
sum.
"""

import importlib.util
import math
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.files import UserError

DOWNLOAD_TIMEOUT = 15.0  # seconds a silent server may hold up a download

Metric = Callable[..., Tensor]
Factory = Callable[[str, torch.device], Metric]


@dataclass(frozen=True)
class PyiqaMetric:
    """A metric's name in pyiqa, and whether it compares with a target."""

    pyiqa: str
    needs_target: bool


# Every metric that eval.py can be asked for; a new one is a line here. All on the whole RGB image in [0, 1].
PERCEPTUAL: dict[str, PyiqaMetric] = {
    "LPIPS": PyiqaMetric("lpips", True),
    "DISTS": PyiqaMetric("dists", True),
    "NIQE": PyiqaMetric("niqe", False),
    "MUSIQ": PyiqaMetric("musiq", False),
    "MANIQA": PyiqaMetric("maniqa", False),
    "CLIP-IQA": PyiqaMetric("clipiqa", False),
}
# What the organisers' total score adds up, from the averaged metrics (their eval.py).
SCORE_TERMS: dict[str, Callable[[float], float]] = {
    "LPIPS": lambda v: 1 - v,
    "DISTS": lambda v: 1 - v,
    "NIQE": lambda v: max(0.0, (10 - v) / 10),
    "MUSIQ": lambda v: v / 100,
    "MANIQA": lambda v: v,
    "CLIP-IQA": lambda v: v,
}


class MetricError(UserError):
    """A metric failed on an image; the message names both."""


def total_score(averages: Mapping[str, float]) -> float | None:
    """The organisers' perceptual score from averaged metrics; None unless every part is there and finite."""
    values = {name: averages.get(name, math.nan) for name in SCORE_TERMS}
    if not all(math.isfinite(value) for value in values.values()):
        return None
    return sum(term(values[name]) for name, term in SCORE_TERMS.items())


def make_metrics(
    names: list[str], device: torch.device, factory: Factory | None = None
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Load metrics.

    Args:
        names: keys of `PERCEPTUAL`.
        device: where they run.
        factory: makes a metric from its pyiqa name; pyiqa's own by default.

    Returns:
        The metrics by key, and for each that cannot be had the reason in one line.
    """
    if factory is None and importlib.util.find_spec("pyiqa") is None:
        return {}, dict.fromkeys(names, "pyiqa is not installed (pip install -e '.[iqa]')")
    metrics: dict[str, Metric] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            with _download_timeout(), _no_retries():
                metrics[name] = (factory or _pyiqa_metric)(PERCEPTUAL[name].pyiqa, device)
        except Exception as error:  # whatever pyiqa, its hubs and their clients raise: the reason is reported
            missing[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error) else ''}"
    return metrics, missing


def measure(
    metrics: Mapping[str, Metric], sr: NDArray[np.uint8], gt: NDArray[np.uint8] | None, file: str
) -> dict[str, float]:
    """The value of every metric for one image, uint8 `h w 3`; those that need a target are left out without one.

    Raises:
        MetricError: a metric fails or its value is not finite.
    """
    values: dict[str, float] = {}
    for name, metric in metrics.items():
        images = [sr] if not PERCEPTUAL[name].needs_target else [sr, gt]
        if any(image is None for image in images):
            continue
        try:
            with torch.inference_mode():
                values[name] = float(metric(*(_to_input(image) for image in images)))
        except (RuntimeError, ValueError, AssertionError) as error:
            raise MetricError(f"{name} failed on {file} ({error}): leave it out with --metrics") from error
        if not math.isfinite(values[name]):
            raise MetricError(f"{name} is {values[name]} on {file}: leave it out with --metrics")
    return values


def _to_input(image: Any) -> Tensor:
    """uint8 `h w 3` -> float32 `1 3 h w` in [0, 1]."""
    return torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float() / 255


def _pyiqa_metric(name: str, device: torch.device) -> Metric:
    import pyiqa

    metric = pyiqa.create_metric(name, device=device)
    return lambda *images: metric(*(image.to(device) for image in images))


@contextmanager
def _download_timeout() -> Iterator[None]:
    """Let no silent server hang a run."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _no_retries() -> Iterator[None]:
    """Ask Hugging Face's hub once: where it cannot be reached, its client would retry every file for half a minute."""
    if importlib.util.find_spec("huggingface_hub") is None:
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)  # offline: its cache is still read
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


@lru_cache
def _reachable(address: str) -> bool:
    """Whether a server answers at all, through the system's proxy if there is one."""
    try:
        urllib.request.urlopen(address, timeout=DOWNLOAD_TIMEOUT).close()
    except urllib.error.HTTPError:  # an answer, though an unfriendly one
        return True
    except OSError:
        return False
    return True
