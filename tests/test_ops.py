"""The operators as torch sees them: schema, fake kernels, opcheck, torch.compile, autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checking import (
    ACTIVATIONS,
    assert_close,
    assert_same_bits,
    attend,
    check_attention,
    check_linear,
    dtypes_on,
    int32,
    make_qkv,
    quantised,
    randn,
)
from torch import Tensor, nn

import flashint8

SCHEMAS = {
    "attention": "(Tensor q, Tensor k, Tensor v, Tensor? kv_lengths=None, Tensor? kv_start=None, *,"
    " int causal=1, int window=-1, float softcap=0., float? scale=None,"
    " bool fp16_accumulate=False) -> Tensor",
    "attention_with_lse": "(Tensor q, Tensor k, Tensor v, Tensor? kv_lengths=None, "
    "Tensor? kv_start=None, *, int causal=1, int window=-1, float softcap=0., float? scale=None,"
    " bool fp16_accumulate=False) -> (Tensor, Tensor)",
    "int8_linear": "(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias=None, *,"
    " str? activation=None, bool weight_ready=False) -> Tensor",
    "quantize_per_channel": "(Tensor weight) -> (Tensor, Tensor)",
}


@pytest.mark.parametrize("op", SCHEMAS)
def test_schema(op: str) -> None:
    schema = str(getattr(torch.ops.flashint8, op).default._schema)
    assert schema == f"flashint8::{op}{SCHEMAS[op]}"


# ---- opcheck ---------------------------------------------------------------------------------


def attention_samples(device: str) -> list[tuple[tuple, dict]]:
    samples = []
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(2, 4, 2, 5, 9, 16, dtype, device)
        lengths, start = int32([9, 3], device), int32([0, 2], device)
        samples += [
            ((q, k, v), {}),
            ((q, k, v, lengths), {"causal": 0}),
            ((q, k, v, lengths, start), {"window": 3, "softcap": 5.0, "scale": 0.2}),
            ((q[:, :, :1], k, v), {"causal": 2}),
        ]
    q, k, v = make_qkv(2, 4, 2, 5, 9, 16, torch.float16, device)
    bthd = q.transpose(1, 2).contiguous().transpose(1, 2)
    return [
        *samples,
        ((bthd, k, v), {}),
        ((q[:, :, 1:4], k[:, :, 2:], v[:, :, 2:]), {}),
        ((q[:1].expand(2, 4, 5, 16), k, v), {}),
        ((q[:0], k[:0], v[:0]), {}),
        ((q, k[:, :, :0], v[:, :, :0]), {}),
    ]


def linear_samples(device: str) -> list[tuple[tuple, dict]]:
    samples = []
    for dtype in dtypes_on(device):
        for shape in ((3, 16), (16,), (2, 1, 3, 16), (0, 16), (1, 16)):
            x = randn(*shape, dtype=dtype, device=device)
            weight, scale = quantised(6, 16, device)
            samples.append(((x, weight, scale), {}))
            samples.append(((x, weight, scale, randn(6, dtype=dtype, device=device)), {}))
    x = randn(4, 3, 20, dtype=torch.float16, device=device)
    samples.append(((x[..., 2:18].transpose(0, 1), weight, scale), {}))
    x = randn(2, 5, 16, dtype=torch.float16, device=device)
    samples.append(((x, weight, scale), {"weight_ready": True}))
    return [*samples, *(((x, weight, scale), {"activation": name}) for name in ACTIVATIONS)]


def quantize_samples(device: str) -> list[tuple[tuple, dict]]:
    shapes = ((4, 7), (1, 1), (0, 3), (3, 0))
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    weights = [randn(*s, dtype=t, device=device) for s in shapes for t in dtypes]
    return [((w,), {}) for w in (*weights, weights[0].T)]


SAMPLES: dict[str, Callable[[str], list[tuple[tuple, dict]]]] = {
    "attention": attention_samples,
    "attention_with_lse": attention_samples,
    "int8_linear": linear_samples,
    "quantize_per_channel": quantize_samples,
}


@pytest.mark.parametrize("op", SAMPLES)
def test_opcheck(device: str, op: str) -> None:
    """Schema, fake kernel, autograd registration and AOT dispatch with dynamic shapes."""
    for args, kwargs in SAMPLES[op](device):
        torch.library.opcheck(getattr(torch.ops.flashint8, op).default, args, kwargs)


@pytest.mark.parametrize("op", SAMPLES)
def test_fake_kernel_gives_the_real_layout(device: str, op: str) -> None:
    """Shapes, dtypes and strides of meta outputs are those of the device's outputs."""
    function = getattr(torch.ops.flashint8, op)
    for args, kwargs in SAMPLES[op](device):
        real = function(*args, **kwargs)
        metas = [
            torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="meta") for a in args
        ]
        meta = function(*metas, **kwargs)
        pairs = [(real, meta)] if isinstance(real, Tensor) else list(zip(real, meta, strict=True))
        for r, m in pairs:
            assert (r.shape, r.dtype, m.device.type) == (m.shape, m.dtype, "meta")
            if r.numel():
                assert r.stride() == m.stride(), f"{op} {[a.stride() for a in args]}"


# ---- torch.compile ---------------------------------------------------------------------------


