"""add_norm_ and silu_mul: values and layouts."""

from __future__ import annotations

import math

import pytest
import torch
from checking import HALF_ULP, SMALLEST, assert_same_bits, assert_within, dtypes_on, randn
from torch import Tensor
from torch.nn import functional as F

import flashint8

# ---- add_norm_ -------------------------------------------------------------------------------


def add_norm_checked(
    residual: Tensor,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    rms: bool = True,
) -> None:
    what = f"{tuple(residual.shape)} {residual.dtype} on {residual.device}, rms {rms}"
    stream = residual.clone() if x is None else residual + x
    out = flashint8.add_norm_(residual, x, weight, bias, eps=eps, rms=rms)
    assert out.is_contiguous()
    assert (out.shape, out.dtype, out.device) == (residual.shape, residual.dtype, residual.device)
    assert_same_bits(residual, stream, f"{what}: residual")
    exact = stream.double()
    centred = exact if rms else exact - exact.mean(-1, keepdim=True)
    inverse = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    product = centred * inverse * weight.double()
    shift = 0.0 if bias is None else bias.double()
    ref = product + shift
    largest = exact.abs().amax(-1, keepdim=True) * inverse * weight.double().abs()
    sums = (8 + math.sqrt(residual.shape[-1])) * 2.0**-23  # what float32 sums may lose
    bound = HALF_ULP[out.dtype] * ref.abs() + sums * (product.abs() + largest)
    assert_within(out, ref, bound + SMALLEST[out.dtype], f"{what}: out")


# Row lengths: one chunk, part of one, odd, a model's, more than a block keeps in registers.
COLUMNS = [1, 8, 13, 50, 576, 768, 4096, 5121, 16392]


@pytest.mark.parametrize("rms", [True, False], ids=["rms", "layer"])
@pytest.mark.parametrize("columns", COLUMNS)
def test_add_norm_values(device: str, columns: int, rms: bool) -> None:
    for dtype in dtypes_on(device):
        weight, bias = (randn(columns, dtype=dtype, device=device) for _ in range(2))
        for rows in ((3,), (2, 1, 2)):
            residual = randn(*rows, columns, dtype=dtype, device=device, scale=3.0) + 1
            x = randn(*rows, columns, dtype=dtype, device=device)
            add_norm_checked(residual.clone(), x, weight, rms=rms)
            add_norm_checked(residual.clone(), x, weight, bias, rms=rms, eps=1e-3)
            add_norm_checked(residual, None, weight, bias, rms=rms)


@pytest.mark.sanitizer
@pytest.mark.parametrize("columns", [24, 37])
def test_add_norm_layouts(device: str, columns: int) -> None:
    """Rows apart, on odd addresses, expanded, in four strided dimensions."""
    dtype = torch.float16
    weight = randn(columns, dtype=dtype, device=device)

    def odd(*shape: int) -> Tensor:
        return randn(*shape, columns + 3, dtype=dtype, device=device)[..., 1:-2]

    def even(*shape: int) -> Tensor:
        return randn(*shape, columns, dtype=dtype, device=device)

    odd_weight = torch.cat([weight[:1], weight])[1:]
    for residual, x in (
        (odd(4), even(4)),
        (even(4), odd(4)),
        (even(6)[::2], even(3)),
        (even(5, 4).transpose(0, 1), even(4, 1).expand(4, 5, columns)),
        (even(3, 3, 3, 3)[:2, :2, :2, :2], odd(2, 2, 2, 2)),
        (even(), None),
    ):
        for rms in (True, False):
            add_norm_checked(residual, x, weight, odd_weight, rms=rms)


