"""attention against the float64 reference on seeded random configurations (--differential N)."""

from __future__ import annotations

import random

import pytest
import torch
from checking import attend, check_attention, dtypes_on, int32, make_qkv, poison_outside
from test_attention_layouts import LAYOUTS

HEAD_DIMS = (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 192, 256)


def draw(rng: random.Random, device: str) -> dict:
    """One configuration; lengths lean towards the edges of tiles and towards decode."""
    edge = rng.choice((1, 8, 16, 32, 64, 128))
    seq_len_kv = rng.choice(
        (rng.randint(1, 40), edge * rng.randint(1, 3) + rng.randint(-1, 1), 260)
    )
    seq_len_q = rng.choice((1, rng.randint(1, 8), rng.randint(1, 140), max(seq_len_kv, 1)))
    num_kv_heads = rng.randint(1, 3)
    batch = rng.randint(1, 4)
    causal = rng.choice((0, 1, 1, 2))

    def bounds() -> list[int] | None:
        reach = max(seq_len_kv, 1)
        kind = rng.choice(("none", "none", "inside", "wild"))
        low, high = (-3, reach + 3) if kind == "wild" else (0, reach)
        return None if kind == "none" else [rng.randint(low, high) for _ in range(batch)]

    return {
        "sizes": (batch, num_kv_heads * rng.choice((1, 1, 2, 3, 5, 8)), num_kv_heads),
        "lengths": (seq_len_q, max(seq_len_kv, 1)),
        "head_dim": rng.choice(HEAD_DIMS) if device == "cuda" else rng.choice((*HEAD_DIMS, 19, 77)),
        "dtype": rng.choice(dtypes_on(device)),
        "layouts": [rng.choice(list(LAYOUTS)) for _ in range(3)],
        "kv_lengths": bounds(),
        "kv_start": rng.choice((None, bounds())),
        "magnitude": rng.choice((1.0, 1.0, 5.0, 20.0)),
        "poison": rng.choice((float("nan"), float("inf"))),
        "options": {
            "causal": causal,
            "window": rng.choice((-1, -1, rng.randint(1, 90))) if causal else -1,
            "softcap": rng.choice((0.0, 0.0, 15.0)),
            "scale": rng.choice((None, None, 0.05)),
        },
    }


def test_random_configuration(device: str, differential_index: int, request) -> None:
    seed = request.config.getoption("--seed") * 1_000_003 + differential_index
    case = draw(random.Random(f"{seed} {device}"), device)
    torch.manual_seed(seed)
    dtype = case["dtype"]
    q, k, v = make_qkv(*case["sizes"], *case["lengths"], case["head_dim"], dtype, device)
    q = q * case["magnitude"]
    lengths, start = int32(case["kv_lengths"], device), int32(case["kv_start"], device)
    k, v = (poison_outside(t, start, lengths, case["poison"]) for t in (k, v))
    views = [LAYOUTS[name](t) for name, t in zip(case["layouts"], (q, k, v), strict=True)]
    try:
        out = attend(*views, lengths, start, **case["options"])
        check_attention(out, q, k, v, lengths, start, **case["options"])
    except Exception as error:
        pytest.fail(f"seed {seed}: {case}: {error}")
