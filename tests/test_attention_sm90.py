"""Hopper's prefill kernel: masks, lengths and layouts on problems large enough for its plan."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from checking import (
    assert_same_bits,
    assert_within,
    attend,
    attend_checked,
    int32,
    make_qkv,
    poison_outside,
)
from reference import attention as reference_attention
from torch import Tensor

import flashint8

DTYPES = [torch.float16, torch.bfloat16]
BATCH, HEADS, KV_HEADS = 3, 48, 16  # 144 blocks of queries: more than a Hopper card's processors
TILES = [(64, 192), (128, 128)]  # head_dim, queries of a block


@pytest.fixture
def hopper(cuda: str) -> str:
    card = flashint8.Card.of()
    built = flashint8.explain("attention", *[torch.empty(1, 1, 1, 64, device=cuda).half()] * 3)
    if card.compute_capability != 90 or built.details["code"] != "90a":
        pytest.skip(f"sm_90a code on a Hopper card alone, not {built.details['code']} on {card}")
    return cuda


def problem(seq_q: int, seq_kv: int, head_dim: int, dtype: torch.dtype, device: str) -> Any:
    return make_qkv(BATCH, HEADS, KV_HEADS, seq_q, seq_kv, head_dim, dtype, device)


def checked(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """attend_checked, by this kernel and no other."""
    plan = flashint8.explain("attention", q, k, v, *args, **kwargs)
    assert plan.kernel == "prefill_sm90", plan
    return attend_checked(q, k, v, *args, **kwargs)


@pytest.mark.sanitizer
@pytest.mark.parametrize(("head_dim", "block_m"), TILES)
def test_smallest_grid_on_cuda(hopper: str, head_dim: int, block_m: int) -> None:
    heads = flashint8.Card.of().sm_count
    for dtype in DTYPES:
        q, k, v = make_qkv(1, heads, heads, block_m, 150, head_dim, dtype, hopper)
        lengths, start = int32([141], hopper), int32([3], hopper)
        k, v = (poison_outside(t, start, lengths, math.nan) for t in (k, v))
        checked(q, k, v, lengths, start, window=70, softcap=20.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("seq_len", [192, 193, 255, 256, 257, 383, 384, 385, 500])
def test_lengths(hopper: str, seq_len: int, head_dim: int, dtype: torch.dtype) -> None:
    q, k, v = problem(seq_len, seq_len, head_dim, dtype, hopper)
    for causal in (0, 1, 2):
        checked(q, k, v, causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [40, 48, 56, 72, 80, 96, 104, 120])
def test_filled_head_dims(hopper: str, head_dim: int, dtype: torch.dtype) -> None:
    q, k, v = problem(260, 260, head_dim, dtype, hopper)
    checked(q, k, v)
    wide = torch.full((*k.shape[:-1], head_dim + 8), math.nan, dtype=dtype, device=hopper)
    wide[..., :head_dim] = v
    checked(q, k, wide[..., :head_dim])


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("seq_q", "seq_kv"), [(200, 1), (200, 450), (450, 200), (320, 700)])
def test_queries_and_keys_differ(hopper: str, seq_q: int, seq_kv: int, head_dim: int) -> None:
    q, k, v = problem(seq_q, seq_kv, head_dim, torch.float16, hopper)
    for causal in (0, 1, 2):
        checked(q, k, v, causal=causal)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("options", [{"causal": 0}, {}, {"causal": 2}, {"window": 90}], ids=str)
def test_keys_outside_the_bounds(
    hopper: str, options: dict, head_dim: int, dtype: torch.dtype
) -> None:
    """NaN wherever no query may look, also within a tile; a row that sees no key."""
    seq_q, seq_kv = 200, 420
    q, k, v = problem(seq_q, seq_kv, head_dim, dtype, hopper)
    for lengths, start in (
        (int32([420, 131, 257], hopper), None),
        (None, int32([0, 129, 290], hopper)),
        (int32([300, 0, 411], hopper), int32([7, 5, 200], hopper)),
    ):
        kp, vp = (poison_outside(t, start, lengths, math.nan) for t in (k, v))
        checked(q, kp, vp, lengths, start, **options)


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 64},
        {"window": 129, "causal": 2},
        {"softcap": 15.0},
        {"softcap": 5.0, "window": 200},
        {"scale": -0.05},
        {"scale": 0.0},
    ],
    ids=str,
)
def test_options(hopper: str, options: dict, head_dim: int) -> None:
    for dtype in DTYPES:
        q, k, v = problem(400, 400, head_dim, dtype, hopper)
        checked(q, k, v, **options)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_layouts(hopper: str, head_dim: int) -> None:
    """(B, T, H, D) memory, parts of one projection, a cache longer than its view."""
    for dtype in DTYPES:
        q, k, v = problem(250, 250, head_dim, dtype, hopper)
        want = checked(q, k, v)
        rows = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
        assert_same_bits(checked(*rows), want, "(B, T, H, D)")
        packed = torch.cat([t.transpose(1, 2).flatten(2) for t in (q, k, v)], dim=-1)
        widths = [t.shape[1] * head_dim for t in (q, k, v)]
        parts = packed.split(widths, dim=-1)
        views = [part.unflatten(-1, (-1, head_dim)).transpose(1, 2) for part in parts]
        assert_same_bits(checked(*views), want, "one projection")
        caches = []
        for t in (k, v):
            cache = torch.full((BATCH, KV_HEADS, 300, head_dim), math.nan, dtype=dtype)
            caches.append(cache.to(hopper))
            caches[-1][:, :, :250] = t
        assert_same_bits(checked(q, *(t[:, :, :250] for t in caches)), want, "a longer cache")


@pytest.mark.parametrize("head_dim", [64, 128])
def test_long(hopper: str, head_dim: int) -> None:
    """Past the length up to which blocks stay for several pieces of work; heads in sections."""
    q, k, v = make_qkv(1, 8, 2, 4300, 4300, head_dim, torch.float16, hopper)
    checked(q, k, v)
    q, k, v = make_qkv(1, 8, 8, 4000, 4000, head_dim, torch.float16, hopper)
    plan = flashint8.explain("attention", q, k, v)
    assert plan.details["num_blocks"] == flashint8.Card.of().sm_count
    checked(q, k, v)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_lse(hopper: str, head_dim: int) -> None:
    for dtype in DTYPES:
        q, k, v = problem(300, 300, head_dim, dtype, hopper)
        lengths = int32([300, 150, 0], hopper)
        plan = flashint8.explain("attention", q, k, v, lengths)
        assert plan.kernel == "prefill_sm90", plan
        _, lse = flashint8.attention_with_lse(q, k, v, lengths)
        _, want = reference_attention(q, k, v, lengths)
        _, low = reference_attention(q, k, v, lengths, dtype=dtype)
        limit = 2 * (low - want).abs().nan_to_num(nan=0.0).amax().item() + 1e-5
        assert_within(lse, want, limit, f"lse {dtype}")


@pytest.mark.parametrize("head_dim", [64, 128])
def test_same_bits_every_time(hopper: str, head_dim: int) -> None:
    q, k, v = problem(500, 500, head_dim, torch.float16, hopper)
    first = checked(q, k, v)
    for _ in range(5):
        assert_same_bits(attend(q, k, v), first, "again")


def test_left_to_the_portable_kernel(hopper: str) -> None:
    """Repeated keys, which the copy engine does not take, and sums in fp16."""
    q, k, v = make_qkv(BATCH, HEADS, 1, 300, 300, 64, torch.float16, hopper)
    expanded = [t.expand(-1, HEADS, -1, -1) for t in (k, v)]
    assert flashint8.explain("attention", q, *expanded).kernel == "prefill"
    attend_checked(q, *expanded)
    plan = flashint8.explain("attention", q, k, v, fp16_accumulate=True)
    assert plan.kernel == "prefill"
