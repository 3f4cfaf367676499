"""The Python side of the operators: fake kernels, and what happens to a backward pass.

The operators have no autograd kernel: registering one costs every call microseconds. Instead
`functional` enters one of the autograd functions below when grad is enabled and an input requires
it. Their backward calls the operator `flashint8::_no_backward`, which raises: an operator, not a
plain `raise`, so that torch.compile can trace a model whose norms have trainable weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flashint8 import _checks, _checks_cache, _checks_tokens
from flashint8 import _load as _load  # registers the operators

_namespace = torch.ops.flashint8
attention: Callable[..., Tensor] = _namespace.attention.default
attention_with_lse: Callable[..., tuple[Tensor, Tensor]] = _namespace.attention_with_lse.default
int8_linear: Callable[..., Tensor] = _namespace.int8_linear.default
quantize_per_channel: Callable[..., tuple[Tensor, Tensor]] = _namespace.quantize_per_channel.default
rope_append_: Callable[..., None] = _namespace.rope_append_.default
attention_with_kvcache: Callable[..., Tensor] = _namespace.attention_with_kvcache.default
add_norm_: Callable[..., Tensor] = _namespace.add_norm_.default
silu_mul: Callable[..., Tensor] = _namespace.silu_mul.default
embed_: Callable[..., None] = _namespace.embed_.default
argmax_: Callable[..., None] = _namespace.argmax_.default

_ATTENTION_HAS_NO_BACKWARD = (
    "flashint8.attention is for inference and has no backward; to train, use "
    "torch.nn.functional.scaled_dot_product_attention; to run it, wrap the call in "
    "torch.inference_mode()"
)
_LINEAR_HAS_NO_BACKWARD = (
    "flashint8.int8_linear is for inference and has no backward; to train, use torch.nn.Linear "
    "(QuantLinear.to_linear() makes one); to run it, wrap the call in torch.inference_mode()"
)
_SILU_MUL_HAS_NO_BACKWARD = (
    "flashint8.silu_mul is for inference and has no backward; to train, use "
    "torch.nn.functional.silu; to run it, wrap the call in torch.inference_mode()"
)


def _attention_fake(
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
    _checks.check_attention(
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
    return q.new_empty_strided(q.shape, _checks.attention_output_strides(q))


def _attention_with_lse_fake(
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
    out = _attention_fake(
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
    return out, q.new_empty(q.shape[:3], dtype=torch.float32)


def _int8_linear_fake(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    weight_ready: bool = False,
) -> Tensor:
    _checks.check_int8_linear(x, weight, weight_scale, bias, activation=activation)
    features = _checks.output_features(activation, weight.shape[0])
    return x.new_empty((*x.shape[:-1], features))


def _quantize_per_channel_fake(weight: Tensor) -> tuple[Tensor, Tensor]:
    _checks.check_quantize_per_channel(weight)
    return (
        weight.new_empty(weight.shape, dtype=torch.int8),
        weight.new_empty(weight.shape[:1], dtype=torch.float32),
    )


def _rope_append_fake(
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
    _checks_cache.check_rope_append(q, k, v, k_cache, v_cache, positions, cos_sin)


def _attention_with_kvcache_fake(
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
    _checks_cache.check_attention_with_kvcache(
        q, k, v, k_cache, v_cache, positions, cos_sin, scale=scale
    )
    return q.new_empty_strided(q.shape, _checks.attention_output_strides(q))


def _add_norm_fake(
    residual: Tensor,
    x: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    rms: bool = True,
) -> Tensor:
    _checks.check_add_norm(residual, x, weight, bias, eps)
    return residual.new_empty(residual.shape)


def _silu_mul_fake(gate_up: Tensor) -> Tensor:
    _checks.check_silu_mul(gate_up)
    return gate_up.new_empty((*gate_up.shape[:-1], gate_up.shape[-1] // 2))


torch.library.register_fake("flashint8::attention", _attention_fake)
torch.library.register_fake("flashint8::attention_with_lse", _attention_with_lse_fake)
torch.library.register_fake("flashint8::int8_linear", _int8_linear_fake)
torch.library.register_fake("flashint8::quantize_per_channel", _quantize_per_channel_fake)
torch.library.register_fake("flashint8::rope_append_", _rope_append_fake)
torch.library.register_fake("flashint8::attention_with_kvcache", _attention_with_kvcache_fake)
torch.library.register_fake("flashint8::add_norm_", _add_norm_fake)
torch.library.register_fake("flashint8::silu_mul", _silu_mul_fake)
torch.library.register_fake("flashint8::embed_", _checks_tokens.check_embed)
torch.library.register_fake("flashint8::argmax_", _checks_tokens.check_argmax)

_library = torch.library.Library("flashint8", "FRAGMENT")
_library.define("_no_backward(Tensor grad, SymInt[] size, str message) -> Tensor")


@torch.library.impl(_library, "_no_backward", "CompositeExplicitAutograd")
def _no_backward_raise(grad: Tensor, size: list[int], message: str) -> Tensor:
    raise RuntimeError(message)


def _no_backward_fake(grad: Tensor, size: list[int], message: str) -> Tensor:
    return grad.new_empty(size)


torch.library.register_fake("flashint8::_no_backward", _no_backward_fake, lib=_library)
_no_backward: Callable[..., Tensor] = torch.ops.flashint8._no_backward.default


def _raise_for(
    shapes: list[torch.Size | None], grad: Tensor, message: str
) -> tuple[Tensor | None, ...]:
    return tuple(None if size is None else _no_backward(grad, size, message) for size in shapes)


def _shapes(*tensors: Tensor | None) -> list[torch.Size | None]:
    return [None if tensor is None else tensor.shape for tensor in tensors]


class AttentionForward(torch.autograd.Function):
    """`attention` where grad is enabled and q, k or v requires it."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv_lengths: Tensor | None,
        kv_start: Tensor | None,
        causal: int,
        window: int,
        softcap: float,
        scale: float | None,
        fp16_accumulate: bool,
    ) -> Tensor:
        return attention(
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

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shapes = _shapes(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads = _raise_for(ctx.shapes, grad, _ATTENTION_HAS_NO_BACKWARD)
        return *grads, None, None, None, None, None, None, None


class AttentionWithLseForward(torch.autograd.Function):
    """`attention_with_lse` where grad is enabled and q, k or v requires it."""

    @staticmethod
    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kv_lengths: Tensor | None,
        kv_start: Tensor | None,
        causal: int,
        window: int,
        softcap: float,
        scale: float | None,
        fp16_accumulate: bool,
    ) -> tuple[Tensor, Tensor]:
        return attention_with_lse(
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

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.shapes = _shapes(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        grads = _raise_for(ctx.shapes, grad, _ATTENTION_HAS_NO_BACKWARD)
        return *grads, None, None, None, None, None, None, None


class Int8LinearForward(torch.autograd.Function):
    """`int8_linear` where grad is enabled and x, weight_scale or bias requires it."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        activation: str | None,
        weight_ready: bool,
    ) -> Tensor:
        return int8_linear(
            x, weight, weight_scale, bias, activation=activation, weight_ready=weight_ready
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, _, weight_scale, bias, *_ = inputs
        ctx.shapes = _shapes(x, weight_scale, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_scale, bias = _raise_for(ctx.shapes, grad, _LINEAR_HAS_NO_BACKWARD)
        return x, None, weight_scale, bias, None, None


class SiluMulForward(torch.autograd.Function):
    """`silu_mul` where grad is enabled and gate_up requires it."""

    @staticmethod
    def forward(gate_up: Tensor) -> Tensor:
        return silu_mul(gate_up)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shapes = _shapes(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor | None:
        return _raise_for(ctx.shapes, grad, _SILU_MUL_HAS_NO_BACKWARD)[0]


def refuse_grad(op: str, *tensors: Tensor | None) -> None:
    """Raises where a tensor requires grad: what an operator writes in place has no graph."""
    if any(tensor is not None and tensor.requires_grad for tensor in tensors):
        raise RuntimeError(
            f"flashint8.{op} is for inference: it writes in place and has no backward; wrap the "
            "call in torch.inference_mode()"
        )
