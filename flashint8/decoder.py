"""The small operators between a decoder's attention and linears, as functions.

Each is one kernel launch where PyTorch needs several: a decoding step is made of such glue. None of
them casts under autocast: tensors are taken in the types they have.
"""

import torch
from torch import Tensor

from flashint8 import ops

_rope_append = ops.rope_append_
_attention_with_kvcache = ops.attention_with_kvcache
_add_norm = ops.add_norm_
_silu_mul = ops.silu_mul
_embed = ops.embed_
_argmax = ops.argmax_
_is_grad_enabled = torch.is_grad_enabled


def rope_append_(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None = None,
    *,
    interleaved: bool = False,
) -> None:
    """Rotates q in place, and writes the rotated k, and v, into the KV cache.

    Rotary position embedding: Su et al., "RoFormer" (arXiv:2104.09864). Token t of batch row b has
    position and slot ``positions[b] + t``. A token whose slot is outside [0, S) is not written,
    and nothing else is overwritten: the host cannot look at ``positions`` without waiting for the
    device, so the caller must know how full the cache is. Such a token's q is rotated by the
    nearest row of cos_sin. Computed in float32, rounded once.

    Args:
        q: (B, Hq, T, D), float16 or bfloat16, on the CPU float32 too; rotated in place. Any
            strides, as long as the last dimension is contiguous, for all five: views of one fused
            projection are taken as they lie.
        k: (B, Hkv, T, D), q's dtype.
        v: (B, Hkv, T, D), q's dtype; never rotated.
        k_cache: (B, Hkv, S, D), q's dtype; written at the tokens' slots. Must not share memory
            with q, k or v; nor must v_cache.
        v_cache: (B, Hkv, S, D), q's dtype; likewise.
        positions: (B,) int32 on q's device: how many tokens each row's cache holds already.
        cos_sin: (P, R) float32, P >= S: row p holds the cosines of position p's R / 2 angles, then
            their sines. R is even and at most D; elements from R on pass through. None: append
            only.
        interleaved: False: angle i turns elements i and i + R / 2 (GPT-NeoX, Llama); True:
            elements 2i and 2i + 1 (GPT-J).

    Raises:
        ValueError: an argument's shape, dtype, device or stride; the message names it.
        RuntimeError: grad is enabled and an input requires it; no built code runs on this GPU.
    """
    if _is_grad_enabled():
        ops.refuse_grad("rope_append_", q, k, v, k_cache, v_cache)
    if interleaved:
        _rope_append(q, k, v, k_cache, v_cache, positions, cos_sin, interleaved=True)
    else:
        _rope_append(q, k, v, k_cache, v_cache, positions, cos_sin)


def attention_with_kvcache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None = None,
    *,
    interleaved: bool = False,
    scale: float | None = None,
    cache_ready: bool = False,
) -> Tensor:
    """Attention of a decoding step: `rope_append_`, then `attention` over the cache, in one.

    After FlashAttention's ``flash_attn_with_kvcache`` (Dao et al., arXiv:2307.08691). What
    ``rope_append_(q, k, v, k_cache, v_cache, positions, cos_sin)`` followed by
    ``attention(q, k_cache, v_cache, positions + 1)`` compute, except that q stays as it is. On
    CUDA it is one kernel where tensors lie on 16 bytes and cos_sin, if given, turns whole heads of
    64, 128 or 256 elements by their halves; otherwise two. One more merges the splits of a long
    cache, as in `attention`.

    A token whose slot ``positions[b]`` is outside [0, S) is not written, and q then sees the cache
    as it is: all of it, or, where the position is negative, nothing, which gives 0.

    Args:
        q: (B, Hq, 1, D), float16 or bfloat16, on the CPU float32 too: one new token a row. Any
            strides, as long as the last dimension is contiguous, for all five: views of one fused
            projection are taken as they lie.
        k: (B, Hkv, 1, D), q's dtype. Hq is a multiple of Hkv.
        v: (B, Hkv, 1, D), q's dtype; never rotated.
        k_cache: (B, Hkv, S, D), q's dtype; written at the tokens' slots. Must not share memory
            with q, k or v; nor must v_cache.
        v_cache: (B, Hkv, S, D), q's dtype; likewise.
        positions: (B,) int32 on q's device: how many tokens each row's cache holds already.
        cos_sin: (P, R) float32, P >= S, as `rope_append_` takes it. None: nothing is rotated.
        interleaved: as for `rope_append_`.
        scale: multiplies the scores; default 1 / sqrt(D).
        cache_ready: a promise that no kernel still under way writes positions, cos_sin or the
            caches' rows before ``positions[b]``, so that a GPU may read them before the kernel
            ahead in the stream has ended. The step before is such a kernel: between two calls on
            one cache there must be one that waits for what is ahead, and for what writes positions,
            before it lets others in, such as `embed_` or any of torch's (`add_norm_` is not one).
            On a GPU older than Hopper, and on the CPU, it changes nothing.

    Returns:
        (B, Hq, 1, D) in q's dtype and memory order.

    Raises:
        ValueError: an argument's shape, dtype, device, stride or value; the message names it. D is
            at most 256, on CUDA a multiple of 8.
        RuntimeError: grad is enabled and an input requires it; no built code runs on this GPU.
    """
    if _is_grad_enabled():
        ops.refuse_grad("attention_with_kvcache", q, k, v, k_cache, v_cache)
    if interleaved or scale is not None:
        return _attention_with_kvcache(
            q,
            k,
            v,
            k_cache,
            v_cache,
            positions,
            cos_sin,
            interleaved=interleaved,
            scale=scale,
            cache_ready=cache_ready,
        )
    if cache_ready:  # each keyword passed costs 0.3 us
        return _attention_with_kvcache(
            q, k, v, k_cache, v_cache, positions, cos_sin, cache_ready=True
        )
    return _attention_with_kvcache(q, k, v, k_cache, v_cache, positions, cos_sin)


