"""Small models with everything a conversion may meet: tied, shared, listed and float layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import flashint8


class Block(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.up = nn.Linear(size, 3 * size)
        self.down = nn.Linear(3 * size, size, bias=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class ToyModel(nn.Module):
    """Embedding tied to lm_head; blocks.2 is blocks.0 again; heads in a ModuleList."""

    def __init__(self, size: int = 32, vocab: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, size)
        self.blocks = nn.ModuleList([Block(size), Block(size)])
        self.blocks.append(self.blocks[0])
        self.heads = nn.ModuleList(nn.Linear(size, 8) for _ in range(2))
        self.lm_head = nn.Linear(size, vocab, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(x), torch.cat([head(x) for head in self.heads], -1)


def toy(device: str = "cpu", size: int = 32) -> ToyModel:
    """In float32 on the CPU, in float16 on CUDA; in eval mode."""
    dtype = torch.float32 if device in ("cpu", "meta") else torch.float16
    with torch.device("meta" if device == "meta" else "cpu"):
        model = ToyModel(size)
    return model.to(device, dtype).eval()


def run(model: nn.Module, device: str = "cpu") -> Tensor:
    """Both outputs on fixed tokens, in one."""
    tokens = torch.arange(20, device=device).view(2, 10)
    with torch.inference_mode():
        return torch.cat([out.float() for out in model(tokens)], -1)


def quantized_copy(model: nn.Module) -> nn.Module:
    """The model quantised by quantize_model; the original stays."""
    import copy

    model = copy.deepcopy(model)
    flashint8.quantize_model(model)
    return model
