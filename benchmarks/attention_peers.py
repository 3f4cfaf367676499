"""Every way to compute causal attention that the benchmark compares, each pinned by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from attention_cases import AttentionCase
from baseline import naive_attention
from method import Method, Skipped
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa_efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa_math": SDPBackend.MATH,
    "sdpa_default": None,
}
# Methods that hold the whole score matrix are skipped where it would take more than this.
MATERIALISED_LIMIT_BYTES = {"cuda": 2 << 30, "cpu": 1 << 30}

Inputs = Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def peers(
    case: AttentionCase, buffers: Inputs, only: Sequence[str] | None = None
) -> list[Method | Skipped]:
    """Ours first, then every peer, on the same buffers.

    Args:
        case: the shape.
        buffers: one (q, k, v) or several to rotate through.
        only: names to keep (ours is always there).
    """
    import flashint8

    found: list[Method | Skipped] = [
        Method(
            "flashint8",
            [partial(flashint8.attention, *qkv) for qkv in buffers],
            ours=True,
        )
    ]
    device = buffers[0][0].device
    for name, backend in BACKENDS.items():
        if not only or name in only:
            found.append(sdpa(name, backend, case, buffers))
    if not only or "naive" in only:
        large = too_large(case, device, buffers[0][0].element_size())
        calls = [partial(naive_attention, *qkv) for qkv in buffers]
        found.append(Skipped("naive", large) if large else Method("naive", calls))
    return found


def too_large(case: AttentionCase, device: torch.device, itemsize: int) -> str:
    """Why a method that materialises the scores is skipped, or ""."""
    scores = case.batch * case.num_heads * case.seq_len_q * case.seq_len_kv * itemsize
    if scores <= MATERIALISED_LIMIT_BYTES[device.type]:
        return ""
    return f"its scores alone would take {scores / 2**30:.1f} GiB"


def sdpa(
    name: str, backend: SDPBackend | None, case: AttentionCase, buffers: Inputs
) -> Method | Skipped:
    """F.scaled_dot_product_attention on one backend, or on the one it chooses (None)."""
    q = buffers[0][0]
    if q.device.type == "cpu" and name in ("sdpa_cudnn", "sdpa_efficient"):
        return Skipped(name, "exists on CUDA only")
    if name == "sdpa_math":
        large = too_large(case, q.device, 4)
        if large:
            return Skipped(name, large)
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    if backend is not None:
        context = partial(sdpa_kernel, backend)
    options: dict[str, Any] = {}
    notes = []
    square = case.seq_len_q == case.seq_len_kv
    if square:
        options["is_causal"] = True
    elif case.seq_len_q > 1:  # is_causal would be aligned to the first key
        mask = torch.ones(case.seq_len_q, case.seq_len_kv, dtype=torch.bool, device=q.device)
        options["attn_mask"] = mask.tril(case.seq_len_kv - case.seq_len_q)
        notes.append("with a mask tensor")
    if case.num_heads != case.num_kv_heads:
        if runs(context, buffers[0], {**options, "enable_gqa": True}):
            options["enable_gqa"] = True
        else:
            group = case.num_heads // case.num_kv_heads
            buffers = [
                (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
                for q, k, v in buffers
            ]
            notes.append("has no GQA: key and value heads repeated beforehand, untimed")
    calls = [partial(F.scaled_dot_product_attention, *qkv, **options) for qkv in buffers]
    return Method(name, calls, context=context, note="; ".join(notes))


def runs(
    context: Callable[[], AbstractContextManager[Any]],
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    options: dict[str, Any],
) -> bool:
    """Whether the backend takes these arguments."""
    with warnings.catch_warnings(), context():
        warnings.simplefilter("ignore")
        try:
            F.scaled_dot_product_attention(*inputs, **options)
        except RuntimeError:
            return False
    return True
