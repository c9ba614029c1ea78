"""The two attention paths against each other, and their tables and masks against brute force."""

import pytest
import torch
from torch import Tensor

from models.team08_HATFreq.attention import (
    MASKED,
    OverlappingAttention,
    WindowAttention,
    attend,
    merge,
    overlapping_index,
    pad_heads,
    pad_inputs,
    partition,
    position_bias,
    self_attention_index,
    shift_masks,
    shifted,
)
from models.team08_HATFreq.layers import set_exportable, set_fused_attention


def test_partition_golden_and_round_trip() -> None:
    x = torch.arange(16.0).view(1, 4, 4, 1)
    windows = partition(x, 2)
    assert windows.shape == (1, 2, 2, 4, 1)
    assert windows[0, 0, 1, :, 0].tolist() == [2, 3, 6, 7]
    assert windows[0, 1, 0, :, 0].tolist() == [8, 9, 12, 13]
    assert torch.equal(merge(windows, 2), x)
    y = torch.rand(2, 12, 20, 3)
    assert torch.equal(merge(partition(y, 4), 4), y)


def test_self_attention_index_by_hand() -> None:
    # Window 2: offsets of -1, 0, 1 on each axis; row = (dy + 1) * 3 + dx + 1.
    assert self_attention_index(2).tolist() == [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]


def test_overlapping_index_reaches_every_row_once_per_offset() -> None:
    index = overlapping_index(4, 6)
    assert index.shape == (16, 36)
    rows = index % (4 + 6 - 1) ** 2  # negative rows count from the end
    offsets = {}
    for query in range(16):
        for key in range(36):
            offset = (key // 6 - query // 4, key % 6 - query % 4)
            assert offsets.setdefault(offset, rows[query, key].item()) == rows[query, key]
    assert len(offsets) == len(set(offsets.values())) == 81


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (1, 2)])
def test_shift_masks_equal_labelled_regions(grid: tuple[int, int]) -> None:
    window, shift = 4, 2
    gh, gw = grid
    # After the shift, the last `shift` rows (columns) come from the opposite edge: another region.
    y, x = torch.arange(gh * window), torch.arange(gw * window)
    labels = (y >= gh * window - shift).int()[:, None] * 2 + (x >= gw * window - shift).int()[None]
    label = partition(labels[None, :, :, None], window)[0, ..., 0]  # gh gw n
    expected = torch.where(label[..., :, None] == label[..., None, :], 0.0, MASKED)
    masks = shift_masks(window, shift)
    for i in range(gh):
        for j in range(gw):
            assert torch.equal(masks[int(i == gh - 1), int(j == gw - 1)], expected[i, j])


@pytest.mark.parametrize("d", [8, 10, 30, 32])
@pytest.mark.parametrize("m", [16, 36])
def test_attend_equals_its_formula(d: int, m: int) -> None:
    torch.manual_seed(d)
    q, k, v = torch.randn(3, 2, 16, d), torch.randn(3, 2, m, d), torch.randn(3, 2, m, d)
    bias = torch.randn(2, 16, m)
    expected = torch.softmax(q.double() @ k.double().mT / d**0.5 + bias.double(), -1) @ v.double()
    for fused in (True, False):
        with set_fused_attention(fused):
            torch.testing.assert_close(attend(q, k, v, bias, d**-0.5).double(), expected, rtol=0, atol=2e-6)


