"""The operators as functions: thin, since the checks and the dispatch live in C++."""

import re

import torch
from torch import Tensor

from flashint8 import _layout, ops

_attention = ops.attention
_attention_with_lse = ops.attention_with_lse
_int8_linear = ops.int8_linear
_is_grad_enabled = torch.is_grad_enabled
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled  # one flag, for every device type

_AUTOCAST_INPUTS = (torch.float16, torch.bfloat16, torch.float32)


def _autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype autocast wants on this tensor's device; None where it is off."""
    device_type = tensor.device.type
    if device_type in ("cpu", "cuda") and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype in _AUTOCAST_INPUTS else tensor


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
    fp16_accumulate: bool = False,
) -> Tensor:
    """Exact attention, softmax(scale * q k^T) v, in one kernel without a score or mask tensor.

    Blocked with an online softmax: Dao et al., "FlashAttention" (arXiv:2205.14135) and
    "FlashAttention-2" (arXiv:2307.08691); Milakov and Gimelshein (arXiv:1805.02867).

    Batch row b sees keys ``kv_start[b] <= j < kv_lengths[b]``, both clamped to [0, Tk]. A query
    that sees no key gives 0. Sums are kept in float32.

    Args:
        q: (B, Hq, Tq, D), float16 or bfloat16, on the CPU float32 too. Any strides, as long as the
            last dimension is contiguous; the same holds for k and v, and nothing is copied.
        k: (B, Hkv, Tk, D), q's dtype. Hq is a multiple of Hkv: query head h reads KV head
            h // (Hq // Hkv) (grouped-query attention, arXiv:2305.13245).
        v: (B, Hkv, Tk, D), q's dtype.
        kv_lengths: (B,) int32, where each row's keys end; default Tk.
        kv_start: (B,) int32, where they begin (left padding); default 0.
        causal: 0 none; 1 aligned to the end, the last query sees key ``kv_lengths[b] - 1``
            (decoding with a cache); 2 aligned to the start, query i sees keys j <= i.
        window: w > 0 (with causal only): a query whose last key is d sees keys j > d - w, itself
            included (sliding window); -1 none.
        softcap: c > 0: scores become c * tanh(score / c) before the softmax (Gemma 2,
            arXiv:2408.00118); 0 none.
        scale: multiplies the scores; default 1 / sqrt(D).
        fp16_accumulate: allows q k^T to be summed in float16 (float16 tensors only), which GeForce
            cards multiply twice as fast; the CUDA prefill kernel does so, all others sum in float32
            as ever. Each sum loses up to a unit in its last place (of 11 bits) every 16 products:
            scale times a score is off by at most D * 2**-14 * scale * sum_i |q_i k_i|.

    Returns:
        (B, Hq, Tq, D) in q's dtype and memory order: a transposed (B, T, H, D) view gives a
        transposed (B, T, H, D) view back. Under autocast q, k and v are cast first.

    Raises:
        ValueError: an argument's shape, dtype, device, stride or value; the message names it. D is
            at most 256, on CUDA a multiple of 8.
        RuntimeError: no built code runs on this GPU; or, in a backward pass, that there is none.
    """
    if _is_any_autocast_enabled() and (dtype := _autocast_dtype(q)) is not None:
        q, k, v = _cast(q, dtype), _cast(k, dtype), _cast(v, dtype)
    if _is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return ops.AttentionForward.apply(  # type: ignore[no-any-return, no-untyped-call]
            q, k, v, kv_lengths, kv_start, causal, window, softcap, scale, fp16_accumulate
        )
    # Each keyword passed costs 0.3 us.
    if window == -1 and softcap == 0.0 and scale is None and not fp16_accumulate:
        if causal == 1:
            return _attention(q, k, v, kv_lengths, kv_start)
        return _attention(q, k, v, kv_lengths, kv_start, causal=causal)
    return _attention(
        q,
        k,
        v,
        kv_lengths,
        kv_start,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        fp16_accumulate=fp16_accumulate,
    )


def attention_with_lse(
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
    fp16_accumulate: bool = False,
) -> tuple[Tensor, Tensor]:
    """`attention`, and the log-sum-exp of each query's scores, to merge partial results with.

    Arguments and errors are those of `attention`.

    Returns:
        The output as `attention` gives it, and lse (B, Hq, Tq) float32, natural logarithm,
        -infinity where a query sees no key.
    """
    if _is_any_autocast_enabled() and (dtype := _autocast_dtype(q)) is not None:
        q, k, v = _cast(q, dtype), _cast(k, dtype), _cast(v, dtype)
    if _is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return ops.AttentionWithLseForward.apply(  # type: ignore[no-any-return, no-untyped-call]
            q, k, v, kv_lengths, kv_start, causal, window, softcap, scale, fp16_accumulate
        )
    return _attention_with_lse(
        q,
        k,
        v,
        kv_lengths,
        kv_start,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        fp16_accumulate=fp16_accumulate,
    )


