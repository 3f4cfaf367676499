"""From logits to a token, on the device and without a synchronisation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flashint8.decoder import argmax_


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.

    Attributes:
        temperature: the logits are divided by it; 0 takes the likeliest token (greedy).
        top_k: only the k likeliest tokens may come; None: all.
        top_p: only the likeliest tokens that together reach this probability may come (Holtzman et
            al., arXiv:1904.09751); None: all. After top_k, as in transformers.

    Raises:
        ValueError: a value out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(
                f"Sampling: temperature must be finite and at least 0, got {self.temperature}"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"Sampling: top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"Sampling: top_p must be above 0 and at most 1, got {self.top_p}")

    def draw_(
        self,
        out: Tensor,
        logits: Tensor,
        generator: torch.Generator | None = None,
        positions: Tensor | None = None,
    ) -> None:
        """One token a row: logits (B, V) -> out (B, 1) int64, contiguous.

        Where `positions`, (B,) int32, are given, 1 is added to each, for the token drawn.

        The largest of ``logit / temperature + Gumbel noise`` is a sample of the softmax, so neither
        probabilities nor their sums are needed, and nothing waits for the device.
        """
        if self.temperature == 0.0:
            argmax_(out, logits, positions)
            return
        scores = logits.float() / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[-1]:
            least = scores.topk(self.top_k, dim=-1).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1.0:
            ordered = scores.sort(dim=-1, descending=True)
            probabilities = torch.softmax(ordered.values, dim=-1)
            before = probabilities.cumsum(dim=-1) - probabilities  # 0 for the likeliest: it stays
            cut = ordered.values.masked_fill(before >= self.top_p, -torch.inf)
            scores = torch.empty_like(scores).scatter_(-1, ordered.indices, cut)
        noise = torch.empty_like(scores).exponential_(1.0, generator=generator)
        torch.argmax(scores - noise.log_(), dim=-1, keepdim=True, out=out)
        if positions is not None:
            positions += 1
