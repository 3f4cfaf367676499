"""The mini block: naive, SDPA and optimised forms of one transformer block agree."""

from __future__ import annotations

import pytest
import torch
from checking import assert_close, dtypes_on, randn
from torch import nn
from torch.profiler import ProfilerActivity, profile

from flashint8 import QuantLinear
from flashint8.models.mini_block import OptimizedMiniBlock, SdpaMiniBlock, TorchMiniBlock


def a_block(device: str, dtype: torch.dtype, embed_dim: int = 64, heads: int = 4) -> TorchMiniBlock:
    return TorchMiniBlock(embed_dim=embed_dim, num_heads=heads).to(device, dtype).eval()


@torch.no_grad()
def kernels_of(block: nn.Module, x: torch.Tensor) -> dict[str, int]:
    """Names and counts of the operators one forward pass dispatches."""
    block(x)
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        block(x)
    return {event.key: event.count for event in trace.key_averages()}


def test_defaults() -> None:
    with torch.device("meta"):
        block = TorchMiniBlock()
    weights = {tuple(p.shape) for p in block.parameters() if p.dim() == 2}
    assert {(2304, 768), (768, 768), (3072, 768), (768, 3072)} <= weights


@pytest.mark.parametrize("seq_len", [1, 17, 64])
def test_sdpa_block_equals_the_naive_one(device: str, seq_len: int) -> None:
    for dtype in dtypes_on(device):
        block = a_block(device, dtype)
        x = randn(2, seq_len, 64, dtype=dtype, device=device)
        with torch.no_grad():
            got, want = SdpaMiniBlock.from_torch(block)(x), block(x)
        tol = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
        assert got.shape == x.shape
        assert got.dtype == dtype
        assert_close(got, want, rtol=tol, atol=tol, what=f"SDPA block {dtype}")


@pytest.mark.parametrize("seq_len", [1, 17, 64])
@pytest.mark.parametrize(("embed_dim", "heads"), [(64, 4), (96, 3)])
def test_optimized_block_is_near(device: str, embed_dim: int, heads: int, seq_len: int) -> None:
    """Its weights are 8-bit: near in the sense of QuantLinear against nn.Linear."""
    for dtype in dtypes_on(device):
        block = a_block(device, dtype, embed_dim, heads)
        x = randn(2, seq_len, embed_dim, dtype=dtype, device=device)
        with torch.no_grad():
            got, want = OptimizedMiniBlock.from_torch(block)(x), block(x)
        assert got.shape == x.shape
        assert got.dtype == dtype
        assert_close(got, want, rtol=2e-1, atol=2e-1, what=f"optimised block {dtype}")
        error = (got.double() - want.double()).norm() / (want.double() - x.double()).norm()
        assert float(error) < 0.05, f"relative error of the branches {float(error):.3f}, {dtype}"


def test_optimized_block_equals_its_dequantised_self(device: str) -> None:
    """Against the naive block that holds the same, dequantised weights: rounding only."""
    for dtype in dtypes_on(device):
        block = a_block(device, dtype)
        optimized = OptimizedMiniBlock.from_torch(block)
        quantised = {n: m for n, m in optimized.named_modules() if isinstance(m, QuantLinear)}
        for linear in (m for m in block.modules() if isinstance(m, nn.Linear)):
            layer = QuantLinear.from_linear(linear)
            match = [q for q in quantised.values() if torch.equal(q.weight, layer.weight)]
            assert len(match) == 1, "each linear of the source is quantised once"
            linear.weight.data.copy_(layer.dequantize())
        x = randn(2, 33, 64, dtype=dtype, device=device)
        with torch.no_grad():
            got, want = optimized(x), block(x)
        tol = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
        assert_close(got, want, rtol=tol, atol=tol, what=f"same weights, {dtype}")


def test_every_linear_is_int8(device: str) -> None:
    block = a_block(device, torch.float16)
    optimized = OptimizedMiniBlock.from_torch(block)
    assert not any(isinstance(m, nn.Linear) for m in optimized.modules())
    assert sum(isinstance(m, QuantLinear) for m in optimized.modules()) == 4
    assert sum(isinstance(m, nn.Linear) for m in block.modules()) == 4, "the source is left alone"
    tensors = [*optimized.parameters(), *optimized.buffers()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    full = sum(t.numel() * t.element_size() for t in block.parameters())
    assert size < 0.6 * full, f"{size} bytes against {full}"


def test_operators_of_the_blocks(device: str) -> None:
    """Ours: one attention and four int8_linear dispatches; the naive block: what they replace."""
    dtype = torch.float16
    block = a_block(device, dtype)
    x = randn(2, 32, 64, dtype=dtype, device=device)
    ours = kernels_of(OptimizedMiniBlock.from_torch(block), x)
    assert ours["flashint8::attention"] == 1
    assert ours["flashint8::int8_linear"] == 4
    absent = ("aten::bmm", "aten::triu", "aten::tril", "aten::softmax", "aten::masked_fill")
    assert not [name for name in absent if name in ours]
    assert "aten::copy_" not in ours, "heads are views: nothing is copied"
    assert "aten::gelu" not in ours, "the product before it applies it"
    naive = kernels_of(block, x)
    assert "aten::bmm" in naive
    assert "aten::softmax" in naive
    assert "aten::triu" in naive or "aten::tril" in naive
    assert "aten::scaled_dot_product_attention" not in naive
    assert "aten::scaled_dot_product_attention" in kernels_of(SdpaMiniBlock.from_torch(block), x)


@pytest.mark.parametrize("kind", ["naive", "sdpa", "optimized"])
def test_blocks_are_causal(device: str, kind: str) -> None:
    block: nn.Module = a_block(device, torch.float16)
    if kind != "naive":
        block = {"sdpa": SdpaMiniBlock, "optimized": OptimizedMiniBlock}[kind].from_torch(block)
    x = randn(2, 24, 64, dtype=torch.float16, device=device)
    with torch.no_grad():
        before = block(x)
        x[:, 13] += 1
        after = block(x)
    assert_close(after[:, :13], before[:, :13], rtol=0, atol=1e-3, what="tokens before")
    assert float((after[:, 14:] - before[:, 14:]).abs().max()) > 1e-3


def test_state_dict_and_eval_modes(device: str) -> None:
    """A block converted on its own loads into another converted block."""
    first, second = (OptimizedMiniBlock.from_torch(a_block(device, torch.float16)) for _ in "ab")
    x = randn(1, 9, 64, dtype=torch.float16, device=device)
    with torch.no_grad():
        assert not torch.equal(first(x), second(x))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x), second(x))
