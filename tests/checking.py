"""Comparisons that say where and by how much, input makers, and calls on poisoned memory."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import reference
import torch
from torch import Tensor

HALF_ULP = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-24}
SMALLEST = {torch.float16: 2.0**-25, torch.bfloat16: 2.0**-126, torch.float32: 2.0**-126}
LARGEST = {dtype: torch.finfo(dtype).max for dtype in HALF_ULP}


def dtypes_on(device: str) -> list[torch.dtype]:
    """The types the operators take on a device."""
    dtypes = [torch.float16, torch.bfloat16]
    return [*dtypes, torch.float32] if device == "cpu" else dtypes


def runs_hopper_code() -> bool:
    """Whether code for Hopper alone was built and runs here."""
    import flashint8

    built = flashint8._C.build_info()["cuda_architectures"]
    return flashint8.Card.of().compute_capability == 90 and "90a" in built


# M, N, K that on an H100 are for the gemv built for it, of 16 and of 32 rows, then for its gemm:
# tiles of a block's own, tiles of a cluster, and tiles dealt out over all blocks, of 256, 128 and
# 32 rows. More k than their rings hold, and no larger than a sanitizer wants them;
# test_linear_plan.py says that they are.
HOPPER_PROBLEMS = [(12, 2590, 2064), (20, 2590, 2064)]
HOPPER_PROBLEMS += [(200, 9000, 336), (200, 1500, 2064), (130, 1000, 1552)]


# Set by --reference-on-cpu: a sanitizer of the GPU then sees few kernels but ours.
reference_on_cpu = False


def for_reference(*values: Any) -> tuple[Any, ...]:
    """The values with their tensors where references are computed."""
    if not reference_on_cpu:
        return values
    return tuple(v.cpu() if isinstance(v, Tensor) else v for v in values)


# ---- comparison ------------------------------------------------------------------------------


def _where(mask: Tensor) -> str:
    index = tuple(mask.nonzero()[0].tolist())
    return f"{int(mask.sum())} of {mask.numel()} elements, first at {index}"


def assert_within(out: Tensor, ref: Tensor, bound: Tensor | float, what: str) -> None:
    """|out - ref| <= bound at every element; NaN and infinity must stand in the same places."""
    assert out.shape == ref.shape, f"{what}: shape {tuple(out.shape)}, want {tuple(ref.shape)}"
    if out.numel() == 0:
        return
    out, ref = out.double(), ref.double()
    kinds = {"NaN": math.nan, "+inf": math.inf, "-inf": -math.inf}
    for name, value in kinds.items():
        mine = out.isnan() if name == "NaN" else out == value
        theirs = ref.isnan() if name == "NaN" else ref == value
        if not torch.equal(mine, theirs):
            wrong = mine != theirs
            index = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{what}: {name} in other places: {_where(wrong)}: "
                f"got {out[index].item():.9g}, want {ref[index].item():.9g}"
            )
    error = (out - ref).abs().nan_to_num(nan=0.0, posinf=0.0)
    limit = torch.as_tensor(bound, dtype=torch.float64, device=out.device).expand_as(error)
    passed = (error <= limit) | ~ref.isfinite()
    if not bool(passed.all()):
        worst = int((error - limit).masked_fill(passed, -math.inf).argmax())
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape))
        raise AssertionError(
            f"{what}: worst at {index}: got {out[index].item():.9g}, want {ref[index].item():.9g}, "
            f"off by {error[index].item():.3g}, allowed {limit[index].item():.3g}; "
            f"{passed.double().mean().item():.4%} of {passed.numel()} elements passed"
        )


def assert_close(out: Tensor, ref: Tensor, *, rtol: float, atol: float, what: str) -> None:
    """torch.testing's meaning of rtol and atol, with a message that says more."""
    bound = atol + rtol * ref.double().abs().nan_to_num(nan=0.0, posinf=0.0)
    assert_within(out, ref, bound, what)


