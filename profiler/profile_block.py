"""Where a transformer block's time goes: torch's profiler over the naive block and ours.

    python profiler/profile_block.py [--device cuda] [--summary-out results/trace_summary.json]

Writes profiler/mini_block_trace.json, a Chrome trace: open it at https://ui.perfetto.dev. Each
block runs inside a range of its own name (record_function, and NVTX on a GPU, so that Nsight
Systems shows the same ranges). Prints every operator's share and checks what must hold of ours:
attention is one dispatch a block, and neither a mask (triu, tril) nor a bmm is left.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import torch  # noqa: E402
from block_cases import BlockCase, make_blocks, make_input, parse_shapes  # noqa: E402
from environment import (  # noqa: E402
    add_package_to_path,
    describe,
    parse_dtype,
    pick_device,
)
from report import console, save  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

NAMES = ("torch_mini_block", "sdpa_block", "optimized_mini_block")
OURS = "optimized_mini_block"
MASKS = ("aten::triu", "aten::tril", "aten::triu_", "aten::tril_")
PRODUCTS = ("aten::bmm", "aten::baddbmm")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    parser.add_argument("--dtype", help="float16, bfloat16 or float32")
    parser.add_argument("--shape", default="1,512,768,12", help="B,T,C,H")
    parser.add_argument("--calls", type=int, default=10, help="profiled calls of each block")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=str(ROOT / "profiler" / "mini_block_trace.json"))
    parser.add_argument("--summary-out", help="also write the shares as JSON")
    return parser.parse_args()


@contextmanager
def named_range(name: str, device: torch.device) -> Iterator[None]:
    """A range in the trace, and an NVTX range where there is a GPU."""
    if device.type == "cuda":
        torch.cuda.nvtx.range_push(name)
    try:
        with torch.profiler.record_function(name):
            yield
            if device.type == "cuda":
                torch.cuda.synchronize(device)
    finally:
        if device.type == "cuda":
            torch.cuda.nvtx.range_pop()


def profile(
    blocks: dict[str, Any], x: torch.Tensor, calls: int, trace: str
) -> dict[str, dict[str, Any]]:
    """Profiles ``calls`` calls of each block and writes one trace of them all.

    Returns:
        Per block: ``operators``, a list of name, calls and self microseconds of one block call
        (device time on a GPU, host time on a CPU), largest first.
    """
    device = x.device
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for name in NAMES:
        for _ in range(3):
            blocks[name](x)
    found: dict[str, dict[str, Any]] = {}
    for name in NAMES:  # one profile a block for the shares: key_averages knows no ranges
        with torch.profiler.profile(activities=activities) as one, named_range(name, device):
            for _ in range(calls):
                blocks[name](x)
        found[name] = {"operators": shares(one, device, calls)}
    with torch.profiler.profile(activities=activities) as all_blocks:
        for name in NAMES:
            with named_range(name, device):
                for _ in range(calls):
                    blocks[name](x)
    all_blocks.export_chrome_trace(trace)
    forget_machine(trace)
    return found


def forget_machine(trace: str) -> None:
    """Takes the host's name and the file's place out of a trace, so that it can be passed on."""
    path = Path(trace)
    content = json.loads(path.read_text(encoding="utf-8"))
    content.pop("host_name", None)
    content["traceName"] = path.name
    path.write_text(json.dumps(content), encoding="utf-8")


def shares(
    result: torch.profiler.profile, device: torch.device, calls: int
) -> list[dict[str, Any]]:
    """Operators of a profile with their share of the total self time."""
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = []
    for event in result.key_averages():
        operator = "::" in event.key and not event.key.startswith(("void ", "cuda"))
        if operator and str(event.device_type).endswith("CPU"):
            rows.append((event.key, event.count / calls, getattr(event, key) / calls))
    total = sum(us for _, _, us in rows) or 1.0
    rows.sort(key=lambda row: -row[2])
    return [
        {"name": name, "calls": count, "self_us": round(us, 3), "share": round(us / total, 5)}
        for name, count, us in rows
    ]


def calls_of(operators: list[dict[str, Any]], names: tuple[str, ...]) -> float:
    """Calls of the named operators in one block call."""
    return sum(o["calls"] for o in operators if o["name"] in names)


def checks(found: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """What must hold of our block, and that the naive one does what it is there for."""
    ours = found[OURS]["operators"]
    naive = found["torch_mini_block"]["operators"]
    return {
        "attention is one dispatch a block": calls_of(ours, ("flashint8::attention",)) == 1,
        "no triu or tril in ours": calls_of(ours, MASKS) == 0,
        "no bmm in ours": calls_of(ours, PRODUCTS) == 0,
        "every linear of ours is int8": calls_of(ours, ("flashint8::int8_linear",)) == 4,
        "the naive block masks and multiplies": calls_of(naive, MASKS) > 0
        and calls_of(naive, PRODUCTS) > 0,
    }


def print_shares(screen: Console, found: dict[str, dict[str, Any]], device: torch.device) -> None:
    """Every operator with at least half a percent of a block's time."""
    kind = "device" if device.type == "cuda" else "host"
    for name in NAMES:
        operators = found[name]["operators"]
        total = sum(o["self_us"] for o in operators)
        table = Table(title=f"{name}: {total:.0f} us of {kind} time in operators, one call")
        for column in ("operator", "calls", "us", "share"):
            table.add_column(column, justify="left" if column == "operator" else "right")
        for o in operators:
            if o["share"] >= 0.005:
                table.add_row(
                    o["name"], f"{o['calls']:g}", f"{o['self_us']:.1f}", f"{100 * o['share']:.1f}%"
                )
        screen.print(table)


def main() -> int:
    """Profiles, prints, checks; exit status 1 if a check fails."""
    args = parse_arguments()
    add_package_to_path()
    device = pick_device(args.device)
    dtype = parse_dtype(args.dtype, torch.float16 if device.type == "cuda" else torch.float32)
    case: BlockCase = parse_shapes(args.shape)[0]
    screen = console()
    with torch.inference_mode():
        blocks = make_blocks(case, dtype, device, args.seed)
        x = make_input(case, dtype, device, args.seed)
        found = profile(blocks, x, args.calls, args.out)
    print_shares(screen, found, device)
    outcome = checks(found)
    for text, holds in outcome.items():
        screen.print(f"[green]holds[/green]  {text}" if holds else f"[red]FAILS[/red]  {text}")
    screen.print(f"trace: {Path(args.out).name} (open it at https://ui.perfetto.dev)")
    if args.summary_out:
        rows = [{"case": case.as_json(dtype), "methods": found}]
        environment = describe(device, args.seed)
        save(args.summary_out, "trace", None, environment, {}, rows, screen, checks=outcome)
    return 0 if all(outcome.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
