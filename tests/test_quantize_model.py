"""quantize_model: what it swaps, and what it leaves alone because int8 would change its meaning."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from toy_models import run, toy

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


# ---- what is shared, listed, done before -------------------------------------------------------


def test_shared_listed_and_tied_layers(device: str) -> None:
    model = toy(device)
    tied, bytes_before = model.embed.weight, sum(p.nbytes for p in model.parameters())
    report = flashint8.quantize_model(model, skip=())
    names = [f"blocks.{i}.{x}" for i in (0, 1) for x in ("up", "down")] + ["heads.0", "heads.1"]
    assert report.swapped == names
    assert report.skipped == {"lm_head": "its weight is shared with another module"}
    assert model.lm_head.weight is model.embed.weight is tied
    assert model.blocks[2] is model.blocks[0]
    assert model.blocks[2].up is model.blocks[0].up
    assert all(isinstance(head, QuantLinear) for head in model.heads)
    assert report.bytes_before == bytes_before + 2 * 8  # and two counters
    tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    assert report.bytes_after == sum(t.nbytes for t in tensors.values())
    assert report.bytes_after < report.bytes_before
    assert bool(run(model, device).isfinite().all())


def test_ties_by_memory_count_too() -> None:
    """As after loading: two parameters on the same memory. It never grows."""
    model = toy()
    model.lm_head.weight = nn.Parameter(model.embed.weight.detach())
    report = flashint8.quantize_model(model, skip=())
    assert report.skipped == {"lm_head": "its weight is shared with another module"}


def test_one_layer_under_two_names() -> None:
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    report = flashint8.quantize_model(model)
    assert report.swapped == ["a"]
    assert model["a"] is model["b"][0]
    for skip in (["b.0"], ["b.*"], ["a"]):  # each of its names may keep it
        model = nn.ModuleDict({"a": nn.Linear(8, 8)})
        model["b"] = nn.Sequential(model["a"])
        assert flashint8.quantize_model(model, skip=skip).swapped == []


def test_quantising_again_changes_nothing(device: str) -> None:
    model = toy(device)
    flashint8.quantize_model(model)
    layer, want = model.blocks[0].up, run(model, device)
    report = flashint8.quantize_model(model)
    assert report.swapped == []
    assert report.skipped["blocks.0.up"] == "already quantised"
    assert report.bytes_before == report.bytes_after
    assert model.blocks[0].up is layer
    assert torch.equal(run(model, device), want)


def test_on_meta() -> None:
    model = toy("meta")
    report = flashint8.quantize_model(model)
    assert len(report.swapped) == 6
    assert all(t.is_meta for t in [*model.parameters(), *model.buffers()])
    real = toy()
    want = flashint8.quantize_model(real)
    assert report.bytes_after == want.bytes_after
    assert report.bytes_before == want.bytes_before
    model.load_state_dict(real.state_dict(), assign=True)
    assert torch.equal(run(model), run(real))


def test_choice_and_report() -> None:
    seen = []

    def filter_fn(name: str, layer: nn.Module) -> bool:
        seen.append((name, layer))
        return name != "blocks.1.down"

    model = toy()
    down = model.blocks[0].down
    report = flashint8.quantize_model(model, skip=["heads.*"], filter_fn=filter_fn, min_features=9)
    assert ("blocks.0.down", down) in seen
    assert report.skipped["heads.1"] == "matches skip 'heads.*'"
    assert report.skipped["blocks.1.down"] == "filter_fn said no"
    text = str(report)
    assert "3 layers swapped" in text
    assert "kept blocks.1.down: filter_fn said no" in text
    small = flashint8.quantize_model(toy(), min_features=33)
    assert small.skipped["blocks.0.up"] == "fewer than 33 features"
    assert small.swapped == []
    with pytest.raises(TypeError, match="skip must be a list of names"):
        flashint8.quantize_model(toy(), skip="lm_head")
    with pytest.raises(TypeError, match="model is a linear layer"):
        flashint8.quantize_model(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="quantize_model: method must be 'absmax' or 'mse'"):
        flashint8.quantize_model(toy(), method="best")


def test_progress_is_shown_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    flashint8.quantize_model(toy(), progress=False)
    assert capsys.readouterr().err == ""
    flashint8.quantize_model(toy())  # small, and no terminal: silent
    assert capsys.readouterr().err == ""
    flashint8.quantize_model(toy(), progress=True)
    shown = capsys.readouterr().err
    assert "quantising" in shown
    assert "heads.1" in shown


def test_method_mse_is_passed_on(device: str) -> None:
    model = toy(device)
    with torch.no_grad():
        model.blocks[0].up.weight[:, 0] *= 30
    weight = model.blocks[0].up.weight.detach().clone()
    flashint8.quantize_model(model, method="mse")
    q, scale = flashint8.quantize_per_channel(weight, "mse")
    assert torch.equal(model.blocks[0].up.weight, q)
    assert torch.equal(model.blocks[0].up.weight_scale, scale)
    assert not torch.equal(scale, flashint8.quantize_per_channel(weight)[1])
