"""rope_append_: values, layouts, what must stay untouched; the decoder's operators in a graph."""

from __future__ import annotations

import pytest
import torch
from checking import HALF_ULP, SMALLEST, assert_same_bits, assert_within, dtypes_on, int32, randn
from torch import Tensor

import flashint8

POISON = -77.0  # what a cache holds where nothing was written


def table(rows: int, rotary_dim: int, device: str) -> Tensor:
    """cos and sin of every position's angles, of the usual frequencies."""
    frequency = 10_000.0 ** -(torch.arange(rotary_dim // 2, dtype=torch.float64) / rotary_dim * 2)
    angle = torch.arange(rows, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1).float().to(device)


def rotated(x: Tensor, position: Tensor, cos_sin: Tensor, interleaved: bool) -> Tensor:
    """x (B, H, T, D) in float64, turned by the rows of cos_sin that position (B, T) names."""
    rotary_dim = cos_sin.shape[1]
    row = cos_sin.double()[position.clamp(0, cos_sin.shape[0] - 1)][:, None]
    cos, sin = row.chunk(2, dim=-1)
    x = x.double()
    turn, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    if interleaved:
        a, b = turn[..., ::2], turn[..., 1::2]
        turn = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
    else:
        a, b = turn.chunk(2, dim=-1)
        turn = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return torch.cat([turn, rest], dim=-1)


def fused_heads(
    batch: int,
    heads: int,
    kv_heads: int,
    tokens: int,
    dim: int,
    dtype: torch.dtype,
    device: str,
    offset: int = 0,
) -> list[Tensor]:
    """q, k, v as views of one fused projection (B, T, (Hq + 2 Hkv) D), `offset` elements in."""
    width = (heads + 2 * kv_heads) * dim
    qkv = randn(batch, tokens, offset + width, dtype=dtype, device=device)[..., offset:]
    parts = qkv.split([heads * dim, kv_heads * dim, kv_heads * dim], dim=-1)
    return [part.unflatten(-1, (-1, dim)).transpose(1, 2) for part in parts]


def caches(k: Tensor, slots: int, tokens_first: bool = False) -> tuple[Tensor, Tensor]:
    """Two poisoned caches (B, Hkv, slots, D), inside larger poisoned tensors."""
    batch, heads, _, dim = k.shape
    shape = (batch, slots + 2, heads, dim) if tokens_first else (batch, heads, slots + 2, dim)
    made = []
    for _ in "kv":
        whole = torch.full(shape, POISON, dtype=k.dtype, device=k.device)
        made.append((whole.transpose(1, 2) if tokens_first else whole)[:, :, 1:-1])
    return made[0], made[1]


def within_rounding(out: Tensor, ref: Tensor, scale: float, what: str) -> None:
    bound = HALF_ULP[out.dtype] * ref.abs() + 2.0**-21 * scale + SMALLEST[out.dtype]
    assert_within(out, ref, bound, what)


def rope_checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None,
    interleaved: bool = False,
) -> None:
    """Calls rope_append_; every element of every tensor, and of what the caches lie in, checked."""
    what = f"q {tuple(q.shape)} k {tuple(k.shape)} {q.dtype} positions {positions.tolist()}"
    slots, scale = k_cache.shape[2], max(1.0, q.abs().amax().item(), k.abs().amax().item())
    position = positions.long()[:, None] + torch.arange(q.shape[2], device=q.device)
    want_q, want_k = q.double(), k.double()
    if cos_sin is not None:
        want_q = rotated(q, position, cos_sin, interleaved)
        want_k = rotated(k, position, cos_sin, interleaved)
    sources = [k.clone(), v.clone()]
    flashint8.rope_append_(q, k, v, k_cache, v_cache, positions, cos_sin, interleaved=interleaved)
    for mine, before in zip((k, v), sources, strict=True):
        assert_same_bits(mine, before, f"{what}: k or v changed")
    within_rounding(q, want_q, scale, f"{what}: q")
    rotary_dim = 0 if cos_sin is None else cos_sin.shape[1]
    for cache, source, want in ((k_cache, k, want_k), (v_cache, v, v.double())):
        whole = cache._base
        assert whole is not None
        expected = torch.full_like(whole, POISON, dtype=torch.float64)
        view = expected.as_strided(cache.shape, cache.stride(), cache.storage_offset())
        for b in range(q.shape[0]):
            for t in range(q.shape[2]):
                slot = int(position[b, t])
                if 0 <= slot < slots:
                    view[b, :, slot] = want[b, :, t]
                    exact = 0 if cache is v_cache else rotary_dim
                    assert_same_bits(
                        cache[b, :, slot, exact:], source[b, :, t, exact:], f"{what}: copied"
                    )
        within_rounding(whole, expected, scale, f"{what}: cache")
        assert bool((whole[expected == POISON] == POISON).all()), f"{what}: a slot was touched"


# batch, q heads, kv heads, tokens, head_dim, rotary_dim
ROPE_SHAPES = {
    "llama token": (2, 4, 2, 1, 64, 64),
    "llama prompt": (1, 3, 1, 37, 128, 128),
    "phi": (2, 2, 2, 5, 80, 32),
    "one pair": (1, 1, 1, 2, 2, 2),
    "not 16 bytes": (2, 3, 1, 4, 20, 12),
    "odd head_dim": (1, 2, 1, 3, 35, 22),
    "halves of 12": (2, 2, 1, 3, 32, 24),
}


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("shape", ROPE_SHAPES)
def test_rope_values(device: str, shape: str, interleaved: bool) -> None:
    batch, heads, kv_heads, tokens, dim, rotary_dim = ROPE_SHAPES[shape]
    slots = tokens + 9
    for dtype in dtypes_on(device):
        q, k, v = fused_heads(batch, heads, kv_heads, tokens, dim, dtype, device)
        positions = int32([7, 2][:batch], device)
        cos_sin = table(slots + 3, rotary_dim, device)
        for tokens_first in (False, True):
            k_cache, v_cache = caches(k, slots, tokens_first)
            rope_checked(q, k, v, k_cache, v_cache, positions, cos_sin, interleaved)


@pytest.mark.parametrize(
    "positions",
    [
        [0, 4],
        pytest.param([-1, 5], marks=pytest.mark.sanitizer),
        [-9, 6],
        pytest.param([-(2**31), 2**31 - 1], marks=pytest.mark.sanitizer),
    ],
    ids=lambda p: f"{p[0]}",
)
def test_positions_outside_the_cache_write_nothing(device: str, positions: list[int]) -> None:
    """Six slots, three tokens; q is rotated all the same, by the nearest row of the table."""
    for dtype, interleaved in zip(dtypes_on(device), (False, True, False), strict=False):
        for dim in (16, 6):
            q, k, v = fused_heads(2, 3, 2, 3, dim, dtype, device)
            k_cache, v_cache = caches(k, 6)
            cos_sin = table(6, dim, device)
            rope_checked(q, k, v, k_cache, v_cache, int32(positions, device), cos_sin, interleaved)


def test_append_only(device: str) -> None:
    for dtype in dtypes_on(device):
        for dim in (64, 5):
            q, k, v = fused_heads(2, 4, 2, 3, dim, dtype, device)
            before = q.clone()
            k_cache, v_cache = caches(k, 8)
            rope_checked(q, k, v, k_cache, v_cache, int32([5, 6], device), None)
            assert_same_bits(q, before, "q without a table")


@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])
def test_rope_layouts(device: str, interleaved: bool) -> None:
    """What lies apart, or not on 16 bytes, gives the bits of what lies well."""
    dtype = torch.float16
    q, k, v = fused_heads(2, 4, 2, 6, 64, dtype, device)
    positions, cos_sin = int32([3, 0], device), table(10, 32, device)
    want_q, (want_k, want_v) = q.clone(), caches(k, 10)
    flashint8.rope_append_(
        want_q, k, v, want_k, want_v, positions, cos_sin, interleaved=interleaved
    )

    def off_by_one(x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], x], dim=-1)[..., 1:]

    wide_table = torch.cat([cos_sin, cos_sin], dim=-1)[:, :32]
    odd_table = torch.cat([cos_sin[:, :1], cos_sin], dim=-1)[:, 1:]
    same = {
        "q": [q.contiguous(), off_by_one(q), q.transpose(0, 2).contiguous().transpose(0, 2)],
        "k": [k.contiguous(), off_by_one(k), k.flip(0).flip(0)],
        "v": [v.contiguous(), off_by_one(v)],
        "positions": [torch.stack([positions, positions], dim=1)[:, 0]],
        "cos_sin": [wide_table, odd_table],
    }
    good = {"q": q, "k": k, "v": v, "positions": positions, "cos_sin": cos_sin}
    for name, variants in same.items():
        for variant in variants:
            k_cache, v_cache = caches(k, 10)
            args = {**good, name: variant}
            args["q"] = args["q"].clone(memory_format=torch.preserve_format)
            if name == "q":
                args["q"] = variant
            flashint8.rope_append_(
                **args, k_cache=k_cache, v_cache=v_cache, interleaved=interleaved
            )
            assert_same_bits(args["q"], want_q, f"q, {name} {variant.stride()}")
            assert_same_bits(k_cache, want_k, f"k_cache, {name} {variant.stride()}")
            assert_same_bits(v_cache, want_v, f"v_cache, {name} {variant.stride()}")


