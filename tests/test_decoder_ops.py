"""The decoder's small operators as torch sees them, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checking import assert_same_bits, dtypes_on, int32, randn, refuses
from torch import Tensor

import flashint8

SCHEMAS = {
    "rope_append_": "(Tensor(a!) q, Tensor k, Tensor v, Tensor(b!) k_cache, Tensor(c!) v_cache, "
    "Tensor positions, Tensor? cos_sin=None, *, bool interleaved=False) -> ()",
    "attention_with_kvcache": "(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, "
    "Tensor(b!) v_cache, Tensor positions, Tensor? cos_sin=None, *, bool interleaved=False, "
    "float? scale=None, bool cache_ready=False) -> Tensor",
    "add_norm_": "(Tensor(a!) residual, Tensor? x, Tensor weight, Tensor? bias=None, *, "
    "float eps=1.0000000000000001e-05, bool rms=True) -> Tensor",
    "silu_mul": "(Tensor gate_up) -> Tensor",
}


@pytest.mark.parametrize("op", SCHEMAS)
def test_schema(op: str) -> None:
    schema = str(getattr(torch.ops.flashint8, op).default._schema)
    assert schema == f"flashint8::{op}{SCHEMAS[op]}"


# ---- opcheck ---------------------------------------------------------------------------------


def rope_samples(device: str) -> list[tuple[tuple, dict]]:
    samples = []
    for dtype in dtypes_on(device):
        q, k, v = (randn(2, h, 3, 16, dtype=dtype, device=device) for h in (4, 2, 2))
        cache = [randn(2, 2, 9, 16, dtype=dtype, device=device) for _ in range(2)]
        args = (q, k, v, *cache, int32([0, 4], device))
        cos_sin = randn(9, 8, dtype=torch.float32, device=device)
        samples += [(args, {}), ((*args, cos_sin), {}), ((*args, cos_sin), {"interleaved": True})]
    q = q.transpose(1, 2).contiguous().transpose(1, 2)
    return [*samples, ((q, k, v, *(c[:, :, 1:] for c in cache), args[-1], cos_sin), {})]


def kvcache_samples(device: str) -> list[tuple[tuple, dict]]:
    samples = []
    for dtype in dtypes_on(device):
        q, k, v = (randn(2, h, 1, 64, dtype=dtype, device=device) for h in (4, 2, 2))
        cache = [randn(2, 2, 9, 64, dtype=dtype, device=device) for _ in range(2)]
        args = (q, k, v, *cache, int32([0, 9], device))
        cos_sin = randn(9, 64, dtype=torch.float32, device=device)
        samples += [
            (args, {}),
            ((*args, cos_sin), {"scale": 0.2, "cache_ready": True}),
            ((*args, cos_sin), {"interleaved": True}),
        ]
    q = q.transpose(0, 1).contiguous().transpose(0, 1)
    return [*samples, ((q, *args[1:]), {}), (tuple(a[:0] for a in args), {})]


def add_norm_samples(device: str) -> list[tuple[tuple, dict]]:
    samples = []
    for dtype in dtypes_on(device):
        for shape in ((3, 16), (16,), (2, 1, 3, 16), (0, 16)):
            residual, x = (randn(*shape, dtype=dtype, device=device) for _ in range(2))
            weight = randn(16, dtype=dtype, device=device)
            samples.append(((residual, x, weight), {}))
            samples.append(((residual, None, weight, weight), {"rms": False, "eps": 1e-3}))
    return [*samples, ((randn(4, 32, dtype=dtype, device=device)[:, 3:19], None, weight), {})]


def silu_mul_samples(device: str) -> list[tuple[tuple, dict]]:
    shapes = ((3, 16), (16,), (2, 1, 3, 16), (0, 16))
    made = [randn(*s, dtype=t, device=device) for s in shapes for t in dtypes_on(device)]
    return [((x,), {}) for x in (*made, made[0][:, 1:15])]


SAMPLES: dict[str, Callable[[str], list[tuple[tuple, dict]]]] = {
    "rope_append_": rope_samples,
    "attention_with_kvcache": kvcache_samples,
    "add_norm_": add_norm_samples,
    "silu_mul": silu_mul_samples,
}


@pytest.mark.parametrize("op", SAMPLES)
def test_opcheck(device: str, op: str) -> None:
    """Schema (what is written too), fake kernel, AOT dispatch with dynamic shapes."""
    for args, kwargs in SAMPLES[op](device):
        torch.library.opcheck(getattr(torch.ops.flashint8, op).default, args, kwargs)


@pytest.mark.parametrize("op", ["attention_with_kvcache", "add_norm_", "silu_mul"])
def test_fake_kernel_gives_the_real_layout(device: str, op: str) -> None:
    function = getattr(torch.ops.flashint8, op)
    for args, kwargs in SAMPLES[op](device):
        metas = [
            a if a is None else torch.empty_strided(a.shape, a.stride(), dtype=a.dtype).to("meta")
            for a in args
        ]
        real, meta = function(*args, **kwargs), function(*metas, **kwargs)
        assert (real.shape, real.dtype, real.stride()) == (meta.shape, meta.dtype, meta.stride())


def test_compile_fullgraph(device: str) -> None:
    """The writes survive functionalisation: views of one projection, caches kept by the caller."""
    torch._dynamo.reset()
    weight = randn(32, dtype=torch.float16, device=device)
    cos_sin = randn(8, 8, dtype=torch.float32, device=device)

    def layer(stream: Tensor, cache: Tensor, positions: Tensor) -> Tensor:
        y = flashint8.add_norm_(stream, stream * 0.5, weight)
        q, k, v = (torch.cat([y, y * 2, y + 1], -1)).view(2, 1, 3, 4, 8).permute(2, 0, 3, 1, 4)
        flashint8.rope_append_(q, k, v, cache[0], cache[1], positions, cos_sin)
        return flashint8.silu_mul(q.reshape(2, 32))

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    stream = randn(2, 32, dtype=torch.float16, device=device)
    cache = randn(2, 2, 4, 8, 8, dtype=torch.float16, device=device)
    for start in ([0, 3], [7, 8]):
        mine, theirs = (stream.clone(), cache.clone()), (stream.clone(), cache.clone())
        got = compiled(*mine, int32(start, device))
        want = layer(*theirs, int32(start, device))
        for one, other in zip((got, *mine), (want, *theirs), strict=True):
            assert_same_bits(one, other, f"compiled, positions {start}")


# ---- grad ------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", range(5))
def test_rope_append_refuses_grad(device: str, which: int) -> None:
    args, _ = rope_samples(device)[1]
    args = tuple(a.detach() for a in args)
    before = [a.clone() for a in args]
    args[which].requires_grad_()
    with pytest.raises(RuntimeError, match=r"rope_append_ is for inference.*inference_mode"):
        flashint8.rope_append_(*args)
    for now, then in zip(args, before, strict=True):
        assert_same_bits(now.detach(), then, "refused, yet written")
    with torch.no_grad():
        flashint8.rope_append_(*args)
    assert not torch.equal(args[3], before[3])


@pytest.mark.parametrize("which", ["residual", "x", "weight", "bias"])
def test_add_norm_refuses_grad(device: str, which: str) -> None:
    args = {n: randn(3, 8, dtype=torch.float16, device=device) for n in ("residual", "x")}
    args |= {n: randn(8, dtype=torch.float16, device=device) for n in ("weight", "bias")}
    args[which].requires_grad_()
    with pytest.raises(RuntimeError, match=r"add_norm_ is for inference.*inference_mode"):
        flashint8.add_norm_(**args)
    with torch.no_grad():
        assert not flashint8.add_norm_(**args).requires_grad


def test_silu_mul_backward_names_what_to_use(device: str) -> None:
    gate_up = randn(3, 8, dtype=torch.float16, device=device).requires_grad_()
    out = flashint8.silu_mul(gate_up)
    assert_same_bits(out.detach(), flashint8.silu_mul(gate_up.detach()), "with grad")
    with pytest.raises(RuntimeError, match=r"torch\.nn\.functional\.silu"):
        out.float().sum().backward()


# ---- errors ----------------------------------------------------------------------------------

Make = Callable[[str], Tensor]


def ones(*shape: int, dtype: torch.dtype = torch.float16) -> Make:
    return lambda device: torch.ones(shape, dtype=dtype, device=device)


def part(make: Make, *index: Any) -> Make:
    return lambda device: make(device)[index]


def expanded(*shape: int) -> Make:
    return lambda device: torch.ones(1, *shape[1:], dtype=torch.float16, device=device).expand(
        shape
    )


BF16, FP32, INT64, EVERY = torch.bfloat16, torch.float32, torch.int64, slice(None)
GOOD: dict[str, dict[str, Make]] = {
    "rope_append_": {
        "q": ones(2, 4, 3, 16),
        "k": ones(2, 2, 3, 16),
        "v": ones(2, 2, 3, 16),
        "k_cache": ones(2, 2, 9, 16),
        "v_cache": ones(2, 2, 9, 16),
        "positions": ones(2, dtype=torch.int32),
        "cos_sin": ones(9, 8, dtype=FP32),
    },
    "attention_with_kvcache": {
        "q": ones(2, 4, 1, 16),
        "k": ones(2, 2, 1, 16),
        "v": ones(2, 2, 1, 16),
        "k_cache": ones(2, 2, 9, 16),
        "v_cache": ones(2, 2, 9, 16),
        "positions": ones(2, dtype=torch.int32),
        "cos_sin": ones(9, 8, dtype=FP32),
    },
    "add_norm_": {
        "residual": ones(3, 16),
        "x": ones(3, 16),
        "weight": ones(16),
        "bias": ones(16),
    },
    "silu_mul": {"gate_up": ones(3, 16)},
}
FIVE_DIMENSIONS = part(ones(3, 3, 3, 3, 3, 16), *[slice(2)] * 5)
FIVE_ROWS = "leading dimensions must merge into at most 4 strided ones, got shape (2, 2, 2, 2, 2, "
ERRORS: list[tuple[str, str, Any, str]] = [
    ("rope_append_", "q", ones(4, 3, 16), "must have 4 dimensions (B, H, T, D), got 3"),
    ("rope_append_", "q", part(ones(2, 4, 3, 32), ..., slice(None, None, 2)), "last stride 2"),
    ("rope_append_", "q", expanded(2, 4, 3, 16), "expanded 0"),
    ("rope_append_", "k", ones(2, 2, 3, 16, dtype=BF16), "has dtype bfloat16, q has float16"),
    ("rope_append_", "k", ones(2, 2, 4, 16), "must have shape (2, *, 3, 16), got (2, 2, 4, 16)"),
    ("rope_append_", "k", ones(2, 2, 3), "must have shape (2, *, 3, 16), got (2, 2, 3)"),
    ("rope_append_", "k", part(ones(2, 2, 3, 48), ..., slice(None, None, 3)), "last stride 3"),
    ("rope_append_", "v", ones(2, 1, 3, 16), "must have shape (2, 2, 3, 16), got (2, 1, 3, 16)"),
    ("rope_append_", "v", ones(2, 2, 3, 16, dtype=FP32), "has dtype float32, q has float16"),
    (
        "rope_append_",
        "k_cache",
        ones(2, 4, 9, 16),
        "must have shape (2, 2, *, 16), got (2, 4, 9, 16)",
    ),
    ("rope_append_", "k_cache", expanded(2, 2, 9, 16), "expanded 0"),
    (
        "rope_append_",
        "v_cache",
        ones(2, 2, 8, 16),
        "must have shape (2, 2, 9, 16), got (2, 2, 8, 16)",
    ),
    (
        "rope_append_",
        "v_cache",
        ones(2, 2, 9, 16, dtype=torch.int8),
        "has dtype int8, q has float16",
    ),
    ("rope_append_", "v_cache", expanded(2, 2, 9, 16), "expanded 0"),
    ("rope_append_", "positions", ones(2, dtype=INT64), "must be int32, got int64"),
    ("rope_append_", "positions", ones(3, dtype=torch.int32), "must have shape (2,), got (3,)"),
    ("rope_append_", "cos_sin", ones(9, 8), "must be float32, got float16"),
    ("rope_append_", "cos_sin", ones(9, 2, 4, dtype=FP32), "must have 2 dimensions (P, R), got 3"),
    (
        "rope_append_",
        "cos_sin",
        part(ones(9, 16, dtype=FP32), EVERY, slice(0, 16, 2)),
        "last stride 2",
    ),
    ("rope_append_", "cos_sin", ones(9, 7, dtype=FP32), "columns 7"),
    ("rope_append_", "cos_sin", ones(9, 0, dtype=FP32), "columns 0"),
    ("rope_append_", "cos_sin", ones(9, 18, dtype=FP32), "columns 18"),
    (
        "rope_append_",
        "cos_sin",
        ones(8, 8, dtype=FP32),
        "must have a row for each of k_cache's 9 slots, got 8",
    ),
    ("attention_with_kvcache", "q", ones(4, 1, 16), "must have 4 dimensions (B, H, T, D), got 3"),
    (
        "attention_with_kvcache",
        "k",
        ones(2, 2, 2, 16),
        "must have shape (2, *, 1, 16), got (2, 2, 2, 16)",
    ),
    (
        "attention_with_kvcache",
        "v",
        ones(2, 2, 1, 16, dtype=BF16),
        "has dtype bfloat16, q has float16",
    ),
    ("attention_with_kvcache", "k_cache", expanded(2, 2, 9, 16), "expanded 0"),
    (
        "attention_with_kvcache",
        "v_cache",
        ones(2, 2, 8, 16),
        "must have shape (2, 2, 9, 16), got (2, 2, 8, 16)",
    ),
    ("attention_with_kvcache", "positions", ones(2, dtype=INT64), "must be int32, got int64"),
    ("attention_with_kvcache", "cos_sin", ones(9, 18, dtype=FP32), "columns 18"),
    ("add_norm_", "residual", ones(), "must have at least 1 dimension, got 0"),
    ("add_norm_", "residual", part(ones(3, 32), EVERY, slice(0, 32, 2)), "last stride 2"),
    ("add_norm_", "x", ones(3, 16, dtype=BF16), "has dtype bfloat16, residual has float16"),
    ("add_norm_", "x", ones(1, 16), "must have residual's shape (3, 16), got (1, 16)"),
    ("add_norm_", "x", ones(3, 1, 16), "must have residual's shape (3, 16), got (3, 1, 16)"),
    ("add_norm_", "x", part(ones(3, 32), EVERY, slice(0, 32, 2)), "last stride 2"),
    ("add_norm_", "weight", ones(16, dtype=FP32), "has dtype float32, residual has float16"),
    ("add_norm_", "weight", ones(15), "must have shape (16,), got (15,)"),
    ("add_norm_", "weight", part(ones(32), slice(0, 32, 2)), "must be contiguous, got stride 2"),
    ("add_norm_", "bias", ones(1, 16), "must have shape (16,), got (1, 16)"),
    ("add_norm_", "bias", ones(16, dtype=BF16), "has dtype bfloat16, residual has float16"),
    ("add_norm_", "eps", -1e-6, "must be finite and at least 0, got -1e-06"),
    ("add_norm_", "eps", math.nan, "must be finite and at least 0, got nan"),
    ("add_norm_", "residual", expanded(3, 16), "expanded 0"),
    ("silu_mul", "gate_up", ones(), "must have at least 1 dimension, got 0"),
    ("silu_mul", "gate_up", ones(3, 15), "must have an even last dimension, got 15"),
    ("silu_mul", "gate_up", part(ones(3, 32), EVERY, slice(0, 32, 2)), "last stride 2"),
    ("silu_mul", "gate_up", FIVE_DIMENSIONS, f"'s {FIVE_ROWS}16); pass gate_up.contiguous()"),
]
SHORT = {
    "last stride": "'s last dimension must be contiguous, got stride ",
    "expanded": "is written in place and must not be expanded, got stride 0 in dimension ",
    "columns": "must have an even number of columns from 2 to head_dim 16, got ",
}


def message_of(op: str, name: str, text: str) -> str:
    for short, long in SHORT.items():
        if text.startswith(short):
            text = long + text.removeprefix(short + " ")
    return f"{op}: {name}{'' if text.startswith(chr(39)) else ' '}{text}"


@pytest.mark.parametrize("case", ERRORS, ids=lambda c: f"{c[0]}-{c[1]}-{c[3][:24]}")
@pytest.mark.parametrize("where", ["device", "meta"])
def test_errors(device: str, where: str, case: tuple[str, str, Any, str]) -> None:
    """The same words from the kernels and from the fake kernels."""
    op, name, value, text = case
    place = "meta" if where == "meta" else device
    args = {n: make(place) for n, make in GOOD[op].items()}
    args[name] = value(place) if callable(value) else value
    with refuses(message_of(op, name, text)):
        getattr(flashint8, op)(**args)


def test_five_strided_dimensions(device: str) -> None:
    for name in ("residual", "x"):
        args = {n: ones(2, 2, 2, 2, 2, 16)(device) for n in ("residual", "x")}
        args |= {"weight": ones(16)(device), name: FIVE_DIMENSIONS(device)}
        with refuses(f"add_norm_: {name}'s {FIVE_ROWS}16); pass {name}.contiguous()"):
            flashint8.add_norm_(**args)


@pytest.mark.parametrize("op", GOOD)
@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.bool], ids=str)
def test_dtype(device: str, op: str, dtype: torch.dtype) -> None:
    kinds = "float16, bfloat16 or float32" if device == "cpu" else "float16 or bfloat16 on CUDA"
    args = {n: make(device) for n, make in GOOD[op].items()}
    name = next(iter(args))
    args[name] = args[name].to(dtype)
    with refuses(f"{op}: {name} must be {kinds}, got {str(dtype).removeprefix('torch.')}"):
        getattr(flashint8, op)(**args)


@pytest.mark.parametrize("op", ["rope_append_", "attention_with_kvcache", "add_norm_"])
def test_device_mix(cuda: str, op: str) -> None:
    first, *others = GOOD[op]
    here = torch.device(cuda, torch.cuda.current_device())
    for name in others:
        args = {n: make("cpu" if n == name else cuda) for n, make in GOOD[op].items()}
        with refuses(f"{op}: {name} is on cpu, {first} is on {here}"):
            getattr(flashint8, op)(**args)
