"""Linear layers as 1x1 convolutions: equal to PyTorch's own, with their gradients."""

import pytest
import torch
import torch.nn.functional as F

from models.team08_HATFreq.layers import Linear, Mlp, in_pieces, linear


@pytest.mark.parametrize("shape", [(5,), (1, 5), (7, 5), (2, 3, 5), (4, 8, 16, 5), (0, 5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_pytorchs(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    b = torch.randn(6, requires_grad=True) if bias else None
    leaves = [x, weight, *([b] if b is not None else [])]
    ours, reference = linear(x, weight, b), F.linear(x, weight, b)
    torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
    factor = torch.randn_like(reference)
    gradients = [torch.autograd.grad((y * factor).sum(), leaves) for y in (ours, reference)]
    for a, e in zip(*gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-4)


def test_linear_follows_the_precision() -> None:
    layer, x = Linear(5, 6), torch.randn(3, 16, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer.double()(x.double()).dtype == torch.float64


def test_mlp_equals_its_formula() -> None:
    torch.manual_seed(0)
    mlp, x = Mlp(6, 9), torch.randn(2, 4, 8, 6)
    expected = F.linear(F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias)), mlp.fc2.weight, mlp.fc2.bias)
    torch.testing.assert_close(mlp(x), expected)


def test_pieces_only_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.team08_HATFreq.layers.PIECE", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x, sizes = torch.randn(9, 3, 2), []

    def double(piece: torch.Tensor) -> torch.Tensor:
        sizes.append(len(piece))
        return 2 * piece

    with torch.no_grad():
        assert torch.equal(in_pieces(double, x), 2 * x)
    assert sizes == [2, 2, 2, 2, 1]  # 8 tokens at most, of 3 an item
    sizes.clear()
    assert torch.equal(in_pieces(double, x), 2 * x) and sizes == [9]