def test_add_norm_is_torchs(device: str) -> None:
    """The formula's constants are those of torch.nn.functional."""
    residual, x = (randn(5, 96, dtype=torch.float16, device=device) for _ in range(2))
    weight, bias = (randn(96, dtype=torch.float16, device=device) for _ in range(2))
    wide = (residual + x).double()
    want = F.rms_norm(wide, (96,), weight.double(), 1e-6)
    got = flashint8.add_norm_(residual.clone(), x, weight, eps=1e-6)
    assert_within(got, want, 2e-3 * want.abs() + 1e-5, "rms_norm")
    want = F.layer_norm(wide, (96,), weight.double(), bias.double(), 1e-5)
    got = flashint8.add_norm_(residual, x, weight, bias, rms=False)
    assert_within(got, want, 2e-3 * want.abs() + 5e-4, "layer_norm")


def test_layer_norm_far_from_zero(device: str) -> None:
    """The mean is taken away before squaring: a large one costs no digits."""
    residual = 1000.0 + randn(4, 512, dtype=torch.float16, device=device, scale=2.0)
    add_norm_checked(residual, None, torch.ones_like(residual[0]), rms=False)


def test_add_norm_special_values(device: str) -> None:
    residual = torch.zeros(3, 16, dtype=torch.float16, device=device)
    residual[1, 3], residual[2, 5] = float("nan"), 60_000.0
    weight = torch.ones(16, dtype=torch.float16, device=device)
    out = flashint8.add_norm_(residual, residual.clone(), weight)
    assert bool((out[0] == 0).all())
    assert bool(out[1].isnan().all())
    assert residual[2, 5] == float("inf"), "the stream overflows as torch's addition does"


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (2, 0, 8)])
def test_add_norm_empty(device: str, shape: tuple[int, ...]) -> None:
    residual = torch.ones(shape, dtype=torch.float16, device=device)
    weight = torch.ones(shape[-1], dtype=torch.float16, device=device)
    out = flashint8.add_norm_(residual, residual.clone(), weight, weight)
    assert (out.shape, out.dtype) == (shape, torch.float16)


# ---- silu_mul --------------------------------------------------------------------------------


def silu_mul_checked(gate_up: Tensor) -> None:
    out = flashint8.silu_mul(gate_up)
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert out.is_contiguous()
    assert (out.dtype, out.device) == (gate_up.dtype, gate_up.device)
    ref = F.silu(gate) * up
    bound = HALF_ULP[out.dtype] + 2.0**-20 * (1 + gate.abs() / 8)
    what = f"silu_mul {tuple(gate_up.shape)} {gate_up.stride()} {gate_up.dtype}"
    assert_within(out, ref, bound * ref.abs() + SMALLEST[out.dtype] + 1e-32, what)


@pytest.mark.parametrize("columns", [1, 8, 13, 40, 1536, 11008])
def test_silu_mul_values(device: str, columns: int) -> None:
    for dtype in dtypes_on(device):
        for rows in ((), (1,), (7,), (2, 3)):
            silu_mul_checked(randn(*rows, 2 * columns, dtype=dtype, device=device, scale=4.0))
    silu_mul_checked(randn(70, 2 * columns, dtype=torch.bfloat16, device=device, scale=30.0))


@pytest.mark.sanitizer
@pytest.mark.parametrize("columns", [24, 11])
def test_silu_mul_layouts(device: str, columns: int) -> None:
    whole = randn(3, 3, 3, 3, 2 * columns + 8, dtype=torch.float16, device=device)
    for offset in (0, 1):
        part = whole[..., offset : offset + 2 * columns]
        silu_mul_checked(part)
        silu_mul_checked(part[:2, :2, :2, :2])
        silu_mul_checked(part[0, 0].transpose(0, 1))
        silu_mul_checked(part[0, 0, 0, :1].expand(5, 2 * columns))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (2, 0, 8)])
def test_silu_mul_empty(device: str, shape: tuple[int, ...]) -> None:
    out = flashint8.silu_mul(torch.ones(shape, dtype=torch.float16, device=device))
    assert (out.shape, out.dtype) == ((*shape[:-1], shape[-1] // 2), torch.float16)