def test_rope_on_several_threads(device: str) -> None:
    """A prompt of many pieces of work gives each token the bits it has alone."""
    q, k, v = fused_heads(2, 8, 2, 150, 64, torch.bfloat16, device)
    cos_sin, positions = table(200, 64, device), int32([40, 0], device)
    alone_q, alone = q.clone(), caches(k, 200)
    together = caches(k, 200)
    for t in range(150):
        part = [x[:, :, t : t + 1] for x in (alone_q, k, v)]
        flashint8.rope_append_(*part, *alone, positions + t, cos_sin)
    flashint8.rope_append_(q, k, v, *together, positions, cos_sin)
    assert_same_bits(q, alone_q, "q")
    for one, other in zip(together, alone, strict=True):
        assert_same_bits(one, other, "cache")


@pytest.mark.parametrize("shape", [(0, 4, 2, 3), (2, 0, 0, 3), (2, 4, 2, 0), (2, 4, 0, 3)])
def test_rope_empty(device: str, shape: tuple[int, int, int, int]) -> None:
    batch, heads, kv_heads, tokens = shape
    q = torch.ones(batch, heads, tokens, 8, dtype=torch.float16, device=device)
    k = torch.ones(batch, kv_heads, tokens, 8, dtype=torch.float16, device=device)
    k_cache, v_cache = caches(k, 5)
    positions = torch.zeros(batch, dtype=torch.int32, device=device)
    flashint8.rope_append_(q, k, k.clone(), k_cache, v_cache, positions, table(5, 8, device))
    for cache in (k_cache, v_cache):
        assert bool((cache == POISON).all())
    assert bool(q[:, :, :1].isfinite().all())