def assert_same_bits(out: Tensor, ref: Tensor, what: str) -> None:
    """Equal to the last bit, NaN payloads and signs of zero included."""
    assert (out.shape, out.dtype) == (ref.shape, ref.dtype), what
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32}[out.element_size()]
    different = out.contiguous().view(whole) != ref.contiguous().view(whole)
    if bool(different.any()):
        index = tuple(different.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: bits differ at {_where(different)}: "
            f"{out[index].item():.9g} and {ref[index].item():.9g}"
        )


# ---- inputs ----------------------------------------------------------------------------------


def randn(*shape: int, dtype: torch.dtype, device: str, scale: float = 1.0) -> Tensor:
    """Drawn on the CPU, so that every device sees the same values."""
    return (torch.randn(shape) * scale).to(dtype).to(device)


def make_qkv(
    batch: int,
    num_heads: int,
    num_kv_heads: int,
    seq_len_q: int,
    seq_len_kv: int,
    head_dim: int,
    dtype: torch.dtype,
    device: str,
) -> tuple[Tensor, Tensor, Tensor]:
    q = randn(batch, num_heads, seq_len_q, head_dim, dtype=dtype, device=device)
    k = randn(batch, num_kv_heads, seq_len_kv, head_dim, dtype=dtype, device=device)
    v = randn(batch, num_kv_heads, seq_len_kv, head_dim, dtype=dtype, device=device)
    return q, k, v


def int32(values: list[int] | None, device: str) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.int32, device=device)


def poison_outside(t: Tensor, start: Tensor | None, length: Tensor | None, value: float) -> Tensor:
    """A copy of k or v (B, H, Tk, D) whose keys outside [start, length) hold `value`."""
    _, inside = reference.visible_keys(
        t.shape[0], 1, t.shape[2], length, start, causal=0, window=-1, device=t.device
    )
    return t.masked_fill(~inside[:, None, :, None], value)


def poison_allocator(*like: Tensor | tuple[tuple[int, ...], torch.dtype, Any]) -> None:
    """Frees blocks full of NaN of the sizes asked, so that an output not written shows.

    torch's CUDA allocator and malloc hand a freed block to the next request of its size.
    """
    blocks = []
    for item in like:
        shape, dtype, device = (
            (item.shape, item.dtype, item.device) if isinstance(item, Tensor) else item
        )
        blocks.append(torch.full(tuple(shape), math.nan, dtype=dtype, device=device))
    del blocks


def quantised(n: int, k: int, device: str, spread: float = 0.02) -> tuple[Tensor, Tensor]:
    """Random int8 weights that use the whole range, and scales of a real layer's size."""
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    scale = (torch.rand(n) + 0.1) * spread / 127
    return weight.to(device), scale.to(device)


def refuses(message: str) -> Any:
    """The block raises a ValueError with exactly this message."""
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


# ---- calls -----------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """flashint8.attention on memory full of NaN; shape, dtype and device checked."""
    import flashint8

    poison_allocator(q)
    out = flashint8.attention(q, k, v, *args, **kwargs)
    assert (out.shape, out.dtype, out.device) == (q.shape, q.dtype, q.device)
    return out


def check_attention(
    out: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any
) -> None:
    """FlashAttention's rule against float64, and in fp16 the promised rtol = atol = 1e-2."""
    what = kwargs.pop("what", "") + f" {describe(q, k, *args, **kwargs)}"
    out, q, k, v, *args = for_reference(out, q, k, v, *args)
    kwargs = dict(zip(kwargs, for_reference(*kwargs.values()), strict=True))
    ref, _ = reference.attention(q, k, v, *args, **kwargs)
    low, _ = reference.attention(q, k, v, *args, **kwargs, dtype=q.dtype)
    assert bool(low.isfinite().all()), f"{what}: the 16-bit yardstick overflows; shrink the inputs"
    limit = 2 * (low - ref).abs().amax().item() + 1e-5 if ref.numel() else 0.0
    assert_within(out, ref, limit, f"{what}, rule 2 max|torch - ref| + 1e-5")
    if q.dtype == torch.float16:
        assert_close(out, ref, rtol=1e-2, atol=1e-2, what=f"{what}, promised 1e-2")