def int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    weight_ready: bool = False,
) -> Tensor:
    """x times a weight kept in int8: ``x @ (weight * weight_scale[:, None]).T + bias``.

    The weight becomes 16-bit in registers inside the product, never in memory. The symmetric
    per-channel scheme is that of Dettmers et al., "LLM.int8()" (arXiv:2208.07339), for weights.
    On data-centre Blackwell from 512 rows on, weights are converted part by part (at most 32 MiB at
    a time) and torch's own product multiplies them (`explain` says "library"): there the accuracy
    is that of F.linear on 16-bit weights. Not so with an activation, which our kernels alone apply.

    Args:
        x: (..., K), float16 or bfloat16, on the CPU float32 too; the last dimension is contiguous.
        weight: (N, K) int8, rows contiguous, any row stride.
        weight_scale: (N,) float32, contiguous.
        bias: (N,) in x's dtype, contiguous; or None.
        activation: what is applied to the product y in float32, before it is rounded: "gelu" or
            "gelu_tanh" (F.gelu without and with ``approximate="tanh"``; Hendrycks and Gimpel,
            arXiv:1606.08415), "silu", or "silu_mul", the gate of a SwiGLU MLP (Shazeer,
            arXiv:2002.05202): ``silu(y[..., 0::2]) * y[..., 1::2]``. The rows of its weight are
            gate and up in turn: ``torch.stack([gate, up], 1).flatten(0, 1)``.
        weight_ready: a promise that no kernel still under way in the stream writes weight,
            weight_scale or bias. On Hopper (`explain` says "gemv", "gemv_sm90" or "gemm_sm90")
            weights are then read before the kernel ahead has ended, which saves 1% to 8% of a
            decoding step.

    Returns:
        (..., N), with "silu_mul" (..., N / 2), in x's dtype, contiguous; sums in float32, rounded
        once. Under autocast x and bias are cast first; the scale never is.

    Raises:
        ValueError: an argument's shape, dtype, device or stride, or an unknown activation; the
            message names it.
        RuntimeError: no built code runs on this GPU; or, in a backward pass, that there is none.
    """
    if _is_any_autocast_enabled() and (dtype := _autocast_dtype(x)) is not None:
        x = _cast(x, dtype)
        if bias is not None:
            bias = _cast(bias, dtype)
    if _is_grad_enabled() and (
        x.requires_grad or weight_scale.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return ops.Int8LinearForward.apply(  # type: ignore[no-any-return, no-untyped-call]
            x, weight, weight_scale, bias, activation, weight_ready
        )
    if activation is None and not weight_ready:  # each keyword passed costs 0.3 us
        return _int8_linear(x, weight, weight_scale, bias)
    return _int8_linear(
        x, weight, weight_scale, bias, activation=activation, weight_ready=weight_ready
    )


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention`, signature and meaning, by `attention`.

    What F accepts and this does not: an attn_mask; a dropout_p other than 0; a backward; leading
    dimensions or heads that broadcast; a value whose last size is not key's; float64, on CUDA
    float32; last sizes above 256, on CUDA those that are not multiples of 8.

    Any strides are accepted, as by F; a tensor whose last dimension is not contiguous is copied.

    Args:
        query: (..., Hq, L, D) of 2 dimensions or more; leading dimensions equal in all three. More
            than one leading dimension is flattened, without a copy where strides allow it.
        key: (..., H, S, D).
        value: (..., H, S, D); unlike F's, its last size is key's.
        attn_mask: None only; for padding give `attention` kv_lengths and kv_start.
        dropout_p: 0 only.
        is_causal: query i sees keys j <= i, also where L and S differ.
        scale: multiplies the scores; default 1 / sqrt(D).
        enable_gqa: allows Hq to be a multiple of H.

    Returns:
        (..., Hq, L, D) in query's dtype; of 4 dimensions, in query's memory order if it was not
        copied.

    Raises:
        ValueError: attn_mask or dropout_p is given; or as `attention`, by the names used here.
    """
    if attn_mask is not None:
        raise ValueError(
            "scaled_dot_product_attention: attn_mask is not supported; use is_causal, or "
            "flashint8.attention with kv_lengths, kv_start and window, or "
            "torch.nn.functional.scaled_dot_product_attention for other masks"
        )
    if dropout_p != 0.0:
        raise ValueError(
            f"scaled_dot_product_attention: dropout_p must be 0, got {dropout_p}; use "
            "torch.nn.functional.scaled_dot_product_attention to train"
        )
    causal = 2 if is_causal else 0
    rank = query.dim()
    if not (rank == key.dim() == value.dim() and rank >= 2):
        raise ValueError(
            "scaled_dot_product_attention: query, key and value must have the same number of "
            f"dimensions, 2 or more; got {_shapes(query, key, value)}"
        )
    if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3]:
        raise ValueError(
            "scaled_dot_product_attention: leading dimensions are not broadcast; got "
            f"{_shapes(query, key, value)}"
        )
    if rank > 2 and not enable_gqa and query.shape[-3] != key.shape[-3]:
        raise ValueError(
            "scaled_dot_product_attention: heads are not broadcast; key has "
            f"{key.shape[-3]} heads, query has {query.shape[-3]}; pass enable_gqa=True for "
            "grouped-query attention"
        )
    if query.stride(-1) != 1 or key.stride(-1) != 1 or value.stride(-1) != 1:
        query, key, value = map(_layout.readable_heads, (query, key, value))
    try:
        if rank == 4:
            return attention(query, key, value, causal=causal, scale=scale)
        q, k, v = _four_dims(query), _four_dims(key), _four_dims(value)
        return attention(q, k, v, causal=causal, scale=scale).reshape(query.shape)
    except ValueError as error:
        raise ValueError(_by_name(str(error))) from None


def _shapes(query: Tensor, key: Tensor, value: Tensor) -> str:
    named = (("query", query), ("key", key), ("value", value))
    return ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in named)


def _by_name(message: str) -> str:
    """`attention`'s message in the words of `scaled_dot_product_attention`."""
    names = {"q": "query", "k": "key", "v": "value"}
    message = re.sub(r"\b[qkv]\b", lambda match: names[match[0]], message)
    return re.sub(r"^attention:", "scaled_dot_product_attention:", message)


def _four_dims(tensor: Tensor) -> Tensor:
    if tensor.dim() == 2:
        return tensor[None, None]
    if tensor.dim() == 3:
        return tensor[None]
    return tensor.flatten(0, -4)
