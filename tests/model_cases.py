"""Small models that the tests of models, loading and generation share."""

from __future__ import annotations

from typing import Any

import torch

from flashint8.models import GPT, Decoder, Llama, ModelConfig

TINY_GPT = ModelConfig(
    "gpt2",
    vocab_size=97,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    head_dim=16,
    intermediate_size=256,
    max_positions=64,
    activation="gelu_tanh",
    attention_bias=True,
    mlp_bias=True,
)
TINY_LLAMA = ModelConfig(
    "llama",
    vocab_size=97,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=160,
    max_positions=64,
)
TINY = {"gpt": TINY_GPT, "llama": TINY_LLAMA}


def tiny_model(name: str, device: str, **options: Any) -> Decoder:
    """A tiny model with random weights; float32 on the CPU, float16 on a GPU."""
    config = TINY[name]
    kind = GPT if config.architecture == "gpt2" else Llama
    options.setdefault("dtype", model_dtype(device))
    return kind(config, device=device, **options)


def model_dtype(device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else torch.float16


def draw_tokens(*shape: int, device: str = "cpu") -> torch.Tensor:
    return torch.randint(0, TINY_GPT.vocab_size, shape, device=device)


def tolerance(device: str) -> float:
    """Largest difference of logits between two orders of the same sums."""
    return 2e-5 if device == "cpu" else 2e-2