def gradients(module: torch.nn.Module, inputs: list[Tensor], weight: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output, and the gradients of sum(output * weight) for the floating inputs and every parameter."""
    leaves = [t for t in [*inputs, *module.parameters()] if t.requires_grad]
    out = module(*inputs)
    return out.detach(), list(torch.autograd.grad((out * weight).sum(), leaves))


def assert_paths_agree(module: torch.nn.Module, inputs: list[Tensor], shape: tuple) -> None:
    weight = torch.randn(shape)
    out_fused, grad_fused = gradients(module, inputs, weight)
    with set_fused_attention(False):
        out_plain, grad_plain = gradients(module, inputs, weight)
    torch.testing.assert_close(out_fused, out_plain, rtol=0, atol=2e-6)
    for a, b in zip(grad_fused, grad_plain, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


# On the CPU the fused kernel runs where the bias needs no gradient; CUDA's is tested with one below.
@pytest.mark.parametrize("bias_trained", [False, True])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(4, 4), (8, 12), (4, 8)])
def test_window_attention_fused_equals_plain(shift: int, size: tuple[int, int], bias_trained: bool) -> None:
    torch.manual_seed(0)
    module = WindowAttention(20, 4, 2, shift)
    module.relative_position_bias_table.data.normal_()
    module.relative_position_bias_table.requires_grad_(bias_trained)
    x = torch.randn(2, *size, 20, requires_grad=True)
    assert_paths_agree(module, [x, self_attention_index(4), shift_masks(4, 2)], (2, *size, 20))


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (4, 8)])
def test_one_call_for_all_shifted_windows_equals_the_parts(size: tuple[int, int]) -> None:
    """A GPU's and an exporter's way against the CPU's."""
    torch.manual_seed(0)
    module = WindowAttention(20, 4, 2, 2)
    module.relative_position_bias_table.data.normal_()
    inputs = [torch.randn(2, *size, 20, requires_grad=True), self_attention_index(4), shift_masks(4, 2)]
    weight = torch.randn(2, *size, 20)
    parts, part_gradients = gradients(module, inputs, weight)
    with set_exportable():
        whole, whole_gradients = gradients(module, inputs, weight)
    torch.testing.assert_close(parts, whole, rtol=0, atol=2e-6)
    for a, b in zip(part_gradients, whole_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_shifted_is_torchs_roll() -> None:
    x = torch.randn(2, 9, 11, 2)
    for shift in (-4, 0, 3):
        assert torch.equal(shifted(x, shift), x.roll((shift, shift), (1, 2)))


@pytest.mark.parametrize("bias_trained", [False, True])
@pytest.mark.parametrize("size", [(4, 4), (8, 12)])
@pytest.mark.parametrize("overlapping", [4, 6, 8])
def test_overlapping_attention_fused_equals_plain(size: tuple[int, int], overlapping: int, bias_trained: bool) -> None:
    torch.manual_seed(0)
    module = OverlappingAttention(4, overlapping, 2, 10**-0.5)
    qkv = torch.randn(2, *size, 60, requires_grad=True)
    bias = torch.randn(2, 16, overlapping**2, requires_grad=bias_trained)
    assert_paths_agree(module, [qkv, bias], (2, *size, 20))
    expected = module(qkv, bias)
    with set_exportable():
        torch.testing.assert_close(module(qkv, bias), expected, rtol=0, atol=2e-6)


def test_the_switch_and_the_trained_bias_choose_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    kernel = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: (calls.append(1), kernel(*a, **k))[1]
    )
    q = torch.randn(1, 2, 4, 8, requires_grad=True)
    for fused, bias_trained, expected in [(True, False, 1), (True, True, 0), (False, False, 0)]:
        calls.clear()
        with set_fused_attention(fused):
            attend(q, q, q, torch.zeros(2, 4, 4, requires_grad=bias_trained), 1.0)
        assert len(calls) == expected
    calls.clear()
    with torch.no_grad():
        attend(q, q, q, torch.zeros(2, 4, 4, requires_grad=True), 1.0)
    assert len(calls) == 1


def test_shifted_attention_keeps_opposite_edges_apart() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(8, 4, 2, shift=2)
    x = torch.randn(1, 8, 8, 8)
    changed = x.clone()
    changed[:, 0, 0] += 1  # the corner shares a rolled window with the other three corners
    index, masks = self_attention_index(4), shift_masks(4, 2)
    difference = (attention(x, index, masks) - attention(changed, index, masks)).abs().amax(-1)[0]
    assert difference[:2, :2].min() > 0
    difference[:2, :2] = 0
    assert difference.max() < 1e-6


def test_overlapping_attention_sees_its_margin_and_no_further() -> None:
    torch.manual_seed(0)
    attention = OverlappingAttention(4, 6, 2, 0.5)
    bias = torch.zeros(2, 16, 36)
    qkv = torch.randn(1, 8, 8, 24)
    for column, seen in [(4, True), (5, False)]:  # the first window's keys reach one pixel beyond column 3
        changed = qkv.clone()
        changed[:, 1, column, 8:] += 1
        difference = (attention(qkv, bias) - attention(changed, bias))[0, :4, :4].abs().max()
        assert (difference > 1e-4) == seen


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_equals_plain_on_cuda_with_gradients(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    for m in (256, 576):
        q, k, v = (torch.randn(6, 6, n, 32, device="cuda", dtype=dtype, requires_grad=True) for n in (256, m, m))
        bias = torch.randn(6, 256, m, device="cuda", requires_grad=True)
        weight = torch.randn(6, 6, 256, 32, device="cuda", dtype=dtype)
        results = []
        for fused in (True, False):
            with set_fused_attention(fused):
                out = attend(q, k, v, bias, 30**-0.5)
            results.append([out, *torch.autograd.grad((out * weight).sum(), [q, k, v, bias])])
        for a, b in zip(*results, strict=True):
            assert ((a - b).norm() / b.norm()).item() < tolerance


def test_position_bias_looks_every_pair_up_with_its_gradient() -> None:
    table = torch.randn(49, 3, requires_grad=True)
    index, weight = self_attention_index(4), torch.randn(3, 16, 16)
    bias = position_bias(table, index)
    assert torch.equal(bias, table[index].permute(2, 0, 1))
    (gradient,) = torch.autograd.grad((bias * weight).sum(), table)
    (expected,) = torch.autograd.grad((table[index].permute(2, 0, 1) * weight).sum(), table)
    torch.testing.assert_close(gradient, expected)


def test_padded_heads_golden() -> None:
    weight = torch.arange(1.0, 11).view(10, 1)  # two heads of five rows
    padded = pad_heads(weight, 2)
    assert padded.flatten().tolist() == [1, 2, 3, 4, 5, 0, 0, 0, 6, 7, 8, 9, 10, 0, 0, 0]
    assert torch.equal(pad_inputs(weight.t(), 2), padded.t())
    assert torch.equal(pad_heads(torch.ones(16), 2), torch.ones(16))
