"""A decoder's sizes and options: enough to build it, load it, and say what memory it takes."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModelConfig:
    """What a model is, without its weights.

    Attributes:
        architecture: "gpt2" (LayerNorm, learned positions, GELU) or "llama" (RMSNorm, rotary
            positions, SwiGLU).
        vocab_size: tokens.
        hidden_size: channels C of each position.
        num_layers: blocks.
        num_heads: query heads.
        num_kv_heads: key and value heads; divides num_heads.
        head_dim: channels D of a head.
        intermediate_size: channels of the MLP's hidden layer.
        max_positions: the longest context.
        norm_eps: added to the variance in every norm.
        tie_embeddings: whether the output product uses the token embedding's weight.
        activation: of the MLP: "gelu_tanh", "gelu" or "silu".
        attention_bias: whether the attention's two products have a bias.
        mlp_bias: whether the MLP's products have one.
        rope_theta: base of the rotary frequencies; llama only.
        rope_scaling: the scaling of Hugging Face's configs, of type "linear" or "llama3"; or None.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_positions: int
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    activation: str = "silu"
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float = 10000.0
    rope_scaling: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.architecture not in ("gpt2", "llama"):
            raise ValueError(
                f"ModelConfig: architecture must be gpt2 or llama, got {self.architecture!r}"
            )
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"ModelConfig: {name} must be at least 1, got {getattr(self, name)}"
                )
        if self.num_heads % self.num_kv_heads != 0:
            raise ValueError(
                "ModelConfig: num_heads must be a multiple of num_kv_heads, got "
                f"{self.num_heads} and {self.num_kv_heads}"
            )
        if self.activation not in ("gelu_tanh", "gelu", "silu"):
            raise ValueError(
                f"ModelConfig: activation must be gelu_tanh, gelu or silu, got {self.activation!r}"
            )

    @property
    def qkv_features(self) -> int:
        """Columns of the fused query, key and value product."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def attention_features(self) -> int:
        """Columns of the attention's output."""
        return self.num_heads * self.head_dim

    @property
    def up_features(self) -> int:
        """Columns of the MLP's first product: the gate and the rest, where it is gated."""
        return self.intermediate_size * (2 if self.architecture == "llama" else 1)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> "ModelConfig":
        """The config in a Hugging Face `config.json`, or in a folder that holds one.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is of a model that is neither GPT-2 nor Llama.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "config.json"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not JSON: {error}") from None
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The config that a Hugging Face config's values (model_type gpt2 or llama) mean.

        Raises:
            ValueError: another model_type, a missing value, or an option not known here.
        """
        kind = values.get("model_type")
        try:
            if kind == "gpt2":
                return cls._from_gpt2(values)
            if kind == "llama":
                return cls._from_llama(values)
        except KeyError as error:
            raise ValueError(f"ModelConfig: the {kind} config has no {error.args[0]!r}") from None
        raise ValueError(f"ModelConfig: model_type must be gpt2 or llama, got {kind!r}")

    @classmethod
    def _from_gpt2(cls, values: Mapping[str, Any]) -> "ModelConfig":
        for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
            if values.get(name):
                raise ValueError(f"ModelConfig: {name} is not supported")
        hidden, heads = values["n_embd"], values["n_head"]
        activation = values.get("activation_function", "gelu_new")
        names = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
        return cls(
            architecture="gpt2",
            vocab_size=values["vocab_size"],
            hidden_size=hidden,
            num_layers=values["n_layer"],
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=hidden // heads,
            intermediate_size=values.get("n_inner") or 4 * hidden,
            max_positions=values["n_positions"],
            norm_eps=values.get("layer_norm_epsilon", 1e-5),
            tie_embeddings=values.get("tie_word_embeddings", True),
            activation=names.get(activation, activation),
            attention_bias=True,
            mlp_bias=True,
        )

    @classmethod
    def _from_llama(cls, values: Mapping[str, Any]) -> "ModelConfig":
        heads = values["num_attention_heads"]
        rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "linear", "llama3"):
            raise ValueError(
                f"ModelConfig: rope scaling must be default, linear or llama3, got {kind!r}"
            )
        rope["rope_type"] = kind
        return cls(
            architecture="llama",
            vocab_size=values["vocab_size"],
            hidden_size=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or values["hidden_size"] // heads,
            intermediate_size=values["intermediate_size"],
            max_positions=values.get("max_position_embeddings", 2048),
            norm_eps=values.get("rms_norm_eps", 1e-6),
            tie_embeddings=values.get("tie_word_embeddings", False),
            activation=values.get("hidden_act", "silu"),
            attention_bias=values.get("attention_bias", False),
            mlp_bias=values.get("mlp_bias", False),
            rope_theta=rope.get("rope_theta", values.get("rope_theta", 10000.0)),
            rope_scaling=None if kind == "default" else rope,
        )

    def rope_table(self, positions: int, device: torch.device | str | None = None) -> Tensor:
        """Rotary angles' (positions, head_dim) float32: cosines, then sines, of half the head each.

        Su et al., "RoFormer" (arXiv:2104.09864); the scaling of Llama 3.1 where the config has it.
        """
        half = torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim
        frequency = self.rope_theta**-half
        if self.rope_scaling is not None:
            frequency = _scaled(frequency, self.rope_scaling)
        angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequency)
        return torch.cat([angles.cos(), angles.sin()], dim=1).float().to(device)


def _scaled(frequency: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    factor = float(scaling["factor"])
    if scaling["rope_type"] == "linear":
        return frequency / factor
    # llama3: long waves are stretched, short ones kept, those between go smoothly over.
    turns = float(scaling["original_max_position_embeddings"]) * frequency / (2 * math.pi)
    low, high = float(scaling["low_freq_factor"]), float(scaling["high_freq_factor"])
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequency / factor + smooth * frequency


def _gpt2(hidden_size: int, num_layers: int, num_heads: int) -> ModelConfig:
    return ModelConfig(
        architecture="gpt2",
        vocab_size=50257,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        intermediate_size=4 * hidden_size,
        max_positions=1024,
        activation="gelu_tanh",
        attention_bias=True,
        mlp_bias=True,
    )


PRESETS: Mapping[str, ModelConfig] = {
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "smollm2-135m": ModelConfig("llama", 49152, 576, 30, 9, 3, 64, 1536, 8192, rope_theta=100000.0),
    "llama-3b": ModelConfig(
        "llama", 128256, 3072, 28, 24, 8, 128, 8192, 131072, rope_theta=500000.0
    ),
    "llama-7b": ModelConfig(
        "llama", 32000, 4096, 32, 32, 32, 128, 11008, 4096, tie_embeddings=False
    ),
}
"""Sizes by name: GPT-2's four, SmolLM2-135M, the shapes of a Llama of 3B and of 7B parameters."""
