"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU (Touvron et al.,
arXiv:2302.13971); SmolLM2 is one too."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashint8.decoder import silu_mul
from flashint8.models.config import ModelConfig
from flashint8.models.decoder import Decoder, MakeLinear
from flashint8.modules import QuantLinear


class SwigluMlp(nn.Module):
    """``down(silu(gate) * up)``, gate and up in one product (Shazeer, arXiv:2002.05202).

    Float, that product is `gate_up`: the gate's rows, then up's. Int8, it is `gate_up_pairs`, whose
    rows are gate and up in turn, so that it applies the gate itself; the state of a `gate_up` is
    brought into that order as it is loaded.
    """

    def __init__(self, config: ModelConfig, linear: MakeLinear, fused: bool) -> None:
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        gate_up = linear(hidden, 2 * inner, config.mlp_bias, activation="silu_mul")
        self.pairs = isinstance(gate_up, QuantLinear)
        if self.pairs:
            self.gate_up_pairs = gate_up
            self.register_load_state_dict_pre_hook(_rows_in_turn)  # type: ignore[no-untyped-call]
        else:
            self.gate_up = gate_up
        self.down = linear(inner, hidden, config.mlp_bias)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if self.pairs:
            x = self.gate_up_pairs(x)
        elif self.fused:
            x = silu_mul(self.gate_up(x))
        else:
            gate, up = self.gate_up(x).chunk(2, dim=-1)
            x = F.silu(gate) * up
        result: Tensor = self.down(x)
        return result


def _rows_in_turn(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *unused: object
) -> None:
    """Renames the state of a `gate_up`, gate's rows and then up's, and brings them into turn."""
    for name in ("weight", "weight_scale", "bias"):
        halves = state_dict.pop(f"{prefix}gate_up.{name}", None)
        if halves is not None:
            turns = torch.stack(halves.chunk(2), dim=1).flatten(0, 1)
            state_dict[f"{prefix}gate_up_pairs.{name}"] = turns


class Llama(Decoder):
    """A Llama of any size. Arguments: `Decoder`'s."""

    architecture: ClassVar[str] = "llama"

    def __init__(self, config: ModelConfig, **options: Any) -> None:
        super().__init__(config, **options)
        if config.activation != "silu":
            raise ValueError(f"Llama: activation must be silu, got {config.activation}")

    def make_mlp(self, linear: MakeLinear, fused: bool) -> nn.Module:
        return SwigluMlp(self.config, linear, fused)
