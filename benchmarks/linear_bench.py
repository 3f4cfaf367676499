"""INT8 weight-only linear: flashint8.QuantLinear against nn.Linear and other int8 routes.

python benchmarks/linear_bench.py --quick
python benchmarks/linear_bench.py --shapes 4096x4096,11008x4096 --m 1,16,256
python benchmarks/linear_bench.py --compile --compile-m 1 --compile-shapes 4096x4096
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from ceilings import READ, measure_ceilings, read_method, row_ceilings
from environment import (
    add_common_arguments,
    add_package_to_path,
    describe,
    dtype_name,
    parse_dtypes,
    pick_device,
)
from harness import Budget, check, measure
from linear_peers import Bank, Weights, compiled_method, make_bank, make_weights, methods
from method import CheckError, Method, Skipped
from mma_rate import mma_sync_ceiling
from report import Bar, console, print_machine, print_results, progress, save

OURS = "flashint8"
BUDGET_S = {"cuda": 70.0, "cpu": 60.0}  # for each dtype, and no more than this a row:
ROW_S = {"cuda": 1.75, "cpu": 5.0}
GPT2 = [(768, 768), (2304, 768), (3072, 768), (768, 3072)]
LLAMA = [(4096, 4096), (11008, 4096), (4096, 11008), (14336, 4096)]
ALL_M = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
CPU_M = [1, 2, 4, 16, 64, 256]
CPU_SHAPES = [(4096, 4096), (11008, 4096)]
QUICK = ([(768, 768), (4096, 4096)], [1, 16, 256])
CHECKED_ROWS = 64  # of x: a larger M is checked on a sample


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add_common_arguments(parser, "results/linear.json")
    parser.add_argument(
        "--shapes",
        help="NxK,NxK,... (default: GPT-2's, Llama-7B's, 14336x4096; on a CPU only two of them)",
    )
    parser.add_argument(
        "--m", help="values of M, commas between (default: 1 to 4096; on a CPU to 256)"
    )
    parser.add_argument("--quick", action="store_true", help="two shapes, three values of M")
    parser.add_argument("--peers", help="names of peers to run, commas between (default: all)")
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also torch.compile'd weight-only int8 (max-autotune: up to a minute a row)",
    )
    parser.add_argument("--compile-m", default="1,16", help="values of M for --compile")
    parser.add_argument("--compile-shapes", help="NxK,... for --compile (default: all)")
    parser.add_argument(
        "--compile-seconds",
        type=float,
        default=math.inf,
        help="begin no compilation once they have taken this long together (default: no limit)",
    )
    return parser.parse_args()


def parse_shapes(text: str, option: str = "--shapes") -> list[tuple[int, int]]:
    """ "4096x4096,768x3072" as [(N, K), ...]."""
    try:
        shapes = [tuple(int(x) for x in part.split("x")) for part in text.split(",")]
        return [(n, k) for n, k in shapes]
    except ValueError:
        raise SystemExit(f"{option} takes NxK,NxK,..., got {text!r}") from None


def linear_error(w: Weights, x: torch.Tensor, seed: int) -> tuple[Callable[..., float], float]:
    """Error against float64 of the dequantised weights, and the largest that ours may have.

    The limit is one unit of the output's type at the largest output: accumulation in float32 and
    one rounding are well within it.
    """
    rows = torch.arange(x.shape[0], device=x.device)
    if len(rows) > CHECKED_ROWS:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(rows), generator=generator)[:CHECKED_ROWS].to(x.device)
    expected = torch.empty(len(rows), w.n, dtype=torch.float64, device=x.device)
    given = x[rows].double()
    for begin in range(0, w.n, 2048):
        part = slice(begin, begin + 2048)
        expected[:, part] = given @ (w.quantized[part].double() * w.scale[part, None].double()).T

    def error(out: torch.Tensor) -> float:
        if out.shape != (x.shape[0], w.n):
            raise ValueError(f"output has shape {tuple(out.shape)}")
        return float((out[rows].double() - expected).abs().max())

    largest = float(expected.abs().max())
    return error, max(torch.finfo(x.dtype).eps, 1e-5) * largest


def make_x(m: int, k: int, dtype: torch.dtype, device: torch.device, seed: int) -> torch.Tensor:
    """Normal random activations (M, K)."""
    generator = torch.Generator(device=device).manual_seed(seed + 17 * m)
    return torch.randn(m, k, generator=generator, device=device).to(dtype)


def bytes_moved(method: Method, m: int, w: Weights) -> float:
    """Weights in the form the method keeps them, activations read, output written."""
    return float(method.extra["weights_bytes"] + (m * w.k + m * w.n) * w.dtype.itemsize)


class Compilations:
    """torch.compile's int8 peer in the rows that --compile asks for, within --compile-seconds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.asked = args.compile
        self.rows = [int(m) for m in args.compile_m.split(",")]
        self.shapes = (
            parse_shapes(args.compile_shapes, "--compile-shapes") if args.compile_shapes else None
        )
        self.limit, self.spent = args.compile_seconds, 0.0

    def peer(self, w: Weights, m: int, seed: int) -> list[Method | Skipped]:
        """The peer of one row, compiled; or why it has none."""
        if not self.asked:
            return []
        if m not in self.rows or (self.shapes is not None and (w.n, w.k) not in self.shapes):
            return [Skipped("torch_compile_int8", "not asked for in this row")]
        if self.spent >= self.limit:
            return [Skipped("torch_compile_int8", "the time for compilations was up")]
        begin = time.perf_counter()
        found = compiled_method(w, make_x(m, w.k, w.dtype, w.quantized.device, seed))
        self.spent += time.perf_counter() - begin
        return [found]


