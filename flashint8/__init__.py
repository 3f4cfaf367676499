"""Fused exact attention and INT8 weight-only linear layers for PyTorch inference."""

from flashint8._version import __version__
from flashint8.decoder import add_norm_, attention_with_kvcache, rope_append_, silu_mul
from flashint8.fit import will_it_fit
from flashint8.functional import (
    attention,
    attention_with_lse,
    int8_linear,
    scaled_dot_product_attention,
)
from flashint8.modules import CausalSelfAttention, QuantLinear
from flashint8.per_channel import quantize_per_channel
from flashint8.plan import Card, Plan, explain
from flashint8.quantize import QuantizeReport, quantize_model
from flashint8.storage import load_quantized, save_quantized

__all__ = [
    "Card",
    "CausalSelfAttention",
    "Plan",
    "QuantLinear",
    "QuantizeReport",
    "__version__",
    "add_norm_",
    "attention",
    "attention_with_kvcache",
    "attention_with_lse",
    "explain",
    "int8_linear",
    "load_quantized",
    "quantize_model",
    "quantize_per_channel",
    "rope_append_",
    "save_quantized",
    "scaled_dot_product_attention",
    "silu_mul",
    "will_it_fit",
]
