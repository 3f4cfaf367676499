"""Every CUDA kernel that is instantiated is run by name, none is reached only by luck.

A case names a kernel by what its plan says. The smallest of a few problems whose plan, on the card
at hand, is that kernel is run and compared; a card on which none is fails the test.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cards import linear_args
from checking import (
    ACTIVATIONS,
    attend_checked,
    linear_checked,
    make_qkv,
    quantised,
    randn,
    runs_hopper_code,
)
from torch import Tensor

import flashint8

DTYPES = [torch.float16, torch.bfloat16]
# (head_dim, block_m) of the prefill kernels
PREFILL = [(32, 64), (64, 16), (64, 32), (64, 64), (64, 128), (96, 64)]
PREFILL += [(128, 16), (128, 32), (128, 64), (128, 128), (256, 64)]
# Hopper's own
PREFILL_SM90 = [(64, 192), (128, 128)]
# (head_dim, 16-byte loads) of the decode kernels
DECODE = [(64, True), (128, True), (128, False), (256, True), (256, False)]
# (block_m, num_warps) of the gemv kernels with 16-byte loads; (block_m, block_n) of the gemm
GEMV = [(8, 16), (8, 8), (16, 8)]
GEMM = [(16, 64), (32, 128), (64, 64), (64, 128), (128, 128)]
GEMV_SM90 = [(16, 32), (32, 32), (32, 48)]  # (block_m, block_n) of the gemv built for Hopper
GEMM_SM90 = [32, 64, 128, 192, 256]  # block_m of Hopper's gemm


def find(
    candidates: Iterator[Any], plan_of: Callable[[Any], Any], wanted: Callable[..., bool]
) -> Any:
    """The first candidate whose plan is the wanted one."""
    for candidate in candidates:
        if wanted(plan_of(candidate)):
            return candidate
    pytest.fail("no problem of those tried has this kernel's plan on this card")


def meta_qkv(batch: int, heads: int, seq: int, dim: int) -> list[Tensor]:
    return [
        torch.empty(batch, h, seq, dim, dtype=torch.float16, device="meta") for h in (heads, 1, 1)
    ]


def repeated(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """One head of keys, repeated for all by strides of 0: Hopper's own kernel takes none such."""
    return [q, *(t.expand(-1, q.shape[1], -1, -1) for t in (k, v))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "block_m"), PREFILL)
def test_prefill(cuda: str, head_dim: int, block_m: int, dtype: torch.dtype) -> None:
    shapes = itertools.product((1, 2, 4, 16), (1, 4, 12), (100, 257, 640))
    batch, heads, seq = find(
        iter(sorted(shapes, key=lambda s: s[0] * s[1] * s[2] ** 2)),
        lambda s: flashint8.explain(
            "attention", *repeated(*meta_qkv(*s, head_dim)), card=flashint8.Card.of()
        ),
        lambda plan: plan.kernel == "prefill" and plan.details["block_m"] == block_m,
    )
    q, k, v = repeated(*make_qkv(batch, heads, 1, seq, seq, head_dim, dtype, cuda))
    plan = flashint8.explain("attention", q, k, v)
    assert (plan.details["head_dim"], plan.details["block_m"]) == (head_dim, block_m)
    attend_checked(q, k, v)
    attend_checked(q, k, v, window=70, softcap=20.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "block_m"), PREFILL_SM90)
def test_prefill_sm90(cuda: str, head_dim: int, block_m: int, dtype: torch.dtype) -> None:
    q, k, v = make_qkv(4, 48, 16, 257, 257, head_dim, dtype, cuda)
    plan = flashint8.explain("attention", q, k, v)
    if plan.details["code"] != "90a":
        pytest.skip(f"sm_90a code alone, not {plan.details['code']}")
    assert (plan.kernel, plan.details["block_m"]) == ("prefill_sm90", block_m)
    attend_checked(q, k, v)
    attend_checked(q, k, v, window=70, softcap=20.0)


@pytest.mark.parametrize("splits", [False, True], ids=["one split", "splits"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "vectorized"), DECODE)
def test_decode(
    cuda: str, head_dim: int, vectorized: bool, dtype: torch.dtype, splits: bool
) -> None:
    seq_kv = 1500 if splits else 40
    q, k, v = make_qkv(2, 8, 2, 3, seq_kv, head_dim, dtype, cuda)
    if not vectorized:  # rows an odd number of elements apart
        k = torch.cat([k, k[..., :1]], dim=-1)[..., :head_dim]
    plan = flashint8.explain("attention", q, k, v)
    assert plan.kernel == "decode"
    assert (plan.details["head_dim"], plan.details["vectorized"]) == (head_dim, vectorized)
    assert (plan.details["num_splits"] > 1) == splits
    attend_checked(q, k, v)
    lengths = torch.tensor([seq_kv - 7, 5], dtype=torch.int32, device=cuda)
    attend_checked(q, k, v, lengths, window=30)