class Decoder(nn.Module):
    """A layer that uses both operators, with lengths."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = flashint8.QuantLinear.from_linear(nn.Linear(dim, 3 * dim))
        self.proj = flashint8.QuantLinear.from_linear(nn.Linear(dim, dim))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = flashint8.attention(q, k, v, lengths, causal=2, window=20)
        return x + self.proj(y.transpose(1, 2).reshape(b, t, c))


def decoder_and_input(device: str, seq_len: int = 12) -> tuple[Decoder, Tensor, Tensor]:
    torch._dynamo.reset()
    model = Decoder(32, 2).to(device, torch.float16)
    x = randn(3, seq_len, 32, dtype=torch.float16, device=device)
    return model, x, torch.tensor([12, 5, 0], dtype=torch.int32, device=device)


@pytest.mark.parametrize("dynamic", [False, True, None])
def test_compile_fullgraph(device: str, dynamic: bool | None) -> None:
    model, x, lengths = decoder_and_input(device)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    with torch.no_grad():
        for seq_len in (12, 9, 1, 7):
            part = x[:, :seq_len]
            assert_same_bits(compiled(part, lengths), model(part, lengths), f"compiled T {seq_len}")


def test_compile_with_grad_enabled(device: str) -> None:
    """Inference code often forgets no_grad: the graph must stay whole."""
    model, x, lengths = decoder_and_input(device)
    model.proj.register_parameter("gain", nn.Parameter(torch.ones(1, device=device)))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(x, lengths), model(x, lengths), "compiled, grad enabled")


def test_compile_functions(device: str) -> None:
    torch._dynamo.reset()
    q, k, v = make_qkv(2, 4, 2, 6, 10, 16, torch.float16, device)
    lengths = int32([10, 4], device)

    def run(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        out, lse = flashint8.attention_with_lse(q, k, v, lengths, softcap=9.0)
        same = flashint8.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return out * 2, lse + 1, same

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(q, k, v, lengths), run(q, k, v, lengths), strict=True):
        assert_same_bits(got, want, "compiled functions")


@pytest.mark.slow
def test_compile_inductor(device: str) -> None:
    model, x, lengths = decoder_and_input(device)
    with torch.no_grad():
        got = torch.compile(model, fullgraph=True)(x, lengths)
        assert_close(got, model(x, lengths), rtol=1e-3, atol=1e-3, what="inductor")


def test_export(device: str) -> None:
    model, x, lengths = decoder_and_input(device)
    with torch.no_grad():
        program = torch.export.export(model.eval(), (x, lengths))
        assert_same_bits(program.module()(x, lengths), model(x, lengths), "exported")
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"flashint8.attention.default", "flashint8.int8_linear.default"} <= targets


# ---- autograd --------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_attention_backward_names_what_to_use(device: str, which: str) -> None:
    tensors = dict(zip("qkv", make_qkv(1, 2, 2, 5, 5, 16, torch.float16, device), strict=True))
    want = attend(*tensors.values())
    tensors[which].requires_grad_()
    out = flashint8.attention(*tensors.values())
    assert_same_bits(out.detach(), want, "forward with an input that requires grad")
    with pytest.raises(RuntimeError, match="scaled_dot_product_attention"):
        out.float().sum().backward()
    out, _ = flashint8.attention_with_lse(*tensors.values())
    with pytest.raises(RuntimeError, match="scaled_dot_product_attention"):
        out.float().sum().backward()


@pytest.mark.parametrize("activation", [None, "silu_mul"])
@pytest.mark.parametrize("which", ["x", "bias"])
def test_linear_backward_names_what_to_use(device: str, which: str, activation: str | None) -> None:
    x = randn(3, 16, dtype=torch.float16, device=device)
    bias = randn(6, dtype=torch.float16, device=device)
    weight, scale = quantised(6, 16, device)
    (x if which == "x" else bias).requires_grad_()
    out = flashint8.int8_linear(x, weight, scale, bias, activation=activation)
    check_linear(out.detach(), x.detach(), weight, scale, bias.detach(), activation)
    with pytest.raises(RuntimeError, match=r"nn\.Linear"):
        out.float().sum().backward()


def test_forward_through_a_norm_that_requires_grad(device: str) -> None:
    """The usual case: float norms around quantised linears, no no_grad anywhere."""
    norm = nn.LayerNorm(16).to(device, torch.float16)
    layer = flashint8.QuantLinear.from_linear(nn.Linear(16, 16)).to(device).half()
    q = layer(norm(randn(1, 2, 5, 16, dtype=torch.float16, device=device)))
    check_attention(flashint8.attention(q, q, q).detach(), q.detach(), q.detach(), q.detach())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_graph_without_grad(device: str, mode: Callable) -> None:
    with mode():
        q, k, v = make_qkv(1, 2, 2, 5, 5, 16, torch.float16, device)
        q.requires_grad_()
        out = flashint8.attention(q, k, v)
        assert not out.requires_grad
        assert out.is_inference() == (mode is torch.inference_mode)
        weight, scale = quantised(5, 16, device)
        assert not flashint8.int8_linear(q, weight, scale).requires_grad
        check_attention(out, q.detach(), k, v)


def test_output_of_plain_inputs_requires_no_grad(device: str) -> None:
    q, k, v = make_qkv(1, 2, 2, 5, 5, 16, torch.float16, device)
    assert not flashint8.attention(q, k, v).requires_grad
