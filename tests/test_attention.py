"""attention: right for every length, head dimension, type, head grouping and mask."""

from __future__ import annotations

import math

import pytest
import torch
from checking import (
    attend,
    attend_checked,
    check_attention,
    dtypes_on,
    int32,
    make_qkv,
    poison_outside,
    randn,
)

HEAD_DIMS = [8, 16, 32, 40, 64, 72, 80, 96, 104, 128, 136, 160, 192, 256]
ODD_HEAD_DIMS = [1, 2, 3, 5, 7, 12, 15, 17, 31, 33, 63, 65, 100, 127, 129, 191, 255]


@pytest.mark.sanitizer
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("features", ["plain", "all"])
def test_every_path(device: str, head_dim: int, features: str) -> None:
    """Prefill and decode of each instantiated size, full and filled, aligned and not."""
    for dtype in dtypes_on(device):
        for dim in (head_dim, head_dim - 8):
            for seq_len_q, seq_len_kv in ((77, 77), (1, 130), (5, 67)):
                q, k, v = make_qkv(2, 4, 2, seq_len_q, seq_len_kv, dim, dtype, device)
                if features == "plain":
                    attend_checked(q, k, v)
                    continue
                lengths, start = int32([seq_len_kv - 3, 40], device), int32([2, 33], device)
                k, v = (
                    poison_outside(k, start, lengths, math.nan),
                    poison_outside(v, start, lengths, math.nan),
                )
                wide = randn(2, 2, seq_len_kv + 1, dim + 1, dtype=dtype, device=device)
                wide[:, :, 1:, 1:] = v  # unaligned rows: odd strides and an odd offset
                attend_checked(
                    q, k, wide[:, :, 1:, 1:], lengths, start, causal=1, window=50, softcap=20.0
                )


@pytest.mark.parametrize("seq_len", range(1, 131))
def test_every_length(device: str, seq_len: int) -> None:
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(2, 2, 1, seq_len, seq_len, 64, dtype, device)
        for causal in (0, 1, 2):
            attend_checked(q, k, v, causal=causal)
        long_k, long_v = make_qkv(2, 2, 1, 1, 131 - seq_len, 64, dtype, device)[1:]
        attend_checked(q, long_k, long_v, causal=1)
        attend_checked(q[:, :, -1:], k, v)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_dims(device: str, head_dim: int) -> None:
    for dtype in dtypes_on(device):
        for seq_len_q, seq_len_kv in ((67, 67), (1, 130), (33, 80)):
            q, k, v = make_qkv(2, 2, 2, seq_len_q, seq_len_kv, head_dim, dtype, device)
            attend_checked(q, k, v)


@pytest.mark.parametrize("head_dim", ODD_HEAD_DIMS)
def test_odd_head_dims_on_cpu(head_dim: int) -> None:
    for dtype in dtypes_on("cpu"):
        for seq_len_q, seq_len_kv in ((19, 19), (1, 66), (7, 35)):
            q, k, v = make_qkv(3, 2, 2, seq_len_q, seq_len_kv, head_dim, dtype, "cpu")
            attend_checked(q, k, v)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads"),
    [(1, 1), (4, 4), (4, 2), (8, 1), (9, 3), (7, 1), (5, 5), (63, 9), (63, 63), (32, 8), (48, 3)],
)
def test_head_groups(device: str, num_heads: int, num_kv_heads: int) -> None:
    for dtype in dtypes_on(device):
        for seq_len_q, seq_len_kv in ((1, 75), (3, 34), (21, 21)):
            q, k, v = make_qkv(2, num_heads, num_kv_heads, seq_len_q, seq_len_kv, 32, dtype, device)
            attend_checked(q, k, v)


@pytest.mark.parametrize("causal", [0, 1, 2])
@pytest.mark.parametrize(
    ("seq_len_q", "seq_len_kv"),
    [(1, 1), (1, 2), (2, 1), (5, 64), (64, 5), (17, 130), (130, 17), (65, 64), (64, 65), (128, 1)],
)
def test_query_and_key_counts(device: str, seq_len_q: int, seq_len_kv: int, causal: int) -> None:
    """Also more queries than keys: those aligned before the first key see none and give 0."""
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(2, 3, 1, seq_len_q, seq_len_kv, 40, dtype, device)
        out = attend_checked(q, k, v, causal=causal)
        if causal == 1 and seq_len_q > seq_len_kv:
            assert out[:, :, : seq_len_q - seq_len_kv].count_nonzero() == 0


@pytest.mark.parametrize("window", [1, 2, 7, 16, 33, 63, 64, 65, 128, 129, 2**40])
@pytest.mark.parametrize("causal", [1, 2])
def test_window(device: str, window: int, causal: int) -> None:
    for dtype in dtypes_on(device):
        for seq_len_q, seq_len_kv in ((130, 130), (1, 100), (6, 90), (40, 110), (70, 20)):
            q, k, v = make_qkv(2, 2, 1, seq_len_q, seq_len_kv, 64, dtype, device)
            attend_checked(q, k, v, causal=causal, window=window)