@pytest.mark.parametrize("splits", [False, True], ids=["one split", "splits"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_decode_of_eight_warps(cuda: str, head_dim: int, dtype: torch.dtype, splits: bool) -> None:
    """Long splits, where there is a block for each multiprocessor at most; rows shorter than it."""
    for batch in [1] if splits else range(16, 1, -1):
        seq_kv = 8200 if splits else 600
        q, k, v = make_qkv(batch, 16, 8, 1, seq_kv, head_dim, dtype, cuda)
        plan = flashint8.explain("attention", q, k, v).details
        if plan["num_warps"] == 8:
            break
    else:
        pytest.skip("no such plan on this card")
    assert (plan["num_splits"] > 1) == splits
    attend_checked(q, k, v)
    for short in (0, 1, 100, seq_kv - 1):
        lengths = torch.full((batch,), seq_kv, dtype=torch.int32, device=cuda)
        lengths[0] = short
        attend_checked(q, k, v, lengths, window=250)


def rows(m: int, k: int, dtype: torch.dtype, device: str, plain: bool) -> Tensor:
    """x (m, k); not plain: as two runs of rows, (2, m / 2, k), which only portable kernels read."""
    if plain:
        return randn(m, k, dtype=dtype, device=device)
    return randn(m // 2, 2, k, dtype=dtype, device=device).transpose(0, 1)


def run_linear(m: int, n: int, k: int, dtype: torch.dtype, device: str, plain: bool = True) -> None:
    """Without an activation, and with each; they are branches of the same kernel."""
    x = rows(m, k, dtype, device, plain)
    bias = randn(n, dtype=dtype, device=device)
    weight, scale = quantised(n, k, device)
    for activation in (None, *ACTIVATIONS):
        linear_checked(x, weight, scale, bias, activation)


# Problems for Hopper's gemm, of tiles that one block multiplies, that blocks of a cluster share, or
# whose k is dealt out evenly.
SM90_KINDS = ["whole", "parts", "streamed", "streamed, several blocks a tile"]
SM90_PROBLEMS = itertools.product(
    (20, 40, 70, 100, 190, 250, 390, 770),
    (1000, 2300, 4100, 5100, 9000, 17_000),
    (208, 1104, 3088, 4112, 6000, 8208, 16_400),
)
SM90_PROBLEMS = sorted(SM90_PROBLEMS, key=math.prod)


def linear_problem(wanted: Callable[..., bool], plain: bool = True) -> tuple[int, int, int]:
    def plan_of(problem: tuple[int, int, int]) -> Any:
        m, _, k = problem
        x, weight, scale = linear_args(*problem)
        if not plain:
            x = x.new_empty(m // 2, 2, k).transpose(0, 1)
        return flashint8.explain("int8_linear", x, weight, scale, card=flashint8.Card.of())

    problems = itertools.product(
        (3, 12, 20, 40, 64, 100, 200, 400), (100, 1000, 4100, 11008), (208, 1104, 4112)
    )
    ordered = sorted(problems, key=lambda p: p[0] * p[1] * p[2])
    return find(iter(ordered), plan_of, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("block_m", "num_warps"), GEMV)
def test_gemv(cuda: str, block_m: int, num_warps: int, dtype: torch.dtype) -> None:
    problem = linear_problem(
        lambda plan: (
            plan.kernel == "gemv"
            and plan.details["vectorized"]
            and (plan.details["block_m"], plan.details["num_warps"]) == (block_m, num_warps)
        )
    )
    run_linear(*problem, dtype, cuda)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rounds", [1, 2])
def test_gemv_of_many_rows(cuda: str, rounds: int, dtype: torch.dtype) -> None:
    """Little work, at once or in two rounds of tiles."""
    card = flashint8.Card.of()

    def wanted(plan: Any) -> bool:
        tiles = -(-plan.details["n"] // 16) * -(-plan.details["m"] // 16)
        return plan.kernel == "gemv" and -(-tiles // plan.details["num_blocks"]) == rounds

    problems = itertools.product((40, 70, 100), (100, 300, 500, 1000, 2300), (208, 784))
    problem = find(
        iter(sorted(problems, key=math.prod)),
        lambda p: flashint8.explain("int8_linear", *linear_args(*p), card=card),
        wanted,
    )
    run_linear(*problem, dtype, cuda)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gemv_unaligned(cuda: str, dtype: torch.dtype) -> None:
    for m in (1, 33, 70):
        x = randn(m, 77, dtype=dtype, device=cuda)
        weight, scale = quantised(51, 77, cuda)
        plan = flashint8.explain("int8_linear", x, weight, scale)
        assert (plan.kernel, plan.details["vectorized"]) == ("gemv", False)
        linear_checked(x, weight, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("block_m", "block_n"), GEMV_SM90)
def test_gemv_sm90(cuda: str, block_m: int, block_n: int, dtype: torch.dtype) -> None:
    """All its rows and the fewest, channels that come out even and not; k of less than a unit a
    warp, and of more than a ring."""
    if not runs_hopper_code():
        pytest.skip("no code for Hopper alone runs here")
    multiprocessors = flashint8.Card.of().sm_count
    most = block_n * multiprocessors * (2 if block_m == 16 else 1)  # channels
    for m, n, k in itertools.product((block_m // 2 + 1, block_m), (most, most - 30), (208, 4112)):
        plan = flashint8.explain("int8_linear", *linear_args(m, n, k), card=flashint8.Card.of())
        block = (plan.details["block_m"], plan.details["block_n"])
        assert (plan.kernel, block) == ("gemv_sm90", (block_m, block_n)), plan
        run_linear(m, n, k, dtype, cuda)
    x = randn(block_m - 1, 1072, dtype=dtype, device=cuda)[:, 8:1064]
    weight, scale = quantised(most - 4, 1072, cuda)
    linear_checked(x, weight[:, :1056], scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("block_m", "block_n"), GEMM)
def test_gemm(cuda: str, block_m: int, block_n: int, dtype: torch.dtype) -> None:
    plain = block_m < 64  # Hopper's own gemm takes larger plain problems
    problem = linear_problem(
        lambda plan: (
            plan.kernel == "gemm"
            and (plan.details["block_m"], plan.details["block_n"]) == (block_m, block_n)
        ),
        plain,
    )
    run_linear(*problem, dtype, cuda, plain)


@pytest.mark.parametrize("kind", SM90_KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_m", GEMM_SM90)
def test_gemm_sm90(cuda: str, block_m: int, dtype: torch.dtype, kind: str) -> None:
    if not runs_hopper_code():
        pytest.skip("no code for Hopper alone runs here")
    card = flashint8.Card.of()

    def wanted(plan: Any) -> bool:
        if plan.kernel != "gemm_sm90" or plan.details["block_m"] != block_m:
            return False
        if plan.details["num_splits"] > 1:
            return kind == "parts"
        streamed = plan.details["streamed_tiles"]
        clusters = plan.details["num_blocks"] // plan.details["cluster"]
        return kind == SM90_KINDS[0 if streamed == 0 else 3 if 2 * streamed < clusters else 2]

    problem = find(
        iter(SM90_PROBLEMS),
        lambda p: flashint8.explain("int8_linear", *linear_args(*p), card=card),
        wanted,
    )
    run_linear(*problem, dtype, cuda)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gemm_with_splits(cuda: str, dtype: torch.dtype) -> None:
    problem = linear_problem(lambda plan: plan.kernel == "gemm" and plan.details["num_splits"] > 1)
    run_linear(*problem, dtype, cuda)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_library_product_in_parts(cuda: str, dtype: torch.dtype) -> None:
    """A weight that does not fit the scratch at once, and a partial last part."""
    m, n, k = 520, 4500, 8200
    card = flashint8.Card.of()
    plan = flashint8.explain("int8_linear", *linear_args(m, n, k, dtype), card=card)
    if plan.kernel != "library":
        pytest.skip(f"sm_{card.compute_capability} multiplies with kernels of ours")
    assert plan.details["num_blocks"] > 1
    run_linear(m, n, k, dtype, cuda)


def test_library_by_the_plan_of_another_card(cuda: str) -> None:
    """Data-centre Blackwell takes the library's product; its plan, executed here."""
    if "FLASHINT8_PLAN_CARD" in os.environ:
        pytest.skip("plans are made for another card already")
    tests = Path(__file__).parent
    selected = [f"{__file__}::test_library_product_in_parts", str(tests / "test_int8_linear.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "cuda", *selected],
        cwd=tests.parent,
        env={**os.environ, "FLASHINT8_PLAN_CARD": "100,132,232448"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
