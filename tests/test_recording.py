"""record: the operators of a function again, on the tensors as they are by then."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import flashint8
from flashint8.recording import record


def test_tensors_outside_are_read_and_written_where_they_are() -> None:
    x, total, out = torch.tensor([1.0, 5.0, 3.0]), torch.zeros(3), torch.zeros(2)
    python = []

    def function() -> None:
        python.append(1)
        doubled = x * 2
        values, indices = doubled.topk(2)
        total.add_(doubled)
        torch.add(values, indices, out=out)

    again = record(function)
    assert (total.tolist(), out.tolist()) == ([2, 10, 6], [11, 8])
    x.copy_(torch.tensor([7.0, 0.0, 4.0]))
    again()
    assert (total.tolist(), out.tolist()) == ([16, 10, 14], [14, 10])
    again()
    assert total.tolist() == [30, 10, 22]
    assert python == [1], "the function itself ran again"


def test_what_was_made_inside_is_made_again() -> None:
    """Views, tensors written in place, lists of tensors, options."""
    x, out = torch.arange(6.0), torch.zeros(3, dtype=torch.float64)

    def function() -> None:
        scratch = torch.zeros(6).add_(x)
        scratch[1:3].mul_(10)
        first, second = torch.cat([scratch, x]).view(2, 6).unbind()
        out.copy_((first - second).to(torch.float64).view(2, 3).sum(dim=0, keepdim=False))

    again = record(function)
    expected = out.clone()
    out.zero_()
    again()
    assert torch.equal(out, expected)
    x.neg_()
    again()
    assert torch.equal(out, -expected)


def test_tensors_made_of_numbers_are_made_again() -> None:
    x, out = torch.ones(1), torch.zeros(1)

    def function() -> None:
        out.copy_(torch.tensor([10.0]).add_(x))

    again = record(function)
    for _ in range(2):
        again()
        assert out.item() == 11


def test_our_operators() -> None:
    x = torch.randn(1, 64)
    linear = flashint8.QuantLinear.from_linear(torch.nn.Linear(64, 64))
    weight, residual, out = torch.ones(64), torch.zeros(1, 64), torch.zeros(1, 64)

    def function() -> None:
        y = flashint8.add_norm_(residual, linear(x), weight)
        out.copy_(F.relu(flashint8.silu_mul(torch.cat([y, y], dim=-1))))

    with torch.inference_mode():
        again = record(function)
        x.normal_()
        residual.zero_()
        again()
        got = out.clone()
        residual.zero_()
        function()
    assert torch.equal(got, out)


def test_random_numbers_go_on() -> None:
    generator, out = torch.Generator().manual_seed(3), torch.zeros(4)

    def function() -> None:
        out.copy_(torch.empty(4).exponential_(generator=generator))

    again = record(function)
    again()
    second = out.clone()
    generator.manual_seed(3)
    function()
    function()
    assert torch.equal(out, second)


def test_numbers_cannot_be_recorded() -> None:
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"_local_scalar_dense.*returned float, which cannot"):
        record(lambda: x * x.sum().item())


def test_it_is_ready_at_once() -> None:
    """torch's compiler, whose import takes a second, is left alone."""
    code = (
        "import sys, torch; from flashint8.recording import record; x = torch.ones(2);"
        "record(lambda: x.add_(1))(); assert x.tolist() == [3, 3];"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
