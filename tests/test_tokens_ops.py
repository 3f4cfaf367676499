"""embed_ and argmax_: values against torch, what torch's checks say of them, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checking import dtypes_on, refuses
from torch import Tensor

from flashint8.decoder import argmax_, embed_


def embed_arguments(
    device: str, dtype: torch.dtype, batch: int, length: int, columns: int
) -> dict[str, Tensor]:
    return {
        "out": torch.full((batch, length, columns), torch.nan, dtype=dtype, device=device),
        "tokens": torch.randint(0, 11, (batch, length), device=device),
        "weight": torch.randint(-127, 128, (11, columns), dtype=torch.int8, device=device),
        "weight_scale": torch.rand(11, device=device),
        "positions": torch.arange(batch, dtype=torch.int32, device=device) * 2,
        "position_weight": torch.randn(9, columns, dtype=dtype, device=device),
    }


@pytest.mark.parametrize(
    "columns", [1, pytest.param(7, marks=pytest.mark.sanitizer), 24, 768, 4096 + 8]
)
def test_embed(device: str, columns: int) -> None:
    for dtype in dtypes_on(device):
        args = embed_arguments(device, dtype, 2, 3, columns)
        rows = args["weight"][args["tokens"]].double()
        rows *= args["weight_scale"][args["tokens"]][..., None].double()
        embed_(args["out"], args["tokens"], args["weight"], args["weight_scale"])
        torch.testing.assert_close(args["out"], rows.to(dtype))
        places = args["positions"][:, None] + torch.arange(3, device=device)
        embed_(**args)
        expected = (rows + args["position_weight"][places].double()).to(dtype)
        torch.testing.assert_close(args["out"], expected)


def test_embed_reads_tokens_and_positions_as_they_lie(device: str) -> None:
    dtype = torch.float16
    args = embed_arguments(device, dtype, 3, 4, 16)
    embed_(**args)
    wide = torch.zeros(4, 3, 2, dtype=torch.int64, device=device)
    wide[:, :, 1] = args["tokens"].t()
    places = torch.zeros(3, 2, dtype=torch.int32, device=device)
    places[:, 0] = args["positions"]
    again = torch.empty_like(args["out"])
    other = {"out": again, "tokens": wide[:, :, 1].t(), "positions": places[:, 0]}
    embed_(**{**args, **other})
    assert torch.equal(again, args["out"])


def test_embed_takes_the_nearest_row(device: str) -> None:
    args = embed_arguments(device, torch.float16, 2, 2, 8)
    far = {
        "tokens": torch.tensor([[-5, 10], [11, 2**40]], device=device),
        "positions": torch.tensor([-3, 8], dtype=torch.int32, device=device),
    }
    near = {
        "tokens": torch.tensor([[0, 10], [10, 10]], device=device),
        "positions": torch.tensor([0, 8], dtype=torch.int32, device=device),
    }
    args["position_weight"][1] = args["position_weight"][0]  # rows -3 and -2 are row 0
    embed_(**{**args, **far})
    got = args["out"].clone()
    embed_(**{**args, **near})
    assert torch.equal(got, args["out"])


@pytest.mark.parametrize(
    "columns", [1, 5, pytest.param(97, marks=pytest.mark.sanitizer), 1024, 50257, 128256 + 3]
)
def test_argmax(device: str, columns: int) -> None:
    for dtype in dtypes_on(device):
        for rows in (1, 3):
            x = torch.randn(rows, columns + 3, device=device).to(dtype)[:, :columns]
            out = torch.full((rows, 1), -1, device=device)
            argmax_(out, x)
            largest = x.max(dim=-1, keepdim=True).values
            first = (x == largest).int().argmax(dim=-1, keepdim=True)  # 16-bit values repeat
            assert torch.equal(out, first)


def test_argmax_counts_positions(device: str) -> None:
    x = torch.randn(3, 5000, dtype=torch.float16, device=device)
    all_positions = torch.tensor([7, 0, -1, 2**31 - 2, 5], dtype=torch.int32, device=device)
    out = torch.empty(3, 1, dtype=torch.int64, device=device)
    argmax_(out, x, all_positions[1:4])
    assert all_positions.tolist() == [7, 1, 0, 2**31 - 1, 5]
    assert torch.equal(out, x.argmax(dim=-1, keepdim=True))


def test_argmax_of_ties_zeros_nan_and_infinities(device: str) -> None:
    nan, inf = torch.nan, torch.inf
    rows = [
        ([2.0, 3.0, 3.0, 1.0], 1),
        ([-0.0, 0.0, -1.0, 0.0], 0),
        ([nan, -2.0, nan, -3.0], 1),
        ([-inf, -5.0, inf, nan], 2),
        ([-4.0, -2.0, -3.0, -2.0], 1),
    ]
    for dtype in dtypes_on(device):
        x = torch.tensor([row for row, _ in rows], dtype=dtype, device=device)
        for width in (4, 1500):  # the numbers alone; at the end of a long row
            long = torch.full((len(rows), width), -inf, dtype=dtype, device=device)
            long[:, -4:] = x
            out = torch.empty(len(rows), 1, dtype=torch.int64, device=device)
            argmax_(out, long)
            assert (out[:, 0] - (width - 4)).tolist() == [best for _, best in rows]


def test_nothing_to_do(device: str) -> None:
    argmax_(
        torch.empty(0, 1, dtype=torch.int64, device=device),
        torch.empty(0, 5, dtype=torch.float16, device=device),
    )
    args = embed_arguments(device, torch.float16, 0, 3, 8)
    embed_(**args)


def test_opcheck(device: str) -> None:
    """Schema (what is written too), fake kernel, AOT dispatch with dynamic shapes."""
    args = embed_arguments(device, torch.float16, 2, 3, 16)
    embed, argmax = torch.ops.flashint8.embed_.default, torch.ops.flashint8.argmax_.default
    torch.library.opcheck(embed, tuple(args.values()))
    torch.library.opcheck(embed, tuple(args.values())[:4])
    x = torch.randn(3, 40, dtype=torch.float16, device=device)
    out = torch.zeros(3, 1, dtype=torch.int64, device=device)
    torch.library.opcheck(argmax, (out, x))
    torch.library.opcheck(argmax, (out, x, torch.zeros(3, dtype=torch.int32, device=device)))


EMBED_ERRORS: list[tuple[str, Any, str]] = [
    ("out", lambda t: t[0], "out must have 3 dimensions (B, T, C), got 2"),
    ("out", lambda t: t.mT.contiguous().mT, "out must be contiguous, got stride 3 in dimension 2"),
    ("tokens", lambda t: t.int(), "tokens must be int64, got int32"),
    ("tokens", lambda t: t[:1], "tokens must have shape (2, 3), got (1, 3)"),
    ("weight", lambda t: t.half(), "weight must be int8, got float16"),
    ("weight", lambda t: t[:, :8], "weight must have shape (*, 16), got (11, 8)"),
    ("weight", lambda t: t[:0], "weight must have at least 1 row, got 0"),
    ("weight_scale", lambda t: t.half(), "weight_scale must be float32, got float16"),
    ("weight_scale", lambda t: t[:5], "weight_scale must have shape (11,), got (5,)"),
    ("positions", lambda t: None, "positions and position_weight must both be given, or neither"),
    ("positions", lambda t: t.long(), "positions must be int32, got int64"),
    ("positions", lambda t: t[:1], "positions must have shape (2,), got (1,)"),
    (
        "position_weight",
        lambda t: t.bfloat16(),
        "position_weight has dtype bfloat16, out has float16",
    ),
    ("position_weight", lambda t: t[:0], "position_weight must have at least 1 row, got 0"),
]


@pytest.mark.parametrize("where", ["device", "meta"])
@pytest.mark.parametrize("case", EMBED_ERRORS, ids=lambda c: c[2][:32])
def test_embed_errors(device: str, where: str, case: tuple[str, Any, str]) -> None:
    name, change, message = case
    args: dict[str, Any] = embed_arguments(device, torch.float16, 2, 3, 16)
    args[name] = change(args[name])
    if where == "meta":
        args = {n: t if t is None else t.to("meta") for n, t in args.items()}
        args["out"] = (
            args["out"] if name != "out" else change(args["weight"].half().new_empty(2, 3, 16))
        )
    with refuses(f"embed_: {message}"):
        embed_(**args)


ARGMAX_ERRORS: list[tuple[str, Any, str]] = [
    ("x", lambda t: t[0], "x must have 2 dimensions (M, N), got 1"),
    ("x", lambda t: t[:, :0], "x must have at least 1 column, got 0"),
    ("x", lambda t: t[:, ::2], "x's last dimension must be contiguous, got stride 2"),
    ("out", lambda t: t.int(), "out must be int64, got int32"),
    ("out", lambda t: t[:2], "out must have shape (3, 1), got (2, 1)"),
    ("positions", lambda t: t.long(), "positions must be int32, got int64"),
    ("positions", lambda t: t[:2], "positions must have shape (3,), got (2,)"),
    (
        "positions",
        lambda t: t[:1].expand(3),
        "positions must be contiguous, got stride 0 in dimension 0",
    ),
]


@pytest.mark.parametrize("case", ARGMAX_ERRORS, ids=lambda c: c[2][:32])
def test_argmax_errors(device: str, case: tuple[str, Any, str]) -> None:
    name, change, message = case
    args = {
        "out": torch.zeros(3, 1, dtype=torch.int64, device=device),
        "x": torch.zeros(3, 8, dtype=torch.float16, device=device),
        "positions": torch.zeros(3, dtype=torch.int32, device=device),
    }
    args[name] = change(args[name])
    with refuses(f"argmax_: {message}"):
        argmax_(**args)
