"""quantize_per_channel: the definition, its error bound, and what it rejects."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from checking import assert_same_bits, poison_allocator, randn, refuses
from torch import Tensor

import flashint8

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """On memory full of NaN (bytes of -1 for int8); shapes, dtypes and layout checked."""
    n = weight.shape[0]
    poison_allocator(((n,), torch.float32, weight.device))
    q, scale = flashint8.quantize_per_channel(weight)
    assert q.shape == weight.shape
    assert q.dtype == torch.int8
    assert q.is_contiguous()
    assert scale.shape == (n,)
    assert scale.dtype == torch.float32
    assert scale.is_contiguous()
    assert q.device == weight.device
    assert scale.device == weight.device
    return q, scale


def check(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The definition to the last bit, and |w - q s| <= s / 2 up to the rounding of the scale."""
    q, scale = quantise(weight)
    want_q, want_scale = reference.quantize_per_channel(weight)
    assert_same_bits(scale, want_scale, f"scale of {tuple(weight.shape)} {weight.dtype}")
    assert_same_bits(q, want_q, f"q of {tuple(weight.shape)} {weight.dtype}")
    if weight.numel():
        assert int(q.min()) >= -127
        error = (weight.double() - q.double() * scale.double()[:, None]).abs()
        slack = scale.double()[:, None] * (0.5 + 127 * 2.0**-22)
        assert bool((error <= slack).all()), f"worst {(error / slack).max().item()} of s / 2"
    return q, scale


@pytest.mark.sanitizer
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small(device: str, dtype: torch.dtype) -> None:
    for n, k in ((1, 1), (3, 33), (17, 130), (130, 16)):
        check(randn(n, k, dtype=dtype, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 7, 8, 31, 64, 100, 255, 256, 257, 1000, 4099])
def test_definition(device: str, dtype: torch.dtype, k: int) -> None:
    for n in (1, 5, 64):
        check(randn(n, k, dtype=dtype, device=device, scale=0.02))


@pytest.mark.parametrize(("n", "k"), [(0, 5), (5, 0), (0, 0)])
def test_empty(device: str, n: int, k: int) -> None:
    for dtype in DTYPES:
        _, scale = check(torch.zeros(n, k, dtype=dtype, device=device))
        assert scale.count_nonzero() == 0


def test_large(device: str) -> None:
    check(randn(3000, 513, dtype=torch.float32, device=device))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero_rows(device: str, dtype: torch.dtype) -> None:
    weight = randn(9, 70, dtype=dtype, device=device)
    weight[::2] = 0
    weight[4] = -0.0
    q, scale = check(weight)
    assert q[::2].count_nonzero() == 0
    assert scale[::2].count_nonzero() == 0
    assert bool((scale[1::2] > 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_round_to_even(device: str, dtype: torch.dtype) -> None:
    """max |w| = 127 makes the scale exactly 1, so that halves are halves."""
    row = [127.0, 0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5, 0.0, 60.5, 61.5, -60.5, -61.5]
    want = [127, 0, 2, 2, 4, 0, -2, -2, -4, 0, 60, 62, -60, -62]
    q, scale = check(torch.tensor([row, [-w for w in row]], dtype=dtype, device=device))
    assert scale.tolist() == [1, 1]
    assert q[0].tolist() == want
    assert q[1].tolist() == [-w for w in want]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_column_and_one_outlier(device: str, dtype: torch.dtype) -> None:
    weight = randn(40, 1, dtype=dtype, device=device)
    q, _ = check(weight)
    assert torch.equal(q.float(), 127 * weight.float().sign())
    weight = randn(4, 200, dtype=dtype, device=device, scale=0.01)
    weight[1, 77] = 100
    q, _ = check(weight)
    assert int(q[1, 77]) == 127
    assert int(q[1].count_nonzero()) == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_magnitudes(device: str, dtype: torch.dtype) -> None:
    for factor in (torch.finfo(dtype).max, torch.finfo(dtype).tiny * 2**8):
        unit = torch.linspace(-1, 1, 255)[None].repeat(3, 1)
        check((unit.double() * factor).to(dtype).to(device))


def test_denormal_rows_stay_finite(device: str) -> None:
    """Rows so small that the scale itself is a denormal, or rounds to zero."""
    weight = torch.zeros(4, 64, device=device)
    for row, value in enumerate((1e-38, 1e-40, 1e-43, 1e-45)):
        weight[row, :8] = value
    q, scale = quantise(weight)
    assert bool(scale.isfinite().all())
    assert q[:, 8:].count_nonzero() == 0
    error = (q.double() * scale.double()[:, None] - weight.double()).abs()
    assert float(error.max()) < 1e-38


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_non_finite_names_the_first_row(device: str, dtype: torch.dtype, value: float) -> None:
    for n, k, row, column in ((1, 1, 0, 0), (6, 40, 0, 39), (6, 33, 5, 0), (300, 257, 123, 200)):
        weight = randn(n, k, dtype=dtype, device=device)
        weight[row, column] = value
        weight[n - 1, k - 1] = value
        with refuses(f"quantize_per_channel: weight has a non-finite value in row {row}"):
            flashint8.quantize_per_channel(weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(device: str, dtype: torch.dtype) -> None:
    """Transposed, sliced, stepped and expanded weights; the memory beside them is NaN."""
    room = torch.full((50, 81), math.nan, dtype=dtype, device=device)
    part = room[3:45, 1:78].copy_(randn(42, 77, dtype=dtype, device=device))
    base = part.contiguous()
    want = quantise(base)
    for name, weight in {"sliced": part, "column-major": base.T.contiguous().T}.items():
        for got, expected in zip(check(weight), want, strict=True):
            assert_same_bits(got, expected, name)
    check(base.T)
    check(part.T)
    check(base[:, ::3])
    check(base[::5].T[::2])
    check(base[:1].expand(6, 77))
    check(base[:, :1].expand(42, 9))
    check(base.flatten()[1:78].view(7, 11))


def test_round_trip_is_stable(device: str) -> None:
    """Quantising the dequantised weight again gives the same integers."""
    weight = randn(30, 100, dtype=torch.float32, device=device)
    q, scale = quantise(weight)
    again, scale_again = quantise(q.float() * scale[:, None])
    assert_same_bits(again, q, "second quantisation")
    assert torch.allclose(scale_again, scale, rtol=1e-6, atol=0)


def test_same_bits_on_repeat(device: str) -> None:
    weight = randn(70, 300, dtype=torch.bfloat16, device=device)
    q, scale = quantise(weight)
    for _ in range(3):
        again = quantise(weight)
        assert_same_bits(again[0], q, "q again")
        assert_same_bits(again[1], scale, "scale again")
