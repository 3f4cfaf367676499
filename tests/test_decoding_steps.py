"""Decoding steps on the GPU that begin before what is ahead of them has ended."""

from __future__ import annotations

import pytest
import torch
from checking import assert_same_bits, quantised, randn
from test_attention_with_kvcache import in_two
from test_rope_append import table
from torch import Tensor

import flashint8
from flashint8.decoder import argmax_, embed_

Weights = list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]


def attend(
    residual: Tensor,
    norm: Tensor,
    weights: Weights,
    cache: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    one: bool,
    wait: bool,
) -> Tensor | None:
    """A step's layers, by our kernels alone, each of a norm, a product, attention with twice as
    many heads as keys have, and a product: what is to be added to the stream last."""
    dim, kv_heads = cos_sin.shape[1], cache.shape[3]
    heads = 2 * kv_heads
    y = None
    for layer, (qkv_weight, out_weight) in enumerate(weights):
        y = flashint8.add_norm_(residual, y, norm)
        qkv = flashint8.int8_linear(y, *qkv_weight, weight_ready=True)
        parts = qkv[:, None].split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
        q, k, v = (part.unflatten(-1, (-1, dim)).transpose(1, 2) for part in parts)
        args = (q, k, v, cache[layer, 0], cache[layer, 1], positions, cos_sin)
        fused = flashint8.attention_with_kvcache
        y = fused(*args, cache_ready=True) if one else in_two(*args)
        y = flashint8.int8_linear(y.view(-1, heads * dim), *out_weight, weight_ready=True)
        if wait:
            torch.cuda.synchronize()
    return y


def decode(
    stream: Tensor,
    weights: Weights,
    cache: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    steps: int,
    one: bool,
    wait: bool = False,
) -> Tensor:
    """Steps of a decoder without an MLP; each reads rows that those before it wrote.

    The stream goes on from step to step, and from call to call.
    """
    norm = torch.ones_like(stream[0])
    outs = []
    for _ in range(steps):
        residual = stream.clone()
        y = attend(residual, norm, weights, cache, positions, cos_sin, one, wait)
        stream.copy_(flashint8.add_norm_(residual, y, norm))
        outs.append(stream.clone())
        positions += 1
        if wait:
            torch.cuda.synchronize()
    return torch.stack(outs)


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_cache_ready_reads_nothing_too_soon(cuda: str, dim: int, batch: int) -> None:
    """Many steps at once, eager and in a graph, give what they give one at a time."""
    width, slots, steps = 256, 1200, 12
    rows = 8 * dim  # 4 heads of queries, 2 of keys and 2 of values
    weights = [
        (quantised(rows, width, cuda, spread=0.1), quantised(width, 4 * dim, cuda, spread=0.1))
        for _ in range(3)
    ]
    cos_sin = table(slots, dim, cuda)
    start = randn(batch, width, dtype=torch.float16, device=cuda)
    filled = randn(3, 2, batch, 2, slots, dim, dtype=torch.float16, device=cuda)
    positions = torch.zeros(batch, dtype=torch.int32, device=cuda)
    stream, cache = start.clone(), filled.clone()
    state = (stream, weights, cache, positions, cos_sin)

    def reset(first: int) -> None:
        stream.copy_(start)
        cache.copy_(filled)
        positions.copy_((torch.arange(batch) * 37 + first) % (slots - 40))
        torch.cuda.synchronize()

    decode(*state, 1, one=True)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = decode(*state, steps, one=True)
    for first in (0, 29, 500, 1120):
        reset(first)
        want, want_cache = decode(*state, 2 * steps, one=False, wait=True), cache.clone()
        assert bool(want.isfinite().all())
        reset(first)
        assert_same_bits(decode(*state, 2 * steps, one=True), want, f"eager, from {first}")
        assert_same_bits(cache, want_cache, f"cache, eager, from {first}")
        reset(first)
        graph.replay()
        replays = [captured.clone()]
        graph.replay()
        assert_same_bits(torch.cat([*replays, captured]), want, f"graph, from {first}")
        assert_same_bits(cache, want_cache, f"cache, graph, from {first}")


@pytest.mark.parametrize("batch", [1, 24])
@pytest.mark.parametrize("dim", [64, 128, 256])
def test_a_step_without_torch_in_it(cuda: str, dim: int, batch: int) -> None:
    """Steps from token to token, of our kernels alone, as in one graph of several: they give what
    they give one kernel at a time. Norms of short rows let their successors start early, and so do
    products of many rows; the embedding is all that keeps a step apart from the one before."""
    width, slots, steps, heads, kv_heads, vocabulary = 4 * dim, 1000, 8, 8, 4, 500
    weights = [
        (
            quantised((heads + 2 * kv_heads) * dim, width, cuda, spread=0.1),
            quantised(width, heads * dim, cuda, spread=0.1),
        )
        for _ in range(2)
    ]
    head = quantised(vocabulary, width, cuda, spread=1.0)
    cos_sin, norm = table(slots, dim, cuda), torch.ones(width, dtype=torch.float16, device=cuda)
    filled = randn(2, 2, batch, kv_heads, slots, dim, dtype=torch.float16, device=cuda)
    cache = filled.clone()
    tokens = torch.zeros(batch, 1, dtype=torch.int64, device=cuda)
    positions = torch.zeros(batch, dtype=torch.int32, device=cuda)

    def step(one: bool, wait: bool) -> Tensor:
        residual = torch.empty(batch, width, dtype=torch.float16, device=cuda)
        embed_(residual[:, None], tokens, *head)
        y = attend(residual, norm, weights, cache, positions, cos_sin, one, wait)
        logits = flashint8.int8_linear(flashint8.add_norm_(residual, y, norm), *head)
        argmax_(tokens, logits, positions)
        if wait:
            torch.cuda.synchronize()
        return logits

    def reset(first: int) -> None:
        cache.copy_(filled)
        tokens.copy_(torch.arange(batch)[:, None] * 7 % vocabulary)
        positions.copy_((torch.arange(batch) * 37 + first) % (slots - 2 * steps))
        torch.cuda.synchronize()

    step(one=True, wait=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [step(one=True, wait=False) for _ in range(steps)]
    for first in (0, 3, 200, 980):
        reset(first)
        want = torch.stack([step(one=False, wait=True) for _ in range(steps)])
        want_cache = cache.clone()
        assert bool(want.isfinite().all())
        reset(first)
        got = torch.stack([step(one=True, wait=False) for _ in range(steps)])
        assert_same_bits(got, want, f"eager, from {first}")
        reset(first)
        graph.replay()
        assert_same_bits(torch.stack(captured), want, f"graph, from {first}")
        assert_same_bits(cache, want_cache, f"cache, graph, from {first}")
