"""`fp16_accumulate`: a permission, with a bound on what it may cost."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from checking import assert_same_bits, assert_within, attend, for_reference, make_qkv, refuses
from torch import Tensor

import flashint8


def bound_of(q: Tensor, k: Tensor, v: Tensor, scale: float) -> float:
    """How far the output may be off: the documented bound on a score, through the softmax.

    Scores off by at most d change every weight by a factor within exp(+-2 d).
    """
    q, k, v = for_reference(q, k, v)
    group = q.shape[1] // k.shape[1]
    magnitudes = q.double().abs() @ k.double().abs().repeat_interleave(group, 1).transpose(-1, -2)
    score_error = q.shape[-1] * 2.0**-14 * abs(scale) * magnitudes.amax().item()
    return math.expm1(2 * score_error) * v.double().abs().amax().item()


@pytest.mark.parametrize(
    "head_dim", [32, pytest.param(64, marks=pytest.mark.sanitizer), 80, 96, 128, 256]
)
def test_error_is_within_the_bound(device: str, head_dim: int) -> None:
    for seq_len, kv_heads, options in (
        (130, 2, {}),
        (300, 4, {"causal": 2, "window": 70}),
        (520, 4, {"softcap": 20.0}),
        (150, 1, {"causal": 0, "scale": -0.03}),
    ):
        q, k, v = make_qkv(1, 4, kv_heads, seq_len, seq_len, head_dim, torch.float16, device)
        q, k = q * 0.5, k * 0.5
        scale = options.get("scale", head_dim**-0.5)
        out = attend(q, k, v, fp16_accumulate=True, **options)
        out, *inputs = for_reference(out, q, k, v)
        ref, _ = reference.attention(*inputs, **options)
        low, _ = reference.attention(*inputs, **options, dtype=torch.float16)
        rounding = 2 * (low - ref).abs().amax().item() + 1e-5
        limit = bound_of(q, k, v, scale) + rounding
        assert limit < 1.0, "a bound that allows anything"
        assert_within(out, ref, limit, f"D {head_dim}, T {seq_len}, {options}")


@pytest.mark.parametrize("head_dim", [64, 128])
def test_sums_past_the_largest_half(device: str, head_dim: int) -> None:
    """q k^T up to 8e5, 12 times the largest fp16: queries are scaled before, not after."""
    q, k, v = make_qkv(1, 2, 2, 200, 200, head_dim, torch.float16, device)
    q, k = torch.full_like(q, 80.0), torch.full_like(k, 80.0)
    k[:, :, 7] = -80.0
    out = attend(q, k, v, causal=0, fp16_accumulate=True)
    ref, _ = reference.attention(q, k, v, causal=0)
    assert_within(out, ref, 2e-3, "equal scores but one")


def test_where_it_is_used(device: str) -> None:
    """Prefill on CUDA takes the permission; decoding and the CPU have no use for it."""
    prefill = make_qkv(1, 4, 2, 256, 256, 128, torch.float16, device)
    decode = make_qkv(1, 4, 2, 1, 256, 128, torch.float16, device)
    for tensors, used in ((prefill, device == "cuda"), (decode, False)):
        out = flashint8.attention(*tensors, fp16_accumulate=True)
        exact = flashint8.attention(*tensors)
        if used:
            assert not torch.equal(out, exact)
        else:
            assert_same_bits(out, exact, "fp16_accumulate changed the result")
        again, _ = flashint8.attention_with_lse(*tensors, fp16_accumulate=True)
        assert_same_bits(again, out, "with lse")


def test_needs_float16(device: str) -> None:
    tensors = make_qkv(1, 2, 2, 20, 20, 64, torch.bfloat16, device)
    with refuses("attention: fp16_accumulate needs float16, got bfloat16"):
        flashint8.attention(*tensors, fp16_accumulate=True)
    with refuses("attention: fp16_accumulate needs float16, got bfloat16"):
        flashint8.attention(*(t.to("meta") for t in tensors), fp16_accumulate=True)