def test_rope_without_slots(device: str) -> None:
    q, k, v = fused_heads(1, 2, 1, 2, 16, torch.float16, device)
    k_cache, v_cache = caches(k, 0)
    rope_checked(q, k, v, k_cache, v_cache, int32([0], device), table(4, 16, device))


# ---- graphs ----------------------------------------------------------------------------------


def test_graph_of_a_decoding_step(cuda: str) -> None:
    """All three in one graph, among torch's kernels and copies: each replay is the eager step.

    Every kernel here may be launched while the one before it runs; a missing wait shows as other
    bits.
    """
    dtype, dim, slots = torch.float16, 64, 40
    weight = randn(512, dtype=dtype, device=cuda)
    cos_sin = table(slots, dim, cuda)
    stream = randn(2, 512, dtype=dtype, device=cuda)
    start = stream.clone()
    positions = torch.zeros(2, dtype=torch.int32, device=cuda)
    k_cache, v_cache = torch.zeros(2, 2, 4, slots, dim, dtype=dtype, device=cuda)

    def step() -> Tensor:
        for _ in range(8):
            y = flashint8.add_norm_(stream, stream * 0.25, weight)
            qkv = torch.cat([y, y.flip(-1), y * 0.5], dim=-1)[:, None]
            q, k, v = (x.unflatten(-1, (-1, dim)).transpose(1, 2) for x in qkv.split(512, -1))
            k, v = k[:, :4], v[:, :4]
            flashint8.rope_append_(q, k, v, k_cache, v_cache, positions, cos_sin)
            y = flashint8.silu_mul(flashint8.silu_mul(q.transpose(1, 2).reshape(2, 512)))
            stream[:, :128].copy_(y)
            flashint8.add_norm_(stream, None, weight, weight, rms=False)
            positions.add_(1)
        return stream.clone()

    def reset(length: int) -> None:
        stream.copy_(start)
        positions.copy_(torch.tensor([length, length // 2]))
        k_cache.zero_()
        v_cache.zero_()

    reset(0)
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for length in (0, 3, 31, 36):  # the last runs past the cache
        reset(length)
        graph.replay()
        torch.cuda.synchronize()
        got = [t.clone() for t in (out, k_cache, v_cache, positions)]
        reset(length)
        want = step()
        for one, other in zip(got, (want, k_cache, v_cache, positions), strict=True):
            assert_same_bits(one, other, f"length {length}: replay against eager")


def test_no_synchronisation(cuda: str) -> None:
    q, k, v = fused_heads(1, 2, 2, 1, 64, torch.float16, cuda)
    args = (q, k, v, *caches(k, 8), int32([2], cuda), table(8, 64, cuda))
    weight, row = (randn(*s, 64, dtype=torch.float16, device=cuda) for s in ((), (1,)))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(200_000_000)
        flashint8.rope_append_(*args)
        flashint8.silu_mul(flashint8.add_norm_(row, row, weight))
        done = torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not done, "a call waited for the stream"
