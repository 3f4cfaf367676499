"""A transformer block three ways: naive, with SDPA and 16-bit linears, and ours.

python benchmarks/block_bench.py
python benchmarks/block_bench.py --shapes "1,1024,768,12;8,1024,768,12"
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import torch
from block_cases import (
    METHODS,
    BlockCase,
    default_cases,
    make_blocks,
    make_input,
    parse_shapes,
    weights_bytes,
)
from ceilings import measure_ceilings
from environment import (
    add_common_arguments,
    add_package_to_path,
    describe,
    dtype_name,
    parse_dtype,
    pick_device,
)
from harness import Budget, check, measure
from method import CheckError, Method
from report import console, print_geometric_means, print_machine, print_rows, progress, save

OURS = "optimized_mini_block"
BUDGET_S = {"cuda": 15.0, "cpu": 30.0}
TOLERANCE = 2e-1  # against float64 with the weights before quantisation


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add_common_arguments(parser, "results/block.json")
    parser.add_argument("--shapes", help='"B,T,C,H", ";" between several')
    return parser.parse_args()


def run_case(
    case: BlockCase,
    dtype: torch.dtype,
    device: torch.device,
    args: argparse.Namespace,
    seconds: float,
) -> dict[str, Any]:
    """Checks the three blocks of a case against float64, then times them."""
    blocks = make_blocks(case, dtype, device, args.seed)
    x = make_input(case, dtype, device, args.seed)
    expected = blocks.pop("reference")(x.double())
    candidates = [
        Method(
            name,
            [partial(blocks[name], x)],
            ours=name == OURS,
            extra={"weights_bytes": weights_bytes(blocks[name])},
        )
        for name in METHODS
    ]

    def error(out: torch.Tensor) -> float:
        return float((out.double() - expected).abs().max())

    checked = check(candidates, error, TOLERANCE)
    methods = measure(checked, device, iters=args.iters, seconds=seconds, flops=case.flops)
    return {"case": case.as_json(dtype), "methods": methods}


def case_columns(row: dict[str, Any]) -> dict[str, str]:
    """The shape in the table."""
    return {name: str(row["case"][name]) for name in ("B", "T", "C", "H")}


def own_columns(row: dict[str, Any]) -> dict[str, str]:
    """Error and memory (ours / sdpa block / naive) in the table."""
    methods = row["methods"]

    def mib(name: str, key: str) -> str:
        value = methods[name].get(key)
        return "-" if value is None else f"{value / 2**20:.1f}"

    names = (OURS, "sdpa_block", "torch_mini_block")
    return {
        "error": f"{methods[OURS]['error']:.1e}",
        "weights MiB": " / ".join(mib(n, "weights_bytes") for n in names),
        "peak MiB": " / ".join(mib(n, "peak_bytes") for n in names),
    }


def main() -> int:
    """Runs the benchmark; exit status 1 if our own output is wrong."""
    args = parse_arguments()
    add_package_to_path()
    device = pick_device(args.device)
    dtype = parse_dtype(args.dtype, torch.float16 if device.type == "cuda" else torch.float32)
    cases = parse_shapes(args.shapes) if args.shapes else default_cases(device)
    screen = console()
    environment = describe(device, args.seed)
    rows = []
    with torch.inference_mode(), progress(screen) as bar:
        ceilings = measure_ceilings(device, dtype)
        task = bar.add_task("blocks", total=len(cases))
        budget = Budget(args.time_budget or BUDGET_S[device.type], len(cases))
        for case in cases:
            try:
                rows.append(run_case(case, dtype, device, args, budget.next_row()))
            except CheckError as e:
                screen.print(f"[red]block_bench: {e} at {case}; it was not timed[/red]")
                return 1
            bar.advance(task)
    print_machine(screen, environment, [ceilings])
    title = f"transformer block, {dtype_name(dtype)} (memory: ours / SDPA block / naive)"
    print_rows(screen, title, rows, OURS, case_columns, own_columns)
    print_geometric_means(screen, rows, OURS)
    suite = "shapes" if args.shapes else "default"
    save(args.out, "block", suite, environment, ceilings, rows, screen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
