"""attention_with_kvcache: the bits of rope_append_ and attention, in one operator."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from checking import assert_same_bits, dtypes_on, int32, randn, refuses
from test_cuda_runtime import peak_beyond_output
from test_rope_append import caches, fused_heads, table
from torch import Tensor

import flashint8


def filled_caches(k: Tensor, slots: int, positions: Tensor, tokens_first: bool) -> list[Tensor]:
    """Random up to each row's position, NaN behind it."""
    made = list(caches(k, slots, tokens_first))
    for cache in made:
        cache.copy_(randn(*cache.shape, dtype=k.dtype, device=str(k.device)))
        for b, position in enumerate(positions.tolist()):
            cache[b, :, max(position, 0) :] = math.nan
    return made


def apart(cache: Tensor) -> Tensor:
    """The same view of a copy of what it lies in."""
    assert cache._base is not None
    return cache._base.clone().as_strided(cache.shape, cache.stride(), cache.storage_offset())


def in_two(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None = None,
    *,
    interleaved: bool = False,
    scale: float | None = None,
) -> Tensor:
    if cos_sin is not None:
        q = q.clone(memory_format=torch.preserve_format)  # it is rotated in place
    flashint8.rope_append_(q, k, v, k_cache, v_cache, positions, cos_sin, interleaved=interleaved)
    ends = (positions.long() + 1).clamp(0, k_cache.shape[2]).int()
    return flashint8.attention(q, k_cache, v_cache, ends, scale=scale)


def checked(*args: Any, cache_ready: bool = False, **options: Any) -> Tensor:
    """The operator's output, compared with `in_two`; so is every element it wrote or must not."""
    q, k, v, k_cache, v_cache, positions, *_ = args
    what = f"q {tuple(q.shape)} k_cache {tuple(k_cache.shape)} {q.dtype} {positions.tolist()}"
    others = apart(k_cache), apart(v_cache)
    before = [t.clone() for t in (q, k, v)]
    want = in_two(q, k, v, *others, *args[5:], **options)
    out = flashint8.attention_with_kvcache(*args, cache_ready=cache_ready, **options)
    assert_same_bits(out, want, what)
    assert bool(out.isfinite().all()), f"{what}: NaN behind the position was seen"
    for mine, other in zip((k_cache, v_cache), others, strict=True):
        assert_same_bits(mine._base, other._base, f"{what}: cache")
    for now, then in zip((q, k, v), before, strict=True):
        assert_same_bits(now, then, f"{what}: q, k or v changed")
    return out


def case(
    device: str,
    dtype: torch.dtype,
    heads: tuple[int, int],
    dim: int,
    slots: int,
    positions: list[int],
    tokens_first: bool = False,
) -> list[Tensor]:
    """q, k, v, k_cache, v_cache, positions."""
    starts = int32(positions, device)
    assert starts is not None
    q, k, v = fused_heads(len(positions), *heads, 1, dim, dtype, device)
    return [q, k, v, *filled_caches(k, slots, starts, tokens_first), starts]


