"""Plans are data: which kernel, tile and split a card would get, for cards that are not there."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from cards import CARDS, assert_fits, linear_args

import flashint8
from flashint8 import Card, explain

HEAD_DIMS = (8, 16, 32, 40, 64, 72, 80, 96, 104, 128, 136, 160, 192, 256)
WORKSPACE_LIMIT = 8 * 2**20  # bytes, of decode
SHAPES = [  # B, Hq, Hkv, Tq, Tk
    (1, 4, 4, 128, 128),
    (2, 8, 8, 512, 512),
    (1, 1, 1, 1, 1),
    (1, 32, 8, 1, 32768),
    (16, 32, 8, 1, 4096),
    (1, 32, 32, 4096, 4096),
    (64, 7, 1, 3, 1000),
    (1, 63, 9, 8, 131072),
    (300, 2, 2, 100, 70),
    (1, 8, 1, 1, 2**22),
    (4096, 16, 16, 1, 17),
]


@pytest.fixture(params=CARDS)
def card(request: pytest.FixtureRequest) -> Card:
    return CARDS[request.param]


def qkv(shape: tuple[int, ...], head_dim: int, dtype: torch.dtype = torch.float16) -> tuple:
    b, hq, hkv, tq, tk = shape
    q = torch.empty(b, hq, tq, head_dim, dtype=dtype, device="meta")
    k = torch.empty(b, hkv, tk, head_dim, dtype=dtype, device="meta")
    return q, k, k


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_attention_fits_every_card(card: Card, head_dim: int, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        for options in ({}, {"causal": 0}, {"window": 128}, {"causal": 2}):
            plan = explain("attention", *qkv(shape, head_dim, dtype), card=card, **options)
            what = f"{card} {shape} D {head_dim} {options}"
            assert (plan.op, plan.device) == ("attention", "cuda"), what
            assert_fits(plan.details, card, what)
            assert plan.details["head_dim"] >= head_dim, what
            assert plan.details["workspace_bytes"] <= WORKSPACE_LIMIT, what


def test_the_merge_of_a_short_cache_lets_the_next_kernel_in(card: Card) -> None:
    for keys, early in ((1500, True), (1600, False)):  # 6 MiB of keys and values, 16 heads of 64
        plan = explain("attention", *qkv((1, 32, 16, 1, keys), 64), card=card)
        assert (plan.kernel, plan.details["early_trigger"]) == ("decode", early)


def test_prefill_needs_no_workspace_and_decode_splits(card: Card) -> None:
    prefill = explain("attention", *qkv((2, 8, 8, 512, 512), 64), card=card)
    assert "prefill" in prefill.kernel
    assert prefill.details["workspace_bytes"] == 0
    decode = explain("attention", *qkv((1, 32, 8, 1, 32768), 128), card=card)
    assert "decode" in decode.kernel
    assert decode.details["num_splits"] > 1, "8 KV heads alone leave most of the chip idle"
    assert decode.details["num_blocks"] >= card.sm_count // 2


def test_long_splits_have_eight_warps_where_they_fit(card: Card) -> None:
    room = card.shared_memory_per_block > 200 * 1024
    for head_dim, many in ((64, room), (128, room), (256, False)):
        for keys, batch in ((32768, 1), (600, max(1, card.sm_count // 8))):
            plan = explain("attention", *qkv((batch, 32, 8, 1, keys), head_dim), card=card).details
            if head_dim < 256:
                assert plan["num_warps"] == (8 if many else 4), (head_dim, keys)
            assert plan["num_blocks"] <= card.sm_count, "a multiprocessor for each"
            if card.compute_capability == 90 and keys == 32768:
                assert plan["num_blocks"] == 128, "as many as there are, and not another round"
        short = explain("attention", *qkv((1, 32, 8, 1, 1024), head_dim), card=card).details
        assert short["num_warps"] <= 4


def test_long_prompts_take_hoppers_own_kernel(card: Card) -> None:
    """On Hopper, for grids that fill it; blocks stay for several pieces of work up to 4096 keys."""
    hopper = card.compute_capability == 90
    own = "prefill_sm90" if hopper else "prefill"
    for head_dim, block_m in ((40, 192), (64, 192), (72, 128), (128, 128)):
        args = qkv((1, 16, 4, 16384, 16384), head_dim)
        plan = explain("attention", *args, card=card)
        assert plan.kernel == own
        staying = explain("attention", *qkv((2, 32, 8, 4096, 4096), head_dim), card=card)
        assert staying.kernel == own
        lengths = torch.empty(2, dtype=torch.int32, device="meta")
        ragged = explain("attention", *qkv((2, 32, 8, 4096, 4096), head_dim), lengths, card=card)
        assert ragged.kernel == own
        if hopper:
            assert plan.details["num_blocks"] == 16 * -(-16384 // block_m)
            assert staying.details["num_blocks"] == card.sm_count
            assert ragged.details["num_blocks"] == 64 * -(-4096 // block_m)
        assert explain("attention", *args, card=card, fp16_accumulate=True).kernel == "prefill"
        q, k, v = qkv((1, 16, 1, 16384, 16384), head_dim)
        repeated = [t.expand(-1, 16, -1, -1) for t in (k, v)]
        assert explain("attention", q, *repeated, card=card).kernel == "prefill"
    for shape, head_dim in (
        ((1, 8, 8, 512, 512), 64),  # too few blocks
        ((64, 16, 16, 100, 100), 64),  # not a block's queries
        ((1, 16, 16, 16384, 16384), 32),
        ((1, 16, 16, 16384, 16384), 160),
    ):
        assert explain("attention", *qkv(shape, head_dim), card=card).kernel == "prefill"


def test_plans_are_pure(card: Card) -> None:
    """Same numbers in, same plan out, whatever was asked in between."""
    first = [explain("attention", *qkv(shape, 64), card=card) for shape in SHAPES]
    linears = [explain("int8_linear", *linear_args(m, 768, 768), card=card) for m in (1, 40)]
    for other in CARDS.values():
        explain("attention", *qkv(SHAPES[3], 128), card=other)
    assert first == [explain("attention", *qkv(shape, 64), card=card) for shape in SHAPES]
    assert linears == [
        explain("int8_linear", *linear_args(m, 768, 768), card=card) for m in (1, 40)
    ]


def test_unaligned_inputs_take_the_other_variant(card: Card) -> None:
    q, k, v = qkv((2, 4, 4, 100, 100), 64)
    assert explain("attention", q, k, v, card=card).details["vectorized"] is True
    odd = torch.empty(2, 4, 100, 67, dtype=torch.float16, device="meta")[..., :64]
    for args in ((odd, k, v), (q, odd, v), (q, k, odd)):
        plan = explain("attention", *args, card=card)
        assert plan.details["vectorized"] is False
        assert_fits(plan.details, card, "unaligned")
    for k_size, vectorized in ((64, True), (77, False)):
        plan = explain("int8_linear", *linear_args(40, 64, k_size), card=card)
        assert plan.details["vectorized"] is vectorized


def test_plan_is_readable_and_frozen(card: Card) -> None:
    for args in (("attention", *qkv(SHAPES[0], 64)), ("int8_linear", *linear_args(4, 64, 64))):
        plan = explain(*args, card=card)
        text = str(plan)
        assert plan.kernel in text
        assert plan.op in text
        assert all(len(line) <= 100 for line in text.splitlines())
        with pytest.raises(dataclasses.FrozenInstanceError):
            plan.kernel = "another"


def test_cpu_plan() -> None:
    """A CPU tensor: the CPU kernel and the instruction set it runs with."""
    q = torch.zeros(1, 2, 3, 16)
    plan = explain("attention", q, q, q)
    assert plan.op == "attention"
    assert plan.device == "cpu"
    assert flashint8._C.cpu_isa() in str(plan)
    weight, scale = torch.zeros(4, 16, dtype=torch.int8), torch.ones(4)
    plan = explain("int8_linear", torch.zeros(2, 16), weight, scale)
    assert plan.device == "cpu"
    assert flashint8._C.cpu_isa() in str(plan)


def test_plan_of_this_card(cuda: str) -> None:
    q = torch.zeros(1, 2, 3, 16, dtype=torch.float16, device=cuda)
    plan = explain("attention", q, q, q)
    major, minor = torch.cuda.get_device_capability()
    here = torch.cuda.get_device_properties(0)
    card = Card(
        compute_capability=10 * major + minor,
        sm_count=here.multi_processor_count,
        shared_memory_per_block=here.shared_memory_per_block_optin,
    )
    assert plan.device == "cuda"
    assert plan.details == explain("attention", q, q, q, card=card).details


@pytest.mark.parametrize("head_dim", [40, 64, 96, 128, 256])
def test_the_decode_kernel_takes_the_token(card: Card, head_dim: int) -> None:
    """Where it turns whole heads, as wide as the kernel's, by their halves, or turns nothing."""
    q, k, v = (
        torch.empty(2, h, 1, head_dim, dtype=torch.float16, device="meta") for h in (8, 2, 2)
    )
    cache = torch.empty(2, 2, 700, head_dim, dtype=torch.float16, device="meta")
    args = (q, k, v, cache, cache, torch.empty(2, dtype=torch.int32, device="meta"))

    def takes(columns: int | None, *, interleaved: bool = False, k: torch.Tensor = k) -> bool:
        table = None if columns is None else torch.empty(700, columns, device="meta")
        plan = explain(
            "attention_with_kvcache", q, k, *args[2:], table, interleaved=interleaved, card=card
        )
        assert plan.kernel == "decode"
        assert_fits(plan.details, card, str(plan))
        plain = explain("attention", q, cache, cache, args[5], card=card).details
        same = ("num_splits", "num_warps", "num_blocks", "workspace_bytes")
        assert [plan.details[n] for n in same] == [plain[n] for n in same]
        return bool(plan.details["appends"])

    assert takes(None)
    assert takes(head_dim) == (head_dim in (64, 128, 256))
    assert not takes(head_dim, interleaved=True)
    assert not takes(head_dim - 8)
    assert not takes(None, k=torch.empty(2, 2, 1, head_dim + 1, **like(k))[..., :head_dim])
    assert explain("attention_with_kvcache", *args, card=card, cache_ready=True).details["appends"]
    # An odd q is turned into a tensor of its own, which 16-byte loads then read.
    odd = torch.empty(2, 8, 1, head_dim + 1, **like(q))[..., 1:]
    table = torch.empty(700, head_dim, device="meta")
    for columns in (None, table):
        plan = explain("attention_with_kvcache", odd, *args[1:], columns, card=card)
        assert (plan.details["appends"], plan.details["vectorized"]) == (False, columns is not None)
    # So is one for a table whose rows do not lie on 16 bytes.
    columns = torch.empty(700, head_dim + 2, device="meta")[:, :head_dim]
    plan = explain("attention_with_kvcache", *args, columns, card=card)
    assert (plan.details["appends"], plan.details["vectorized"]) == (False, True)
    wide = [torch.empty(2, h, 3, head_dim, **like(k)) for h in (8, 2, 2)]
    with pytest.raises(ValueError, match=r"^attention_with_kvcache: q must hold one token a row"):
        explain("attention_with_kvcache", *wide, *args[3:], card=card)


