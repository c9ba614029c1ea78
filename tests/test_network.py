"""HATFreq against the reference HAT (spandrel's), its presets, sizes, switches and errors."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from models.team08_HATFreq import (
    PRESETS,
    HATConfig,
    HATFreq,
    build_model,
    override,
    set_exportable,
    set_fused_attention,
)

HAT = pytest.importorskip("spandrel.architectures.HAT").HAT

TINY = HATConfig(embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, squeeze_factor=4, num_feat=8)

VARIANTS: list[dict] = [
    {},
    {"scale": 2},
    {"scale": 3},
    {"embed_dim": 24},
    {"embed_dim": 30, "num_heads": (3,)},
    {"embed_dim": 20, "num_heads": (1,), "squeeze_factor": 5},
    {"num_heads": (6,)},
    {"depths": (1,)},
    {"depths": (3,)},
    {"depths": (2, 1), "num_heads": (2, 3)},
    {"depths": (1, 2, 3), "num_heads": (2, 2, 2)},
    {"window_size": 8},
    {"window_size": 16},
    {"window_size": 6, "overlap_ratio": 1 / 3},
    {"overlap_ratio": 1.0},
    {"overlap_ratio": 0.0},
    {"mlp_ratio": 4.0},
    {"mlp_ratio": 1.5},
    {"compress_ratio": 6, "squeeze_factor": 12},
    {"conv_scale": 0.5},
    {"num_feat": 16, "scale": 2, "window_size": 8},
    pytest.param(
        {"embed_dim": 180, "num_heads": (6,), "squeeze_factor": 30, "window_size": 16, "depths": (2,)},
        marks=pytest.mark.slow,
    ),
]


def reference(config: HATConfig) -> nn.Module:
    """spandrel's HAT of the same shape, with every bias and table away from its trivial start."""
    torch.manual_seed(0)
    hat = HAT(
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.num_heads,
        window_size=config.window_size,
        compress_ratio=config.compress_ratio,
        squeeze_factor=config.squeeze_factor,
        conv_scale=config.conv_scale,
        overlap_ratio=config.overlap_ratio,
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path_rate,
        upscale=config.scale,
        num_feat=config.num_feat,
    )
    for name, parameter in hat.named_parameters():
        if name.endswith("bias") or name.endswith("bias_table"):
            nn.init.normal_(parameter, std=0.1)
    return hat.eval()


def loaded(config: HATConfig, hat: nn.Module) -> HATFreq:
    model = HATFreq(config).eval()
    result = model.load_state_dict(hat.state_dict(), strict=config.frequency == "none")
    assert not result.unexpected_keys
    assert all(".freq." in key for key in result.missing_keys)
    return model


def gradient_of_tables(model: nn.Module, lq: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(lq).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if name.endswith("bias_table")}


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_equals_the_reference_with_its_gradients(changes: dict, fused: bool) -> None:
    config = override(TINY, {**changes, "frequency": "none"})
    hat = reference(config)
    model = loaded(config, hat)
    lq = torch.rand(2, 3, 2 * config.window_size + 3, 2 * config.window_size)
    with set_fused_attention(fused):
        with torch.no_grad():
            assert (model(lq) - hat(lq)).abs().max() <= 1e-5
        own = gradient_of_tables(model, lq)
    expected = gradient_of_tables(hat, lq)
    assert own.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert (own[name] - gradient).abs().max() <= 1e-5 + 1e-3 * gradient.abs().max(), name


def test_keys_and_buffers_are_the_references() -> None:
    config = override(TINY, {"frequency": "none"})
    own, expected = HATFreq(config).state_dict(), reference(config).state_dict()
    assert own.keys() == expected.keys()
    for name in ("relative_position_index_SA", "relative_position_index_OCA"):
        assert torch.equal(own[name], expected[name]) and own[name].dtype == expected[name].dtype