@pytest.mark.parametrize("softcap", [0.5, 5.0, 30.0, 50.0])
def test_softcap(device: str, softcap: float) -> None:
    for dtype in dtypes_on(device):
        for seq_len_q, seq_len_kv in ((70, 70), (2, 90)):
            q, k, v = make_qkv(2, 2, 1, seq_len_q, seq_len_kv, 64, dtype, device)
            attend_checked(q * 4, k, v, softcap=softcap)
            attend_checked(q * 4, k, v, softcap=softcap, causal=0, scale=0.3)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.125, 1.0, -0.2])
def test_scale(device: str, scale: float) -> None:
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(2, 2, 2, 40, 50, 64, dtype, device)
        attend_checked(q, k, v, scale=scale)
        attend_checked(q[:, :, :1], k, v, scale=scale)


BOUNDS = {  # name: (kv_lengths, kv_start), for 4 rows of 70 keys
    "lengths": ([1, 69, 70, 33], None),
    "start": (None, [0, 1, 69, 64]),
    "both": ([40, 70, 65, 33], [5, 64, 63, 32]),
    "zero": ([0, 70, 0, 1], None),
    "negative": ([-1, -(2**31), 12, 70], [-5, 0, -(2**31), 3]),
    "past": ([71, 2**31 - 1, 70, 100], [70, 71, 2**31 - 1, 0]),
    "empty": ([30, 10, 64, 1], [30, 11, 70, 1]),
}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_bounds(device: str, name: str, poison: float) -> None:
    """Keys outside [start, length) are poisoned: a kernel that reads and weighs them by 0 fails."""
    lengths, start = (int32(values, device) for values in BOUNDS[name])
    for dtype in dtypes_on(device):
        for seq_len_q in (1, 4, 70, 90):
            q, k, v = make_qkv(4, 4, 2, seq_len_q, 70, 32, dtype, device)
            k = poison_outside(k, start, lengths, poison)
            v = poison_outside(v, start, lengths, poison)
            for options in ({"causal": 0}, {"causal": 1}, {"causal": 2}, {"window": 9}):
                attend_checked(q, k, v, lengths, start, **options)


def test_bounds_of_any_stride(device: str) -> None:
    q, k, v = make_qkv(4, 2, 2, 3, 40, 64, torch.float16, device)
    table = torch.tensor([[9, 1], [40, 5], [33, 0], [20, 19]], dtype=torch.int32, device=device)
    attend_checked(q, k, v, table[:, 0], table[:, 1])
    attend_checked(q, k, v, int32([17], device).expand(4), int32([3], device).expand(4))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_equals_unpadded(device: str, side: str) -> None:
    lengths = [50, 1, 23, 37]
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(4, 4, 2, 50, 50, 64, dtype, device)
        if side == "left":
            start = int32([50 - n for n in lengths], device)
            kp, vp = (poison_outside(t, start, None, math.nan) for t in (k, v))
            out = attend_checked(q, kp, vp, None, start)
        else:
            ends = int32(lengths, device)
            kp, vp = (poison_outside(t, None, ends, math.nan) for t in (k, v))
            out = attend_checked(q, kp, vp, ends, causal=2)
        for b, n in enumerate(lengths):
            rows = slice(50 - n, 50) if side == "left" else slice(0, n)
            one = [t[b : b + 1, :, rows] for t in (q, k, v)]
            check_attention(out[b : b + 1, :, rows], *one, what=f"row {b} unpadded")


@pytest.mark.parametrize("chunk", [1, 5, 16, 64, 100])
def test_chunked_prefill_equals_full(device: str, chunk: int) -> None:
    """Prefill by pieces into a static cache: each piece sees what is there, the rest is NaN."""
    seq_len = 130
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(2, 4, 2, seq_len, seq_len, 64, dtype, device)
        pieces = []
        for begin in range(0, seq_len, chunk):
            end = min(begin + chunk, seq_len)
            length = int32([end, end], device)
            kp, vp = (poison_outside(t, None, length, math.nan) for t in (k, v))
            pieces.append(attend(q[:, :, begin:end], kp, vp, length))
        check_attention(torch.cat(pieces, dim=2), q, k, v, what=f"chunks of {chunk}")


@pytest.mark.parametrize("seq_len_q", range(1, 9))
def test_decode_with_long_cache(device: str, seq_len_q: int) -> None:
    """Lengths much shorter than the cache, and lengths that leave most splits empty."""
    for dtype in dtypes_on(device):
        for num_heads, num_kv_heads in ((8, 2), (3, 3)):
            q, k, v = make_qkv(3, num_heads, num_kv_heads, seq_len_q, 2100, 64, dtype, device)
            lengths, start = int32([2100, 1031, 9], device), int32([0, 1000, 5], device)
            attend_checked(q, k, v)
            attend_checked(q, k, v, window=300)
            k, v = (poison_outside(t, start, lengths, math.nan) for t in (k, v))
            attend_checked(q, k, v, lengths, start)


def test_large_batch_and_long(device: str) -> None:
    for dtype in dtypes_on(device):
        attend_checked(*make_qkv(70, 3, 1, 5, 40, 32, dtype, device))
        attend_checked(*make_qkv(1, 2, 1, 700, 700, 64, dtype, device))
        attend_checked(*make_qkv(1, 2, 1, 300, 900, 128, dtype, device), window=200)
