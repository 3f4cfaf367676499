"""One pre-norm transformer block three ways: naive, SDPA with float linears, and ours.

``x + attn(ln1(x))``, then ``x + mlp(ln2(x))`` with GELU (tanh), as in GPT-2 (Radford et al.,
"Language Models are Unsupervised Multitask Learners"). The three share their weights by
``from_torch``, so that their outputs and times can be compared.
"""

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashint8.modules import CausalSelfAttention, QuantLinear


class TorchMiniBlock(nn.Module):
    """The naive block: scores, mask and probabilities are materialised, (B, H, T, T) each.

    Args:
        embed_dim: size C of each position.
        num_heads: heads; C is a multiple of it.
        mlp_ratio: the hidden layer's size over C.
        bias: of the linear layers.
        device: of the parameters.
        dtype: of the parameters.

    Shape: (B, T, embed_dim) -> (B, T, embed_dim).
    """

    def __init__(
        self,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: int = 4,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads != 0:
            raise ValueError(
                f"TorchMiniBlock: embed_dim must be a multiple of num_heads, got {embed_dim} and "
                f"{num_heads}"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        hidden = mlp_ratio * embed_dim
        self.ln1 = nn.LayerNorm(embed_dim, device=device, dtype=dtype)
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias, device=device, dtype=dtype)
        self.proj = nn.Linear(embed_dim, embed_dim, bias, device=device, dtype=dtype)
        self.ln2 = nn.LayerNorm(embed_dim, device=device, dtype=dtype)
        self.fc1 = nn.Linear(embed_dim, hidden, bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden, embed_dim, bias, device=device, dtype=dtype)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, (B, H, T, D) each, views of the qkv product."""
        batch, seq_len, _ = x.shape
        heads = self.qkv(x).view(batch, seq_len, 3, self.num_heads, self.head_dim)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def attention(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C), before the output product."""
        batch, seq_len, channels = x.shape
        shape = (batch * self.num_heads, seq_len, self.head_dim)
        q, k, v = (t.reshape(shape) for t in self._heads(x))
        scores = torch.bmm(q, k.transpose(1, 2)) * (1 / math.sqrt(self.head_dim))
        ones = torch.ones(seq_len, seq_len, dtype=torch.bool, device=x.device)
        scores = scores.masked_fill(torch.triu(ones, diagonal=1), float("-inf"))
        out = torch.bmm(torch.softmax(scores, dim=-1), v)
        out = out.view(batch, self.num_heads, seq_len, self.head_dim)
        return out.transpose(1, 2).reshape(batch, seq_len, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, embed_dim) -> (B, T, embed_dim)."""
        x = x + self.proj(self.attention(self.ln1(x)))
        hidden = F.gelu(self.fc1(self.ln2(x)), approximate="tanh")
        result: Tensor = x + self.fc2(hidden)
        return result


class SdpaMiniBlock(TorchMiniBlock):
    """The same block with torch's scaled_dot_product_attention and float linear layers."""

    @classmethod
    def from_torch(cls, block: TorchMiniBlock) -> "SdpaMiniBlock":
        """A copy of `block` that differs in its attention only."""
        sdpa = cls.__new__(cls)
        nn.Module.__init__(sdpa)
        sdpa.__dict__.update(copy.deepcopy(block).__dict__)
        return sdpa

    def attention(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C), before the output product."""
        q, k, v = self._heads(x)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).reshape(x.shape)


class OptimizedMiniBlock(nn.Module):
    """The same block with `flashint8.attention` and QuantLinear, of which fc1 applies the GELU.

    Inference only. Arguments and shape are those of `TorchMiniBlock`.
    """

    def __init__(
        self,
        embed_dim: int = 768,
        num_heads: int = 12,
        mlp_ratio: int = 4,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = mlp_ratio * embed_dim
        self.ln1 = nn.LayerNorm(embed_dim, device=device, dtype=dtype)
        self.attn = CausalSelfAttention(
            embed_dim, num_heads, bias=bias, quantized=True, device=device, dtype=dtype
        )
        self.ln2 = nn.LayerNorm(embed_dim, device=device, dtype=dtype)
        self.fc1 = QuantLinear(embed_dim, hidden, bias, device, dtype, activation="gelu_tanh")
        self.fc2 = QuantLinear(hidden, embed_dim, bias, device=device, dtype=dtype)

    @classmethod
    def from_torch(cls, block: TorchMiniBlock) -> "OptimizedMiniBlock":
        """A block with `block`'s norms copied and its linear layers quantised."""
        ours = cls(
            block.embed_dim,
            block.num_heads,
            block.fc1.out_features // block.embed_dim,
            device="meta",
        )
        ours.ln1 = copy.deepcopy(block.ln1)
        ours.ln2 = copy.deepcopy(block.ln2)
        ours.attn.qkv = QuantLinear.from_linear(block.qkv)
        ours.attn.proj = QuantLinear.from_linear(block.proj)
        ours.fc1 = QuantLinear.from_linear(block.fc1, activation="gelu_tanh")
        ours.fc2 = QuantLinear.from_linear(block.fc2)
        ours.train(block.training)
        return ours

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, embed_dim) -> (B, T, embed_dim)."""
        x = x + self.attn(self.ln1(x))
        result: Tensor = x + self.fc2(self.fc1(self.ln2(x)))
        return result
