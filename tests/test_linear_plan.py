"""Which int8_linear kernel runs, with which tile, on cards that need not be there."""

from __future__ import annotations

import pytest
import torch
from cards import CARDS, assert_fits, linear_args
from checking import HOPPER_PROBLEMS

from flashint8 import Card, explain


@pytest.fixture(params=CARDS)
def card(request: pytest.FixtureRequest) -> Card:
    return CARDS[request.param]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("m", [1, 2, 5, 8, 16, 17, 64, 300, 4096, 70_000])
def test_linear_fits_every_card(card: Card, m: int, dtype: torch.dtype) -> None:
    for n, k in ((1, 1), (768, 768), (11008, 4096), (4096, 11008), (33, 77), (128_256, 4096)):
        plan = explain("int8_linear", *linear_args(m, n, k, dtype), card=card)
        what = f"{card} M {m} N {n} K {k}"
        assert (plan.op, plan.device) == ("int8_linear", "cuda"), what
        assert_fits(plan.details, card, what, converts=plan.kernel == "library")
        assert plan.details["workspace_bytes"] <= 32 * 2**20, what


def test_few_rows_and_many_rows_differ(card: Card) -> None:
    few = explain("int8_linear", *linear_args(1, 4096, 4096), card=card)
    many = explain("int8_linear", *linear_args(512, 4096, 4096), card=card)
    assert "gemv" in few.kernel
    assert many.kernel == ("gemm_sm90" if card.compute_capability == 90 else "gemm")


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "silu_mul"])
def test_activations_run_in_our_kernels(card: Card, activation: str) -> None:
    """torch's product cannot apply one; with few rows nothing changes."""
    few, many = linear_args(1, 4096, 4096), linear_args(2048, 4096, 4096)
    plan = explain("int8_linear", *many, activation=activation, card=card)
    gemm = "gemm_sm90" if card.compute_capability == 90 else "gemm"
    assert (plan.kernel, plan.details["activation"]) == (gemm, activation)
    plain = explain("int8_linear", *few, card=card)
    plan = explain("int8_linear", *few, activation=activation, card=card)
    assert plan.details == {**plain.details, "activation": activation}
    with pytest.raises(ValueError, match="activation must be gelu"):
        explain("int8_linear", *few, activation="relu", card=card)


def test_ready_weights_change_no_plan(card: Card) -> None:
    args = linear_args(1, 4096, 4096)
    plain, ready = (explain("int8_linear", *args, card=card, weight_ready=w) for w in (False, True))
    assert plain == ready


BLACKWELL = Card(compute_capability=100, sm_count=148, shared_memory_per_block=232448)


