"""Training runs by train.py that are scored when they end, and kept: a stopped benchmark goes on where it was."""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from benchmarks.selection_choices import call
from benchmarks.spectrum import error_bands
from evaluation.pairing import Pair
from models.team08_HATFreq.image_io import read_rgb
from models.team08_HATFreq.inference import HATFreqRestorer
from models.team08_HATFreq.network import HATFreq
from models.team08_HATFreq.system import write_bytes
from models.team08_HATFreq.weights import load_weights
from utils.metrics import psnr_y


@dataclass(frozen=True)
class Score:
    """What one trained network is worth on one set.

    Attributes:
        psnr: mean PSNR-Y in dB.
        bands: mean energy of the error in each band of `benchmarks.spectrum`.
    """

    psnr: float
    bands: tuple[float, ...]


def evaluate(model: HATFreq, weights: Path, sets: dict[str, list[Pair]]) -> dict[str, Score]:
    """A network's scores on every set: whole images, one pass, fp32, rounded to uint8."""
    load_weights(model, weights)
    restore = HATFreqRestorer(model, torch.device("cpu"), "fp32", 0, 0, 1, {})
    return {name: _score(restore, pairs) for name, pairs in sets.items()}


def _score(restore: HATFreqRestorer, pairs: list[Pair]) -> Score:
    values, bands = [], []
    for pair in pairs:
        assert pair.target is not None  # find_sets pairs every image
        sr = restore(read_rgb(pair.restored))[0]
        gt = read_rgb(pair.target)[: sr.shape[0], : sr.shape[1]]
        values.append(psnr_y(sr, gt))
        bands.append(error_bands(sr, gt))
    return Score(float(np.mean(values)), tuple(np.mean(bands, axis=0).tolist()))


@dataclass(frozen=True)
class Runs:
    """Where runs are kept, what they train on, and what scores them.

    Attributes:
        work: folder of the runs.
        data: folders of HR photographs.
        sets: name -> pairs.
    """

    work: Path
    data: list[Path]
    sets: dict[str, list[Pair]]

    def scored(self, name: str, model: HATFreq, words: list[str], init: Path | None = None) -> dict[str, Score]:
        """The scores of one run, from its folder if it is finished.

        Args:
            name: how its folder's name begins; the rest is the hash of all that its result depends on but `init`.
            model: a network of the run's shape, which is given the trained weights.
            words: the run's settings in the words of train.py.
            init: weights to start from.

        Raises:
            subprocess.CalledProcessError: train.py failed; it has said why.
        """
        facts = [*words, *(d.name for d in self.data), *(f"{name} {len(pairs)}" for name, pairs in self.sets.items())]
        folder = (self.work / f"{name}_{sha256(json.dumps(facts).encode()).hexdigest()[:12]}").resolve()
        result = folder / "result.json"
        if not result.exists():
            more = ["--out", folder, "--decoded", (self.work / "decoded").resolve()]
            more += ["--init", init.resolve()] if init else []
            call("train.py", "--data", *(one.resolve() for one in self.data), *more, *words)
            scores = evaluate(model, folder / "last.safetensors", self.sets)
            text = json.dumps({name: {"psnr": score.psnr, "bands": score.bands} for name, score in scores.items()})
            write_bytes(result, text.encode())
        read = json.loads(result.read_text())
        return {name: Score(score["psnr"], tuple(score["bands"])) for name, score in read.items()}
