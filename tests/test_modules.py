"""QuantLinear and CausalSelfAttention: construction, state, conversion, autocast."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import reference
import torch
import torch.nn.functional as F
from checking import (
    ACTIVATIONS,
    assert_close,
    assert_same_bits,
    check_linear,
    dtypes_on,
    randn,
    refuses,
)
from torch import Tensor, nn

import flashint8
from flashint8 import CausalSelfAttention, QuantLinear


def assert_types(layer: QuantLinear, dtype: torch.dtype, device: str = "cpu") -> None:
    """int8 weights and float32 scales survive every conversion; the bias follows."""
    assert layer.weight.dtype == torch.int8
    assert layer.weight_scale.dtype == torch.float32
    assert layer.bias is None or layer.bias.dtype == dtype
    for t in (layer.weight, layer.weight_scale, layer.bias):
        assert t is None or t.device.type == torch.device(device).type


def a_layer(bias: bool = True, dtype: torch.dtype = torch.float16) -> tuple[nn.Linear, QuantLinear]:
    linear = nn.Linear(40, 24, bias=bias).to(dtype)
    return linear, QuantLinear.from_linear(linear)


@pytest.mark.parametrize("bias", [False, True])
def test_construction(device: str, bias: bool) -> None:
    for dtype in dtypes_on(device):
        layer = QuantLinear(40, 24, bias=bias, device=device, dtype=dtype)
        assert layer.weight.shape == (24, 40)
        assert layer.weight_scale.shape == (24,)
        assert (layer.bias is not None) == bias
        assert not bias or layer.bias.shape == (24,)
        assert (layer.in_features, layer.out_features) == (40, 24)
        assert_types(layer, dtype, device)
        assert not list(layer.parameters()), "nothing for an optimiser"
        assert {name for name, _ in layer.named_buffers()} >= {"weight", "weight_scale"}
        out = layer(randn(3, 40, dtype=dtype, device=device))
        assert out.shape == (3, 24)
        assert bool(out.isfinite().all())


@pytest.mark.parametrize("bias", [False, True])
def test_from_linear(device: str, bias: bool) -> None:
    for dtype in dtypes_on(device):
        linear = nn.Linear(40, 24, bias=bias).to(device, dtype)
        layer = QuantLinear.from_linear(linear)
        assert_types(layer, dtype, device)
        q, scale = reference.quantize_per_channel(linear.weight.detach())
        assert_same_bits(layer.weight, q, "weight")
        assert_same_bits(layer.weight_scale, scale, "weight_scale")
        x = randn(2, 3, 40, dtype=dtype, device=device)
        check_linear(layer(x).detach(), x, q, scale, linear.bias, what="from_linear")
        assert_close(layer(x), linear(x).detach(), rtol=2e-1, atol=2e-1, what="promised 2e-1")
        assert linear.weight.dtype == dtype, "the source is left alone"
        if bias:
            linear.bias.data.fill_(100)
            assert float(layer.bias.max()) < 50, "the bias is a copy"


def test_dequantize_and_to_linear(device: str) -> None:
    for dtype in dtypes_on(device):
        for bias in (False, True):
            layer = QuantLinear.from_linear(nn.Linear(40, 24, bias=bias).to(device, dtype))
            want = (layer.weight.float() * layer.weight_scale[:, None]).to(dtype)
            weight = layer.dequantize()
            assert weight.dtype == dtype
            assert weight.shape == (24, 40)
            assert_same_bits(weight, want, "dequantize")
            linear = layer.to_linear()
            assert type(linear) is nn.Linear
            assert (linear.bias is not None) == bias
            assert_same_bits(linear.weight.detach(), want, "to_linear")
            x = randn(5, 40, dtype=dtype, device=device)
            with torch.no_grad():
                assert_close(linear(x), layer(x), rtol=1e-2, atol=1e-2, what="to_linear")


def test_repr() -> None:
    assert repr(QuantLinear(8, 4)) == "QuantLinear(in_features=8, out_features=4, bias=True)"
    assert "bias=False" in repr(nn.Sequential(QuantLinear(8, 4, bias=False)))


# ---- activation ------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation(device: str, activation: str) -> None:
    """Applied, shown, kept by copies and conversions; no part of the state."""
    for dtype in dtypes_on(device):
        linear = nn.Linear(40, 24).to(device, dtype)
        layer = QuantLinear.from_linear(linear, activation=activation)
        x = randn(2, 3, 40, dtype=dtype, device=device)
        out = layer(x).detach()
        assert out.shape == (2, 3, 12 if activation == "silu_mul" else 24)
        check_linear(out, x, layer.weight, layer.weight_scale, linear.bias.detach(), activation)
        assert (layer.out_features, layer.weight.shape) == (24, (24, 40))
        assert repr(layer).endswith(f"bias=True, activation={activation!r})")
        loaded = QuantLinear(40, 24, device=device, dtype=dtype, activation=activation)
        loaded.load_state_dict(linear.state_dict())
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), loaded):
            assert other.activation == activation
            assert_same_bits(other(x).detach(), out, "a copy")
        half = copy.deepcopy(layer).to(torch.bfloat16)
        assert half.activation == activation
        assert half(x.bfloat16()).shape == out.shape
        assert list(layer.state_dict()) == ["weight", "weight_scale", "bias"]


def test_activation_is_not_lost_in_silence() -> None:
    layer = QuantLinear(8, 4, activation="gelu")
    with pytest.raises(ValueError, match=r"to_linear: an nn\.Linear would leave out .* 'gelu'"):
        layer.to_linear()
    assert layer.dequantize().shape == (4, 8)
    layer.activation = None
    assert type(layer.to_linear()) is nn.Linear


def test_activation_is_checked() -> None:
    with refuses("QuantLinear: activation must be gelu, gelu_tanh, silu or silu_mul, got 'relu'"):
        QuantLinear(8, 4, activation="relu")
    message = "activation silu_mul needs an even number of weight rows (gate and up in turn), got 5"
    with refuses(f"QuantLinear: {message}"):
        QuantLinear.from_linear(nn.Linear(8, 5), activation="silu_mul")


# ---- state -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_state_dict_round_trip(device: str, bias: bool) -> None:
    for dtype in dtypes_on(device):
        source = QuantLinear.from_linear(nn.Linear(40, 24, bias=bias).to(device, dtype))
        state = source.state_dict()
        assert list(state) == ["weight", "weight_scale", "bias"][: 2 + bias]
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        target = QuantLinear(40, 24, bias=bias, device=device, dtype=dtype)
        result = target.load_state_dict(torch.load(file, weights_only=True))
        assert not result.missing_keys
        assert not result.unexpected_keys
        for name, value in state.items():
            assert_same_bits(target.state_dict()[name], value, name)


def test_load_assign_and_meta(device: str) -> None:
    """The way large models load: built on meta, tensors assigned."""
    source = QuantLinear.from_linear(nn.Linear(40, 24).to(device, torch.float16))
    target = QuantLinear(40, 24, device="meta", dtype=torch.float16)
    assert target.weight.is_meta
    assert target.weight.dtype == torch.int8
    target.load_state_dict(source.state_dict(), assign=True)
    assert_types(target, torch.float16, device)
    x = randn(2, 40, dtype=torch.float16, device=device)
    assert_same_bits(target(x), source(x), "assigned")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_load_from_float_state(device: str, state_dtype: torch.dtype, bias: bool) -> None:
    """A float weight without a weight_scale is quantised as it loads; nested names work too."""
    linear = nn.Linear(40, 24, bias=bias).to(state_dtype)
    want_q, want_scale = reference.quantize_per_channel(linear.weight.detach())
    model = nn.Sequential(nn.Identity(), QuantLinear(40, 24, bias=bias, dtype=torch.float16))
    model.to(device)
    state = {f"1.{name}": value for name, value in linear.state_dict().items()}
    before = {name: value.clone() for name, value in state.items()}
    model.load_state_dict(state)
    assert_types(model[1], torch.float16, device)
    assert_same_bits(model[1].weight.cpu(), want_q, "weight")
    assert_same_bits(model[1].weight_scale.cpu(), want_scale, "weight_scale")
    if bias:
        assert_same_bits(model[1].bias.cpu(), linear.bias.detach().half(), "bias")
    assert state.keys() == before.keys(), "the caller's dictionary is left alone"
    for name, value in before.items():
        assert_same_bits(state[name], value, name)


def test_bad_states_are_refused() -> None:
    layer = QuantLinear(40, 24)
    good = QuantLinear.from_linear(nn.Linear(40, 24)).state_dict()
    for name in good:
        with pytest.raises(RuntimeError, match=name):
            layer.load_state_dict({k: v for k, v in good.items() if k != name})
    with pytest.raises(RuntimeError, match="size mismatch"):
        layer.load_state_dict(nn.Linear(41, 24).state_dict())
    with pytest.raises(RuntimeError, match="extra"):
        layer.load_state_dict({**good, "extra": torch.zeros(1)})
    bad = nn.Linear(40, 24)
    bad.weight.data[3, 3] = float("nan")
    with pytest.raises((RuntimeError, ValueError), match="non-finite value in row 3"):
        layer.load_state_dict(bad.state_dict())


def copies(layer: QuantLinear) -> dict[str, QuantLinear]:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return {
        "deepcopy": copy.deepcopy(layer),
        "pickle": pickle.loads(pickle.dumps(layer)),
        "torch.save": torch.load(file, weights_only=False),
    }


def test_copies(device: str) -> None:
    for bias in (False, True):
        layer = a_layer(bias)[1].to(device)
        x = randn(3, 40, dtype=torch.float16, device=device)
        for name, other in copies(layer).items():
            assert_types(other, torch.float16, device)
            assert_same_bits(other(x), layer(x), name)
            assert other.weight.data_ptr() != layer.weight.data_ptr()


@pytest.mark.parametrize(
    ("convert", "dtype"),
    [
        (lambda m: m.half(), torch.float16),
        (lambda m: m.bfloat16(), torch.bfloat16),
        (lambda m: m.float(), torch.float32),
        (lambda m: m.to(torch.float16), torch.float16),
        (lambda m: m.to(dtype=torch.bfloat16), torch.bfloat16),
        (lambda m: m.half().float().bfloat16(), torch.bfloat16),
        (lambda m: m.to(torch.empty(0, dtype=torch.float16)), torch.float16),
        (lambda m: nn.Sequential(m).half()[0], torch.float16),
        (lambda m: copy.deepcopy(m.half()).cpu(), torch.float16),
        (lambda m: pickle.loads(pickle.dumps(m)).half(), torch.float16),
    ],
)
def test_conversions_keep_int8_and_the_scale_bits(convert, dtype: torch.dtype) -> None:
    for bias in (False, True):
        layer = a_layer(bias, torch.float32)[1]
        weight, scale = layer.weight.clone(), layer.weight_scale.clone()
        layer = convert(layer)
        assert_types(layer, dtype)
        assert_same_bits(layer.weight, weight, "weight")
        assert_same_bits(layer.weight_scale, scale, "a scale that went through 16 bits is wrong")
        x = randn(3, 40, dtype=dtype, device="cpu")
        check_linear(layer(x), x, weight, scale, layer.bias, what="converted")
        assert layer.dequantize().dtype == dtype


def test_moves_between_devices(cuda: str) -> None:
    layer = a_layer()[1]
    scale = layer.weight_scale.clone()
    for moved in (layer.cuda(), layer.to(cuda), layer.to(cuda, torch.bfloat16)):
        assert_types(moved, moved.bias.dtype, cuda)
        assert_same_bits(moved.weight_scale.cpu(), scale, "scale after a move")


# ---- autocast --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(device: str, dtype: torch.dtype) -> None:
    """float32 x and bias are cast to the autocast type; the scale never is."""
    linear = nn.Linear(40, 24).to(device)
    layer = QuantLinear.from_linear(linear)
    x = randn(6, 40, dtype=torch.float32, device=device)
    with torch.no_grad(), torch.autocast(device, dtype=dtype):
        out, want = layer(x), linear(x)
    assert out.dtype == want.dtype == dtype
    assert_close(out, want, rtol=2e-1, atol=2e-1, what="promised 2e-1 under autocast")
    cast = layer.bias.to(dtype)
    check_linear(out, x.to(dtype), layer.weight, layer.weight_scale, cast, what="autocast")
    with torch.autocast(device, dtype=dtype):
        out = flashint8.int8_linear(x, layer.weight, layer.weight_scale, layer.bias)
    assert out.dtype == dtype
    assert_types(layer, torch.float32, device)


def test_autocast_disabled_inside(device: str) -> None:
    layer = a_layer()[1].to(device)
    x = randn(6, 40, dtype=torch.float16, device=device)
    with torch.autocast(device, dtype=torch.bfloat16), torch.autocast(device, enabled=False):
        assert layer(x).dtype == torch.float16


# ---- CausalSelfAttention ---------------------------------------------------------------------


def by_hand(module: CausalSelfAttention, x: Tensor, heads: int, kv_heads: int) -> Tensor:
    """What the module means, with torch's operators and the module's own projections."""
    b, t, c = x.shape
    dim = c // heads
    q, k, v = module.qkv(x).split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
    q, k, v = (p.reshape(b, t, -1, dim).transpose(1, 2) for p in (q, k, v))
    k, v = (p.repeat_interleave(heads // kv_heads, dim=1) for p in (k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return module.proj(y.transpose(1, 2).reshape(b, t, c))


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, None), (4, 2), (6, 1)])
def test_causal_self_attention(
    device: str, heads: int, kv_heads: int | None, quantized: bool
) -> None:
    for dtype in dtypes_on(device):
        module = CausalSelfAttention(
            heads * 16, heads, num_kv_heads=kv_heads, quantized=False, device=device, dtype=dtype
        )
        if quantized:
            module.quantize_()
            assert type(module.qkv) is QuantLinear
            assert type(module.proj) is QuantLinear
        x = randn(2, 19, heads * 16, dtype=dtype, device=device)
        with torch.no_grad():
            out, want = module(x), by_hand(module, x, heads, kv_heads or heads)
        assert out.shape == x.shape
        assert out.dtype == dtype
        assert out.is_contiguous()
        tol = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 3e-2}[dtype]
        assert_close(out, want, rtol=tol, atol=tol, what=f"by hand, {dtype}")


def test_causal_self_attention_options() -> None:
    module = CausalSelfAttention(64, 4, bias=False, quantized=True, dtype=torch.float16)
    assert type(module.qkv) is QuantLinear
    assert module.qkv.bias is None
    floats = CausalSelfAttention(64, 4, bias=False, dtype=torch.float16)
    module.load_state_dict(floats.state_dict())  # quantised as it loads
    x = randn(1, 5, 64, dtype=torch.float16, device="cpu")
    want = floats.quantize_()(x)
    assert_same_bits(module(x), want, "loaded from float")
    with pytest.raises(ValueError, match="embed_dim"):
        CausalSelfAttention(65, 4)
    with pytest.raises(ValueError, match="num_kv_heads"):
        CausalSelfAttention(64, 4, num_kv_heads=3)


def test_causal_self_attention_is_causal(device: str) -> None:
    """A changed token changes nothing before it; autocast works too."""
    module = CausalSelfAttention(64, 4, device=device, dtype=torch.float16)
    x = randn(2, 30, 64, dtype=torch.float16, device=device)
    with torch.no_grad():
        before = module(x)
        x[:, 17] += 1
        after = module(x)
    assert_same_bits(after[:, :17], before[:, :17], "tokens before the changed one")
    assert not torch.equal(after[:, 17:], before[:, 17:])
    module, x = module.float(), x.float()
    with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16):
        out = module(x)
    assert out.dtype == torch.bfloat16
    assert_close(out, after.float(), rtol=5e-2, atol=5e-2, what="autocast")
