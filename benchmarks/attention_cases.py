"""Shapes of the attention benchmark, their inputs, and the float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# Scores of the float64 reference are computed for at most this many (query, key) pairs; of larger
# cases a sample of the query rows is checked.
REFERENCE_PAIRS = {"cuda": 1 << 33, "cpu": 1 << 26}
REFERENCE_CHUNK_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}


@dataclass(frozen=True)
class AttentionCase:
    """Causal attention; the last query sees the last key."""

    batch: int
    num_heads: int
    num_kv_heads: int
    seq_len_q: int
    seq_len_kv: int
    head_dim: int

    @property
    def pairs(self) -> float:
        """(query, key) pairs that count: half the square where queries and keys are as many."""
        if self.seq_len_q == self.seq_len_kv:
            return self.seq_len_q * self.seq_len_kv / 2
        hidden = self.seq_len_q * (self.seq_len_q - 1) / 2
        return self.seq_len_q * self.seq_len_kv - hidden

    @property
    def flops(self) -> float:
        """Operations of QK^T and PV over the pairs that count."""
        return 4.0 * self.batch * self.num_heads * self.head_dim * self.pairs

    @property
    def output_elements(self) -> int:
        """Elements of q, and of the output."""
        return self.batch * self.num_heads * self.seq_len_q * self.head_dim

    def bytes_moved(self, dtype: torch.dtype) -> float:
        """Each input read once, the output written once."""
        cache = 2 * self.batch * self.num_kv_heads * self.seq_len_kv * self.head_dim
        return float((2 * self.output_elements + cache) * dtype.itemsize)

    @property
    def decode(self) -> bool:
        """One query against a cache: inputs then come from memory, not from a cache."""
        return self.seq_len_q == 1

    @staticmethod
    def limit(dtype: torch.dtype) -> float:
        """Largest absolute error allowed against float64."""
        return {torch.float16: 1e-2, torch.bfloat16: 3e-2}.get(dtype, 1e-4)

    def as_json(self, dtype: torch.dtype) -> dict[str, Any]:
        """The row's ``case``."""
        return {
            "B": self.batch,
            "Hq": self.num_heads,
            "Hkv": self.num_kv_heads,
            "Tq": self.seq_len_q,
            "Tk": self.seq_len_kv,
            "D": self.head_dim,
            "dtype": str(dtype).removeprefix("torch."),
            "causal": True,
        }


SEED = [(b, h, h, t, t, 64) for b in (1, 2) for h in (4, 8) for t in (128, 256, 512)]
PREFILL = [
    (8, 12, 12, 1024, 1024, 64),
    (4, 16, 16, 2048, 2048, 64),
    (2, 32, 32, 4096, 4096, 64),
    (1, 16, 16, 16384, 16384, 64),
    (1, 32, 32, 2048, 2048, 128),
    (2, 16, 16, 4096, 4096, 128),
    (1, 16, 16, 16384, 16384, 128),
]
DECODE = [
    (1, 12, 12, 1, 1024, 64),
    (1, 32, 8, 1, 4096, 64),
    (1, 32, 8, 1, 4096, 128),
    (1, 32, 8, 1, 32768, 128),
    (16, 32, 8, 1, 4096, 128),
]
# On a CPU the long rows would take minutes each.
PREFILL_CPU = [
    (1, 12, 12, 1024, 1024, 64),
    (1, 8, 8, 2048, 2048, 64),
    (1, 8, 8, 2048, 2048, 128),
]
DECODE_CPU = [
    (1, 12, 12, 1, 1024, 64),
    (1, 32, 32, 1, 4096, 64),
    (1, 32, 8, 1, 4096, 64),
    (1, 32, 8, 1, 4096, 128),
    (1, 32, 8, 1, 32768, 128),
]
SUITES = ("seed", "prefill", "decode")


def suite(name: str, device_type: str = "cuda") -> list[AttentionCase]:
    """The cases of a suite."""
    cpu = device_type == "cpu"
    tables = {
        "seed": SEED,
        "prefill": PREFILL_CPU if cpu else PREFILL,
        "decode": DECODE_CPU if cpu else DECODE,
    }
    return [AttentionCase(*shape) for shape in tables[name]]


def parse_shapes(text: str) -> list[AttentionCase]:
    """``--shapes``: "B,H,T,D" or "B,Hq,Hkv,Tq,Tk,D", several with ";" between.

    Raises:
        SystemExit: a shape that is neither, named.
    """
    cases = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        try:
            numbers = [int(x) for x in part.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) == 4:
            b, h, t, d = numbers
            numbers = [b, h, h, t, t, d]
        if len(numbers) != 6 or min(numbers) < 1 or numbers[1] % numbers[2]:
            raise SystemExit(f"--shapes takes B,H,T,D or B,Hq,Hkv,Tq,Tk,D, got {part!r}")
        cases.append(AttentionCase(*numbers))
    return cases


def make_inputs(
    case: AttentionCase, dtype: torch.dtype, device: torch.device, seed: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normal random q (B, Hq, Tq, D), k and v (B, Hkv, Tk, D), the same for the same seed."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(heads: int, length: int) -> torch.Tensor:
        shape = (case.batch, heads, length, case.head_dim)
        return torch.randn(shape, generator=generator, device=device).to(dtype)

    return (
        draw(case.num_heads, case.seq_len_q),
        draw(case.num_kv_heads, case.seq_len_kv),
        draw(case.num_kv_heads, case.seq_len_kv),
    )


def reference_rows(case: AttentionCase, device: torch.device, seed: int) -> torch.Tensor:
    """Query rows to check: all, or the first two, the last two and a random sample."""
    heads = case.batch * case.num_heads
    most = max(16, REFERENCE_PAIRS[device.type] // (heads * case.seq_len_kv))
    if most >= case.seq_len_q:
        return torch.arange(case.seq_len_q, device=device)
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randperm(case.seq_len_q, generator=generator)[: most - 4]
    ends = torch.tensor([0, 1, case.seq_len_q - 2, case.seq_len_q - 1])
    return torch.unique(torch.cat([sample, ends])).to(device)


def attention_error(
    case: AttentionCase, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seed: int
) -> Callable[[torch.Tensor], float]:
    """Largest absolute difference of an output to float64 attention on the same inputs."""
    rows = reference_rows(case, q.device, seed)
    expected = reference(case, q[:, :, rows], k, v, rows)

    def error(out: torch.Tensor) -> float:
        if out.shape != q.shape:
            raise ValueError(f"output has shape {tuple(out.shape)}, expected {tuple(q.shape)}")
        return float((out[:, :, rows].double() - expected).abs().max())

    return error


def reference(
    case: AttentionCase, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor
) -> torch.Tensor:
    """Float64 attention of the query rows ``rows`` (q holds only these), head by head."""
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    group = case.num_heads // case.num_kv_heads
    chunk = max(1, REFERENCE_CHUNK_BYTES[q.device.type] // (case.seq_len_kv * 8))
    keys = torch.arange(case.seq_len_kv, device=q.device)
    last = rows + (case.seq_len_kv - case.seq_len_q)
    for b in range(case.batch):
        for h in range(case.num_heads):
            kh = k[b, h // group].double()
            vh = v[b, h // group].double()
            for begin in range(0, len(rows), chunk):
                part = slice(begin, begin + chunk)
                scores = q[b, h, part].double() @ kh.T / math.sqrt(case.head_dim)
                scores.masked_fill_(keys[None, :] > last[part, None], -math.inf)
                out[b, h, part] = torch.softmax(scores, dim=-1) @ vh
    return out
