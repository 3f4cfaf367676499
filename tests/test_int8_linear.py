"""int8_linear: exact up to 16-bit rounding for any M, N, K, layout and scale."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from checking import (
    HOPPER_PROBLEMS,
    assert_close,
    assert_same_bits,
    assert_within,
    check_linear,
    dtypes_on,
    linear,
    linear_checked,
    quantised,
    randn,
)
from torch import Tensor, nn

import flashint8

EDGES = [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129]


def problem(
    m: int, n: int, k: int, dtype: torch.dtype, device: str, bias: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    x = randn(m, k, dtype=dtype, device=device)
    weight, scale = quantised(n, k, device)
    return x, weight, scale, randn(n, dtype=dtype, device=device) if bias else None


@pytest.mark.sanitizer
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 130, 130), (4, 33, 65), (8, 128, 96), (17, 65, 64), (70, 130, 129)],
)
def test_every_path(device: str, m: int, n: int, k: int, bias: bool) -> None:
    """A few rows and many, aligned and odd, with and without a bias."""
    for dtype in dtypes_on(device):
        linear_checked(*problem(m, n, k, dtype, device, bias))


@pytest.mark.sanitizer
@pytest.mark.parametrize(("m", "n", "k"), HOPPER_PROBLEMS)
def test_kernels_built_for_hopper(device: str, m: int, n: int, k: int) -> None:
    """Those alone that a sanitizer would not meet in smaller problems."""
    for dtype in dtypes_on(device):
        linear_checked(*problem(m, n, k, dtype, device))


@pytest.mark.parametrize("m", [*range(1, 40), 63, 64, 65, 127, 128, 129, 130, 257, 512])
def test_every_m(device: str, m: int) -> None:
    for dtype in dtypes_on(device):
        for n, k in ((64, 128), (51, 77)):
            linear_checked(*problem(m, n, k, dtype, device))


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize("which", ["n", "k"])
def test_edges(device: str, which: str, size: int) -> None:
    for dtype in dtypes_on(device):
        for m in (1, 3, 16, 50):
            n, k = (size, 96) if which == "n" else (40, size)
            linear_checked(*problem(m, n, k, dtype, device))
            linear_checked(*problem(m, size, size, dtype, device, bias=False))


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 768, 768), (1, 2304, 768), (5, 768, 3072), (33, 512, 4096), (300, 768, 260)],
)
def test_model_shapes(device: str, m: int, n: int, k: int) -> None:
    for dtype in dtypes_on(device):
        linear_checked(*problem(m, n, k, dtype, device))


@pytest.mark.parametrize("k", [8, 20, 100, 1000])
@pytest.mark.parametrize("m", [1, 8, 20, 33])
def test_ragged_rows_that_begin_on_a_boundary(device: str, m: int, k: int) -> None:
    """What stands between the end of a row and the next one means nothing."""
    for dtype in dtypes_on(device):
        x, weight, scale, bias = problem(m, 40, k, dtype, device)
        wide_x = x.new_full((m, k // 16 * 16 + 32), float("nan"))
        wide_weight = weight.new_full((40, k // 16 * 16 + 32), 127)
        wide_x[:, :k], wide_weight[:, :k] = x, weight
        linear_checked(wide_x[:, :k], wide_weight[:, :k], scale, bias)


@pytest.mark.parametrize("m", [40, 300])
def test_one_channel(device: str, m: int) -> None:
    """The row stride of a weight of one row means nothing: it may be any number."""
    for dtype in dtypes_on(device):
        x, weight, scale, bias = problem(m, 1, 128, dtype, device)
        wide = weight.new_full((1, 131), 127)
        wide[:, :128] = weight
        linear_checked(x, wide[:, :128], scale, bias)


@pytest.mark.parametrize("m", [2000, 4099])
def test_large_m(device: str, m: int) -> None:
    for dtype in dtypes_on(device):
        linear_checked(*problem(m, 48, 72, dtype, device))


def test_long_k(device: str) -> None:
    """Long sums stay in float32: 16-bit partial sums would be far out of the bound."""
    for dtype in dtypes_on(device):
        for m in (1, 9):
            linear_checked(*problem(m, 5, 30_000, dtype, device))
            x, weight, scale, _ = problem(m, 5, 8_192, dtype, device, bias=False)
            linear_checked(x.abs(), weight.abs(), scale)


@pytest.mark.sanitizer
@pytest.mark.parametrize("m", [1, 6])
@pytest.mark.parametrize("outlier", [30.0, 1e3, 3e4])
def test_outliers(device: str, m: int, outlier: float) -> None:
    """A row keeps its small values beside large ones, also where the large meet weights of 0."""
    for dtype in dtypes_on(device):
        x, weight, scale, bias = problem(m, 40, 300, dtype, device)
        x[m // 2, 7] = outlier
        weight[::2, 7] = 0
        out = linear_checked(x, weight, scale, bias)
        small = x.clone()
        small[m // 2, 7] = 0
        check_linear(out[:, ::2], small, weight[::2], scale[::2], bias[::2])  # type: ignore[index]


@pytest.mark.sanitizer
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 0.0, 1e-7])
def test_rows_of_special_values(device: str, value: float) -> None:
    """Infinity and NaN in a row stay in that row; rows of zeros or of tiny values are exact."""
    for dtype, m in itertools.product(dtypes_on(device), (3, 20)):
        x, weight, scale, bias = problem(m, 40, 100, dtype, device)
        weight[weight == 0] = 1
        whole = math.isfinite(value)
        x[1, slice(None) if whole else slice(5, 6)] = value
        out = linear(x, weight, scale, bias)
        keep = [row for row in range(m) if whole or row != 1]
        check_linear(out[keep], x[keep], weight, scale, bias)
        if not whole:
            expected = math.copysign(1.0, value) * weight[:, 5].sign().to(dtype) * math.inf
            if math.isnan(value):
                expected = torch.full_like(out[1], math.nan)
            torch.testing.assert_close(out[1], expected, equal_nan=True)


@pytest.mark.parametrize("power", [3, 6, 11, 14])
@pytest.mark.parametrize("m", [1, 9, 16, 33])
def test_rows_of_wide_range(device: str, m: int, power: int) -> None:
    """A value far above its row's others, that counts for nothing, takes no precision from them."""
    for dtype in dtypes_on(device):
        x, weight, scale, bias = problem(m, 40, 100, dtype, device)
        x[m // 2, 7] = 2.0**power
        weight[:, 7] = 0
        linear_checked(x, weight, scale, bias)


@pytest.mark.parametrize("k", [65_536, 65_550])
def test_long_rows_of_extreme_values(device: str, k: int) -> None:
    """Sums of the largest weights and inputs of one sign, as many as rows may be long, and more."""
    for dtype in dtypes_on(device):
        for m in (1, 9, 20):
            x = torch.full((m, k), 1.9921875, dtype=dtype, device=device)
            x[m // 2] *= -1
            weight = torch.full((5, k), -128, dtype=torch.int8, device=device)
            weight[1] = 127
            linear_checked(x, weight, torch.full((5,), 1e-4, device=device))


# ---- the promised tolerance ------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(256, 256), (768, 768), (33, 100)])
def test_promised_tolerance_against_linear(device: str, n: int, k: int) -> None:
    """QuantLinear against nn.Linear: rtol = atol = 2e-1."""
    for dtype in dtypes_on(device):
        float_layer = nn.Linear(k, n).to(device, dtype)
        layer = flashint8.QuantLinear.from_linear(float_layer)
        for m in (1, 7, 130):
            x = randn(m, k, dtype=dtype, device=device)
            with torch.no_grad():
                out, want = layer(x), float_layer(x)
            assert_close(out, want, rtol=2e-1, atol=2e-1, what=f"against nn.Linear, {dtype}")


# ---- shapes and layouts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "leading", [(), (1,), (2, 3), (2, 3, 4), (2, 1, 3, 1, 2), (1, 1, 1, 1, 1, 1), (0,), (2, 0, 3)]
)
def test_leading_shapes(device: str, leading: tuple[int, ...]) -> None:
    for dtype in dtypes_on(device):
        weight, scale = quantised(24, 40, device)
        x = randn(*leading, 40, dtype=dtype, device=device)
        linear_checked(x, weight, scale, randn(24, dtype=dtype, device=device))


@pytest.mark.parametrize(
    ("m", "n", "k"), [(0, 5, 8), (3, 0, 8), (3, 5, 0), (0, 0, 0), (1, 1, 1), (3, 1, 0)]
)
def test_empty_and_one(device: str, m: int, n: int, k: int) -> None:
    """K = 0 gives the bias, or zeros."""
    for dtype in dtypes_on(device):
        x, weight, scale, bias = problem(m, n, k, dtype, device)
        out = linear_checked(x, weight, scale, bias)
        if k == 0 and bias is not None:
            assert torch.equal(out, bias.expand(m, n))
            assert linear(x, weight, scale).count_nonzero() == 0


def strided_inputs(dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Views of x with a contiguous last dimension of 48, over memory that is otherwise NaN."""

    def room(*shape: int) -> Tensor:
        return torch.full(shape, math.nan, dtype=dtype, device=device)

    views = {
        "wider rows": room(9, 64)[:, 8:56],
        "odd rows": room(9, 51)[:, 1:49],
        "odd offset": room(9 * 48 + 1)[1:].view(9, 48),
        "every second row": room(18, 48)[::2],
        "transposed": room(5, 4, 48).transpose(0, 1),
        "four dimensions": room(3, 9, 7, 6, 50)[:, 1:3, ::2, 1:4, :48],
        "permuted": room(2, 3, 4, 48).permute(2, 0, 1, 3),
        "heads merged": room(2, 6, 5, 48).transpose(1, 2),
    }
    for name, view in views.items():
        views[name] = view.copy_(randn(*view.shape, dtype=dtype, device=device))
    views["one row for all"] = randn(1, 48, dtype=dtype, device=device).expand(6, 48)
    views["expanded middle"] = randn(3, 1, 2, 48, dtype=dtype, device=device).expand(3, 4, 2, 48)
    return views


@pytest.mark.sanitizer
def test_strided_x(device: str) -> None:
    """Rows of any stride are read in place; NaN beside them must not be touched."""
    for dtype in dtypes_on(device):
        for n in (40, 7):
            weight, scale = quantised(n, 48, device)
            for name, x in strided_inputs(dtype, device).items():
                assert x.stride(-1) == 1
                out = linear(x, weight, scale)
                check_linear(out, x, weight, scale, None, what=name)


@pytest.mark.parametrize("m", [1, 2, 16, 40])
def test_sliced_weight(device: str, m: int) -> None:
    """weight as rows and columns of a larger matrix whose other bytes are large."""
    for dtype in dtypes_on(device):
        x = randn(m, 70, dtype=dtype, device=device)
        for offset, width in ((0, 70), (16, 128), (3, 77), (1, 71)):
            room = torch.full((61, width + offset), 127, dtype=torch.int8, device=device)
            weight = room[5:55, offset : offset + 70]
            values, scale = quantised(50, 70, device)
            weight.copy_(values)
            linear_checked(x, weight, scale)
            linear_checked(x, weight[::3], scale[::3].contiguous())
        shared = torch.randint(-127, 128, (1, 70), dtype=torch.int8, device=device).expand(20, 70)
        linear_checked(x, shared, scale[:20])


# ---- values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-30, -20, -8, -3, 0, 4, 20, 30])
def test_extreme_scales(device: str, exponent: int) -> None:
    """Scales apply in float32, after the sum: it neither under- nor overflows on the way."""
    for dtype in dtypes_on(device):
        for m in (1, 20):
            x, weight, scale, bias = problem(m, 40, 200, dtype, device)
            scale = scale / scale.mean() * 10.0**exponent
            linear_checked(x, weight, scale)
            scale[::2] = 0.01
            scale[1::4] = 0
            linear_checked(x, weight, scale, bias)


def test_large_inputs_small_scale(device: str) -> None:
    """The unscaled sum is far past fp16's range, the result is not."""
    for m in (1, 3, 40):
        x = torch.full((m, 4096), 60000.0, dtype=torch.float16, device=device)
        weight = torch.full((24, 4096), 127, dtype=torch.int8, device=device)
        scale = torch.full((24,), 1e-9, device=device)
        out = linear_checked(x, weight, scale)
        assert_close(out, torch.full_like(out, 31.2), rtol=1e-2, atol=0, what="large x")


def test_whole_range_of_int8_is_exact(device: str) -> None:
    """Every int8 value, -128 too, times 1 and scale 1 comes back as it is, in every type."""
    values = torch.arange(-128, 128, dtype=torch.int8)
    for dtype in dtypes_on(device):
        for m in (1, 256):
            x = torch.eye(256)[:m].to(dtype).to(device)
            weight = values.repeat(5, 1).to(device)
            weight[1:] = weight[1:].flip(1)
            out = linear(x, weight, torch.ones(5, device=device))
            assert torch.equal(out.float(), weight.float().T[:m])


def test_nan_stays_in_its_row(device: str) -> None:
    for dtype in dtypes_on(device):
        for m in (3, 30):
            x, weight, scale, bias = problem(m, 20, 64, dtype, device)
            x[1, 5] = math.nan
            out = linear(x, weight, scale, bias)
            assert bool(out[1].isnan().all())
            keep = torch.arange(m, device=device) != 1
            check_linear(out[keep], x[keep], weight, scale, bias, what="rows beside a NaN")


@pytest.mark.parametrize("m", [1, 4, 30, 200])
def test_same_bits_on_repeat(device: str, m: int) -> None:
    for dtype in dtypes_on(device):
        x, weight, scale, bias = problem(m, 70, 1030, dtype, device)
        first = linear(x, weight, scale, bias)
        for _ in range(4):
            assert_same_bits(linear(x, weight, scale, bias), first, f"repeat {dtype}")


def test_error_is_that_of_rounding_alone(device: str) -> None:
    """Mean error against float64, beside that of torch's own 16-bit product of the same values."""
    for dtype in (torch.float16, torch.bfloat16):
        x, weight, scale, _ = problem(64, 256, 768, dtype, device, bias=False)
        want = x.double() @ (weight.double() * scale.double()[:, None]).T
        rounding = (want.to(dtype).double() - want).abs().mean()
        error = (linear(x, weight, scale).double() - want).abs().mean()
        assert_within(error, rounding, rounding * 0.02, f"mean error {dtype}")


def test_random_configuration(device: str, differential_index: int, request) -> None:
    seed = request.config.getoption("--seed") * 1_000_003 + differential_index
    rng = random.Random(f"linear {seed} {device}")
    torch.manual_seed(seed)
    m = rng.choice((1, rng.randint(1, 8), rng.randint(1, 40), rng.randint(1, 300)))
    n, k = (rng.choice((rng.randint(1, 300), 16 * rng.randint(1, 20))) for _ in "nk")
    dtype, bias = rng.choice(dtypes_on(device)), rng.random() < 0.5
    margins = [rng.choice((0, 0, 1, 8, 16)) for _ in range(4)]
    try:
        wide = torch.full((m, margins[0] + k + margins[1]), math.nan, dtype=dtype, device=device)
        x = wide[:, margins[0] : margins[0] + k].copy_(randn(m, k, dtype=dtype, device=device))
        room, scale = quantised(n, margins[2] + k + margins[3], device)
        weight = room[:, margins[2] : margins[2] + k]
        linear_checked(x, weight, scale, randn(n, dtype=dtype, device=device) if bias else None)
    except Exception as error:
        pytest.fail(f"seed {seed}: M {m} N {n} K {k} {dtype} {bias=} {margins=}: {error}")
