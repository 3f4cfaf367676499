"""`embed_`'s and `argmax_`'s argument checks in Python, message for message as in csrc/ops."""

import torch
from torch import Tensor

from flashint8._checks import (
    _check_float,
    _check_last_dim,
    _check_like,
    _check_shape,
    _check_typed,
    _check_vector,
)


def _check_dense(what: str, tensor: Tensor) -> None:
    """Contiguous; dimensions of one element may have any stride."""
    step = 1
    for d in range(tensor.dim() - 1, -1, -1):
        if tensor.shape[d] > 1 and tensor.stride(d) != step:
            raise ValueError(
                f"{what} must be contiguous, got stride {tensor.stride(d)} in dimension {d}"
            )
        step *= tensor.shape[d]


def check_embed(
    out: Tensor,
    tokens: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    positions: Tensor | None = None,
    position_weight: Tensor | None = None,
) -> None:
    """Checks `embed_`'s arguments."""
    if out.dim() != 3:
        raise ValueError(f"embed_: out must have 3 dimensions (B, T, C), got {out.dim()}")
    _check_float("embed_: out", out, out.device.type)
    _check_dense("embed_: out", out)
    batch, length, columns = out.shape
    _check_typed("embed_: tokens", tokens, torch.int64, "out", out)
    _check_shape("embed_: tokens", tokens, batch, length)
    _check_typed("embed_: weight", weight, torch.int8, "out", out)
    _check_shape("embed_: weight", weight, None, columns)
    _check_dense("embed_: weight", weight)
    if weight.shape[0] < 1:
        raise ValueError("embed_: weight must have at least 1 row, got 0")
    _check_typed("embed_: weight_scale", weight_scale, torch.float32, "out", out)
    _check_vector("embed_: weight_scale", weight_scale, weight.shape[0])
    if (positions is None) != (position_weight is None):
        raise ValueError("embed_: positions and position_weight must both be given, or neither")
    if positions is not None and position_weight is not None:
        _check_typed("embed_: positions", positions, torch.int32, "out", out)
        _check_shape("embed_: positions", positions, batch)
        _check_like("embed_: position_weight", position_weight, "out", out)
        _check_shape("embed_: position_weight", position_weight, None, columns)
        _check_dense("embed_: position_weight", position_weight)
        if position_weight.shape[0] < 1:
            raise ValueError("embed_: position_weight must have at least 1 row, got 0")


def check_argmax(out: Tensor, x: Tensor, positions: Tensor | None = None) -> None:
    """Checks `argmax_`'s arguments."""
    if x.dim() != 2:
        raise ValueError(f"argmax_: x must have 2 dimensions (M, N), got {x.dim()}")
    _check_float("argmax_: x", x, x.device.type)
    _check_last_dim("argmax_: x", x)
    if x.shape[1] < 1:
        raise ValueError("argmax_: x must have at least 1 column, got 0")
    _check_typed("argmax_: out", out, torch.int64, "x", x)
    _check_shape("argmax_: out", out, x.shape[0], 1)
    _check_dense("argmax_: out", out)
    if positions is not None:
        _check_typed("argmax_: positions", positions, torch.int32, "x", x)
        _check_shape("argmax_: positions", positions, x.shape[0])
        _check_dense("argmax_: positions", positions)
