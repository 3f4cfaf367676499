"""quantize_per_channel(method="mse"): a smaller squared error in every row, and never a larger."""

from __future__ import annotations

import math

import pytest
import torch
from checking import assert_same_bits, dtypes_on, refuses
from torch import Tensor

import flashint8
from flashint8 import per_channel


def squared_error(weight: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """Of each row, in float64."""
    return (weight.double() - q.double() * scale.double()[:, None]).square().sum(-1)


def heavy(n: int, k: int) -> Tensor:
    """Rows with a few weights far larger than the rest."""
    weight = torch.randn(n, k)
    weight[:, :: max(1, k // 3)] *= torch.logspace(0, 2, n)[:, None]
    return weight


@pytest.mark.parametrize(("n", "k"), [(1, 1), (3, 7), (40, 300), (300, 40), (17, 4099)])
def test_error_is_never_larger(device: str, n: int, k: int) -> None:
    for weight in (torch.randn(n, k), heavy(n, k), torch.randn(n, k) * 1e-30, heavy(n, k) * 1e30):
        for dtype in dtypes_on(device):
            if weight.abs().max() > torch.finfo(dtype).max / 2:
                continue
            given = weight.to(device, dtype)
            absmax = squared_error(given, *flashint8.quantize_per_channel(given))
            q, scale = flashint8.quantize_per_channel(given, "mse")
            assert (q.dtype, scale.dtype) == (torch.int8, torch.float32)
            assert q.is_contiguous()
            assert scale.is_contiguous()
            assert int(q.abs().max()) <= 127
            assert bool((scale >= 0).all())
            mse = squared_error(given, q, scale)
            assert bool((mse <= absmax * (1 + 1e-6)).all()), (mse / absmax).max()


def test_heavy_rows_gain(device: str) -> None:
    """Clipping pays in long rows with very few large weights: a fifth of the error goes."""
    weight = torch.randn(4, 65536)
    weight[:, 7] = 100
    weight = weight.to(device, torch.float16)
    absmax = squared_error(weight, *flashint8.quantize_per_channel(weight)).sum()
    mse = squared_error(weight, *flashint8.quantize_per_channel(weight, "mse")).sum()
    assert mse < 0.8 * absmax, float(mse / absmax)


def test_near_the_best_scale_there_is() -> None:
    """An exhaustive search of 4000 scales finds at most 15% less error."""
    weight = heavy(6, 256)
    q, scale = flashint8.quantize_per_channel(weight, "mse")
    found = squared_error(weight, q, scale)
    best = torch.full((6,), math.inf, dtype=torch.float64)
    largest = weight.abs().amax(-1) / 127
    for share in torch.linspace(0.05, 1.0, 4000):
        s = largest * share
        rounded = (weight / s[:, None]).round().clamp(-127, 127)
        best = torch.minimum(best, squared_error(weight, rounded, s))
    assert bool((found <= 1.15 * best).all()), found / best


def test_rows_that_need_no_clip_stay(device: str) -> None:
    """Zeros, one weight, equal weights, and rows that are integers times a scale already."""
    rows = torch.zeros(4, 9)
    rows[1, 3] = -2.5
    rows[2] = 0.75
    rows[3] = torch.tensor([127.0, -127, 5, 0, 1, -64, 32, 99, -3]) * 0.125
    weight = rows.to(device, torch.float16)
    got, want = (flashint8.quantize_per_channel(weight, m) for m in ("mse", "absmax"))
    assert_same_bits(got[0], want[0], "q")
    assert_same_bits(got[1], want[1], "scale")


def test_the_same_bits_in_any_company(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On repeat, from any strides, and however the rows are cut into chunks."""
    weight = heavy(50, 130).to(device, torch.float16)
    q, scale = flashint8.quantize_per_channel(weight, "mse")
    monkeypatch.setattr(per_channel, "_CHUNK", 130 * 7)
    monkeypatch.setattr(per_channel, "_CHUNK_CUDA", 130 * 7)
    for same in (weight, weight.t().contiguous().t(), torch.cat([weight, weight], 1)[:, :130]):
        again = flashint8.quantize_per_channel(same, "mse")
        if device == "cpu":  # a GPU's reduction may be cut otherwise for fewer rows
            assert_same_bits(again[0], q, "q")
            assert_same_bits(again[1], scale, "scale")
        assert_same_bits(*(flashint8.quantize_per_channel(same, "mse")[0] for _ in range(2)), "q")


def test_errors_and_meta() -> None:
    weight = torch.randn(4, 5)
    with refuses("quantize_per_channel: method must be 'absmax' or 'mse', got 'best'"):
        flashint8.quantize_per_channel(weight, "best")
    weight[2, 1] = math.nan
    with refuses("quantize_per_channel: weight has a non-finite value in row 2"):
        flashint8.quantize_per_channel(weight, "mse")
    q, scale = flashint8.quantize_per_channel(torch.empty(4, 5, device="meta"), "mse")
    assert q.is_meta
    assert scale.is_meta
    for shape in ((0, 5), (5, 0)):
        q, scale = flashint8.quantize_per_channel(torch.empty(shape), "mse")
        assert q.shape == shape
        assert scale.shape == shape[:1]


def test_memory_is_bounded(cuda: str) -> None:
    """No copy of the whole weight in float32: a chunk and what works on it."""
    weight = torch.randn(8192, 8192, dtype=torch.float16, device=cuda)
    flashint8.quantize_per_channel(weight[:64], "mse")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    flashint8.quantize_per_channel(weight, "mse")
    added = torch.cuda.max_memory_allocated() - before
    vectors = 2**20  # a few values a row
    assert added < weight.numel() + 6 * 4 * per_channel._CHUNK_CUDA + vectors
