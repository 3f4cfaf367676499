"""The three transformer blocks that the block benchmark and the profiler compare."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

METHODS = ("torch_mini_block", "sdpa_block", "optimized_mini_block")


@dataclass(frozen=True)
class BlockCase:
    """Input (B, T, C) of a block with H heads."""

    batch: int
    seq_len: int
    embed_dim: int
    num_heads: int

    def as_json(self, dtype: torch.dtype) -> dict[str, Any]:
        """The row's ``case``."""
        return {
            "B": self.batch,
            "T": self.seq_len,
            "C": self.embed_dim,
            "H": self.num_heads,
            "dtype": str(dtype).removeprefix("torch."),
        }

    @property
    def flops(self) -> float:
        """Linears (12 C^2 weights with an MLP four times as wide) and causal attention."""
        tokens = self.batch * self.seq_len
        return 2.0 * tokens * 12 * self.embed_dim**2 + 2.0 * tokens * self.seq_len * self.embed_dim


def default_cases(device: torch.device) -> list[BlockCase]:
    """GPT-2's block, and on a GPU Llama-7B's width too."""
    if device.type == "cpu":
        return [BlockCase(1, t, 768, 12) for t in (128, 512)]
    small = [(1, 128), (1, 512), (1, 1024), (8, 512), (8, 1024)]
    return [BlockCase(b, t, 768, 12) for b, t in small] + [BlockCase(1, 1024, 4096, 32)]


def parse_shapes(text: str) -> list[BlockCase]:
    """``--shapes``: "B,T,C,H", several with ";" between."""
    try:
        return [BlockCase(*(int(x) for x in p.split(","))) for p in text.split(";") if p.strip()]
    except (TypeError, ValueError):
        raise SystemExit(f"--shapes takes B,T,C,H;..., got {text!r}") from None


def make_blocks(
    case: BlockCase, dtype: torch.dtype, device: torch.device, seed: int
) -> dict[str, nn.Module]:
    """The naive block, the same with SDPA, and ours with int8 weights; all from one set of weights.

    "reference" is the naive block in float64.
    """
    from flashint8.models import mini_block

    torch.manual_seed(seed)
    naive = mini_block.TorchMiniBlock(embed_dim=case.embed_dim, num_heads=case.num_heads)
    naive = naive.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return {
        "reference": copy.deepcopy(naive).double(),
        "torch_mini_block": naive,
        "sdpa_block": mini_block.SdpaMiniBlock.from_torch(naive).eval(),
        "optimized_mini_block": mini_block.OptimizedMiniBlock.from_torch(naive).eval(),
    }


def make_input(
    case: BlockCase, dtype: torch.dtype, device: torch.device, seed: int
) -> torch.Tensor:
    """Normal random (B, T, C)."""
    generator = torch.Generator(device=device).manual_seed(seed)
    shape = (case.batch, case.seq_len, case.embed_dim)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def weights_bytes(block: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    tensors = [*block.parameters(), *block.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)
