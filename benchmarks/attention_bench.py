"""Causal attention: flashint8 against every backend of scaled_dot_product_attention, and naive.

python benchmarks/attention_bench.py                       # the 12 small shapes
python benchmarks/attention_bench.py --suite decode --device cuda
python benchmarks/attention_bench.py --dtype float32,bfloat16,float16 --device cpu
python benchmarks/attention_bench.py --shapes "1,12,1024,64;1,32,8,1,4096,128"
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from attention_cases import (
    SUITES,
    AttentionCase,
    attention_error,
    make_inputs,
    parse_shapes,
    suite,
)
from attention_peers import peers
from ceilings import READ, measure_ceilings, read_method, row_ceilings
from environment import (
    add_common_arguments,
    add_package_to_path,
    buffers_past_cache,
    describe,
    dtype_name,
    parse_dtypes,
    pick_device,
)
from harness import Budget, check, measure
from method import CheckError, Method, Skipped
from report import Bar, console, print_machine, print_results, progress, save

OURS = "flashint8"
BUDGET_S = {"cuda": 40.0, "cpu": 24.0}  # for each dtype


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add_common_arguments(parser, "results/attention.json")
    parser.add_argument("--suite", choices=SUITES, default="seed")
    parser.add_argument("--shapes", help='"B,H,T,D" or "B,Hq,Hkv,Tq,Tk,D", ";" between several')
    parser.add_argument("--peers", help="names of peers to run, commas between (default: all)")
    parser.add_argument(
        "--warm", action="store_true", help="decode on one cache, which L2 may hold, not on several"
    )
    return parser.parse_args()


def buffers_of(
    case: AttentionCase, dtype: torch.dtype, device: torch.device, seed: int, warm: bool
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """One set of inputs, or, for decoding, enough of them that keys and values leave the cache."""
    count = 1
    if case.decode and not warm:
        count = buffers_past_cache(case.bytes_moved(dtype), device)
    return [make_inputs(case, dtype, device, seed + 1000 * i) for i in range(count)]


def check_case(
    case: AttentionCase, dtype: torch.dtype, device: torch.device, seed: int, only: list[str] | None
) -> dict[str, float | str]:
    """Errors (or why a method is skipped) on one case; nothing is timed."""
    q, k, v = make_inputs(case, dtype, device, seed)
    found = peers(case, [(q, k, v)], only)
    methods = [m for m in found if isinstance(m, Method)]
    checked = check(methods, attention_error(case, q, k, v, seed), case.limit(dtype))
    outcome: dict[str, float | str] = {}
    for entry in [*(m for m in found if isinstance(m, Skipped)), *checked]:
        outcome[entry.name] = entry.why if isinstance(entry, Skipped) else float(entry.error or 0.0)
    return outcome


def time_case(
    case: AttentionCase,
    dtype: torch.dtype,
    device: torch.device,
    outcome: dict[str, float | str],
    ceilings: dict[str, Any],
    args: argparse.Namespace,
    seed: int,
    seconds: float,
) -> dict[str, Any]:
    """The row of one case that was checked."""
    buffers = buffers_of(case, dtype, device, seed, args.warm)
    ready: list[Method | Skipped] = []
    for method in peers(case, buffers, [n for n, o in outcome.items() if not isinstance(o, str)]):
        result = outcome[method.name]
        if isinstance(method, Method) and isinstance(result, float):
            method.error = result
        ready.append(method)
    ready += [Skipped(n, o) for n, o in outcome.items() if isinstance(o, str)]
    moved = dict.fromkeys(outcome, case.bytes_moved(dtype))
    if case.decode and (read := read_method(device, [(k, v) for _, k, v in buffers])):
        ready.append(read[0])
        moved[READ] = read[1]
    methods = measure(
        ready,
        device,
        iters=args.iters,
        seconds=seconds,
        flops=case.flops,
        bytes_moved=moved,
    )
    found = row_ceilings(ceilings, methods)
    return {"case": case.as_json(dtype), "ceilings": found, "methods": methods}


def case_columns(row: dict[str, Any]) -> dict[str, str]:
    """The shape in the table."""
    case = row["case"]
    heads = str(case["Hq"]) if case["Hq"] == case["Hkv"] else f"{case['Hq']}/{case['Hkv']}"
    length = str(case["Tq"]) if case["Tq"] == case["Tk"] else f"{case['Tq']}:{case['Tk']}"
    return {"B": str(case["B"]), "H": heads, "T": length, "D": str(case["D"])}


def own_columns(row: dict[str, Any]) -> dict[str, str]:
    """Our rate, error and memory in the table."""
    ours, case = row["methods"][OURS], row["case"]
    peak = ours["peak_bytes"]
    decode = case["Tq"] == 1
    share = f"{100 * ours['gb_s'] / row['ceilings']['read_gb_s']:.0f}%"
    return {
        "% read" if decode else "TFLOP/s": share if decode else f"{ours['tflops']:.3g}",
        "error": f"{ours['error']:.1e}",
        "peak KiB": "-" if peak is None else f"{peak / 1024:.0f}",
    }


def run_dtype(
    cases: list[AttentionCase],
    dtype: torch.dtype,
    device: torch.device,
    ceilings: dict[str, Any],
    args: argparse.Namespace,
    seconds: float,
    bar: Bar,
) -> list[dict[str, Any]]:
    """The rows of one dtype: every case is checked before the first is timed.

    Raises:
        CheckError: our own output is wrong.
    """
    only = [p.strip() for p in args.peers.split(",")] if args.peers else None
    task = bar.add_task(f"{dtype_name(dtype)}: checking against float64", total=len(cases))
    outcomes = []
    for i, case in enumerate(cases):
        try:
            outcomes.append(check_case(case, dtype, device, args.seed + i, only))
        except CheckError as e:
            raise CheckError(f"{e} at {case}, {dtype_name(dtype)}") from e
        bar.advance(task)
    budget = Budget(seconds, len(cases))
    task = bar.add_task(f"{dtype_name(dtype)}: timing", total=len(cases))
    rows = []
    for i, (case, outcome) in enumerate(zip(cases, outcomes, strict=True)):
        share = budget.next_row()
        rows.append(time_case(case, dtype, device, outcome, ceilings, args, args.seed + i, share))
        bar.advance(task)
    return rows


def main() -> int:
    """Runs the benchmark; exit status 1 if our own output is wrong."""
    args = parse_arguments()
    add_package_to_path()
    device = pick_device(args.device)
    default = torch.float16 if device.type == "cuda" else torch.float32
    dtypes = parse_dtypes(args.dtype, default)
    screen = console()
    cases = parse_shapes(args.shapes) if args.shapes else suite(args.suite, device.type)
    environment = describe(device, args.seed)
    seconds = args.time_budget / len(dtypes) if args.time_budget else BUDGET_S[device.type]
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), progress(screen) as bar:
        ceilings = [measure_ceilings(device, dtype) for dtype in dtypes]
        try:
            for dtype, found in zip(dtypes, ceilings, strict=True):
                rows += run_dtype(cases, dtype, device, found, args, seconds, bar)
        except CheckError as e:
            screen.print(f"[red]attention_bench: {e}; it was not timed[/red]")
            return 1
    name = "shapes" if args.shapes else args.suite
    print_machine(screen, environment, ceilings)
    print_results(screen, f"causal attention, {name}", rows, OURS, case_columns, own_columns)
    save(args.out, "attention", name, environment, ceilings[0], rows, screen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
