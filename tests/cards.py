"""Cards that need not be there, and the problems that plans for them are asked about."""

from __future__ import annotations

from typing import Any

import torch

from flashint8 import Card

CARDS = {
    "sm_80 A100": Card(compute_capability=80, sm_count=108, shared_memory_per_block=166912),
    "sm_86 3060 Laptop": Card(compute_capability=86, sm_count=30, shared_memory_per_block=101376),
    "sm_89 4060 Laptop": Card(compute_capability=89, sm_count=24, shared_memory_per_block=101376),
    "sm_90 H100": Card(compute_capability=90, sm_count=132, shared_memory_per_block=232448),
    "sm_120 5070 Laptop": Card(compute_capability=120, sm_count=36, shared_memory_per_block=101376),
}


def linear_args(m: int, n: int, k: int, dtype: torch.dtype = torch.float16) -> tuple:
    x = torch.empty(m, k, dtype=dtype, device="meta")
    weight = torch.empty(n, k, dtype=torch.int8, device="meta")
    return x, weight, torch.empty(n, device="meta")


def assert_fits(details: dict[str, Any], card: Card, what: str, *, converts: bool = False) -> None:
    """converts: weights are converted in the workspace."""
    assert 0 <= details["shared_bytes"] <= card.shared_memory_per_block, f"{what}: {details}"
    assert 1 <= details["num_warps"] <= 32, what
    assert details["workspace_bytes"] >= 0, what
    for name in ("num_splits", "num_blocks", "block_m", "block_n", "stages"):
        assert details[name] >= 1, f"{what}: {name} {details[name]}"
    if details["num_splits"] == 1 and not details.get("streamed_tiles") and not converts:
        assert details["workspace_bytes"] == 0, f"{what}: one split needs no workspace"