def attend_checked(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """attend, then check_attention."""
    what = kwargs.pop("what", "")
    out = attend(q, k, v, *args, **kwargs)
    check_attention(out, q, k, v, *args, **kwargs, what=what)
    return out


def describe(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> str:
    named = dict(zip(("kv_lengths", "kv_start"), args, strict=False)) | kwargs
    shown = {
        name: value.tolist() if isinstance(value, Tensor) else value
        for name, value in named.items()
        if value is not None
    }
    return f"q {tuple(q.shape)} k {tuple(k.shape)} {q.dtype} on {q.device} {shown}"


ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "silu_mul")


def linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """flashint8.int8_linear on memory full of NaN; shape, dtype and layout checked."""
    import flashint8

    shape = (*x.shape[:-1], weight.shape[0] // (2 if activation == "silu_mul" else 1))
    poison_allocator((shape, x.dtype, x.device))
    out = flashint8.int8_linear(x, weight, weight_scale, bias, activation=activation)
    assert (out.shape, out.dtype, out.device) == (shape, x.dtype, x.device)
    assert out.is_contiguous()
    return out


def _activated(y: Tensor, error: Tensor, name: str | None) -> tuple[Tensor, Tensor]:
    """The activation of y, and how far float32 may be from it, given how far y may be off.

    No slope is above 1.13. A few units in the last place are the activation's own, in the tail of
    negative y those of an exponent of about y^2; under 1e-33 nothing matters.
    """
    if name is None:
        return y, error
    gated = name == "silu_mul"
    gate, gate_error = (y[..., ::2], error[..., ::2]) if gated else (y, error)
    value = reference.activation(gate, name)
    own = 2.0**-23 * (8 + gate.clamp(max=0) ** 2) * value.abs() + 1e-33
    error_of_value = 1.13 * gate_error + own
    if not gated:
        return value, error_of_value
    up, up_error = y[..., 1::2], error[..., 1::2]
    product = value * up
    lost = up.abs() * error_of_value + (value.abs() + error_of_value) * up_error
    return product, lost + 2.0**-23 * product.abs()


def check_linear(
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: str | None = None,
    what: str = "",
) -> None:
    """16-bit rounding only: half an ulp of the exact result, plus what float32 may lose before."""
    what += f" x {tuple(x.shape)} weight {tuple(weight.shape)} {x.dtype} on {x.device}"
    what += f" activation {activation}"
    out, x, weight, scale, bias = for_reference(out, x, weight, scale, bias)
    ref, magnitude = reference.int8_linear(x, weight, scale, bias)
    sums = (8 + math.sqrt(x.shape[-1])) * 2.0**-23 * magnitude
    ref, sums = _activated(ref, sums, activation)
    bound = HALF_ULP[x.dtype] * (ref.abs() + sums) + sums + SMALLEST[x.dtype]
    overflow = LARGEST[x.dtype] * (1 + HALF_ULP[x.dtype])  # from here on, rounding gives infinity
    ref = torch.where(ref.abs() < overflow, ref, ref.sign() * math.inf)
    assert_within(out, ref, bound, f"{what}, rounding only")


def check_linear_of_library(
    out: Tensor, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, what: str = ""
) -> None:
    """Where weights become 16-bit first: no further from the truth than F.linear on those."""
    ref, _ = reference.int8_linear(x, weight, scale, bias)
    weight_16bit = (weight.float() * scale[:, None]).to(x.dtype)
    theirs = torch.nn.functional.linear(x, weight_16bit, bias).double()
    bound = 1.05 * (theirs - ref).abs().max() + SMALLEST[x.dtype]
    assert_within(out, ref, bound, f"{what} x {tuple(x.shape)} {x.dtype}, as F.linear in 16 bits")


def linear_checked(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """linear, then the check that its plan asks for."""
    import flashint8

    out = linear(x, weight, scale, bias, activation)
    if out.numel() > 0:  # nothing runs where nothing is asked for
        plan = flashint8.explain("int8_linear", x, weight, scale, bias, activation=activation)
        if plan.kernel == "library":
            check_linear_of_library(out, x, weight, scale, bias)
            return out
    check_linear(out, x, weight, scale, bias, activation)
    return out
