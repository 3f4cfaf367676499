"""Small random transformers models, one for each way attention is used in the library."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers", minversion="5.23")

# The cache is the argument and the output `cache` from 5.24 on, `past_key_values` before.
_create = inspect.signature(inspect.unwrap(transformers.masking_utils.create_causal_mask))
CACHE = "cache" if "cache" in _create.parameters else "past_key_values"
SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
UNTIED: dict[str, Any] = {**SIZES, "tie_word_embeddings": False, "head_dim": 16}
GEMMA: dict[str, Any] = {**UNTIED, "query_pre_attn_scalar": 16, "sliding_window": 6}
TYPES = ("sliding_attention", "full_attention")
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": 101}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SIZES),
    "qwen2": ("Qwen2Config", {**SIZES, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 24}),
    "mistral": ("MistralConfig", {**SIZES, "sliding_window": 7}),
    "gemma": ("GemmaConfig", {**UNTIED, "head_dim": 32}),
    "gemma2": (
        "Gemma2Config",
        {**GEMMA, "attn_logit_softcapping": 2.0, "layer_types": list(TYPES)},
    ),
    "gemma3": ("Gemma3TextConfig", {**GEMMA, "layer_types": list(TYPES)}),
    "gpt2": ("GPT2Config", {**GPT2, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}),
    "gpt_neox": ("GPTNeoXConfig", {**SIZES, "rotary_pct": 0.25}),
}


def make(name: str, device: str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """A model in eval mode; float32 on the CPU, else float16."""
    kind, options = CONFIGS[name]
    config = getattr(transformers, kind)(**options)
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # so that the tokens depend on what is attended to
            torch.nn.init.normal_(parameter, std=0.15)
    dtype = dtype or (torch.float32 if device == "cpu" else torch.float16)
    return model.to(device, dtype).eval()


def peer(name: str) -> str:
    """transformers' own attention to compare with: SDPA has no softcap."""
    return "eager" if name == "gemma2" else "sdpa"


def batch(device: str = "cpu", length: int = 11) -> dict[str, torch.Tensor]:
    """Three rows of tokens, two of them padded on the left."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(2, 101, (3, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    mask[2, :1] = 0
    ids[mask == 0] = 0
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def logits(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model(**inputs).logits
    return out
