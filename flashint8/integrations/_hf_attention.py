"""`flashint8.attention` as an attention implementation of transformers."""

import warnings
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from flashint8 import functional
from flashint8.integrations import _hf_mask

# transformers takes names with "flash", "sdpa", "flex_attention" or "/" in them for its own.
ATTENTION = "fi8"
ATTENTION_OR_SDPA = "fi8_fallback"

_REFUSED = {  # keyword arguments of attention functions that change the result
    "s_aux": "attention sinks",
    "position_bias": "a position bias",
    "head_mask": "a head mask",
    "read_index": "a paged cache",
    "block_table": "a paged cache",
    "cu_seq_lens_q": "packed sequences",
    "cu_seqlens_q": "packed sequences",
}


def register() -> None:
    """Registers both attentions and their masks with transformers. Again: no effect."""
    for name, forward, mask in (
        (ATTENTION, attention_forward, _hf_mask.interval_mask),
        (ATTENTION_OR_SDPA, attention_or_sdpa_forward, mask_or_sdpa),
    ):
        AttentionInterface.register(name, forward)
        masking_utils.AttentionMaskInterface.register(name, mask)


def use_attention(model: nn.Module, fallback: str | None = None) -> None:
    """Makes a transformers model (or each of those inside) compute its attention with flashint8.

    Args:
        model: changed in place.
        fallback: None: what our kernel cannot express raises a ValueError that names it. "sdpa":
            there torch's attention is used, with a warning.

    Raises:
        ValueError: fallback is another one, there is no transformers model in `model`, or its class
            has an attention of its own that cannot be exchanged (Falcon, Bloom).
    """
    from transformers import PreTrainedModel

    if fallback not in (None, "sdpa"):
        raise ValueError(f"use_attention: fallback must be None or 'sdpa', got {fallback!r}")
    models = [m for m in model.modules() if isinstance(m, PreTrainedModel)]
    if not models:
        raise ValueError(f"use_attention: no transformers model in this {type(model).__name__}")
    name = ATTENTION if fallback is None else ATTENTION_OR_SDPA
    models[0].set_attn_implementation(name)
    used = models[0].config._attn_implementation
    if used != name:
        kind = type(models[0]).__name__
        raise ValueError(f"use_attention: {kind} stays with its own attention ({used})")


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function registered as `fi8`; arguments are transformers'.

    Args:
        module: the attention layer; its ``is_causal`` holds where there is no mask.
        query: (B, Hq, Tq, D).
        key: (B, Hkv, Tk, D).
        value: (B, Hkv, Tk, D).
        attention_mask: what `interval_mask` made, or None: everything is seen, and if causal, query
            i sees keys j <= i (a prompt in an empty static cache arrives so).
        dropout: 0 only.
        scaling: multiplies the scores; None: 1 / sqrt(D).
        is_causal: overrides the layer's.
        sliding_window: the window, where the mask has one.
        softcap: c: scores become c * tanh(score / c).
        kwargs: looked at for what the kernel cannot express.

    Returns:
        (B, Tq, Hq, D) and None.

    Raises:
        ValueError: another mask, dropout, output_attentions, attention sinks, a position bias, a
            paged cache, or packed sequences; or as `flashint8.attention` does.
    """
    if reason := _why_not(attention_mask, dropout, kwargs):
        raise ValueError(f"fi8: {reason} not supported; {ATTENTION_OR_SDPA} uses torch's attention")
    softcap = softcap or 0.0
    seq_len_q = query.shape[2]
    if attention_mask is None:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        causal = bool(causal) and seq_len_q > 1
        window = sliding_window if causal and sliding_window else -1
        out = functional.attention(
            query,
            key,
            value,
            causal=2 if causal else 0,
            window=window,
            softcap=softcap,
            scale=scaling,
        )
        return out.transpose(1, 2), None
    mask = _hf_mask.read(attention_mask, query.shape[0])
    assert mask is not None  # else there was a reason
    out = functional.attention(
        query,
        key,
        value,
        mask.end,
        mask.start,
        causal=int(mask.kind != "full"),
        window=_window(mask, module, sliding_window) or -1,
        softcap=softcap,
        scale=scaling,
    )
    return out.transpose(1, 2), None


def attention_or_sdpa_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """`attention_forward`, and torch's attention where that raises a ValueError."""
    try:
        return attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs
        )
    except ValueError as error:
        warnings.warn(f"torch's attention is used: {error}", stacklevel=2)
    if attention_mask is not None:
        mask = _hf_mask.read(attention_mask, query.shape[0])
        if mask is not None:
            window = _window(mask, module, sliding_window)
            attention_mask = _hf_mask.expand(mask, query.shape[2], key.shape[2], window)
    return sdpa_attention_forward(  # type: ignore[no-any-return]
        module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs
    )


def mask_or_sdpa(*args: Any, **kwargs: Any) -> Tensor | None:
    """`interval_mask`, and torch's boolean mask where that raises a ValueError."""
    try:
        interval: Tensor = _hf_mask.interval_mask(*args, **kwargs)
        return interval
    except ValueError as error:
        warnings.warn(f"torch's attention is used: {error}", stacklevel=2)
    mask: Tensor | None = masking_utils.sdpa_mask(
        *args, **{**kwargs, "allow_is_causal_skip": False}
    )
    return mask


def _why_not(attention_mask: Tensor | None, dropout: float, kwargs: dict[str, Any]) -> str | None:
    """What the kernel cannot express in a call, in words; None if nothing."""
    if (
        attention_mask is not None
        and _hf_mask.read(attention_mask, attention_mask.shape[0]) is None
    ):
        shape, dtype = tuple(attention_mask.shape), attention_mask.dtype
        return f"a mask of one's own (shape {shape}, {dtype}) is"
    if dropout:
        return f"dropout ({dropout}) is"
    if kwargs.get("output_attentions"):
        return "output_attentions is"
    found = [words for name, words in _REFUSED.items() if kwargs.get(name) is not None]
    return f"{found[0]}: this is" if found else None


def _window(mask: _hf_mask.Interval, module: nn.Module, sliding_window: int | None) -> int | None:
    """The window that goes with a mask; None if it has none."""
    if mask.kind != "sliding":
        return None
    window = sliding_window or getattr(module, "sliding_window", None)
    if not window:
        raise ValueError(
            f"fi8: the mask has a sliding window, but {type(module).__name__} passes none"
        )
    return int(window)
