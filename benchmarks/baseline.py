"""Naive attention: the whole score matrix and the mask in memory. Alone, it is the baseline.

python benchmarks/baseline.py [--device cpu] [--dtype float32] [--out results/baseline.json]
"""

from __future__ import annotations

import argparse
import math
from functools import partial

import torch
from environment import (
    add_common_arguments,
    add_package_to_path,
    describe,
    dtype_name,
    parse_dtype,
    pick_device,
)


def naive_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention as first written down: scores, triangular mask, softmax, product.

    Args:
        q: (B, Hq, Tq, D).
        k, v: (B, Hkv, Tk, D); Hq a multiple of Hkv. The last query sees the last key.

    Returns:
        (B, Hq, Tq, D), q's dtype. Every intermediate is materialised.
    """
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k = k.repeat_interleave(group, dim=1)
        v = v.repeat_interleave(group, dim=1)
    scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
    if q.shape[2] > 1:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        mask = mask.triu(1 + k.shape[2] - q.shape[2])
        scores = scores.masked_fill(mask, float("-inf"))
    return torch.matmul(torch.softmax(scores, dim=-1), v)


def main() -> None:
    """Times naive attention alone on the seed's shapes."""
    from attention_cases import attention_error, make_inputs, suite
    from harness import Budget, check, measure
    from method import Method
    from report import console, print_rows, progress, save

    parser = argparse.ArgumentParser(description="Naive attention alone, on the seed's shapes.")
    add_common_arguments(parser, "results/baseline.json")
    args = parser.parse_args()
    add_package_to_path()
    device = pick_device(args.device)
    dtype = parse_dtype(args.dtype, torch.float16 if device.type == "cuda" else torch.float32)
    screen = console()
    cases = suite("seed")
    budget = Budget(args.time_budget or 30.0, len(cases))
    rows = []
    with torch.inference_mode(), progress(screen) as bar:
        task = bar.add_task("naive attention", total=len(cases))
        for i, case in enumerate(cases):
            q, k, v = make_inputs(case, dtype, device, args.seed + i)
            method = Method("naive", [partial(naive_attention, q, k, v)], ours=True)
            checked = check([method], attention_error(case, q, k, v, args.seed), case.limit(dtype))
            seconds = budget.next_row()
            methods = measure(checked, device, iters=args.iters, seconds=seconds, flops=case.flops)
            rows.append({"case": case.as_json(dtype), "methods": methods})
            bar.advance(task)
    print_rows(
        screen,
        f"naive attention, {dtype_name(dtype)}",
        rows,
        "naive",
        lambda row: {name: str(row["case"][name]) for name in ("B", "Hq", "Tq", "D")},
        lambda row: {"peak MiB": f"{(row['methods']['naive']['peak_bytes'] or 0) / 2**20:.2f}"},
    )
    save(args.out, "baseline", "seed", describe(device, args.seed), {}, rows, screen)


if __name__ == "__main__":
    main()