@pytest.mark.slow
def test_the_whole_base_equals_the_reference() -> None:
    config = override(PRESETS["base"], {"frequency": "none"})
    hat = reference(config)
    lq = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        expected = hat(lq)
        assert (loaded(config, hat)(lq) - expected).abs().max() <= 1e-5
        assert torch.equal(loaded(PRESETS["base"], hat)(lq), loaded(config, hat)(lq))


@pytest.mark.parametrize(("preset", "parameters"), [("small", 9_621_183), ("base", 20_772_507), ("large", 40_846_575)])
def test_parameter_counts_without_fusion(preset: str, parameters: int) -> None:
    with torch.device("meta"):
        model = build_model(preset, frequency="none")
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.slow
def test_fusion_costs_what_its_docs_say() -> None:
    # C=180: the path's two layers C*C/2 + C/2 and C*C/2 + C; 2C*8 powers -> C/4 -> 8C gates; six groups.
    with torch.device("meta"):
        extra = sum(p.numel() for p in build_model("base").parameters()) - 20_772_507
    assert extra == 6 * (16_290 + 16_380 + (2_880 * 45 + 45) + (45 * 1_440 + 1_440))


def test_light_stays_under_a_million() -> None:
    assert sum(p.numel() for p in build_model("light").parameters()) <= 1_000_000


@pytest.mark.parametrize("changes", [{}, {"upsampler": "pixelshuffledirect"}, {"depths": (1, 1), "num_heads": (2, 2)}])
def test_fresh_fusion_is_bit_equal_to_none(changes: dict) -> None:
    torch.manual_seed(0)
    without = HATFreq(override(TINY, {**changes, "frequency": "none"})).eval()
    if changes:
        for parameter in without.parameters():
            nn.init.normal_(parameter, std=0.1)
    model = HATFreq(override(TINY, {**changes, "frequency": "bands"})).eval()
    missing = model.load_state_dict(without.state_dict(), strict=False).missing_keys
    assert missing and all(".freq." in key for key in missing)
    lq = torch.rand(1, 3, 9, 14)
    with torch.no_grad():
        assert torch.equal(model(lq), without(lq))


def test_fusion_learns() -> None:
    torch.manual_seed(0)
    model = HATFreq(TINY)
    lq = torch.rand(1, 3, 8, 8)
    optimiser = torch.optim.SGD([p for n, p in model.named_parameters() if ".freq." in n], lr=1.0)
    before = model(lq)
    for _ in range(2):  # the first step moves the zero layer only, the second what lies before it
        optimiser.zero_grad()
        model(lq).square().mean().backward()
        optimiser.step()
    assert all(weight.grad.any() for weight in model.layers[0].freq.parameters())
    assert not torch.equal(model(lq), before)


@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_any_size_from_one_pixel_up(upsampler: str, scale: int) -> None:
    torch.manual_seed(0)
    model = HATFreq(override(TINY, {"window_size": 16, "upsampler": upsampler, "scale": scale})).eval()
    with torch.no_grad():
        for h, w in [(1, 1), (1, 33), (7, 15), (15, 16), (16, 17), (33, 7)]:
            sr = model(torch.rand(1, 3, h, w))
            assert sr.shape == (1, 3, h * scale, w * scale)
            assert sr.isfinite().all()