# columns of the table, by head_dim; interleaved
ROTATIONS = {
    "no": lambda dim: (None, False),
    "halves": lambda dim: (dim, False),
    "pairs": lambda dim: (dim, True),
    "part": lambda dim: (dim // 4 * 2, False),
}


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("dim", [32, 64, 80, 96, 128, 256])
def test_same_bits_as_in_two(device: str, dim: int, rotation: str) -> None:
    columns, interleaved = ROTATIONS[rotation](dim)
    cos_sin = None if columns is None else table(320, columns, device)
    for dtype in dtypes_on(device):
        for heads, tokens_first in (((4, 4), False), ((8, 2), True)):
            args = case(device, dtype, heads, dim, 300, [17, 0, 299, 300, 130], tokens_first)
            checked(*args, cos_sin, interleaved=interleaved)
            args = case(device, dtype, heads, dim, 300, [17, 0, 299, 300, 130], tokens_first)
            checked(*args, cos_sin, interleaved=interleaved, cache_ready=True)


EDGES = [0, 1, 2, 7, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 127, 128, 191, 192, 250, 255]


@pytest.mark.parametrize("dim", [64, pytest.param(128, marks=pytest.mark.sanitizer), 256])
def test_every_place_in_a_tile(device: str, dim: int) -> None:
    for ready in (False, True):
        args = case(device, torch.float16, (2, 1), dim, 256, EDGES)
        checked(*args, table(256, dim, device), cache_ready=ready)


@pytest.mark.sanitizer
def test_positions_outside_the_cache(device: str) -> None:
    """Nothing is written; q, turned by the nearest row, sees all of the cache, or nothing."""
    positions = [40, 41, 2**31 - 1, 39, -1, -7, -(2**31), 0]
    for rotates, ready in itertools.product((True, False), repeat=2):
        args = case(device, torch.float16, (4, 2), 64, 40, positions)
        cos_sin = table(40, 64, device) if rotates else None
        out = checked(*args, cos_sin, cache_ready=ready)
        assert bool((out[4:7] == 0).all())
        assert bool((out[:4] != 0).any())


@pytest.mark.parametrize("heads", [(1, 1), (6, 1), (32, 2), (34, 2), (50, 1), (16, 16)], ids=str)
def test_heads_that_share_keys(device: str, heads: tuple[int, int]) -> None:
    """17 and more take several blocks of rows, of which one writes the cache."""
    for dim in (64, 128):
        args = case(device, torch.bfloat16, heads, dim, 500, [499, 3, 256])
        checked(*args, table(500, dim, device), scale=0.3, cache_ready=True)


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_long_caches(device: str, batch: int) -> None:
    """Split over many blocks, most of which hold tiles of cached rows alone."""
    positions = [4999, 5, 2500] * 14
    for dim in (64, 128, 256):
        args = case(device, torch.float16, (4, 1), dim, 5000, positions[:batch])
        checked(*args, table(5000, dim, device), cache_ready=True)


@pytest.mark.parametrize("dim", [64, 128])
def test_long_splits(cuda: str, dim: int) -> None:
    """As many keys a split as eight warps a block are for, where they fit; and hardly any."""
    for position in (8199, 8000, 4100, 17, 1, 0):
        args = case(cuda, torch.float16, (16, 8), dim, 8200, [position])
        checked(*args, table(8200, dim, cuda), cache_ready=True)
    details = flashint8.explain("attention_with_kvcache", *args, cache_ready=True).details
    if details["code"].startswith("90") and 512 * details["num_splits"] <= 8200:
        assert details["num_warps"] == 8
        assert details["num_splits"] > 1


def test_layouts(device: str) -> None:
    """What lies apart, or not on 16 bytes, gives the bits of what lies well."""
    cos_sin = table(50, 64, device)
    good = dict(
        zip(
            ("q", "k", "v", "k_cache", "v_cache", "positions"),
            case(device, torch.float16, (4, 2), 64, 50, [20, 3]),
            strict=True,
        ),
        cos_sin=cos_sin,
    )

    def off_by_one(x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], x], dim=-1)[..., 1:]

    def fresh() -> dict[str, Tensor]:
        return {**good, "k_cache": apart(good["k_cache"]), "v_cache": apart(good["v_cache"])}

    want = fresh()
    expected = flashint8.attention_with_kvcache(**want)
    for name in ("q", "k", "v", "cos_sin"):
        value = good[name]
        for variant in (value.contiguous(), off_by_one(value), value.flip(0).flip(0)):
            args = {**fresh(), name: variant}
            out = flashint8.attention_with_kvcache(**args)
            assert_same_bits(out, expected, f"{name} {variant.stride()}")
            for cache in ("k_cache", "v_cache"):
                assert_same_bits(args[cache], want[cache], f"{cache}, {name} {variant.stride()}")
    strided = torch.stack([good["positions"]] * 2, dim=1)[:, 0]
    assert_same_bits(
        flashint8.attention_with_kvcache(**{**fresh(), "positions": strided}), expected, "positions"
    )
    # one row of queries for both rows of the batch: q is not written
    q = good["q"][:1].expand(2, 4, 1, 64)
    one, other = fresh(), {**fresh(), "q": q.contiguous()}
    one["q"] = q
    assert_same_bits(
        flashint8.attention_with_kvcache(**one), flashint8.attention_with_kvcache(**other), "q"
    )
    # caches that do not lie on 16 bytes
    args = [*case(device, torch.float16, (4, 2), 64, 50, [20, 3]), cos_sin]
    args[3], args[4] = (torch.nn.functional.pad(t, (1, 6))[..., 1:-6] for t in (args[3], args[4]))
    checked(*args, cache_ready=True)