@pytest.mark.parametrize(
    ("card", "plain", "m", "k"),
    [
        (CARDS["sm_90 H100"], "gemm_sm90", 1024, 512),
        (CARDS["sm_90 H100"], "gemv_sm90", 32, 2048),
        (BLACKWELL, "library", 1024, 512),
    ],
    ids=["sm_90", "sm_90, some rows", "sm_100"],
)
def test_rows_that_are_no_plain_matrix_are_read_where_they_lie(
    card: Card, plain: str, m: int, k: int
) -> None:
    """Expanded, transposed or overlapping rows go to the portable product."""
    x, weight, scale = linear_args(m, 4096, k)
    overlapping = x.as_strided((m, k), (8, 1))
    for rows in (x.view(2, m // 2, k).transpose(0, 1), x[:1].expand(m, k), overlapping):
        assert explain("int8_linear", rows, weight, scale, card=card).kernel == "gemm"
    padded = torch.empty(2, m // 2, k + 8, dtype=x.dtype, device="meta")[..., :k]
    for rows in (x, x.view(2, m // 2, k), padded):
        assert explain("int8_linear", rows, weight, scale, card=card).kernel == plain


def test_some_rows_need_shared_memory() -> None:
    small = Card(compute_capability=90, sm_count=132, shared_memory_per_block=101376)
    for m, n in ((12, 8192), (12, 2590), (32, 4096), (32, 6144)):
        plan = explain("int8_linear", *linear_args(m, n, 4096), card=small)
        assert (plan.kernel == "gemv_sm90") == (m == 12), plan
        assert_fits(plan.details, small, str(plan))


def test_library_knows_no_activation() -> None:
    args = linear_args(1024, 4096, 512)
    assert explain("int8_linear", *args, card=BLACKWELL).kernel == "library"
    assert explain("int8_linear", *args, card=BLACKWELL, activation="silu").kernel == "gemm"


@pytest.mark.parametrize("m", [17, 32, 33, 64, 100, 128, 200, 256, 700, 1024, 5000])
def test_hopper_clusters(m: int) -> None:
    """Clusters fill whole grids, and no part of a split is without k."""
    card = CARDS["sm_90 H100"]
    for n, k in ((8, 16), (128, 64), (768, 768), (4096, 208), (4096, 4096), (11008, 4096)):
        plan = explain("int8_linear", *linear_args(m, n, k), card=card)
        details, what = plan.details, f"M {m} N {n} K {k}: {plan}"
        if plan.kernel == "gemv":  # little work
            assert m * n * k < 2**28, what
            continue
        if plan.kernel == "gemv_sm90":
            assert m <= 32, what
            assert n == 4096, what
            continue
        if plan.kernel == "gemm":
            assert m <= 32, what
            assert n * k < 40 * 2**20, what
            continue
        assert plan.kernel == "gemm_sm90", what
        size = details["cluster"] * details["num_splits"]
        assert size <= 8, what
        assert details["num_blocks"] % size == 0, what
        assert details["num_splits"] <= -(-k // details["block_k"]), what
        columns = details["block_n"] * details["cluster"]
        tiles = -(-m // details["block_m"]) * -(-n // columns)
        clusters, streamed = details["num_blocks"] // size, details["streamed_tiles"]
        if streamed:
            assert details["num_splits"] == 1, what
            assert (tiles - streamed) % clusters == 0, f"{what}: whole rounds before streamed tiles"
            assert streamed == tiles < clusters or clusters < 2 * streamed < 4 * clusters, what
        else:
            assert clusters == tiles if details["num_splits"] > 1 else clusters <= tiles, what


def test_hopper_plans_of_the_sanitised_problems() -> None:
    card, seen = CARDS["sm_90 H100"], []
    for m, n, k in HOPPER_PROBLEMS:
        plan = explain("int8_linear", *linear_args(m, n, k), card=card)
        details = plan.details
        kinds = (
            ("several parts", details["num_splits"] > 1),
            ("streamed", details["streamed_tiles"]),
        )
        seen.append((plan.kernel, details["block_m"], *(name for name, is_so in kinds if is_so)))
    assert seen == [
        ("gemv_sm90", 16),
        ("gemv_sm90", 32),
        ("gemm_sm90", 256),
        ("gemm_sm90", 128, "several parts"),
        ("gemm_sm90", 32, "streamed"),
    ]


def test_hopper_streams_tiles_that_do_not_come_out_even() -> None:
    """86 tiles of 128 channels on 132 multiprocessors, and 32 or 128, which clusters share well."""
    card = CARDS["sm_90 H100"]
    for m in (128, 256, 1024):
        details = explain("int8_linear", *linear_args(m, 11008, 4096), card=card).details
        assert details["streamed_tiles"] > 0
        assert details["workspace_bytes"] >= details["num_blocks"] * 4 * 128 * details["block_m"]
    for m in (128, 1024):
        details = explain("int8_linear", *linear_args(m, 4096, 4096), card=card).details
        assert (details["streamed_tiles"], details["workspace_bytes"]) == (0, 0)


def test_little_work_is_for_the_gemv() -> None:
    """Blocks of 16 rows x 16 channels that the card takes in one round or two."""
    card = CARDS["sm_90 H100"]
    for m, n, k in ((33, 768, 768), (128, 768, 768), (64, 2304, 768), (64, 768, 3072)):
        plan = explain("int8_linear", *linear_args(m, n, k), card=card)
        assert (plan.kernel, plan.details["block_m"]) == ("gemv", 16), plan
        assert plan.details["num_blocks"] <= 3 * card.sm_count, plan
    # Little, but too long for few blocks: the last two.
    for m, n, k in (
        (512, 768, 768),
        (128, 2304, 768),
        (128, 768, 3072),
        (64, 2048, 2048),
        (64, 64, 14336),
        (33, 16, 200_000),
    ):
        assert explain("int8_linear", *linear_args(m, n, k), card=card).kernel == "gemm_sm90"


def test_up_to_sixteen_rows_by_the_rounds_of_blocks() -> None:
    """A gemv where its blocks run at once, but for the largest weights; else for small ones."""
    card = CARDS["sm_90 H100"]
    for n, k in ((5120, 3072), (6144, 4096), (4096, 8192), (5120, 5120), (2048, 1024)):
        assert explain("int8_linear", *linear_args(16, n, k), card=card).kernel == "gemv", (n, k)
    for n, k in ((11008, 4096), (12288, 4096), (6144, 8192)):
        assert explain("int8_linear", *linear_args(16, n, k), card=card).kernel == "gemm", (n, k)


def test_some_rows_on_hopper_by_the_rounds_of_blocks() -> None:
    """A gemv of its own where blocks of 32 or 48 channels give most multiprocessors one, or, of 16
    rows, two; it takes whole pieces of 16 k and a plain matrix."""
    card = CARDS["sm_90 H100"]
    for m, n, k, block in (
        (9, 8192, 1024, (16, 32)),
        (16, 8192, 4096, (16, 32)),
        (16, 4096, 11008, (16, 32)),
        (16, 3072, 8192, (16, 32)),
        (17, 4096, 4096, (32, 32)),
        (32, 4096, 11008, (32, 32)),
        (32, 2560, 4096, (32, 32)),
        (17, 4240, 4096, (32, 48)),
        (32, 6144, 4096, (32, 48)),
    ):
        plan = explain("int8_linear", *linear_args(m, n, k), card=card)
        details = plan.details
        what = f"M {m} N {n} K {k}: {plan}"
        assert plan.kernel == "gemv_sm90", what
        assert (details["block_m"], details["block_n"]) == block, what
        assert details["num_blocks"] == -(-n // block[1]), what
        assert details["shared_bytes"] * (2 if m <= 16 else 1) <= card.shared_memory_per_block
        x, weight, scale = linear_args(m, n, k + 16)
        views = [x[:, :k], weight[:, :k], scale]
        assert explain("int8_linear", *views, card=card).kernel == "gemv_sm90", what
        views = [x[:, : k - 8], weight[:, : k - 8], scale]
        assert explain("int8_linear", *views, card=card).kernel != "gemv_sm90", what
        rows = x.new_empty((2, (m + 1) // 2, k)).transpose(0, 1)
        plan = explain("int8_linear", rows, weight[:, :k], scale, card=card)
        assert plan.kernel != "gemv_sm90", what
    for m, n, k in ((8, 8192, 4096), (33, 4096, 4096), (32, 2048, 4096), (32, 7168, 4096)):
        plan = explain("int8_linear", *linear_args(m, n, k), card=card)
        assert plan.kernel != "gemv_sm90", (m, n, k)
    for name, other in CARDS.items():
        plan = explain("int8_linear", *linear_args(32, 4096, 4096), card=other)
        assert (plan.kernel == "gemv_sm90") == (name == "sm_90 H100"), name


def test_few_rows_of_a_ragged_k() -> None:
    """The gemv takes whole pieces of 16 k; rows that begin on a boundary are for the gemm then."""
    card = CARDS["sm_90 H100"]
    for m, kernel in ((1, "gemm"), (32, "gemm"), (64, "gemm_sm90")):
        x, weight, scale = linear_args(m, 4096, 4096)
        plan = explain("int8_linear", x[:, :4088], weight[:, :4088], scale, card=card)
        assert (plan.kernel, plan.details["vectorized"]) == (kernel, True), plan


def test_few_rows_are_hoppers_gemms_with_large_weights_only() -> None:
    """Up to 16 never, up to 32 with 40 Mi of weights."""
    card = CARDS["sm_90 H100"]
    for m, n, k in ((1, 11008, 4096), (8, 11008, 4096), (16, 11008, 4096), (32, 8192, 4096)):
        kernel = explain("int8_linear", *linear_args(m, n, k), card=card).kernel
        assert kernel in ("gemv", "gemm"), (m, n, k)
    for m, n, k in ((17, 11008, 4096), (32, 12288, 4096), (33, 4096, 4096)):
        plan = explain("int8_linear", *linear_args(m, n, k), card=card)
        assert plan.kernel == "gemm_sm90", (m, n, k)
        assert plan.details["block_m"] == (32 if m <= 32 else 64), (m, n, k)
    # 16-byte loads are what the copy engine does
    assert explain("int8_linear", *linear_args(100, 4096, 77), card=card).kernel == "gemv"