def like(tensor: torch.Tensor) -> dict[str, Any]:
    return {"dtype": tensor.dtype, "device": tensor.device}


def test_bad_questions(card: Card) -> None:
    q, k, v = qkv((1, 4, 2, 5, 5), 64)
    with pytest.raises(ValueError, match="softmax"):
        explain("softmax", q, k, v, card=card)
    with pytest.raises(ValueError, match=r"^attention: k has head_dim 32, q has 64$"):
        explain("attention", q, k[..., :32], v[..., :32], card=card)
    with pytest.raises(ValueError, match="causal"):
        explain("attention", q, k, v, card=card, causal=5)
    with pytest.raises(ValueError, match="card"):
        explain("attention", q, k, v)  # meta tensors name no device


def test_a_card_that_nothing_fits() -> None:
    tiny = Card(compute_capability=86, sm_count=30, shared_memory_per_block=1000)
    with pytest.raises(ValueError, match="no attention kernel fits"):
        explain("attention", *qkv(SHAPES[0], 256), card=tiny)
    with pytest.raises(ValueError, match="no int8_linear kernel fits"):
        explain("int8_linear", *linear_args(600, 640, 640), card=tiny)


def test_plan_card_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHINT8_PLAN_CARD", "86,30,101376")
    assert Card.of("cuda") == CARDS["sm_86 3060 Laptop"]


@pytest.mark.parametrize("text", ["", "86", "86,30", "86,30,101376,1", "86,30,x", "86,-3,101376"])
def test_plan_card_malformed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FLASHINT8_PLAN_CARD", text)
    with pytest.raises(ValueError, match="FLASHINT8_PLAN_CARD must be compute_capability,sm_count"):
        Card.of("cuda")
