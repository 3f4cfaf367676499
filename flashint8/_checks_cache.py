"""The argument checks of what writes a KV cache, message for message as in csrc/ops."""

import torch
from torch import Tensor

from flashint8._checks import (
    _check_float,
    _check_last_dim,
    _check_like,
    _check_row_numbers,
    _check_shape,
    _check_typed,
    _check_written,
    check_attention,
    shape_text,
)


def _check_heads(
    what: str, tensor: Tensor, q: Tensor, heads: int | None, tokens: int | None
) -> None:
    _check_like(what, tensor, "q", q)
    _check_shape(what, tensor, q.shape[0], heads, tokens, q.shape[3])
    _check_last_dim(what, tensor)


def _check_table(what: str, table: Tensor, q: Tensor, slots: int) -> None:
    _check_typed(what, table, torch.float32, "q", q)
    if table.dim() != 2:
        raise ValueError(f"{what} must have 2 dimensions (P, R), got {table.dim()}")
    _check_last_dim(what, table)
    rows, rotary_dim = table.shape
    if rotary_dim < 2 or rotary_dim % 2 != 0 or rotary_dim > q.shape[3]:
        raise ValueError(
            f"{what} must have an even number of columns from 2 to head_dim {q.shape[3]}, "
            f"got {rotary_dim}"
        )
    if rows < slots or rows < 1:
        raise ValueError(f"{what} must have a row for each of k_cache's {slots} slots, got {rows}")


def _check_append(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None = None,
    device_type: str | None = None,
) -> None:
    """Checks all but where q goes."""
    if q.dim() != 4:
        raise ValueError(f"{op}: q must have 4 dimensions (B, H, T, D), got {q.dim()}")
    _check_float(f"{op}: q", q, device_type or q.device.type)
    _check_last_dim(f"{op}: q", q)
    tokens = q.shape[2]
    _check_heads(f"{op}: k", k, q, None, tokens)
    _check_heads(f"{op}: v", v, q, k.shape[1], tokens)
    _check_heads(f"{op}: k_cache", k_cache, q, k.shape[1], None)
    _check_heads(f"{op}: v_cache", v_cache, q, k.shape[1], k_cache.shape[2])
    _check_row_numbers(f"{op}: positions", positions, q)
    _check_written(f"{op}: k_cache", k_cache)
    _check_written(f"{op}: v_cache", v_cache)
    if cos_sin is not None:
        _check_table(f"{op}: cos_sin", cos_sin, q, k_cache.shape[2])


def check_rope_append(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None = None,
) -> None:
    """Checks `rope_append_`'s arguments."""
    _check_append("rope_append_", q, k, v, k_cache, v_cache, positions, cos_sin)
    _check_written("rope_append_: q", q)


def check_attention_with_kvcache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None = None,
    *,
    scale: float | None = None,
    device_type: str | None = None,
) -> None:
    """Checks `attention_with_kvcache`'s arguments by the rules of `device_type` (None: q's)."""
    op = "attention_with_kvcache"
    _check_append(op, q, k, v, k_cache, v_cache, positions, cos_sin, device_type)
    if q.shape[2] != 1:
        raise ValueError(f"{op}: q must hold one token a row, (B, Hq, 1, D), got {shape_text(q)}")
    check_attention(q, k_cache, v_cache, positions, scale=scale, device_type=device_type, op=op)