def test_padding_reflects_while_it_can() -> None:
    from models.team08_HATFreq.network import pad_to_multiple

    x = torch.arange(5.0).view(1, 1, 1, 5)
    assert pad_to_multiple(x, 4)[0, 0].tolist() == [[0, 1, 2, 3, 4, 3, 2, 1]] * 4
    assert pad_to_multiple(x[..., :2], 8)[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert pad_to_multiple(torch.rand(1, 1, 8, 8), 8).shape == (1, 1, 8, 8)


def test_direct_upsampling_starts_at_the_nearest_neighbour() -> None:
    lq = torch.rand(1, 3, 5, 6)
    nearest = lq.repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        torch.testing.assert_close(build_model("light").eval()(lq), nearest)


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_checkpointing_recomputes_and_keeps_the_gradients(drop_path_rate: float) -> None:
    calls, results = {}, {}
    torch.manual_seed(1)
    lq = torch.rand(2, 3, 8, 8)
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = HATFreq(override(TINY, {"drop_path_rate": drop_path_rate})).train()
        model.set_grad_checkpointing(checkpointing)
        counter = calls[checkpointing] = []
        for block in [*model.layers[0].residual_group.blocks, model.layers[0].residual_group.overlap_attn]:
            block.register_forward_pre_hook(lambda *_, counter=counter: counter.append(1))
        torch.manual_seed(2)
        sr = model(lq)
        sr.square().mean().backward()
        results[checkpointing] = [sr, *(p.grad for p in model.parameters())]
    assert (len(calls[False]), len(calls[True])) == (3, 6)
    for a, b in zip(results[False], results[True], strict=True):
        assert torch.equal(a, b)


def test_checkpointing_saves_memory_for_the_backward_pass() -> None:
    def saved_bytes(checkpointing: bool) -> int:
        model = HATFreq(override(TINY, {"depths": (6,)})).train()
        model.set_grad_checkpointing(checkpointing)
        total = [0]

        def pack(t: Tensor) -> Tensor:
            total[0] += t.numel() * t.element_size()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.rand(1, 3, 16, 16))
        return total[0]

    assert saved_bytes(True) < 0.4 * saved_bytes(False)


def test_stochastic_depth_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = HATFreq(override(TINY, {"depths": (4,), "drop_path_rate": 0.9}))
    lq = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        assert not torch.equal(model.train()(lq), model.train()(lq))
        assert torch.equal(model.eval()(lq), model.eval()(lq))
    rates = [block.drop_path_rate for block in model.layers[0].residual_group.blocks]
    torch.testing.assert_close(rates, [0.0, 0.3, 0.6, 0.9])


def test_no_field_of_the_config_does_nothing() -> None:
    changed = {
        "embed_dim": 24,
        "depths": (3,),
        "num_heads": (3,),
        "window_size": 8,
        "compress_ratio": 6,
        "squeeze_factor": 6,
        "conv_scale": 0.9,
        "overlap_ratio": 1.0,
        "mlp_ratio": 3.0,
        "drop_path_rate": 0.9,
        "num_feat": 16,
        "upsampler": "pixelshuffledirect",
        "scale": 2,
        "frequency": "none",
    }
    assert {field.name for field in dataclasses.fields(HATConfig)} == set(changed)
    lq = torch.rand(2, 3, 8, 8)

    def fingerprint(config: HATConfig) -> tuple:
        torch.manual_seed(0)
        model = HATFreq(config).train()
        torch.manual_seed(1)
        sr = model(lq)
        return sum(p.numel() for p in model.parameters()), tuple(sr.shape), sr.sum().item()

    plain = fingerprint(TINY)
    for key, value in changed.items():
        assert fingerprint(override(TINY, {key: value})) != plain, key


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"embed_dims": 24}, "unknown key 'embed_dims': did you mean 'embed_dim'?"),
        ({"zzz": 1}, "known: embed_dim"),
        ({"embed_dim": 13}, "multiple of every entry of num_heads"),
        ({"depths": (2, 2)}, "one entry a group"),
        ({"depths": (), "num_heads": ()}, "at least one block"),
        ({"window_size": 5}, "must be even"),
        ({"window_size": 6}, r"6 \* overlap_ratio 0.5 must be even"),
        ({"squeeze_factor": 99}, "must not exceed embed_dim 12"),
        ({"scale": 8}, "scale must be 2, 3 or 4"),
        ({"upsampler": "nearest"}, "'pixelshuffle' or 'pixelshuffledirect'"),
        ({"frequency": "channels"}, "frequency must be one of bands, none"),
    ],
    ids=str,
)
def test_bad_shapes_are_refused_with_the_remedy(changes: dict, text: str) -> None:
    with pytest.raises(ValueError, match=text.replace("?", r"\?") if "mean" in text else text):
        override(TINY, changes)


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(ValueError, match="choose from light, small, base, large"):
        build_model("huge")


