"""quantize_model: what it swaps, and what it leaves alone because int8 would change its meaning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import flashint8
from flashint8 import QuantLinear


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class OnlyNamed(nn.Linear):
    """A subclass that keeps nn.Linear's forward."""


def own_forward() -> nn.Linear:
    linear = nn.Linear(16, 16)
    linear.forward = lambda x: x  # type: ignore[method-assign]
    return linear


def hooked(pre: bool) -> nn.Linear:
    linear = nn.Linear(16, 16)
    if pre:
        linear.register_forward_pre_hook(lambda module, args: None)
    else:
        linear.register_forward_hook(lambda module, args, out: 2 * out)
    return linear


NOT_PLAIN = {
    "subclass": (lambda: Doubled(16, 16), "forward"),
    "instance": (own_forward, "forward"),
    "pre-hook": (lambda: hooked(True), "hooks"),
    "hook": (lambda: hooked(False), "hooks"),
    "prune": (lambda: prune.l1_unstructured(nn.Linear(16, 16), "weight", 0.5), "hooks"),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(16, 16)), "parametrised"),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_more_than_a_linear_is_left_alone(kind: str) -> None:
    make, reason = NOT_PLAIN[kind]
    linear = make()
    with pytest.raises(ValueError, match=f"from_linear: it.*{reason}"):
        QuantLinear.from_linear(linear)
    model = nn.Sequential(linear, OnlyNamed(16, 16)).eval()
    report = flashint8.quantize_model(model)
    assert model[0] is linear
    assert reason in report.skipped["0"]
    assert report.swapped == ["1"]
    assert model(torch.zeros(2, 16)).shape == (2, 16)


def test_transformer_encoder_runs() -> None:
    """In eval and inference_mode torch's fused path reads linear1.weight past its forward."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    x = torch.randn(2, 5, 32)
    for model in (nn.Sequential(layer, nn.Linear(32, 8)), nn.TransformerEncoder(layer, 2)):
        model.eval()
        with torch.inference_mode():
            want = model(x)
            report = flashint8.quantize_model(model)
            got = model(x)
        assert torch.allclose(got, want, atol=5e-2)
        reasons = [r for name, r in report.skipped.items() if name.endswith(("linear1", "linear2"))]
        assert reasons
        assert all("TransformerEncoderLayer" in r for r in reasons)
        assert any(name.endswith("out_proj") for name in report.skipped)


def test_messages_name_the_layer() -> None:
    with pytest.raises(ValueError, match=r"^quantize_model: 0: its weight is float64, not float16"):
        flashint8.quantize_model(nn.Sequential(nn.Linear(4, 4, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"^quantize_model: 0: its weight is not initialised"):
        flashint8.quantize_model(nn.Sequential(nn.LazyLinear(4)))


def test_any_strides(device: str) -> None:
    """As nn.Linear takes them; int8_linear itself stays strict."""
    layer = QuantLinear(24, 8, device=device, dtype=torch.float16)
    base = torch.randn(2, 24, 3, dtype=torch.float16, device=device)
    scattered = torch.randn(24, 2, 3, 2, 3, 2, 3, dtype=torch.float16, device=device)
    many = scattered[:, :, :2, :, :2, :, :2].permute(6, 1, 4, 3, 2, 5, 0)
    deep = torch.randn(3, 3, 3, 3, 3, 3, 24, dtype=torch.float16, device=device)
    for x in (base.transpose(1, 2), many, deep[:2, :2, :2, :2, :2, :2]):
        assert torch.equal(layer(x), layer(x.contiguous()))
        with pytest.raises(ValueError, match="int8_linear: x's"):
            flashint8.int8_linear(x, layer.weight, layer.weight_scale, layer.bias)
