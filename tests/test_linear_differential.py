"""int8_linear against the float64 reference on seeded random configurations (--differential N)."""

from __future__ import annotations

import math
import random

import pytest
import torch
from checking import ACTIVATIONS, dtypes_on, linear_checked, quantised, randn
from torch import Tensor

# Most products are small, so that thousands are soon done: elements of x, weight and output.
MOST_WORK = {"cuda": 2**27, "cpu": 2**22}
MOST_WORK_OF_MANY_ROWS = {"cuda": 2**31, "cpu": 2**25}


def near_edge(rng: random.Random, largest: int) -> int:
    """A size near the edge of a tile, or any."""
    edge = rng.choice((1, 8, 16, 32, 64, 128, 256))
    size = rng.choice((edge * rng.randint(1, 4) + rng.randint(-1, 1), rng.randint(1, largest)))
    return max(1, min(size, largest))


def draw(rng: random.Random, device: str) -> dict:
    """One configuration; sizes lean towards the edges of tiles, rows towards few."""
    m = rng.choice((rng.randint(1, 8), rng.randint(9, 70), near_edge(rng, 700)))
    k, work = rng.choice((near_edge(rng, 2500), 16 * rng.randint(1, 300))), MOST_WORK[device]
    if rng.random() < 0.25:  # many rows: large tiles, and where a library's product takes over
        m, k, work = rng.randint(100, 5000), 16 * rng.randint(1, 60), MOST_WORK_OF_MANY_ROWS[device]
    n = near_edge(rng, 2500)
    if rng.random() < 0.15:  # some rows, and a block of channels for most multiprocessors
        m, n, k = rng.randint(9, 32), rng.randint(2500, 8500), 16 * rng.randint(1, 90)
    n = max(1, min(n, work // (m * k)))
    activation = rng.choice((None, None, *ACTIVATIONS))
    if activation == "silu_mul":
        n += n % 2
    return {
        "sizes": (m, n, k),
        "dtype": rng.choice(dtypes_on(device)),
        "rows": rng.choice(("contiguous", "contiguous", "padded", "two runs", "expanded", "odd")),
        "weight_pad": rng.choice((0, 0, 16, 3)),
        "bias": rng.random() < 0.5,
        "magnitude": rng.choice((1.0, 1.0, 30.0)),
        "activation": activation,
    }


def rows_of(x: Tensor, layout: str) -> Tensor:
    """x (M, K), or most of it, as a view of another layout over memory that is otherwise NaN."""
    m, k = x.shape
    if layout == "expanded":
        return x[:1].expand(m, k)
    if layout == "two runs" and m > 1:  # (2, M / 2, K), transposed in memory
        half = m // 2
        wide = x.new_full((half, 2, k + 8), math.nan)
        wide[..., :k] = x[: 2 * half].view(2, half, k).transpose(0, 1)
        return wide.transpose(0, 1)[..., :k]
    if layout in ("padded", "odd"):
        pad, first = (24, 8) if layout == "padded" else (5, 1)
        wide = x.new_full((m, k + pad), math.nan)
        wide[:, first : first + k] = x
        return wide[:, first : first + k]
    return x


def test_random_configuration(device: str, differential_index: int, request) -> None:
    seed = request.config.getoption("--seed") * 1_000_003 + differential_index
    case = draw(random.Random(f"linear {seed} {device}"), device)
    torch.manual_seed(seed)
    m, n, k = case["sizes"]
    x = rows_of(randn(m, k, dtype=case["dtype"], device=device) * case["magnitude"], case["rows"])
    weight, scale = quantised(n, k, device)
    if case["weight_pad"]:
        wide = weight.new_full((n, k + case["weight_pad"]), 127)
        wide[:, :k] = weight
        weight = wide[:, :k]
    bias = randn(n, dtype=case["dtype"], device=device) if case["bias"] else None
    try:
        linear_checked(x, weight, scale, bias, case["activation"])
    except Exception as error:
        pytest.fail(f"seed {seed}: {case}: {error}")
