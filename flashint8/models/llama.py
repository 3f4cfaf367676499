"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Touvron et al.,
arXiv:2302.13971); SmolLM2 is one too."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from flashint8.decoder import silu_mul
from flashint8.models.config import ModelConfig
from flashint8.models.decoder import Decoder


class SwigluMlp(nn.Module):
    """``down(silu(gate) * up)``, gate and up in one product (Shazeer, arXiv:2002.05202)."""

    def __init__(
        self, config: ModelConfig, linear: Callable[[int, int, bool], nn.Module], fused: bool
    ) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_up = linear(hidden, 2 * inner, config.mlp_bias)
        self.down = linear(inner, hidden, config.mlp_bias)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        result: Tensor
        if self.fused:
            result = self.down(silu_mul(self.gate_up(x)))
        else:
            gate, up = self.gate_up(x).chunk(2, dim=-1)
            result = self.down(F.silu(gate) * up)
        return result


class Llama(Decoder):
    """A Llama of any size. Arguments: `Decoder`'s."""

    architecture: ClassVar[str] = "llama"

    def __init__(self, config: ModelConfig, **options: Any) -> None:
        super().__init__(config, **options)
        if config.activation != "silu":
            raise ValueError(f"Llama: activation must be silu, got {config.activation}")

    def make_mlp(self, linear: Callable[[int, int, bool], nn.Module], fused: bool) -> nn.Module:
        return SwigluMlp(self.config, linear, fused)
