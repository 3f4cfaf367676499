"""GPT-2: LayerNorm, learned positions, GELU (Radford et al., "Language Models are Unsupervised
Multitask Learners"); the structure is nanoGPT's."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashint8.models.cache import KVCache
from flashint8.models.config import ModelConfig
from flashint8.models.decoder import Decoder, MakeLinear
from flashint8.modules import QuantLinear


class GeluMlp(nn.Module):
    """``down(gelu(up(x)))``: (B, T, C) -> (B, T, C). An int8 `up` applies the gelu itself."""

    def __init__(self, config: ModelConfig, linear: MakeLinear) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.up = linear(hidden, inner, config.mlp_bias, activation=config.activation)
        self.down = linear(inner, hidden, config.mlp_bias)
        self.approximate = "tanh" if config.activation == "gelu_tanh" else "none"
        self.activates = not isinstance(self.up, QuantLinear)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = self.up(x)
        if self.activates:
            x = F.gelu(x, approximate=self.approximate)
        result: Tensor = self.down(x)
        return result


class GPT(Decoder):
    """GPT-2 in its four sizes, or a model that nanoGPT trained. Arguments: `Decoder`'s."""

    architecture: ClassVar[str] = "gpt2"

    def __init__(self, config: ModelConfig, **options: Any) -> None:
        super().__init__(config, **options)
        if config.activation == "silu":
            raise ValueError("GPT: activation must be gelu_tanh or gelu, got silu")
        like = self.norm.weight
        weight = torch.empty(
            config.max_positions, config.hidden_size, device=like.device, dtype=like.dtype
        )
        if not weight.is_meta:
            nn.init.normal_(weight, std=0.02)
        self.position_embed = nn.Embedding.from_pretrained(weight)

    def make_mlp(self, linear: MakeLinear, fused: bool) -> nn.Module:
        return GeluMlp(self.config, linear)

    def learned_positions(
        self, tokens: Tensor, cache: KVCache | None
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        if cache is None:
            zeros = torch.zeros(tokens.shape[0], dtype=torch.int32, device=tokens.device)
            return zeros, self.position_embed.weight
        return cache.positions, self.position_embed.weight
