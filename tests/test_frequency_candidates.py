"""benchmarks/frequency: what the candidates compute, their controls, the jobs and the tables of the experiment."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.frequency import __main__ as command
from benchmarks.frequency import blocks, candidates, data, jobs, periods, report
from benchmarks.frequency.blocks import CANDIDATES, CORES, Block, attach
from benchmarks.frequency.candidates import ImageGains, ImageShrinkage, LagAttention, SpectralAttention, WindowGains
from benchmarks.frequency.jobs import Job
from benchmarks.frequency.periodicity import TILE, Crop, periodicity, read_crops, select
from benchmarks.frequency.periods import PeriodicAttention, find_periods, places
from benchmarks.frequency.spectra import Frames, correlate, polar_bands
from image_data.pairs import Pair
from models.team08_HATFreq import PRESETS, HATFreq, override, set_exportable
from models.team08_HATFreq import frequency as production
from models.team08_HATFreq.fourier import irfft2, rfft2
from models.team08_HATFreq.frequency import band_power, power, ring_bands

TINY = {"embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "squeeze_factor": 4}
SIZES = [(8, 8), (16, 24), (40, 32)]


def network(name: str, control: bool = False, place: str = "tail") -> HATFreq:
    """A tiny network with fresh blocks."""
    torch.manual_seed(0)
    model = HATFreq(override(PRESETS["light"], {**TINY, "frequency": "none"})).eval()
    nn.init.normal_(model.upsample[0].weight, std=0.1)
    torch.manual_seed(1)
    return attach(model, name, control, place)


def awake(model: nn.Module) -> nn.Module:
    """With the layers that are zero at first filled."""
    torch.manual_seed(2)
    for module in model.modules():
        for layer in (getattr(module, "fuse", None), getattr(module, "gates", None)):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.normal_(layer.weight, std=0.3)
    return model


@pytest.fixture
def transforms(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes that the forward transform was given."""
    calls: list[tuple[int, ...]] = []

    def spy(u: Tensor) -> Tensor:
        calls.append(tuple(u.shape[-2:]))
        return rfft2(u)

    for module in (production, candidates, periods):
        monkeypatch.setattr(module, "rfft2", spy)
    return calls