@pytest.mark.parametrize(("batch", "heads", "kv_heads"), [(0, 4, 2), (2, 0, 0), (2, 0, 2)], ids=str)
def test_empty(device: str, batch: int, heads: int, kv_heads: int) -> None:
    q = torch.ones(batch, heads, 1, 64, dtype=torch.float16, device=device)
    k = torch.ones(batch, kv_heads, 1, 64, dtype=torch.float16, device=device)
    k_cache, v_cache = caches(k, 5)
    positions = torch.full((batch,), 3, dtype=torch.int32, device=device)
    out = flashint8.attention_with_kvcache(q, k, k, k_cache, v_cache, positions)
    assert out.shape == q.shape
    for cache in (k_cache, v_cache):
        assert bool((cache[:, :, 3] == 1).all()), "the token is there even if nobody asks"
        assert bool((cache[:, :, :3] == -77).all())


def test_without_slots(device: str) -> None:
    args = case(device, torch.float16, (2, 1), 64, 0, [0, 5])
    assert bool((checked(*args, table(4, 64, device)) == 0).all())


def test_steps_one_after_another(device: str) -> None:
    """Eight tokens, each written by a call that reads those before it: as one prompt of eight."""
    q, k, v = fused_heads(2, 4, 2, 8, 64, torch.float16, device)
    cos_sin, positions = table(40, 64, device), int32([0, 21], device)
    mine, theirs = (
        [torch.zeros(2, 2, 40, 64, dtype=q.dtype, device=device) for _ in "kv"] for _ in range(2)
    )
    outs = []
    for t in range(8):
        part = [x[:, :, t : t + 1] for x in (q, k, v)]
        outs.append(flashint8.attention_with_kvcache(*part, *mine, positions + t, cos_sin))
    flashint8.rope_append_(q, k, v, *theirs, positions, cos_sin)
    want = flashint8.attention(q, *theirs, positions + 8)
    for one, other in zip(mine, theirs, strict=True):
        assert_same_bits(one, other, "cache")
    torch.testing.assert_close(torch.cat(outs, dim=2), want, rtol=0, atol=2e-3)


# ---- torch -----------------------------------------------------------------------------------


def test_compile_fullgraph(device: str) -> None:
    """The writes survive functionalisation."""
    torch._dynamo.reset()

    def layer(qkv: Tensor, cache: Tensor, positions: Tensor) -> Tensor:
        q, k, v = qkv.view(2, 1, 3, 4, 64).permute(2, 0, 3, 1, 4)
        out = flashint8.attention_with_kvcache(q, k, v, cache[0], cache[1], positions)
        return out.view(2, 256) + cache[1, :, 0, :1, :1].view(2, 1)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    qkv = randn(2, 1, 768, dtype=torch.float16, device=device)
    cache = randn(2, 2, 4, 8, 64, dtype=torch.float16, device=device)
    for start in ([0, 3], [7, 8]):
        mine, theirs = cache.clone(), cache.clone()
        got = compiled(qkv, mine, int32(start, device))
        assert_same_bits(got, layer(qkv, theirs, int32(start, device)), f"positions {start}")
        assert_same_bits(mine, theirs, f"cache, positions {start}")