def check_all(
    bank: Bank, w: Weights, m: int, seed: int, compiled: list[Method | Skipped]
) -> list[Any]:
    """Checked and skipped methods of one row, ready to be timed."""
    x = make_x(m, w.k, w.dtype, w.quantized.device, seed)
    found = [*methods(bank, x), *compiled]
    candidates = [f for f in found if isinstance(f, Method)]
    error, limit = linear_error(w, x, seed)
    # Eight-bit activations and one scale for the whole weight, or another dtype than x has: these
    # errors are for the table only.
    coarse = [c for c in candidates if c.name.startswith(("torch_dynamic_int8", "torch_linear_"))]
    checked = check([c for c in candidates if c not in coarse], error, limit)
    checked += check(coarse, error, 1e3 * limit)
    return [*checked, *(f for f in found if isinstance(f, Skipped))]


def case_columns(row: dict[str, Any]) -> dict[str, str]:
    """The shape in the table."""
    return {"N x K": f"{row['case']['N']}x{row['case']['K']}", "M": str(row["case"]["M"])}


def own_columns(row: dict[str, Any]) -> dict[str, str]:
    """Our bandwidth, its share of the ceiling, rate and error in the table."""
    ours = row["methods"][OURS]
    return {
        "GB/s": f"{ours['gb_s']:.0f}",
        "% read": f"{100 * ours['gb_s'] / row['ceilings']['read_gb_s']:.0f}%",
        "TFLOP/s": f"{ours['tflops']:.3g}",
        "error": f"{ours['error']:.1e}",
    }


def run_shape(
    w: Weights,
    values: list[int],
    args: argparse.Namespace,
    ceilings: dict[str, Any],
    budget: Budget,
    compilations: Compilations,
    tick: Callable[[], None],
) -> list[dict[str, Any]]:
    """The rows of one (N, K): every M is checked before the first is timed."""
    device = w.quantized.device
    only = [p.strip() for p in args.peers.split(",")] if args.peers else None
    bank = make_bank(w, device, only)
    ready = []
    for m in values:
        before = compilations.spent
        compiled = compilations.peer(w, m, args.seed)
        budget.seconds += compilations.spent - before  # compiling is not timing
        ready.append(check_all(bank, w, m, args.seed, compiled))
    rows = []
    read = read_method(device, [(layer.weight,) for layer in bank.layers[OURS]])
    for m, checked in zip(values, ready, strict=True):
        moved = {e.name: bytes_moved(e, m, w) for e in checked if isinstance(e, Method)}
        if read:
            checked.append(read[0])
            moved[READ] = read[1]
        timed = measure(
            checked,
            device,
            iters=args.iters,
            seconds=budget.next_row(),
            flops=2.0 * m * w.n * w.k,
            bytes_moved=moved,
        )
        case = {"M": m, "N": w.n, "K": w.k, "dtype": dtype_name(w.dtype)}
        rows.append({"case": case, "ceilings": row_ceilings(ceilings, timed), "methods": timed})
        tick()
    return rows


def run_dtype(
    dtype: torch.dtype,
    device: torch.device,
    shapes: list[tuple[int, int]],
    values: list[int],
    args: argparse.Namespace,
    bar: Bar,
    mma: dict[str, Any],
    compilations: Compilations,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The ceilings in one dtype (``mma`` are those that all share), and its rows.

    Raises:
        CheckError: our own output is wrong.
    """
    ceilings = {**measure_ceilings(device, dtype), **mma}
    count = len(shapes) * len(values)
    task = bar.add_task(f"INT8 linear, {dtype_name(dtype)}", total=count)
    seconds = min(BUDGET_S[device.type], count * ROW_S[device.type])
    budget = Budget(args.time_budget or seconds, count)
    rows: list[dict[str, Any]] = []
    for n, k in shapes:
        weights = make_weights(n, k, dtype, device, args.seed)
        try:
            rows += run_shape(
                weights, values, args, ceilings, budget, compilations, lambda: bar.advance(task)
            )
        except CheckError as e:
            raise CheckError(f"{e} at N {n}, K {k}, {dtype_name(dtype)}") from e
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return ceilings, rows


def main() -> int:
    """Runs the benchmark; exit status 1 if our own output is wrong."""
    args = parse_arguments()
    add_package_to_path()
    device = pick_device(args.device)
    cuda = device.type == "cuda"
    dtypes = parse_dtypes(args.dtype, torch.float16 if cuda else torch.bfloat16)
    shapes = GPT2 + LLAMA if cuda else CPU_SHAPES
    if args.shapes:
        shapes = parse_shapes(args.shapes)
    values = [int(m) for m in args.m.split(",")] if args.m else (ALL_M if cuda else CPU_M)
    if args.quick:
        shapes, values = QUICK
    if args.time_budget:
        args.time_budget /= len(dtypes)
    screen = console()
    environment = describe(device, args.seed)
    mma = mma_sync_ceiling(device)
    compilations = Compilations(args)
    ceilings: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), progress(screen) as bar:
        try:
            for dtype in dtypes:
                found, part = run_dtype(dtype, device, shapes, values, args, bar, mma, compilations)
                ceilings.append(found)
                rows += part
        except CheckError as e:
            screen.print(f"[red]linear_bench: {e}; it was not timed[/red]")
            return 1
    suite = "quick" if args.quick else ("shapes" if args.shapes or args.m else "full")
    print_machine(screen, environment, ceilings)
    print_results(screen, "INT8 weight-only linear", rows, OURS, case_columns, own_columns)
    save(args.out, "linear", suite, environment, ceilings[0], rows, screen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
