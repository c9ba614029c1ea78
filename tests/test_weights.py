"""Checkpoints of every kind: what fits is loaded exactly, what does not is explained in one sentence."""

import dataclasses
import json
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.team08_HATFreq import PRESETS, HATConfig, HATFreq, build_model, override
from models.team08_HATFreq.system import resident_memory
from models.team08_HATFreq.weights import (
    WeightsError,
    build,
    describe,
    describe_config,
    load,
    load_weights,
    preset_name,
    read_state_dict,
    save_weights,
)

TINY = HATConfig(embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, squeeze_factor=4, num_feat=8)


def fresh(seed: int = 0, **changes: object) -> HATFreq:
    torch.manual_seed(seed)
    model = HATFreq(override(TINY, changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def stored(path: Path, state: dict[str, Tensor], form: str) -> Path:
    prefixed = {f"module._orig_mod.{key}": tensor for key, tensor in state.items()}
    contents = {
        "bare": state,
        "params": {"params": state},
        "params_ema": {"params": {"conv_first.weight": torch.zeros(1)}, "params_ema": state},
        "trainer": {"model": {"conv_first.weight": torch.zeros(1)}, "ema": state, "step": 3, "config": {"lr": 0.1}},
        "prefixes": {"state_dict": prefixed},
    }
    torch.save(contents[form], path)
    return path


@pytest.mark.parametrize(
    ("form", "where"),
    [
        ("bare", "a bare state dict"),
        ("params", "params"),
        ("params_ema", "params_ema"),
        ("trainer", "ema"),
        ("prefixes", "state_dict"),
    ],
)
def test_every_form_of_checkpoint_loads_exactly(tmp_path: Path, form: str, where: str) -> None:
    source, model = fresh(), fresh(seed=1)
    line = load_weights(model, stored(tmp_path / "a.pth", source.state_dict(), form))
    assert equal(model.state_dict(), source.state_dict())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert line == (
        "a.pth: custom x4, frequency bands, 12 channels, groups of (2,) blocks, windows of 4, "
        f"{parameters:,} parameters from {where}, fusion blocks loaded"
    )


def test_safetensors_round_trip_whatever_the_suffix(tmp_path: Path) -> None:
    source, model = fresh(), fresh(seed=1)
    save_weights(source, tmp_path / "a.pth", {"step": "3"})
    assert " parameters from safetensors, " in load_weights(model, tmp_path / "a.pth")
    assert equal(model.state_dict(), source.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_weights_are_stored_as_fp32_and_indices_as_they_are(tmp_path: Path) -> None:
    state = fresh().state_dict()
    save_weights({key: t.bfloat16() if t.is_floating_point() else t for key, t in state.items()}, tmp_path / "a", {})
    stored = read_state_dict(tmp_path / "a")
    assert {t.dtype for t in stored.values()} == {torch.float32, torch.int64}
    assert torch.equal(stored["conv_first.weight"], state["conv_first.weight"].bfloat16().float())


def test_tensors_that_share_memory_or_are_strided_are_stored_as_they_read(tmp_path: Path) -> None:
    table = torch.arange(12.0).view(3, 4)
    save_weights({"whole": table, "turned": table.t(), "row": table[1]}, tmp_path / "a", {})
    stored = read_state_dict(tmp_path / "a")
    assert torch.equal(stored["turned"], table.t()) and torch.equal(stored["row"], table[1])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(fresh(), tmp_path / "a", {})
    before = (tmp_path / "a").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        save_weights(fresh(seed=1), tmp_path / "a", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == before


def test_an_official_hat_file_gives_the_references_result(tmp_path: Path) -> None:
    hat_class = pytest.importorskip("spandrel.architectures.HAT").HAT
    torch.manual_seed(0)
    hat = hat_class(
        embed_dim=12, depths=(2,), num_heads=(2,), window_size=4, squeeze_factor=4, num_feat=8, mlp_ratio=2.0, upscale=4
    ).eval()
    torch.save({"params_ema": hat.state_dict()}, tmp_path / "hat.pth")
    lq = torch.rand(1, 3, 9, 8)
    for frequency, note in [("none", "blocks none"), ("bands", "fusion blocks fresh (the result is exactly HAT's)")]:
        model = HATFreq(override(TINY, {"frequency": frequency})).eval()
        assert load_weights(model, tmp_path / "hat.pth").endswith(note)
        with torch.no_grad():
            assert (model(lq) - hat(lq)).abs().max() <= 1e-5
    read = HATFreq(describe(read_state_dict(tmp_path / "hat.pth")))
    assert dataclasses.asdict(read.config) == dataclasses.asdict(override(TINY, {"frequency": "none"}))


def test_a_hat_file_is_not_mixed_with_trained_fusion_blocks(tmp_path: Path) -> None:
    save_weights(fresh(frequency="none"), tmp_path / "hat", {})
    model = fresh(seed=1)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match="hat has no fusion blocks and this model's are not fresh"):
        load_weights(model, tmp_path / "hat")
    assert equal(model.state_dict(), before)


def test_some_fusion_blocks_may_not_be_missing(tmp_path: Path) -> None:
    state = fresh(depths=(1, 1), num_heads=(2, 2)).state_dict()
    save_weights({key: t for key, t in state.items() if not key.startswith("layers.1.freq.")}, tmp_path / "a", {})
    model = HATFreq(override(TINY, {"depths": (1, 1), "num_heads": (2, 2)}))
    with pytest.raises(WeightsError, match=r"lacks layers\.1\.freq\.\S+ \(and \d+ more keys differ\): use"):
        load_weights(model, tmp_path / "a")


VARIANTS: list[dict] = [
    {},
    {"scale": 2},
    {"scale": 3},
    {"upsampler": "pixelshuffledirect"},
    {"upsampler": "pixelshuffledirect", "scale": 2},
    {"upsampler": "pixelshuffledirect", "scale": 3},
    {"frequency": "none"},
    {"depths": (1, 2, 3), "num_heads": (1, 2, 3)},
    {"window_size": 6, "overlap_ratio": 1 / 3},
    {"window_size": 8},
    {"overlap_ratio": 1.0},
    {"overlap_ratio": 0.0},
    {"mlp_ratio": 1.5},
    {"mlp_ratio": 4.0},
    {"compress_ratio": 1},
    {"compress_ratio": 5, "squeeze_factor": 7},
    {"num_feat": 16},
    {"embed_dim": 30, "num_heads": (3,), "compress_ratio": 4},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_the_shape_is_read_off_the_tensors(changes: dict) -> None:
    if changes.get("upsampler") == "pixelshuffledirect":
        changes = {**changes, "conv_scale": 1.0, "drop_path_rate": 0.0}
    model = fresh(**changes)
    described = HATFreq(describe(model.state_dict())).eval()
    described.load_state_dict(model.state_dict())
    lq = torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        assert torch.equal(described(lq), model(lq))


@pytest.mark.parametrize(
    "preset", ["light", *(pytest.param(name, marks=pytest.mark.slow) for name in list(PRESETS)[1:])]
)
@pytest.mark.parametrize("frequency", ["bands", "none"])
def test_presets_are_recognised(preset: str, frequency: str) -> None:
    with torch.device("meta"):
        state = build_model(preset, frequency).state_dict()
    config = describe(state)
    assert config == override(PRESETS[preset], {"frequency": frequency})
    assert preset_name(config) == preset and describe_config(config) == f"{preset} x4, frequency {frequency}"
    assert preset_name(override(config, {"mlp_ratio": 3.0})) is None


@pytest.mark.parametrize(
    ("theirs", "ours", "text"),
    [
        ({}, {"scale": 2}, "scale is 4 in the file, 2 here .first key: upsample"),
        ({"scale": 2}, {}, "scale is 2 in the file, 4 here"),
        ({"scale": 3}, {}, "scale is 3 in the file, 4 here"),
        ({}, {"embed_dim": 24}, "embed_dim is 12 in the file, 24 here"),
        ({}, {"depths": (2, 2), "num_heads": (2, 2)}, r"depths is \(2,\) in the file, \(2, 2\) here"),
        ({}, {"window_size": 8}, "window_size is 4 in the file, 8 here"),
        ({}, {"overlap_ratio": 1.0}, "overlap_ratio is 0.5 in the file, 1.0 here"),
        ({}, {"num_heads": (3,)}, r"num_heads is \(2,\) in the file, \(3,\) here"),
        ({}, {"frequency": "none"}, "frequency is 'bands' in the file, 'none' here"),
        ({}, {"upsampler": "pixelshuffledirect"}, "upsampler is 'pixelshuffle' in the file"),
        ({}, {"mlp_ratio": 3.0}, "mlp_ratio is 2.0 in the file, 3.0 here .first key: layers"),
        ({}, {"num_feat": 16}, "num_feat is 8 in the file, 16 here"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_explained(tmp_path: Path, theirs: dict, ours: dict, text: str) -> None:
    save_weights(fresh(**theirs), tmp_path / "a.safetensors", {})
    model = fresh(seed=1, **ours)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=text) as error:
        load_weights(model, tmp_path / "a.safetensors")
    assert "a.safetensors does not fit" in str(error.value) and "\n" not in str(error.value)
    assert equal(model.state_dict(), before)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"foo.bar": torch.zeros(1)}, r"has a foreign foo\.bar: use a file made for this model$"),
        ({"conv_first.bias": None}, r"lacks conv_first\.bias: use a file made for this model$"),
        ({"conv_first.weight": torch.tensor(1.0)}, "not a shape that HATFreq builds"),
        ({"conv_first.weight": torch.zeros(0, 3, 3, 3)}, "not a shape that HATFreq builds"),
    ],
    ids=str,
)
def test_single_keys_that_do_not_fit_are_named(tmp_path: Path, change: dict, text: str) -> None:
    state = {key: tensor for key, tensor in {**fresh().state_dict(), **change}.items() if tensor is not None}
    save_weights(state, tmp_path / "a", {})
    with pytest.raises(WeightsError, match=text):
        load_weights(fresh(seed=1), tmp_path / "a")


def test_other_windows_are_told_without_buffers(tmp_path: Path) -> None:
    state = {key: t for key, t in fresh().state_dict().items() if not key.startswith("relative_position_index")}
    save_weights(state, tmp_path / "a", {})
    with pytest.raises(WeightsError, match="window_size is 4 in the file, 8 here"):
        load_weights(fresh(window_size=8), tmp_path / "a")


def test_buffers_may_be_missing_but_not_differ(tmp_path: Path) -> None:
    state = {key: t for key, t in fresh().state_dict().items() if not key.startswith("relative_position_index")}
    save_weights(state, tmp_path / "without", {})
    load_weights(fresh(seed=1), tmp_path / "without")
    save_weights({**fresh().state_dict(), "relative_position_index_SA": torch.zeros(16, 16).long()}, tmp_path / "b", {})
    with pytest.raises(WeightsError, match="relative_position_index_SA belongs to another window"):
        load_weights(fresh(seed=1), tmp_path / "b")


class Harmful:
    """Runs code when it is unpickled without care."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("harmful-was-here"),)


def test_pickles_with_code_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"params": Harmful()}, "zip.pth")
    Path("plain.pth").write_bytes(pickle.dumps({"params": Harmful()}))
    for name in ("zip.pth", "plain.pth"):
        with pytest.raises(WeightsError, match=rf"{name} is not a checkpoint.*more than tensors"):
            read_state_dict(name)
    assert not Path("harmful-was-here").exists()


@pytest.mark.parametrize("form", ["zip", "older torch", "safetensors"])
def test_truncated_files_are_told(tmp_path: Path, form: str) -> None:
    path, state = tmp_path / "a", fresh().state_dict()
    if form == "safetensors":
        save_weights(state, path, {})
    else:
        torch.save({"params_ema": state}, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    lengths = [0, 7, 8, 16, 90, 300, *(len(content) * tenths // 10 for tenths in range(1, 10)), len(content) - 1]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"a is (not a checkpoint|a damaged).*: get it again") as caught:
            read_state_dict(path)
        assert "PyTorch 2.6" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_never_end_in_another_error(tmp_path: Path, zipped: bool) -> None:
    torch.save({"params_ema": fresh().state_dict()}, tmp_path / "a", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "a").read_bytes()
    refused = 0
    for place in range(3, 3000, 23):
        flipped = bytes([content[place] ^ 0x55])
        (tmp_path / "a").write_bytes(content[:place] + flipped + content[place + 1 :])
        try:
            read_state_dict(tmp_path / "a")
        except WeightsError as error:
            refused += str(tmp_path / "a") in str(error)
    assert refused > 40


def zipped(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", b"<html>", b"hello world"])
def test_what_is_not_a_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.pth is not a checkpoint"):
        load(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"HAT\.zip is not a checkpoint"):
        load(zipped(tmp_path / "HAT.zip", {"HAT.pth": bytes(1000)}))


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "bomb.pth", {"a/data.pkl": bytes(50 << 20)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    before = resident_memory("VmHWM")
    with pytest.raises(WeightsError, match=r"bomb\.pth is not a checkpoint"):
        load(bomb)
    assert before is None or resident_memory("VmHWM") - before < 20e6


def changed(key: str, value: object) -> dict[str, object]:
    return {**fresh().state_dict(), key: value}


def loop() -> dict[str, object]:
    inner: dict[str, object] = {}
    inner["params"] = inner
    return inner


HOSTILE: dict[str, tuple[object, str]] = {
    "integer keys": ({1: torch.zeros(2)}, "holds no state dict"),
    "tuple keys": ({"params": {("a", 1): torch.zeros(2)}}, "holds no state dict"),
    "a dict that holds itself": (loop(), "holds no state dict"),
    "integers": (changed("conv_first.bias", torch.zeros(12, dtype=torch.int32)), r"int32 in conv_first\.bias"),
    "complex numbers": (changed("conv_first.bias", torch.zeros(12, dtype=torch.complex64)), "complex64 in conv_first"),
    "sparse": (changed("conv_first.bias", torch.zeros(12).to_sparse()), r"no values for conv_first\.bias"),
    "meta": (changed("conv_first.bias", torch.zeros(12, device="meta")), r"no values for conv_first\.bias"),
    "expanded": (changed("conv_first.bias", torch.zeros(1).expand(10**10)), r"repeats its storage in conv_first\.bias"),
    "a far block": (
        changed("layers.0.residual_group.blocks.5000.attn.qkv.weight", torch.zeros(36, 12)),
        "blocks are missing",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_checkpoints_are_refused_by_name_and_at_once(tmp_path: Path, kind: str) -> None:
    content, text = HOSTILE[kind]
    torch.save(content, tmp_path / "k.pth")
    with pytest.raises(WeightsError, match=text) as caught:
        build(load(tmp_path / "k.pth"))
    assert "k.pth" in str(caught.value)


@pytest.mark.parametrize("claim", [{"embed_dim": 2 * 10**6}, {"depths": [10**6]}, {"mlp_ratio": 1e9}, {"scale": 9}])
def test_metadata_that_claims_another_network_is_refused_at_once(tmp_path: Path, claim: dict) -> None:
    model = fresh()
    told = {**dataclasses.asdict(model.config), **claim}
    save_weights(model.state_dict(), tmp_path / "a.safetensors", {"model": json.dumps(told)})
    with pytest.raises(WeightsError, match=r"a\.safetensors.*get it again"):
        build(load(tmp_path / "a.safetensors"))


# -- What a file of ours says of itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("frequency", ["bands", "none"])
def test_a_file_of_ours_opens_as_what_it_is(tmp_path: Path, frequency: str) -> None:
    model = fresh(frequency=frequency, conv_scale=0.3, drop_path_rate=0.2)
    save_weights(model, tmp_path / "a.safetensors", {})
    opened, line = build(load(tmp_path / "a.safetensors"))
    assert opened.config == model.config and f"frequency {frequency}" in line
    assert equal(opened.state_dict(), model.state_dict())


@pytest.mark.parametrize("text", ["HAT-L", "null", "[1]", '"light"'])
def test_foreign_metadata_is_left_alone(tmp_path: Path, text: str) -> None:
    save_weights(fresh().state_dict(), tmp_path / "a.safetensors", {"model": text})
    assert build(load(tmp_path / "a.safetensors"))[0].config == TINY


def test_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    record = {f"fact{n}": str(n) for n in range(20)}
    sums = {
        save_weights(fresh(), tmp_path / f"{n}", dict(sorted(record.items(), reverse=n % 2 == 0))) for n in range(4)
    }
    assert len(sums) == 1


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(fresh(), tmp_path / "a.safetensors", {})
    reads, read = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (reads.append(path.name), read(path))[1])
    result = load(tmp_path / "a.safetensors")
    build(result)
    assert reads == ["a.safetensors"] and len(result.sha256) == 64


def test_missing_files_name_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there are no weights in"):
        read_state_dict(tmp_path / "a.pth")
    save_weights(fresh(), tmp_path / "b.safetensors", {})
    with pytest.raises(WeightsError, match=r"a\.pth does not exist; there are b\.safetensors"):
        read_state_dict(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="is a folder"):
        read_state_dict(tmp_path)


def test_other_networks_and_contents_are_told(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="holds no state dict: expected tensors by name"):
        read_state_dict(tmp_path / "a.pth")
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match=r"not a HAT or HATFreq checkpoint: it has no conv_first\.weight"):
        load_weights(fresh(), tmp_path / "b.pth")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: str) -> None:
    source = fresh()
    source.conv_last.bias.data[0] = float(value)
    save_weights(source, tmp_path / "a", {})
    with pytest.raises(WeightsError, match=r"not finite in conv_last\.bias"):
        load_weights(fresh(seed=1), tmp_path / "a")


def test_checksums(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    sha256 = save_weights(fresh(), path, {})
    assert load(path).sha256 == sha256
    (tmp_path / "a.safetensors.sha256").write_text(f"{sha256}  a.safetensors\n")
    assert load(path).sha256 == sha256
    subprocess.run(["sha256sum", "--check", "--quiet", "a.safetensors.sha256"], cwd=tmp_path, check=True)
    save_weights(fresh(seed=1), path, {})
    with pytest.raises(WeightsError, match=r"is not the released file .*not a\.safetensors\.sha256's"):
        load(path)


def test_released_weights_match_their_checksums_and_load(root: Path) -> None:
    released = sorted((root / "model_zoo" / "team08_HATFreq").glob("*.safetensors"))
    assert [path.name for path in released] == ["hatfreq_light_x4.safetensors"]
    for path in released:
        sha256 = load(path).sha256
        assert path.with_name(path.name + ".sha256").exists()
        assert sha256 in path.with_suffix(".md").read_text()  # the card is this file's
        assert load_weights(build_model(path.name.split("_")[1]), path).startswith(f"{path.name}: light x4")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"params-ema": state},
        lambda state: {"weights": state, "epoch": 3},
        lambda state: {"state_dict": {f"model.{key}": tensor for key, tensor in state.items()}, "epoch": 3},
        lambda state: {"n_averaged": torch.tensor(3), **{f"module.{key}": tensor for key, tensor in state.items()}},
        lambda state: {"state_dict": {f"module._orig_mod.{key}": tensor for key, tensor in state.items()}},
    ],
    ids=["hyphen", "unknown key", "Lightning", "AveragedModel", "compiled and parallel"],
)
def test_wrappers_and_prefixes_come_off_by_one_rule(tmp_path: Path, wrap: Callable[[dict], dict]) -> None:
    state = fresh().state_dict()
    torch.save(wrap(state), tmp_path / "a.pth")
    result = read_state_dict(tmp_path / "a.pth")
    assert result.keys() == state.keys() and all(torch.equal(result[key], state[key]) for key in state)
