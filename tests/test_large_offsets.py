"""Offsets past 2^31 elements: strides that jump far over memory nobody touches, and real sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from checking import (
    attend,
    check_attention,
    check_linear,
    check_linear_of_library,
    linear,
    make_qkv,
    quantised,
    randn,
)
from torch import Tensor

import flashint8

FAR = 2**31 + 64  # elements


@pytest.fixture
def room(device: str) -> Iterator[Tensor]:
    """2 FAR bytes that become real only where they are written (on the CPU)."""
    need = 2 * FAR + 2**20
    if device == "cuda" and torch.cuda.mem_get_info()[0] < 2 * need:
        pytest.skip("CUDA: less than 9 GB free")
    try:
        yield torch.empty(need, dtype=torch.int8, device=device)
    except (RuntimeError, MemoryError) as error:
        pytest.skip(f"4 GB of address space cannot be had here: {error}")
    if device == "cuda":
        torch.cuda.empty_cache()


def far_view(room: Tensor, values: Tensor, dim: int) -> Tensor:
    """`values` (two entries along dim) with the second of them FAR elements behind the first."""
    assert values.shape[dim] == 2
    strides = list(values.stride())
    strides[dim] = FAR
    return room.view(values.dtype).as_strided(values.shape, strides).copy_(values)


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("which", ["q", "k", "v"])
def test_attention_strides(device: str, room: Tensor, which: str, dim: int) -> None:
    """A stride of more than 2^31 elements in each dimension of each input."""
    tensors = dict(zip("qkv", make_qkv(2, 2, 2, 2, 2, 64, torch.float16, device), strict=True))
    views = dict(tensors)
    views[which] = far_view(room, tensors[which], dim)
    out = attend(*views.values())
    check_attention(out, *tensors.values(), what=f"{which} with a far dimension {dim}")
    assert out.untyped_storage().nbytes() < 2**20, "the output must not copy q's gap"


def test_linear_strides(device: str, room: Tensor) -> None:
    """Rows of int8 weights, and of x, more than 2^31 elements apart."""
    for m in (2, 20):
        x = randn(m, 64, dtype=torch.float16, device=device)
        weight, scale = quantised(2, 64, device)
        far = far_view(room, weight, 0)
        check_linear(linear(x, far, scale), x, weight, scale, None, what="far weight rows")
    x = randn(2, 64, dtype=torch.float16, device=device)
    far = far_view(room, x, 0)
    check_linear(linear(far, weight, scale), x, weight, scale, None, what="far rows of x")


def test_quantize_strides(device: str, room: Tensor) -> None:
    weight = randn(2, 40, dtype=torch.float16, device=device)
    for dim, values in ((0, weight), (1, weight[:, :2])):
        got = flashint8.quantize_per_channel(far_view(room, values.contiguous(), dim))
        want = flashint8.quantize_per_channel(values.contiguous())
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])


def test_meta_sizes_past_two_billion() -> None:
    """Shapes are 64-bit in the fake kernels."""
    q = torch.empty(3, 70_000, 20_000, 128, dtype=torch.float16, device="meta")
    out, lse = torch.ops.flashint8.attention_with_lse(q, q, q)
    assert out.shape == q.shape
    assert lse.shape == q.shape[:3]
    x = torch.empty(3_000_000, 4096, dtype=torch.float16, device="meta")
    weight = torch.empty(50_000, 4096, dtype=torch.int8, device="meta")
    scale = torch.empty(50_000, device="meta")
    assert torch.ops.flashint8.int8_linear(x, weight, scale).shape == (3_000_000, 50_000)


def test_attention_output_past_two_billion(cuda: str) -> None:
    """A real output of more than 2^31 elements; its last rows are checked."""
    heads, seq_len, dim = 17, 2**20 + 3, 128
    if torch.cuda.mem_get_info()[0] < 16e9:
        pytest.skip("CUDA: less than 16 GB free")
    q = torch.empty(1, heads, seq_len, dim, dtype=torch.float16, device=cuda).normal_()
    k = torch.empty(1, 1, seq_len, dim, dtype=torch.float16, device=cuda).normal_()
    assert q.numel() > 2**31
    out = flashint8.attention(q, k, k, window=64)
    for head in (0, heads - 1):
        tail = q[:, head : head + 1, -70:]
        got = out[:, head : head + 1, -70:]
        check_attention(got, tail, k[:, :, -200:], k[:, :, -200:], window=64, what="last rows")
    del q, k, out, tail, got
    torch.cuda.empty_cache()


def test_linear_output_past_two_billion(cuda: str) -> None:
    if torch.cuda.mem_get_info()[0] < 12e9:
        pytest.skip("CUDA: less than 12 GB free")
    m, n, k = 65_537, 32_768, 16
    x = torch.empty(m, k, dtype=torch.float16, device=cuda).normal_()
    weight, scale = quantised(n, k, cuda)
    out = flashint8.int8_linear(x, weight, scale)
    assert out.numel() > 2**31
    plan = flashint8.explain("int8_linear", x, weight, scale)
    check = check_linear_of_library if plan.kernel == "library" else check_linear
    check(out[-3:], x[-3:], weight, scale, None, what="last rows")
    del out
    torch.cuda.empty_cache()