@pytest.mark.parametrize("which", range(5))
def test_refuses_grad(device: str, which: int) -> None:
    args = [t.detach() for t in case(device, torch.float16, (2, 1), 64, 9, [3])]
    before = [t.clone() for t in args]
    args[which].requires_grad_()
    with pytest.raises(RuntimeError, match=r"attention_with_kvcache is for.*inference_mode"):
        flashint8.attention_with_kvcache(*args)
    for now, then in zip(args, before, strict=True):
        assert_same_bits(now.detach(), then, "refused, yet written")
    with torch.no_grad():
        assert not flashint8.attention_with_kvcache(*args).requires_grad


@pytest.mark.parametrize("where", ["device", "meta"])
def test_errors_of_sizes_and_scale(device: str, where: str) -> None:
    """What no one argument is to blame for; the others' errors: test_decoder_ops.py."""
    place = "meta" if where == "meta" else device

    def refused(text: str, q: tuple[int, ...], kv_heads: int, **options: Any) -> None:
        q_tensor = torch.ones(q, dtype=torch.float16, device=place)
        k = q_tensor[:, :1].expand(q[0], kv_heads, *q[2:]).contiguous()
        cache = torch.ones(q[0], kv_heads, 9, q[3], dtype=torch.float16, device=place)
        positions = torch.zeros(q[0], dtype=torch.int32, device=place)
        with refuses(f"attention_with_kvcache: {text}"):
            flashint8.attention_with_kvcache(
                q_tensor, k, k, cache, cache.clone(), positions, **options
            )

    for tokens in (0, 2, 3):
        shape = (2, 4, tokens, 16)
        refused(f"q must hold one token a row, (B, Hq, 1, D), got {shape}", shape, 2)
    refused("q has 5 heads, not a multiple of k's 2", (2, 5, 1, 16), 2)
    refused("head_dim must be at most 256, got 264", (1, 2, 1, 264), 1)
    refused("scale must be finite, got nan", (1, 2, 1, 16), 1, scale=math.nan)
    refused("scale must be finite, got inf", (1, 2, 1, 16), 1, scale=math.inf)
    if place == "cuda":
        refused("head_dim must be a multiple of 8 on CUDA, got 20", (1, 2, 1, 20), 1)


# ---- on a GPU --------------------------------------------------------------------------------


def test_one_kernel_takes_the_token(cuda: str) -> None:
    """Seen by the memory: two kernels need a rotated q between them."""
    for dim in (64, 128, 256):
        args = case(cuda, torch.float16, (8, 2), dim, 700, [600, 2])
        q, _, _, k_cache, v_cache, _ = args
        workspace = flashint8.explain("attention", q, k_cache, v_cache).details["workspace_bytes"]
        for cos_sin in (None, table(700, dim, cuda)):
            peak = peak_beyond_output(flashint8.attention_with_kvcache, *args, cos_sin)
            assert peak <= workspace, f"head_dim {dim}: {peak} bytes"
        part = table(700, dim // 2, cuda)
        peak = peak_beyond_output(flashint8.attention_with_kvcache, *args, part)
        assert peak == workspace + q.nbytes


def test_no_synchronisation(cuda: str) -> None:
    args = case(cuda, torch.float16, (2, 1), 64, 9, [3])
    for columns in (64, 32):  # one kernel, two kernels
        cos_sin = table(9, columns, cuda)
        flashint8.attention_with_kvcache(*args, cos_sin)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.cuda._sleep(200_000_000)
            flashint8.attention_with_kvcache(*args, cos_sin, cache_ready=True)
            done = torch.cuda.current_stream().query()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert not done, "the call waited for the stream"
        torch.cuda.synchronize()
