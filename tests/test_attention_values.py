"""attention: hard values, the promised tolerance, batches, bits, log-sum-exp, empty tensors."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import reference
import torch
import torch.nn.functional as F
from checking import (
    HALF_ULP,
    assert_close,
    assert_same_bits,
    assert_within,
    attend,
    attend_checked,
    check_attention,
    dtypes_on,
    int32,
    make_qkv,
    poison_allocator,
    randn,
)

import flashint8


@pytest.mark.parametrize("magnitude", [10.0, 100.0, 1000.0])
def test_large_logits(device: str, magnitude: float) -> None:
    for dtype in dtypes_on(device):
        for seq_len_q in (1, 66):
            q, k, v = make_qkv(2, 2, 2, seq_len_q, 66, 64, dtype, device)
            attend_checked(q * magnitude, k, v)
            attend_checked(-q.abs() * magnitude, k.abs(), v)  # every score far below zero


def test_one_hot_logits(device: str) -> None:
    """Scores of 0 and 1e6, a step no rounding can blur: each query copies one value."""
    eye = torch.eye(64)[None, None] * 1000
    for dtype in dtypes_on(device):
        q = k = eye.to(dtype).to(device)
        v = randn(1, 1, 64, 64, dtype=dtype, device=device)
        rtol = 4 * HALF_ULP[dtype]
        out = attend(q, k, v, causal=0, scale=1.0)
        assert_close(out, v, rtol=rtol, atol=0, what=f"one-hot rows {dtype}")
        out = attend(q[:, :, 63:], k, v, scale=1.0)
        assert_close(out, v[:, :, 63:], rtol=rtol, atol=0, what=f"one-hot decode {dtype}")


def test_constant_rows(device: str) -> None:
    for dtype in dtypes_on(device):
        for seq_len_q in (1, 65):
            q = torch.full((2, 2, seq_len_q, 64), 0.5, dtype=dtype, device=device)
            k = torch.full((2, 2, 65, 64), -1.5, dtype=dtype, device=device)
            v = randn(2, 2, 65, 64, dtype=dtype, device=device)
            attend_checked(q, k, v)
            out = attend(q, k, torch.full_like(v, 0.75))
            assert_close(out, torch.full_like(out, 0.75), rtol=1e-3, atol=0, what="constant values")
            attend_checked(torch.zeros_like(q), k, v, causal=0)


def test_outliers(device: str) -> None:
    """One huge key, one huge value, one huge feature in every vector."""
    for dtype in dtypes_on(device):
        for seq_len_q in (2, 80):
            q, k, v = make_qkv(2, 2, 1, seq_len_q, 80, 64, dtype, device)
            huge_k, huge_v, spike = k.clone(), v.clone(), torch.ones_like(k[0, 0, 0])
            huge_k[:, :, 11] *= 50
            huge_v[:, :, 7] *= 9e3
            spike[3] = 40
            attend_checked(q, huge_k, v)
            attend_checked(q, k, huge_v)
            attend_checked(q * spike, k * spike, v)


def test_largest_values_do_not_overflow(device: str) -> None:
    """Averages of the largest finite numbers stay finite: sums are float32, divided at the end."""
    for dtype in (torch.float16, torch.bfloat16):
        limit = torch.finfo(dtype).max * (1.0 if dtype == torch.float16 else 2.0**-20)
        v = torch.full((1, 1, 70, 32), limit, dtype=dtype, device=device)
        q, k, _ = make_qkv(1, 1, 1, 70, 70, 32, dtype, device)
        out = attend(q, k, v)
        assert_close(out, v, rtol=2.0**-7, atol=0, what=f"largest {dtype}")


def test_nan_stays_in_its_row(device: str) -> None:
    """A NaN in one batch row or one query does not leak into the others."""
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(2, 2, 2, 20, 20, 64, dtype, device)
        clean = attend(q, k, v)
        bad = q.clone()
        bad[1, 0, 5] = math.nan
        out = attend(bad, k, v)
        assert bool(out[1, 0, 5].isnan().all())
        out[1, 0, 5] = clean[1, 0, 5]
        assert_same_bits(out, clean, f"rows beside a NaN, {dtype}")


# ---- the promised tolerance, batches, bits ---------------------------------------------------


@pytest.mark.parametrize("seq_len", [1, 64, 128, 257])
@pytest.mark.parametrize("is_causal", [False, True])
def test_promised_tolerance_against_torch(device: str, seq_len: int, is_causal: bool) -> None:
    """Attention against torch.nn.functional in fp16: rtol = atol = 1e-2."""
    q, k, v = make_qkv(2, 4, 4, seq_len, seq_len, 64, torch.float16, device)
    out = attend(q, k, v, causal=2 if is_causal else 0)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    assert_close(out, want, rtol=1e-2, atol=1e-2, what="against torch.nn.functional")


@pytest.mark.parametrize("seq_len_q", [1, 3, 64])
def test_batch_rows_are_independent(device: str, seq_len_q: int) -> None:
    """Identical rows give identical bits; a row of a batch is right and near the row alone."""
    for dtype in dtypes_on(device):
        one = make_qkv(1, 4, 2, seq_len_q, 100, 64, dtype, device)
        same = attend(*(t.repeat(5, 1, 1, 1) for t in one))
        for b in range(1, 5):
            assert_same_bits(same[b], same[0], f"row {b} of identical rows, {dtype}")
        q, k, v = make_qkv(5, 4, 2, seq_len_q, 100, 64, dtype, device)
        batch = attend(q, k, v)
        for b in range(5):
            rows = [t[b : b + 1] for t in (q, k, v)]
            check_attention(batch[b : b + 1], *rows, what=f"row {b} of a batch")
            check_attention(attend(*rows), *rows, what=f"row {b} alone")


@pytest.mark.parametrize(("seq_len_q", "seq_len_kv"), [(1, 1500), (4, 600), (130, 130)])
def test_same_bits_on_repeat(device: str, seq_len_q: int, seq_len_kv: int) -> None:
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(2, 4, 2, seq_len_q, seq_len_kv, 64, dtype, device)
        lengths = int32([seq_len_kv, seq_len_kv // 2 + 1], device)
        first = attend(q, k, v, lengths)
        for _ in range(4):
            assert_same_bits(attend(q, k, v, lengths), first, f"repeat, {dtype}")


def test_same_bits_from_several_threads(device: str) -> None:
    q, k, v = make_qkv(2, 4, 2, 70, 70, 64, torch.float16, device)
    want = flashint8.attention(q, k, v)
    with ThreadPoolExecutor(4) as pool:
        outs = list(pool.map(lambda _: flashint8.attention(q, k, v), range(16)))
    for out in outs:
        assert_same_bits(out, want, "called from four threads")


def test_inputs_are_left_alone(device: str) -> None:
    tensors = [*make_qkv(2, 2, 1, 9, 20, 64, torch.float16, device), int32([20, 3], device)]
    copies = [t.clone() for t in tensors]
    attend(*tensors)
    for t, copy in zip(tensors, copies, strict=True):
        assert torch.equal(t, copy)


# ---- log-sum-exp, empties --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seq_len_q", "seq_len_kv"), [(1, 1), (66, 66), (1, 900), (5, 300), (40, 9)]
)
@pytest.mark.parametrize("options", [{}, {"causal": 0}, {"window": 5}, {"softcap": 10.0}], ids=str)
def test_lse(device: str, seq_len_q: int, seq_len_kv: int, options: dict) -> None:
    """Natural logarithm, float32, -inf where no key is seen; the output is attention's."""
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(3, 4, 2, seq_len_q, seq_len_kv, 64, dtype, device)
        lengths = int32([seq_len_kv, seq_len_kv // 2, 0], device)
        poison_allocator(q, (q.shape[:3], torch.float32, device))
        out, lse = flashint8.attention_with_lse(q, k, v, lengths, **options)
        assert lse.shape == q.shape[:3]
        assert lse.dtype == torch.float32
        assert lse.is_contiguous()
        check_attention(out, q, k, v, lengths, **options)
        _, want = reference.attention(q, k, v, lengths, **options)
        _, low = reference.attention(q, k, v, lengths, **options, dtype=dtype)
        limit = 2 * (low - want).abs().nan_to_num(nan=0.0).amax().item() + 1e-5
        assert_within(lse, want, limit, f"lse {dtype} {options}")


def test_lse_merges_halves(device: str) -> None:
    """Two halves of the keys, merged by their lse, are the whole: what lse is for."""
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(2, 2, 2, 10, 80, 64, dtype, device)
        left, lse_left = flashint8.attention_with_lse(q, k[:, :, :30], v[:, :, :30], causal=0)
        right, lse_right = flashint8.attention_with_lse(q, k[:, :, 30:], v[:, :, 30:], causal=0)
        share = torch.sigmoid(lse_left - lse_right)[..., None]
        merged = share * left.float() + (1 - share) * right.float()
        ref, _ = reference.attention(q, k, v, causal=0)
        assert_close(merged, ref, rtol=1e-2, atol=1e-2, what=f"merged halves {dtype}")


@pytest.mark.parametrize("empty", ["batch", "heads", "queries", "keys"])
def test_empty(device: str, empty: str) -> None:
    for dtype in dtypes_on(device):
        sizes = {"batch": 2, "heads": 4, "queries": 3, "keys": 5} | {empty: 0}
        batch, heads = sizes["batch"], sizes["heads"]
        q, k, v = make_qkv(
            batch, heads, heads // 2, sizes["queries"], sizes["keys"], 64, dtype, device
        )
        lengths, start = int32([5] * batch, device), int32([0] * batch, device)
        for causal in (0, 1, 2):
            out = attend(q, k, v, lengths, start, causal=causal)
            assert out.count_nonzero() == 0
            out, lse = flashint8.attention_with_lse(q, k, v, causal=causal)
            assert out.count_nonzero() == 0
            assert lse.shape == q.shape[:3]
            assert bool((lse == -math.inf).all())


@pytest.mark.parametrize("window", [265, 2**31, 2**62, 2**63 - 100, 2**63 - 1])
def test_window_wider_than_everything_is_none(device: str, window: int) -> None:
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(1, 2, 1, 200, 65, 16, dtype, device)
        want = attend(q, k, v)
        assert_same_bits(attend(q, k, v, window=window), want, f"window {window} {dtype}")


@pytest.mark.parametrize("softcap", [1.0, 30.0, 300.0, 1e4, 1e7, 1e30])
def test_softcap_of_any_size(device: str, softcap: float) -> None:
    """Small scores under a large cap keep their digits."""
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(1, 2, 2, 70, 70, 32, dtype, device)
        attend_checked(q, k, v, softcap=softcap)