@pytest.mark.parametrize("name", CANDIDATES)
def test_fresh_blocks_leave_the_network_exactly_as_it_is(name: str) -> None:
    lq = torch.rand(2, 3, 19, 33)
    expected = network("none")(lq)
    for control in (False, True):
        for place in blocks.places_of(name):
            assert torch.equal(network(name, control, place)(lq), expected)


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_control_differs_by_the_transform_alone(name: str, transforms: list[tuple[int, ...]]) -> None:
    ours, control = network(name), network(name, control=True)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in control.state_dict().items()}
    assert all(torch.equal(v, control.state_dict()[k]) for k, v in ours.state_dict().items())
    lq = torch.rand(1, 3, 16, 16)
    changed = awake(control)(lq)
    assert not transforms
    assert (awake(ours)(lq) - changed).abs().max() > 1e-5
    assert transforms


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("name", CANDIDATES)
def test_every_parameter_is_trained_and_gradients_are_finite(name: str, control: bool) -> None:
    model = awake(network(name, control))
    fresh = dict(network("none").named_parameters())
    for lq in (torch.rand(1, 3, 16, 24), torch.zeros(1, 3, 16, 24), torch.full((1, 3, 16, 24), 100.0)):
        model.zero_grad()
        model(lq).square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        if lq.std():
            own = [k for k, p in model.named_parameters() if k not in fresh and (p.grad is None or not p.grad.any())]
            assert own == []


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CORES)
def test_any_size_in_bfloat16_too_and_as_steps_that_export(name: str, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = awake(Block(8, CORES[name], True))
    x, zero = torch.randn(2, 8, *size), torch.zeros(2, 8, *size)
    y = block(x, zero)
    assert y.shape == x.shape and y.any()
    torch.testing.assert_close(block(x, x), x + y)
    with set_exportable():
        torch.testing.assert_close(block(x, zero), y, rtol=0, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # the transforms refuse what is not fp32
        torch.testing.assert_close(block(x, zero).float(), y, rtol=0.1, atol=0.1 + 0.5 * (name == "periodic"))
    assert block.bfloat16()(x.bfloat16(), zero.bfloat16()).dtype == torch.bfloat16


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="fourier"):
        network("fourier")
    with pytest.raises(ValueError, match="middle"):
        network("fsas", place="middle")
    with pytest.raises(ValueError, match="band_gate"):
        network("band_gate", place="before")


# ---------------------------------------------------------------------------------------------------------------------
# The parts
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_frames_add_up_to_the_image(size: tuple[int, int]) -> None:
    u = torch.randn(2, 3, *size)
    frames = Frames(16).cut(u)
    assert frames.shape == (2, size[0] // 8 + 1, size[1] // 8 + 1, 3, 16, 16)
    torch.testing.assert_close(Frames(16).join(frames), u)
    taper = torch.sin(torch.pi * torch.arange(8, 16) / 16)
    torch.testing.assert_close(frames[0, 0, 0, 0, 8:, 8:], u[0, 0, :8, :8] * taper[:, None] * taper)


def test_bands_share_every_coefficient_at_its_physical_frequency() -> None:
    small, large = torch.empty(16, 16), torch.empty(48, 48)
    for bands in (lambda u: ring_bands(u, 6), lambda u: polar_bands(5, 4, u)):
        torch.testing.assert_close(bands(large).sum(0), torch.ones(48 * 25))
        fine = bands(large).view(-1, 48, 25)[:, ::3, ::3]
        torch.testing.assert_close(bands(small).view(-1, 16, 9), fine, rtol=0, atol=1e-5)
    quarter = polar_bands(5, 4, small).view(5, 4, 16, 9)[:, :, 0, 4]  # 1/4 cycle/pixel along the rows
    torch.testing.assert_close(quarter[1:3, 0], torch.tensor([1 - 0.41421, 0.41421]), rtol=0, atol=1e-4)
    assert not quarter[:, 1:].any()
    column = polar_bands(5, 4, small).view(5, 4, 16, 9)[:, :, 4, 0]
    torch.testing.assert_close(column[:, 2], quarter[:, 0])


def test_white_noise_has_power_one_in_every_band_at_every_size() -> None:
    torch.manual_seed(0)
    for size in (32, 128):
        u = torch.randn(64, 1, size, size)
        found = band_power(power(rfft2(u)), ring_bands(u, 6)).mean(dim=0)
        torch.testing.assert_close(found, torch.ones(1, 6), rtol=0, atol=0.15)


def test_correlations_are_products_of_spectra() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 6, 8)
    found = irfft2(correlate(rfft2(a), rfft2(b)), 8) * 48**0.5
    for lag in ((0, 0), (2, 3), (5, 1)):
        expected = (a * b.roll((-lag[0], -lag[1]), (0, 1))).sum()
        torch.testing.assert_close(found[lag], expected)


@pytest.mark.parametrize("core", [ImageGains(4), ImageShrinkage(4)], ids=["gains", "shrinkage"])
def test_whole_image_gains_follow_the_content_and_keep_the_phase(core: nn.Module) -> None:
    torch.manual_seed(0)
    for parameter in core.parameters():
        nn.init.normal_(parameter, std=0.5)
    u = torch.randn(1, 4, 16, 24)
    torch.testing.assert_close(core(u.roll((3, 5), (2, 3))), core(u).roll((3, 5), (2, 3)), rtol=0, atol=1e-5)
    ours, theirs = (torch.view_as_complex(rfft2(one - one.mean((2, 3), True))) for one in (core(u), u))
    assert ((ours * theirs.conj()).imag.abs() / theirs.abs().square().clamp(min=1e-3))[..., 1:-1].max() < 1e-3
    gains = [(torch.view_as_complex(rfft2(core(one))) / torch.view_as_complex(rfft2(one))).abs() for one in (u, 3 * u)]
    assert (gains[0] - gains[1])[..., 1:, 1:-1].abs().max() > 0.05  # not linear: no convolution


def test_gains_of_one_are_the_identity() -> None:
    u = torch.randn(2, 4, 24, 16)
    for core in (WindowGains(4), ImageGains(4)):
        nn.init.zeros_(core.gains.gains.weight)
        torch.testing.assert_close(core(u), u, rtol=0, atol=1e-5)


def test_spectral_attention_is_the_windows_correlation() -> None:
    torch.manual_seed(0)
    core, u = SpectralAttention(2), torch.randn(1, 2, 16, 8)
    core.norm.bias.data.fill_(1.0)
    core.norm.weight.data.zero_()
    qkv = core.neighbours(core.qkv(u))
    torch.testing.assert_close(core(u), qkv[:, 4:])
    core.norm.weight.data.fill_(1.0)
    q, k = qkv[0, 0, 8:, :], qkv[0, 2, 8:, :]
    q2, k2 = qkv[0, 1, 8:, :], qkv[0, 3, 8:, :]
    lag = (2, 5)
    found = [(a * b.roll((-lag[0], -lag[1]), (0, 1))).sum() / 8 for a, b in ((q, k), (q2, k2))]
    normed = torch.nn.functional.layer_norm(torch.stack(found), (2,)) + 1
    torch.testing.assert_close(core(u)[0, :, 8 + lag[0], lag[1]], qkv[0, 4:, 8 + lag[0], lag[1]] * normed)


def test_lag_attention_is_a_softmax_over_lags() -> None:
    torch.manual_seed(0)
    core, u = LagAttention(4, heads=2), torch.randn(1, 4, 8, 8)
    frames = core.frames.cut(core.qkv(u))
    expected = torch.empty(1, 2, 2, 4, 16, 16)
    for gy in range(2):
        for gx in range(2):
            for head in range(2):
                q, k = frames[0, gy, gx, head], frames[0, gy, gx, 2 + head]
                v = frames[0, gy, gx, 4 + 2 * head : 6 + 2 * head]
                lags = [(y, x) for y in range(16) for x in range(16)]
                shifted = [k.roll((-y, -x), (0, 1)) for y, x in lags]
                scores = torch.stack([(q * one).sum() for one in shifted])
                scores = scores / (q.square().sum() * k.square().sum() + 1e-4).sqrt() * core.sharpness[head].exp()
                mixed = [p * v.roll((-y, -x), (1, 2)) for p, (y, x) in zip(scores.softmax(0), lags, strict=True)]
                expected[0, gy, gx, 2 * head : 2 * head + 2] = torch.stack(mixed).sum(0)
    torch.testing.assert_close(core(u), core.frames.join(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("period", [(0, 9), (7, 6), (-6, 10)])
def test_the_periods_of_a_pattern_are_found(period: tuple[int, int]) -> None:
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    phase = (y * period[0] + x * period[1]) / (period[0] ** 2 + period[1] ** 2)
    pattern = (phase.remainder(1) < 0.4).float().expand(2, 3, -1, -1) + 0.1 * torch.randn(2, 3, 48, 48)
    lags, found = find_periods(pattern)
    whole = (lags.float() @ torch.tensor(period).float()) / (period[0] ** 2 + period[1] ** 2)
    assert found.all() and (lags.float().norm(dim=-1) >= periods.NEAREST).all()
    assert ((whole - whole.round()).abs() < 0.12).all(), lags


def test_a_featureless_image_and_one_of_a_window_have_no_far_periods() -> None:
    assert not find_periods(torch.ones(1, 2, 16, 16))[1].any()
    core = PeriodicAttention(4)
    assert core(torch.randn(1, 4, 8, 8)).isfinite().all()


def test_places_outside_the_image_are_not_looked_at() -> None:
    index, inside = places(torch.tensor([[[1, -2]]]), 3, 4)
    assert inside.view(3, 4).tolist() == [[False, False, True, True]] * 2 + [[False] * 4]
    assert index.view(3, 4)[0, 2:].tolist() == [4, 5]


def test_periodic_attention_by_hand() -> None:
    torch.manual_seed(0)
    core, u = PeriodicAttention(4, heads=2), torch.randn(1, 4, 16, 16)
    core.own.data.copy_(torch.tensor([[0.3], [-0.2]]))
    lags, found = find_periods(u)
    q, k, v = core.qkv(u)[0].chunk(3)
    y, x = 9, 4
    for head in (0, 1):
        part = slice(2 * head, 2 * head + 2)
        seen = [(y, x)] + [
            (y + s * dy, x + s * dx)
            for (dy, dx), ok in zip(lags[0].tolist(), found[0], strict=True)
            if ok
            for s in (1, -1)
        ]
        seen = [(a, b) for a, b in seen if 0 <= a < 16 and 0 <= b < 16]
        scores = torch.stack([(q[part, y, x] * k[part, a, b]).sum() * 2**-0.5 for a, b in seen])
        scores[0] += core.own[head, 0]
        expected = sum(p * v[part, a, b] for p, (a, b) in zip(scores.softmax(0), seen, strict=True))
        torch.testing.assert_close(core(u)[0, part, y, x], expected)


# ---------------------------------------------------------------------------------------------------------------------
# The experiment
# ---------------------------------------------------------------------------------------------------------------------


def test_periodicity_tells_stripes_from_edges_and_noise() -> None:
    rng = np.random.default_rng(0)
    x = np.arange(TILE + 64)
    stripes = np.where(x % 17 < 8, 60, 200) + rng.normal(0, 5, (len(x), len(x)))
    edge = np.where(x < 100, 60, 200) + rng.normal(0, 5, (len(x), len(x)))
    noise = rng.normal(128, 40, (len(x), len(x)))
    values = [
        periodicity(np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, 2)) for image in (stripes, edge, noise)
    ]
    assert values[0] > 0.8 and max(values[1:]) < 0.15


def test_one_crop_a_photograph_is_held_out() -> None:
    crops = [Crop(f"f/{i}", "ab"[i % 2], 0, 0, i / 10) for i in range(6)]
    assert [crop.file for crop in select(iter(crops), 5)] == ["f/5", "f/4"]
    held_out = read_crops()
    assert len({crop.origin for crop in held_out}) == len(held_out) == 40


def pool(number: int = 2) -> list[Pair]:
    rng = np.random.default_rng(0)
    return [
        Pair(f"{i}", rng.integers(0, 256, (24, 20, 3), np.uint8), rng.integers(0, 256, (96, 80, 3), np.uint8))
        for i in range(number)
    ]


def test_held_out_photographs_are_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cv2

    for name in ("a_0.png", "a_1.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.full((50, 42, 3), 7, np.uint8))
    (tmp_path / "manifest.csv").write_text("file,source,origin\na_0.png,s,a\na_1.png,s,a\nb.png,s,b\n")
    monkeypatch.setattr(data, "read_crops", lambda: [Crop("x/a_1.png", "s/a", 0, 0, 1.0)])
    (tmp_path / "photos").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "photos" / path.name)
    (found,) = data.read_pool([tmp_path / "photos"], tmp_path / "manifest.csv")
    assert found.name == "photos/b.png" and found.target.shape == (48, 40, 3) and found.lq.shape == (12, 10, 3)


def test_patches_depend_on_seed_and_step_and_lie_on_each_other() -> None:
    ramp = np.broadcast_to(np.arange(20, dtype=np.uint8)[None, :, None] * 10, (24, 20, 3))
    pairs = [Pair("ramp", np.ascontiguousarray(ramp), ramp.repeat(4, 0).repeat(4, 1))]
    lq, gt = data.batch(pairs, 3, 7, 4, 8)
    assert lq.shape == (4, 3, 8, 8) and gt.shape == (4, 3, 32, 32)
    assert torch.equal(lq.repeat_interleave(4, 2).repeat_interleave(4, 3), gt)
    assert torch.equal(data.batch(pairs, 3, 7, 4, 8)[0], lq)
    assert not torch.equal(data.batch(pairs, 3, 8, 4, 8)[0], lq)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Iterator[Job]:
    """A job of a few steps."""
    monkeypatch.setitem(jobs.SHAPES, "narrow", TINY)
    monkeypatch.setattr(jobs, "SAVE_EVERY", 2)
    yield Job("image_gains", steps=4, patch=8, patches=2)


def test_a_stopped_job_ends_as_one_that_was_not(tiny: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {"A": pool(1)}
    whole = jobs.run(tiny, tmp_path / "whole", tmp_path / "whole", pool(), sets)
    step = jobs._step

    def interrupted(job: Job, *others: object) -> float:
        if others[2] == 3:
            raise KeyboardInterrupt
        return step(job, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        jobs.run(tiny, tmp_path / "parts", tmp_path / "parts", pool(), sets)
    assert not list(tmp_path.glob("parts/*.json"))
    monkeypatch.setattr(jobs, "_step", step)
    parts = jobs.run(tiny, tmp_path / "parts", tmp_path / "parts", pool(), sets)
    assert parts["sets"] == whole["sets"] and parts["loss"] == whole["loss"]
    weights = [torch.load(tmp_path / run / tiny.name / "weights.pt") for run in ("whole", "parts")]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    monkeypatch.setattr(jobs, "_step", lambda *_: pytest.fail("a finished job was made again"))
    assert jobs.run(tiny, tmp_path / "parts", tmp_path / "parts", pool(), sets) == parts


def test_all_jobs_of_a_seed_start_from_the_same_result(tiny: Job) -> None:
    lq = torch.rand(1, 3, 16, 16)
    expected = jobs.build(replace(tiny, candidate="none"))(lq)
    assert torch.equal(jobs.build(tiny)(lq), expected)
    assert not torch.equal(jobs.build(replace(tiny, seed=1)).conv_first.weight, jobs.build(tiny).conv_first.weight)


def test_job_names_tell_all_settings_apart() -> None:
    base = Job("fsas")
    others = [
        replace(base, **change)
        for change in (
            {"control": True},
            {"seed": 1},
            {"shape": "light"},
            {"steps": 9},
            {"patch": 64},
            {"patches": 2},
            {"place": "last"},
            {"frequency_loss": 0.1},
        )
    ]
    assert len({job.name for job in [base, *others]}) == 9


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    job = Job("none", steps=100)
    rates = [job.lr_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(2e-3 / 5) and max(rates) == rates[5] == pytest.approx(2e-3) and rates[100] == 0


def result(job: Job, value: float) -> report.Result:
    """A result in which every image of both sets has a value, and the third band's error falls with it."""
    bands = [1.0, 1.0, 10 ** (-value / 10), *[1.0] * 7]
    sets = {name: {"images": {f"{name}{i}": value for i in range(4)}, "bands": bands} for name in ("A", "B")}
    return {"job": job.__dict__, "parameters": 10, "train_cpu_seconds": job.steps * 0.5, "sets": sets}


def fill(results: Path, values: dict[Job, float]) -> None:
    for job, value in values.items():
        (results / f"{job.name}.json").write_text(json.dumps(result(job, value)))
    (results / "periodicity.json").write_text(json.dumps({f"{s}{i}": i for s in "AB" for i in range(4)}))


def test_holm_by_hand() -> None:
    assert report.holm({"a": 0.01, "b": 0.04, "c": 0.03}, 4) == {"a": 0.04, "c": 0.09, "b": 0.09}


def test_tables_of_partial_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--results", str(tmp_path), "--report"])
    assert "No finished job" in capsys.readouterr().out and not tmp_path.with_suffix(".md").exists()
    gains = {0: 0.10, 1: 0.11, 2: 0.12}
    values = {Job("none", seed=s): 20.0 + s for s in gains}
    values |= {Job("fsas", seed=s): 20.0 + s + gain for s, gain in gains.items()}
    values |= {Job("fsas", control=True, seed=s): 20.0 + s for s in gains}
    values |= {Job("periodic"): 20.0, Job("periodic", control=True): 20.05}
    values |= {Job("image_gains", seed=s): 19.0 + s for s in gains} | {Job("image_gains", control=True): 20.5}
    results = tmp_path / "frequency"
    results.mkdir()
    fill(results, values)
    elsewhere = Job("window_gains", control=True)  # on another processor than its candidate: not compared
    fill(results, {Job("window_gains"): 30.0})
    (results / f"{elsewhere.name}.json").write_text(json.dumps({**result(elsewhere, 20.0), "machine": "other"}))
    for control, value in (False, 21.0), (True, 20.0):  # both on a processor on which `none` was not run
        job = Job("band_gate", control=control)
        (results / f"{job.name}.json").write_text(json.dumps({**result(job, value), "machine": "other"}))
    command.main(["--results", str(results), "--report"])
    text = capsys.readouterr().out
    # p of 0.11 with a standard error of 0.01/sqrt(3) and 2 degrees of freedom is 0.00274; nine candidates were tried.
    assert "| fsas | 3 | +0.1100 | " in text and "| 0.025 | +0.110 | +0.110 | +0.1100 | +0.0000 | 10 | 0.500 |" in text
    assert "| window_gains" not in text
    assert (
        "| band_gate | 1 | +1.0000 | one seed | 1.000 | +1.000 | +1.000 | not measured | not measured | 10 | 0.500 |"
        in text
    )
    assert "| image_gains | 1 | -1.5000 | one seed | 1.000 | -1.500 | -1.500 | -1.0000 (3) | +0.5000 | 10 |" in text
    assert f"\n\n{report.SEEDS_APART}.\n" in text
    assert "ran on two kinds of processor; delete one's result: window_gains." in text
    assert "| periodic | 1 | -0.0500 | one seed | 1.000 |" in text
    assert "At the bar (+0.02 dB, Holm's p below 0.05): fsas." in text
    # Student's t with 2 degrees of freedom: 4.303 * 0.01 / sqrt(3) = 0.0248.
    assert "| fsas | +0.085 .. +0.135 | +0.100, +0.110, +0.120 |" in text
    assert "| periodic | one seed | -0.050 |" in text
    assert "| fsas | +0.000 ± 0.000 | +0.000 ± 0.000 | +0.110 ± 0.025 |" in text
    assert "`none` (3 seeds): A 21.000, B 21.000 dB" in text
    assert (tmp_path / "frequency.md").read_text().startswith(text.strip())
    assert "- machines: other; unknown; one thread" in (tmp_path / "frequency.md").read_text()
    assert (tmp_path / "frequency.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.artefacts
def test_the_committed_tables_are_of_the_results() -> None:
    assert command.RESULTS.with_suffix(".md").read_text().startswith(command.report(command.RESULTS)), "run --report"


def test_the_screening_goes_on_with_the_better_candidates(tmp_path: Path) -> None:
    order = {name: i / 100 for i, name in enumerate(CANDIDATES)}
    values = {
        Job(name, control=control): 20 + (not control) * gain for name, gain in order.items() for control in (0, 1)
    }
    fill(tmp_path, values)
    screened = list(command.screen(tmp_path))
    assert len(screened) == 1 + 2 * len(CANDIDATES) + 2 * (1 + 2 * command.KEPT_AFTER_FIRST)
    later = {job.candidate for job in screened if job.seed} - {"none"}
    assert later == set(CANDIDATES[-command.KEPT_AFTER_FIRST :])
    with pytest.raises(SystemExit, match="--screen"):
        command.finalists(tmp_path)
    # With all seeds: of the four, the three best, and of these what is above its control.
    four = CANDIDATES[-command.KEPT_AFTER_FIRST :]
    for gains, expected in ((0.04, 0.03, 0.02, 0.01), 3), ((0.04, 0, -0.02, -0.03), 1), ((0, 0, 0, 0), 0):
        values |= {
            Job(name, control=control, seed=seed): 20 + (not control) * gain
            for name, gain in zip(four, gains, strict=True) for control in (0, 1) for seed in command.SCREEN_SEEDS
        }  # fmt: skip
        fill(tmp_path, values)
        if expected:
            assert command.finalists(tmp_path) == list(four[:expected])
    with pytest.raises(SystemExit, match="no candidate is above its control"):
        command.finalists(tmp_path)


@pytest.mark.parametrize("best, places", [("fsas", {"tail", "before", "last"}), ("band_gate", {"tail", "last"})])
def test_the_factors_are_tried_where_the_best_candidate_can_stand(tmp_path: Path, best: str, places: set[str]) -> None:
    four = [best, "periodic", "window_gains", "image_gains"]
    values = {
        Job(name, control=control, seed=seed): 20 + (not control) * (0.04 - 0.01 * four.index(name))
        for name in four for control in (False, True) for seed in command.SCREEN_SEEDS
    }  # fmt: skip
    fill(tmp_path, values)
    wanted = list(command.factors(tmp_path))
    assert {job.place for job in wanted} == places
    assert {job.candidate for job in wanted if job.patch == 64} == {"none", *four[:3]}
    assert {job.candidate for job in wanted if job.place != "tail" or job.frequency_loss} == {"none", best}
    for job in wanted:
        jobs.build(replace(job, shape="narrow"))


@pytest.mark.parametrize("frequency", [0.07, 0.22, 0.43])
def test_an_errors_power_is_in_its_band(frequency: float) -> None:
    wave = np.rint(20 * np.sin(2 * np.pi * frequency * np.arange(96)))[None, :, None]
    hr = np.full((64, 96, 3), 128, np.uint8)
    energy = jobs.error_bands((hr + wave).astype(np.uint8), hr)
    assert int(energy.argmax()) == int(frequency * 2 * jobs.BANDS) and energy.max() > 0.9 * energy.sum()
    luma = 20 * (65.481 + 128.553 + 24.966) / 255  # of a grey wave, in BT.601's range
    assert energy.sum() == pytest.approx(luma**2 / 2, rel=0.05)


def test_light_is_trained_with_what_reached_the_bar_alone(tmp_path: Path) -> None:
    gains = {"fsas": 0.05, "periodic": 0.03, "band_gate": 0.01, "window_gains": -0.01}
    seeds = (*command.SCREEN_SEEDS, *command.CONFIRM_SEEDS)
    values = {
        Job(name, control=control, seed=seed): 20 + (not control) * (gain + seed / 1e4)
        for name, gain in gains.items() for control in (False, True) for seed in seeds
    }  # fmt: skip
    last = Job("band_gate", control=True, seed=command.CONFIRM_SEEDS[-1])
    fill(tmp_path, {job: value for job, value in values.items() if job != last})
    with pytest.raises(SystemExit, match="0 more are not finished: run --confirm first"):
        command.confirmed(tmp_path)
    fill(tmp_path, values)
    assert command.confirmed(tmp_path) == ["fsas", "periodic"]
    fill(tmp_path, {job: 20 if job.seed >= 10 else value for job, value in values.items()})
    with pytest.raises(SystemExit, match="no candidate has reached the bar"):
        command.confirmed(tmp_path)
