"""What the operators mean, in plain passes. float64 unless a test asks for a lower precision."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def visible_keys(
    batch: int,
    seq_len_q: int,
    seq_len_kv: int,
    kv_lengths: Tensor | None,
    kv_start: Tensor | None,
    causal: int,
    window: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """(B, Tq, Tk) bool: the keys a query sees; (B, Tk) bool: the keys inside [start, length)."""
    # 1. first and last (exclusive) key of each row, clamped to the tensor
    first = torch.zeros(batch, dtype=torch.int64, device=device)
    last = torch.full((batch,), seq_len_kv, dtype=torch.int64, device=device)
    if kv_start is not None:
        first = kv_start.to(torch.int64).clamp(0, seq_len_kv)
    if kv_lengths is not None:
        last = kv_lengths.to(torch.int64).clamp(0, seq_len_kv)
    key = torch.arange(seq_len_kv, device=device)
    in_range = (key >= first[:, None]) & (key < last[:, None])  # (B, Tk)

    # 2. the diagonal: the last key that query i may see is i + diagonal
    query = torch.arange(seq_len_q, device=device)
    if causal == 0:
        return in_range[:, None, :].expand(batch, seq_len_q, seq_len_kv), in_range
    diagonal = last - seq_len_q if causal == 1 else torch.zeros_like(last)
    newest = query[None, :] + diagonal[:, None]  # (B, Tq)
    visible = in_range[:, None, :] & (key <= newest[:, :, None])

    # 3. the window counts the newest key itself
    if window > 0:
        visible = visible & (key > newest[:, :, None] - window)
    return visible, in_range


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_lengths: Tensor | None = None,
    kv_start: Tensor | None = None,
    *,
    causal: int = 1,
    window: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D) -> out (B, Hq, Tq, D), lse (B, Hq, Tq).

    dtype is the precision of every pass: float64 is the reference; q.dtype is what plain torch
    operators make of the same formula, the yardstick of FlashAttention's rule. Returned in float64.
    """
    batch, num_heads, seq_len_q, head_dim = q.shape
    num_kv_heads, seq_len_kv = k.shape[1], k.shape[2]
    scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
    visible, in_range = visible_keys(
        batch, seq_len_q, seq_len_kv, kv_lengths, kv_start, causal, window, q.device
    )
    visible = visible[:, None]  # (B, 1, Tq, Tk)

    # 1. each group of query heads reads one KV head; what lies outside [start, length) is nothing
    outside = ~in_range[:, None, :, None]
    k = k.to(dtype).masked_fill(outside, 0).repeat_interleave(num_heads // num_kv_heads, dim=1)
    v = v.to(dtype).masked_fill(outside, 0).repeat_interleave(num_heads // num_kv_heads, dim=1)

    # 2. scores (B, Hq, Tq, Tk)
    scores = (q.to(dtype) * scale) @ k.transpose(-1, -2)

    # 3. soft cap
    if softcap > 0:
        scores = softcap * torch.tanh(scores / softcap)

    # 4. mask, and the largest score of each row
    scores = scores.masked_fill(~visible, -math.inf)
    if seq_len_kv == 0:
        row_max = scores.new_full((batch, num_heads, seq_len_q, 1), -math.inf)
    else:
        row_max = scores.amax(dim=-1, keepdim=True)
    row_max = row_max.masked_fill(row_max == -math.inf, 0)  # a row that sees no key

    # 5. weights and their sum; 16-bit torch computes its softmax in float32 and rounds the result
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weights = torch.exp(scores.to(wide) - row_max.to(wide))
    row_sum = weights.sum(dim=-1, keepdim=True)

    # 6. weighted sum of the values; a row that sees no key gives 0
    weights = (weights / row_sum.masked_fill(row_sum == 0, 1)).to(dtype)
    out = weights @ v

    # 7. log-sum-exp, -inf where no key is seen
    lse = torch.log(row_sum) + row_max.to(wide)
    return out.double(), lse.squeeze(-1).double()


def int8_linear(
    x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x (..., K), weight (N, K) int8, scale (N,) -> (..., N) float64, and the sum of magnitudes.

    The second result, sum_k |x w s| + |bias|, is what a bound on the rounding of a sum scales with.
    """
    # 1. dequantise
    dequantised = weight.double() * weight_scale.double()[:, None]  # (N, K)

    # 2. product and bias
    out = x.double() @ dequantised.T
    magnitude = x.double().abs() @ dequantised.abs().T
    if bias is not None:
        out = out + bias.double()
        magnitude = magnitude + bias.double().abs()
    return out, magnitude


def activation(y: Tensor, name: str) -> Tensor:
    """y (...) float64 -> the same; "silu_mul": of the gate, before it is multiplied."""
    if name == "gelu":
        return 0.5 * y * torch.erfc(-y / math.sqrt(2))
    if name == "gelu_tanh":  # (1 + tanh(u)) / 2 = sigmoid(2 u)
        return y * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (y + 0.044715 * y**3))
    return y * torch.sigmoid(y)


def quantize_per_channel(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (N, K) -> int8 (N, K), float32 scale (N,): the definition, in its float32."""
    # 1. one scale a row
    weight = weight.float()
    n, k = weight.shape
    # (by a tensor: CUDA would multiply with the reciprocal of a number)
    largest = weight.abs().amax(dim=1) if k else torch.zeros(n, device=weight.device)
    scale = largest / torch.full_like(largest, 127)

    # 2. divide, round half to even, clamp; an all-zero row is all zeros
    quotient = weight / scale.masked_fill(scale == 0, 1)[:, None]
    return quotient.round().clamp(-127, 127).to(torch.int8), scale
