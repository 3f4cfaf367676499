"""attention_with_kvcache against rope_append_ and attention on random steps (--differential N)."""

from __future__ import annotations

import math
import random

import pytest
import torch
from checking import dtypes_on, int32, randn
from test_attention_layouts import LAYOUTS
from test_attention_with_kvcache import checked
from test_rope_append import table
from torch import Tensor

HEAD_DIMS = (8, 16, 32, 40, 64, 64, 80, 96, 128, 128, 136, 192, 256)
CACHES = ("heads first", "tokens first", "odd rows", "offset")


def draw(rng: random.Random, device: str) -> dict:
    """One step; positions lean towards the edges of tiles and of the cache."""
    slots = rng.choice((1, rng.randint(1, 40), rng.randint(1, 400), 16 * rng.randint(1, 40)))
    dim = rng.choice(HEAD_DIMS)
    even = 2 * rng.randint(1, dim // 2)
    edges = (0, slots - 1, slots, rng.randint(0, slots), 16 * rng.randint(0, slots // 16))
    return {
        "heads": (kv_heads := rng.randint(1, 4), kv_heads * rng.choice((1, 1, 2, 3, 4, 8, 24))),
        "dim": dim,
        "slots": slots,
        "positions": [rng.choice((*edges, -2, slots + 5)) for _ in range(rng.randint(1, 5))],
        "dtype": rng.choice(dtypes_on(device)),
        "layouts": [rng.choice((*LAYOUTS, *["contiguous"] * 20)) for _ in range(3)],
        "caches": rng.choice((*CACHES, *CACHES[:2])),
        "columns": rng.choice((None, dim, dim, even)),
        "table": rng.choice(("whole", "whole", "wider")),
        "interleaved": rng.choice((False, False, True)),
        "scale": rng.choice((None, 0.05)),
        "cache_ready": rng.choice((False, True)),
    }


def make_cache(kind: str, like: Tensor, slots: int, positions: list[int]) -> Tensor:
    """A view of a larger tensor of NaN, with random rows before each position."""
    batch, heads, _, dim = like.shape
    pad, first = {"odd rows": (3, 0), "offset": (8, 1)}.get(kind, (8, 0))
    outer = (slots + 1, heads) if kind == "tokens first" else (heads, slots + 1)
    shape = (batch, *outer, dim + pad)
    whole = torch.full(shape, math.nan, dtype=like.dtype, device=like.device)
    cache = whole[..., first : first + dim]
    cache = (cache.transpose(1, 2) if kind == "tokens first" else cache)[:, :, :slots]
    for b, position in enumerate(positions):
        seen = min(max(position, 0), slots)
        rows = randn(heads, seen, dim, dtype=like.dtype, device=str(like.device))
        cache[b, :, :seen] = rows
    return cache


def run(case: dict, device: str) -> None:
    kv_heads, heads = case["heads"]
    batch, dim, dtype = len(case["positions"]), case["dim"], case["dtype"]
    plain = [
        randn(batch, h, 1, dim, dtype=dtype, device=device) for h in (heads, kv_heads, kv_heads)
    ]
    q, k, v = (LAYOUTS[name](t) for name, t in zip(case["layouts"], plain, strict=True))
    made = [make_cache(case["caches"], k, case["slots"], case["positions"]) for _ in "kv"]
    cos_sin = None
    if case["columns"] is not None:
        cos_sin = table(max(case["slots"], 1), case["columns"], device)
        if case["table"] == "wider":
            cos_sin = torch.cat([cos_sin, cos_sin[:, :1]], dim=-1)[:, :-1]
    options = {name: case[name] for name in ("interleaved", "scale", "cache_ready")}
    checked(q, k, v, *made, int32(case["positions"], device), cos_sin, **options)


def test_random_step(device: str, differential_index: int, request) -> None:
    seed = request.config.getoption("--seed") * 1_000_003 + differential_index
    case = draw(random.Random(f"{seed} {device}"), device)
    torch.manual_seed(seed)
    try:
        run(case, device)
    except Exception as error:
        pytest.fail(f"seed {seed}: {case}: {error}")
