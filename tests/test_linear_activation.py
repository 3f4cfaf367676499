"""The activation in int8_linear's epilogue: values, every kernel, edges of the gate."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from checking import (
    ACTIVATIONS,
    HALF_ULP,
    assert_close,
    assert_same_bits,
    dtypes_on,
    linear,
    linear_checked,
    quantised,
    randn,
)
from torch import Tensor

import flashint8

Problem = tuple[Tensor, Tensor, Tensor, Tensor | None]


def problem(m: int, n: int, k: int, dtype: torch.dtype, device: str, bias: bool = True) -> Problem:
    """y of a standard deviation of about 2, so that every part of the curves is met."""
    x = randn(m, k, dtype=dtype, device=device)
    weight, scale = quantised(n, k, device, spread=5 / math.sqrt(max(k, 1)))
    return x, weight, scale, randn(n, dtype=dtype, device=device) if bias else None


@pytest.mark.sanitizer
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_path(device: str, activation: str) -> None:
    """A few rows and many, aligned and odd, with and without a bias, a k that is split."""
    for dtype in dtypes_on(device):
        for m, n, k in ((1, 130, 130), (1, 64, 128), (5, 34, 65), (17, 66, 64), (70, 130, 128)):
            linear_checked(*problem(m, n, k, dtype, device, bias=n != 64), activation)


@pytest.mark.parametrize("m", [*range(1, 20), 31, 33, 63, 64, 65, 127, 129, 200, 300])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_m(device: str, activation: str, m: int) -> None:
    for dtype in dtypes_on(device):
        for n, k in ((64, 128), (50, 77), (2, 16)):
            linear_checked(*problem(m, n, k, dtype, device), activation)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 7, 8, 10, 14, 15, 16, 18, 30, 31, 32, 34, 65, 126])
def test_every_n(device: str, n: int) -> None:
    """Outputs of an odd number of columns, and pairs at the end of a tile."""
    for dtype in dtypes_on(device):
        for m, k in ((1, 96), (3, 33), (40, 64)):
            for activation in ACTIVATIONS if n % 2 == 0 else ACTIVATIONS[:-1]:
                linear_checked(*problem(m, n, k, dtype, device), activation)


@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(1, 3072, 768), (1, 3072, 576), (5, 1024, 4096), (33, 512, 4096), (150, 300, 1030)],
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_model_shapes(device: str, activation: str, m: int, n: int, k: int) -> None:
    for dtype in dtypes_on(device):
        linear_checked(*problem(m, n, k, dtype, device), activation)


@pytest.mark.parametrize("m", [513, 1100])
def test_large_m(device: str, m: int) -> None:
    """Where, without an activation, Hopper would take the library's product."""
    for dtype in dtypes_on(device):
        for activation in ACTIVATIONS:
            linear_checked(*problem(m, 40, 64, dtype, device), activation)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layouts(device: str, activation: str) -> None:
    """x of several dimensions, an output past a word's boundary, nothing at all."""
    for dtype in dtypes_on(device):
        for leading in ((), (2, 3), (2, 1, 3), (0,), (2, 0, 3)):
            weight, scale = quantised(24, 40, device)
            linear_checked(
                randn(*leading, 40, dtype=dtype, device=device), weight, scale, None, activation
            )
        for m, n, k in ((0, 4, 8), (3, 0, 8), (3, 4, 0)):
            linear_checked(*problem(m, n, k, dtype, device), activation)
        x, weight, scale, bias = problem(9, 40, 48, dtype, device)
        linear_checked(x.view(3, 3, 48).transpose(0, 1), weight, scale, bias, activation)


def line(low: float, high: float, count: int, device: str, dtype: torch.dtype) -> Tensor:
    return torch.linspace(low, high, count, device=device).to(dtype)[:, None]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_whole_curve(device: str, activation: str) -> None:
    """y is x itself, in float32 exactly: what is left is the activation's own error."""
    for dtype in dtypes_on(device):
        weight = torch.ones(2, 1, dtype=torch.int8, device=device)
        scale = torch.ones(2, device=device)
        for x in (
            line(-14, 14, 20_001, device, dtype),
            line(-1e-3, 1e-3, 2_001, device, dtype),
            line(-300, 300, 2_001, device, dtype),
        ):
            linear_checked(x, weight, scale, None, activation)
            for few in x[::97].split(5):
                linear_checked(few, weight, scale, None, activation)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_as_torch_has_it(device: str, activation: str) -> None:
    functions = {
        "gelu": F.gelu,
        "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
        "silu": F.silu,
    }
    for dtype in dtypes_on(device):
        x, weight, scale, bias = problem(40, 64, 128, dtype, device)
        out = linear(x, weight, scale, bias, activation)
        y = x.double() @ (weight.double() * scale.double()[:, None]).T + bias.double()
        want = functions[activation](y.float())
        tolerance = 1.01 * HALF_ULP[dtype] + 1e-6
        assert_close(out, want, rtol=tolerance, atol=1e-5, what=f"{activation} {dtype}")


@pytest.mark.parametrize("m", [3, 30])
def test_nan_and_infinity(device: str, m: int) -> None:
    """NaN stays NaN, in its row; positive infinity stays what it is; large values saturate."""
    for dtype in dtypes_on(device):
        weight = torch.ones(6, 8, dtype=torch.int8, device=device)
        scale = torch.ones(6, device=device)
        x = torch.ones(m, 8, dtype=dtype, device=device)
        x[1, 3], x[2, 3] = math.nan, math.inf
        large = 3e4 if dtype == torch.float16 else 1e19
        for activation in ACTIVATIONS:
            out = linear(x, weight, scale, None, activation)
            assert bool(out[1].isnan().all()), activation
            assert bool((out[2] == math.inf).all()), activation
            linear_checked(x[:1], weight, scale, None, activation)
            if activation != "silu_mul":
                wide = torch.full((m, 8), large, dtype=dtype, device=device)
                wide[:, 1:] = 0
                assert_same_bits(
                    linear(wide, weight, scale, None, activation)[:, 0], wide[:, 0], activation
                )
                low = linear(-wide, weight, scale, None, activation)
                assert float(low.abs().max()) < 1e-15, activation


def test_the_gate_is_the_even_row(device: str) -> None:
    """silu(y[2i]) * y[2i + 1], and not the other way round."""
    for dtype in dtypes_on(device):
        for m in (1, 40):
            gate, up = quantised(24, 64, device), quantised(24, 64, device)
            x = randn(m, 64, dtype=dtype, device=device)
            pairs = [torch.stack(two, dim=1).flatten(0, 1) for two in zip(gate, up, strict=True)]
            out = linear(x, *pairs, None, "silu_mul")
            want = F.silu(linear(x, *gate).float()) * linear(x, *up).float()
            assert_close(out, want, rtol=4 * HALF_ULP[dtype], atol=1e-3, what=f"{dtype} M {m}")


@pytest.mark.parametrize("m", [1, 30, 200])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_same_bits_on_repeat(device: str, activation: str, m: int) -> None:
    for dtype in dtypes_on(device):
        args = problem(m, 70, 1030, dtype, device)
        first = linear(*args, activation)
        for _ in range(3):
            assert_same_bits(linear(*args, activation), first, f"repeat {dtype}")


def test_autocast(device: str) -> None:
    x = torch.randn(3, 16, device=device)
    weight, scale = quantised(8, 16, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out = flashint8.int8_linear(x, weight, scale, activation="silu_mul")
    want = flashint8.int8_linear(x.bfloat16(), weight, scale, activation="silu_mul")
    assert_same_bits(out, want, "under autocast")