def add_norm_(
    residual: Tensor,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    rms: bool = True,
) -> Tensor:
    """Adds x to the residual stream in place, and returns the stream's norm.

    ``residual += x``, rounded to its dtype; then RMSNorm (Zhang and Sennrich, arXiv:1910.07467) or
    LayerNorm (Ba et al., arXiv:1607.06450) of the result over the last dimension, times weight,
    plus bias. Computed in float32, rounded once.

    Args:
        residual: (..., N), float16 or bfloat16, on the CPU float32 too; written in place. The last
            dimension is contiguous, and the leading ones merge into at most 4 strided ones; the
            same holds for x.
        x: as residual, in its shape and dtype; None: nothing is added.
        weight: (N,), residual's dtype, contiguous.
        bias: (N,), residual's dtype, contiguous; or None.
        eps: added to the mean square (or the variance) under the root.
        rms: True: RMSNorm. False: LayerNorm.

    Returns:
        (..., N) in residual's dtype, contiguous.

    Raises:
        ValueError: an argument's shape, dtype, device, stride or value; the message names it.
        RuntimeError: grad is enabled and an input requires it; no built code runs on this GPU.
    """
    if _is_grad_enabled():
        ops.refuse_grad("add_norm_", residual, x, weight, bias)
    return _add_norm(residual, x, weight, bias, eps=eps, rms=rms)


def silu_mul(gate_up: Tensor) -> Tensor:
    """The gate of a SwiGLU MLP: ``silu(gate_up[..., :N]) * gate_up[..., N:]``.

    Shazeer, "GLU Variants Improve Transformer" (arXiv:2002.05202). Computed in float32, rounded
    once.

    Args:
        gate_up: (..., 2N), float16 or bfloat16, on the CPU float32 too: the output of the fused
            gate and up projections. The last dimension is contiguous, and the leading ones merge
            into at most 4 strided ones.

    Returns:
        (..., N) in gate_up's dtype, contiguous.

    Raises:
        ValueError: gate_up's shape, dtype or stride.
        RuntimeError: no built code runs on this GPU; or, in a backward pass, that there is none.
    """
    if _is_grad_enabled() and gate_up.requires_grad:
        return ops.SiluMulForward.apply(gate_up)  # type: ignore[no-any-return, no-untyped-call]
    return _silu_mul(gate_up)


def embed_(
    out: Tensor,
    tokens: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    positions: Tensor | None = None,
    position_weight: Tensor | None = None,
) -> None:
    """Writes rows of an int8 embedding, and adds a learned position's row to each.

    ``out[b, t] = weight[token] * weight_scale[token] + position_weight[positions[b] + t]``, summed
    in float32 and rounded once. A tied int8 output layer is such an embedding: its scale is that of
    a row. The host does not look at tokens or positions: one outside the table takes the nearest.

    Args:
        out: (B, T, C), float16 or bfloat16, on the CPU float32 too; contiguous, written.
        tokens: (B, T) int64.
        weight: (V, C) int8, contiguous.
        weight_scale: (V,) float32, contiguous.
        positions: (B,) int32, where each row's first token stands; with position_weight only.
        position_weight: (P, C) in out's dtype, contiguous; None: nothing is added.

    Raises:
        ValueError: an argument's shape, dtype, device or stride; the message names it.
        RuntimeError: no built code runs on this GPU.
    """
    _embed(out, tokens, weight, weight_scale, positions, position_weight)


def argmax_(out: Tensor, x: Tensor, positions: Tensor | None = None) -> None:
    """Writes each row's first largest column, and adds 1 to each position.

    The end of a decoding step: the next token, and the place where it goes in the KV cache. NaN is
    never the largest.

    Args:
        out: (M, 1) int64, contiguous, written.
        x: (M, N), float16 or bfloat16, on the CPU float32 too; the last dimension is contiguous.
        positions: (M,) int32, contiguous, counted up; None: there are none.

    Raises:
        ValueError: an argument's shape, dtype, device or stride; the message names it.
        RuntimeError: no built code runs on this GPU.
    """
    _argmax(out, x, positions)
