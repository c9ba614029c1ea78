"""--compile: the same results, few versions of the code for many sizes, and a refusal where there is no compiler."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

import train
from models.team08_HATFreq import PRESETS, HATFreq, layers, override
from models.team08_HATFreq.compiling import CompilerError, check_compiler, compile_blocks, inductor_options
from models.team08_HATFreq.frequency import FrequencyFusion

CPU = torch.device("cpu")
SIZES = [(20, 24), (24, 20), (32, 40), (12, 36)]


def tiny(**changes: Any) -> HATFreq:
    torch.manual_seed(0)
    shape = {"embed_dim": 8, "squeeze_factor": 4, "depths": (2,), "num_heads": (1,), "window_size": 4, **changes}
    model = HATFreq(override(PRESETS["light"], shape))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    return model


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("capability", [None, "AVX2"], ids=["widest", "avx2"])  # the code differs
def test_the_compiled_network_gives_the_same_results_and_gradients(
    monkeypatch: pytest.MonkeyPatch, capability: str | None
) -> None:
    if capability:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    torch._dynamo.reset()
    plain, lq = tiny(), torch.rand(2, 3, 12, 16)
    model = copy.deepcopy(plain)
    compile_blocks(model, CPU, sizes_vary=False)
    assert model.state_dict().keys() == plain.state_dict().keys()
    found, expected = model(lq), plain(lq)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for one in (found, expected):
        one.square().sum().backward()
    worst = 0.0
    for name, weight in plain.named_parameters():
        found, expected = model.get_parameter(name).grad, weight.grad
        assert found is not None and expected is not None
        worst = max(worst, float((found - expected).norm() / expected.norm()))
    assert worst < 1e-5  # of each weight's gradient


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_code_on_disk_is_taken_up_again_by_processors_of_one_kind_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    lq, hits = torch.rand(1, 3, 8, 8), []
    for capability in ("AVX2", "other", "AVX2"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kind=capability: kind)
        torch._dynamo.reset()
        counters.clear()
        model = tiny(depths=(1,), frequency="none").eval()
        compile_blocks(model, CPU, sizes_vary=False)
        with torch.inference_mode():
            model(lq)
        hits.append(counters["inductor"]["fxgraph_cache_hit"])
    assert hits[:2] == [0, 0] and hits[2] > 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_frequency_block_compiles_too() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    block, one, two = FrequencyFusion(8), torch.rand(2, 8, 12, 15), torch.rand(2, 8, 12, 15)
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    inputs = one.requires_grad_(), two.requires_grad_(), *block.parameters()
    compiled = torch.compile(block, fullgraph=True, options=inductor_options(CPU))
    found, expected = compiled(one, two), block(one, two)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    pairs = zip(*(torch.autograd.grad(o.square().sum(), inputs) for o in (found, expected)), strict=True)
    for ours, plain in pairs:
        assert (ours - plain).norm() < 1e-5 * plain.norm()


@pytest.mark.slow
@pytest.mark.parametrize("avx512", [False, True])  # linear layers are computed otherwise there
def test_a_folder_of_sizes_is_compiled_for_once(monkeypatch: pytest.MonkeyPatch, avx512: bool) -> None:
    monkeypatch.setattr(layers, "AVX512", avx512)
    counter, model = CompileCounter(), tiny().eval()
    plain = copy.deepcopy(model)
    compile_blocks(model, CPU, sizes_vary=True, backend=counter)
    counts = []
    with torch.inference_mode():
        for size in SIZES:
            lq = torch.rand(1, 3, *size)
            torch.testing.assert_close(model(lq), plain(lq), rtol=0, atol=1e-5)
            counts.append(counter.frame_count)
    assert counts == [3] * len(SIZES)  # with and without a shift, and the overlapping attention


@pytest.mark.slow
def test_stochastic_depth_needs_no_version_for_each_of_its_rates() -> None:
    counter, model = CompileCounter(), tiny(depths=(6, 6), num_heads=(1, 1), drop_path_rate=0.3).train()
    compile_blocks(model, CPU, sizes_vary=False, backend=counter)
    model(torch.rand(2, 3, 8, 8)).mean().backward()
    assert counter.frame_count <= 5  # the first block has a rate of zero


def test_without_a_compiler_it_is_refused(monkeypatch: pytest.MonkeyPatch, command: Callable[..., list[str]]) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompilerError, match="no-such-compiler"):
        check_compiler(CPU)
    with pytest.raises(SystemExit, match="C\\+\\+ compiler"):
        train.main(command("run", "--steps", "2", "--compile"))
    monkeypatch.undo()
    if shutil.which("g++"):
        monkeypatch.setattr("models.team08_HATFreq.compiling.find_spec", lambda _: None)
        with pytest.raises(CompilerError, match="Triton"):
            check_compiler(torch.device("cuda"))
