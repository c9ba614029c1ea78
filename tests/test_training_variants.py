"""benchmarks/variants.py: Muon beside Adam, and the distance of features from a teacher's."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import train
from benchmarks import variants
from models.team08_HATFreq import PRESETS, HATFreq, override
from training.checkpoint import load_checkpoint


def fresh(seed: int) -> HATFreq:
    torch.manual_seed(seed)
    return HATFreq(override(PRESETS["light"], {"depths": (1,), "num_heads": (2,)}))


def test_muon_turns_the_matrices_and_adam_the_rest() -> None:
    """A first step of Muon is the rate times an orthogonal matrix, scaled by 0.2 sqrt(longer side); of Adam, +-rate."""
    model, rate = fresh(0), 1e-3
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimiser = variants.MuonAndAdam([{"params": list(model.parameters())}], lr=rate, betas=(0.9, 0.99), fused=True)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)
        if weight.ndim == 2:  # singular values that five steps can bring near 1, whatever the seed draws
            u, sizes, v = torch.linalg.svd(weight.grad, full_matrices=False)
            weight.grad = u * torch.linspace(1, 0.2, len(sizes)) @ v
    optimiser.step()
    matrices = 0
    for name, weight in model.named_parameters():
        change = weight.detach() - before[name]
        if weight.ndim == 2 and min(weight.shape) >= 16:
            sizes = torch.linalg.svdvals(change) / (rate * 0.2 * max(weight.shape) ** 0.5)
            assert sizes.min() > 0.5 and sizes.max() < 1.3, name  # Newton-Schulz of five steps ends near 1
            matrices += 1
        else:
            assert torch.allclose(change.abs(), torch.tensor(rate), rtol=1e-2), name
    assert matrices > 5
    optimiser.zero_grad()
    assert all(weight.grad is None for weight in model.parameters())


def test_a_training_with_muon_resumes(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.Adam)  # put back afterwards
    words = ["muon", "--data", str(photos / "train"), "--model_overrides", "depths=1", "num_heads=2", "--batch", "1"]
    words += ["--patch", "16", "--steps", "4", "--warmup", "0", "--workers", "0", "--device", "cpu", "--no-tensorboard"]
    assert variants.main([*words, "--out", str(tmp_path / "whole")]) == 0
    monkeypatch.setattr(train, "save", lambda run, save=train.save: save(run) or stop(run))

    def stop(run: train.Run) -> None:
        if run.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        variants.main([*words, "--save_every", "2", "--out", str(tmp_path / "halves")])
    assert variants.main([*words, "--save_every", "2", "--out", str(tmp_path / "halves")]) == 0
    assert load_checkpoint(tmp_path / "halves")[0]["optimiser"].keys() == {"adam", "muon"}
    whole, halves = ((tmp_path / name / "last.safetensors").read_bytes() for name in ("whole", "halves"))
    assert whole == halves


def test_affinity_is_the_cosine_between_positions() -> None:
    features = torch.randn(2, 5, 3, 4)
    found = variants.affinity(features)
    assert found.shape == (2, 12, 12)
    one, other = features[1, :, 0, 2], features[1, :, 2, 3]
    assert found[1, 2, 11].item() == pytest.approx(torch.cosine_similarity(one, other, dim=0).item(), abs=1e-6)
    assert torch.allclose(variants.affinity(3 * features), found, atol=1e-6)


def test_the_features_distance_is_added_to_the_loss_and_reaches_the_network() -> None:
    student, teacher = fresh(0), fresh(1).eval()
    lq = torch.from_numpy(np.random.default_rng(0).random((2, 3, 8, 8), np.float32))
    found = {}

    def train_step(run: SimpleNamespace, parts: list[Tensor]) -> Tensor:
        """As train.py's: a pass, then the loss."""
        found["loss"] = total({"l1": 1.0}, run.model(parts[0]), torch.zeros(2, 3, 32, 32))
        return found["loss"]

    def loss(weights: dict[str, float], sr: Tensor, gt: Tensor) -> Tensor:
        return 0 * sr.sum()

    step, total = variants.with_features(teacher, train_step, loss)
    step(SimpleNamespace(model=student), [lq])
    kept = {name: record(network, lq) for name, network in (("student", student), ("teacher", teacher))}
    expected = (variants.affinity(kept["student"]) - variants.affinity(kept["teacher"])).abs().mean()
    assert found["loss"].item() == pytest.approx(variants.AFFINITY_WEIGHT * expected.item(), rel=1e-5) and expected > 0
    found["loss"].backward()
    assert student.conv_first.weight.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in teacher.parameters())
    step(SimpleNamespace(model=student), [lq])  # hooked once
    assert found["loss"].item() == pytest.approx(variants.AFFINITY_WEIGHT * expected.item(), rel=1e-5)


def record(network: nn.Module, lq: Tensor) -> Tensor:
    """What `conv_after_body` gives."""
    kept: list[Tensor] = []
    handle = network.get_submodule("conv_after_body").register_forward_hook(lambda *found: kept.append(found[2]))
    with torch.no_grad():
        network(lq)
    handle.remove()
    return kept[0].detach()


def test_unknown_variants_are_refused() -> None:
    for words in ([], ["features"], ["adam", "--steps", "1"]):
        with pytest.raises(SystemExit):
            variants.main(words)