@pytest.mark.gpu
def test_cuda_equals_the_cpu_and_bf16_is_close() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.manual_seed(0)
    model = build_model("small").eval()
    for group in model.layers:
        nn.init.normal_(group.freq.gates.weight, std=0.02)
    lq = torch.rand(1, 3, 40, 56)
    with torch.no_grad():
        expected = model(lq)
        model, lq = model.cuda(), lq.cuda()
        assert (model(lq).cpu() - expected).abs().max() < 1e-4
        with torch.autocast("cuda", torch.bfloat16):
            assert (model(lq).float().cpu() - expected).abs().max() < 0.05


@pytest.mark.parametrize("changes", [{}, {"window_size": 8, "depths": (3,)}, {"upsampler": "pixelshuffledirect"}])
def test_pieces_equal_the_whole(changes: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = HATFreq(override(TINY, changes)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    lq = torch.rand(2, 3, 19, 26)
    whole = model(lq).detach()  # with gradients, all at once
    for piece in (1, 100):
        monkeypatch.setattr("models.team08_HATFreq.layers.PIECE", piece)
        monkeypatch.setattr("models.team08_HATFreq.attention.PIECE", piece)
        with torch.no_grad():
            torch.testing.assert_close(model(lq), whole, rtol=0, atol=1e-5)
        with torch.inference_mode():
            torch.testing.assert_close(model(lq), whole, rtol=0, atol=1e-5)


def test_a_pass_leaves_its_input_alone() -> None:
    model, lq = HATFreq(TINY).eval(), torch.rand(1, 3, 8, 8)
    kept = lq.clone()
    with torch.inference_mode():
        model(lq)
    assert torch.equal(lq, kept)


@pytest.mark.parametrize("frequency", ["bands", "none"])
@pytest.mark.parametrize("preset", ["light", "base"])
def test_the_exportable_steps_are_the_network(preset: str, frequency: str) -> None:
    torch.manual_seed(0)
    shape = {"embed_dim": 8, "depths": (2, 1), "num_heads": (2, 2), "squeeze_factor": 4, "window_size": 8}
    model = HATFreq(override(PRESETS[preset], {**shape, "frequency": frequency})).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    for size in ((1, 1), (8, 8), (19, 23), (40, 17)):
        lq = torch.rand(2, 3, *size)
        with torch.inference_mode():
            expected = model(lq)
            with set_exportable():
                # fp32 rounding through some twenty layers, whatever the processor's instructions
                torch.testing.assert_close(model(lq), expected, atol=3e-5, rtol=0)


def test_switches_are_undone_after_an_error() -> None:
    from models.team08_HATFreq.layers import SWITCHES

    with pytest.raises(RuntimeError, match="on purpose"), set_exportable(), set_fused_attention(False):
        assert (SWITCHES.exportable, SWITCHES.fused_attention) == (True, False)
        raise RuntimeError("on purpose")
    assert (SWITCHES.exportable, SWITCHES.fused_attention) == (False, True)


@pytest.mark.parametrize(
    "lq",
    [
        torch.zeros(1, 4, 8, 8),
        torch.zeros(3, 8, 8),
        torch.zeros(1, 8, 8, 3),
        torch.zeros(1, 3, 8, 8).byte(),
    ],
)
def test_what_is_no_batch_of_rgb_is_refused_by_the_network(lq: Tensor) -> None:
    with pytest.raises(ValueError, match="float `b 3 h w`"):
        HATFreq(TINY).eval()(lq)
