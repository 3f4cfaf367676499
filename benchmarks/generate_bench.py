"""Whole models generating text: tokens per second, time to the first token, memory.

python benchmarks/generate_bench.py                                  # the default cases
python benchmarks/generate_bench.py --models gpt2 --prompts 64,512 --batches 1,4
python benchmarks/generate_bench.py --models llama-7b --methods flashint8,torch_compile
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import sys
from typing import Any

import torch
from ceilings import measure_ceilings
from environment import (
    add_common_arguments,
    add_package_to_path,
    describe,
    dtype_name,
    parse_dtype,
    pick_device,
)
from generate_peers import (
    CPU_NAMES,
    NAMES,
    Candidate,
    Run,
    base_model,
    candidates,
    weights_bytes,
)
from generate_tables import cells, ours_of
from harness import Budget, quantiles, significant
from method import CheckError, Skipped
from report import console, print_machine, progress, save
from rich.table import Table

BUDGET_S = {"cuda": 120.0, "cpu": 240.0}
# Relative to the spread of the plain model's logits; random weights take int8's rounding hard.
TOLERANCE = 0.25
CHECKED_TOKENS = 32


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add_common_arguments(parser, "results/generate.json")
    parser.add_argument("--models", help="presets, commas between (default: by device)")
    parser.add_argument("--prompts", default="512", help="prompt lengths, commas between")
    parser.add_argument("--batches", default="1", help="batch sizes, commas between")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--methods", help=f"of {', '.join(NAMES)} (default: all but the last)")
    parser.add_argument(
        "--layers", type=int, help="use only this many layers (to try a slow compilation)"
    )
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """ "1,4" as numbers."""
    return [int(x) for x in text.split(",")]


def check_logits(base: Any, model: Any, seed: int) -> float:
    """Largest difference of a model's logits to the plain model's, over their spread.

    Raises:
        CheckError: it is above TOLERANCE.
    """
    device = base.norm.weight.device
    generator = torch.Generator().manual_seed(seed)
    shape = (1, CHECKED_TOKENS)
    tokens = torch.randint(0, base.config.vocab_size, shape, generator=generator).to(device)
    expected = base(tokens).float()
    error = float((model(tokens).float() - expected).abs().max() / expected.std())
    if not error <= TOLERANCE:
        raise CheckError(f"logits differ by {error:.3g} of their spread, limit {TOLERANCE}")
    return significant(error, 3)


def peak_of(device: torch.device, call: Any) -> int | None:
    """Bytes that a call took at most, beyond what was there; None on a CPU."""
    if device.type != "cuda":
        call()
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def time_candidate(
    candidate: Candidate, prompts: list[list[int]], new_tokens: int, rounds: int, budget: float
) -> dict[str, Any]:
    """The method's JSON, but for its error. One round comes first, untimed: it compiles."""
    device = next(iter(candidate.model.buffers()), next(candidate.model.parameters())).device
    steps = min(new_tokens, candidate.steps or new_tokens)
    candidate.run(prompts, min(steps, 4))
    runs: list[Run] = []

    def once() -> None:
        runs.append(candidate.run(prompts, steps))

    working = peak_of(device, once)
    spent = runs[0].first + runs[0].rest
    while len(runs) < rounds and spent < budget:
        once()
        spent += runs[-1].first + runs[-1].rest
    weights = weights_bytes(candidate.model)
    batch = len(prompts)
    row: dict[str, Any] = {
        "tokens_per_s": quantiles([batch * run.steps / run.rest for run in runs]),
        "ttft_ms": quantiles([run.first * 1e3 for run in runs]),
        "samples": len(runs),
        "weights_bytes": weights,
        "cache_bytes": candidate.cache_bytes,
        "peak_bytes": None if working is None else weights + candidate.cache_bytes + working,
    }
    if steps < new_tokens:
        row["note"] = f"over {steps} new tokens"
    elif candidate.note:
        row["note"] = candidate.note
    return row


def run_case(
    base: Any, names: list[str], prompt: int, batch: int, args: argparse.Namespace, budget: float
) -> dict[str, Any]:
    """One row: every method on the same prompts."""
    generator = torch.Generator().manual_seed(args.seed)
    vocab = base.config.vocab_size
    prompts = torch.randint(0, vocab, (batch, prompt), generator=generator).tolist()
    capacity = prompt + args.new_tokens - 1
    methods: dict[str, Any] = {}
    for candidate in candidates(names, base, batch, capacity):
        if isinstance(candidate, Skipped):
            methods[candidate.name] = {"skipped": candidate.why}
            continue
        ours = candidate.name.startswith("flashint8")
        error = check_logits(base, candidate.model, args.seed) if ours else None
        share = budget / len(names)
        try:
            row = time_candidate(candidate, prompts, args.new_tokens, args.iters, share)
        except torch.cuda.OutOfMemoryError:
            methods[candidate.name] = {"skipped": "out of memory"}
            continue
        methods[candidate.name] = {**row, "error": error}
    return methods


def print_table(screen: Any, result: dict[str, Any]) -> None:
    """The table on the screen: the same cells as README's."""
    header, lines = cells(result)
    table = Table(title="tokens/s of all rows together after the first token; x: ours over it")
    for name in header:
        table.add_column(name, justify="right")
    for line in lines:
        table.add_row(*(cell.replace("**", "") for cell in line))
    screen.print(table)
    for row in result["rows"]:
        for name, method in row["methods"].items():
            if "skipped" in method:
                screen.print(f"[dim]{row['case']['model']}: {name}: {method['skipped']}[/dim]")


def main() -> int:
    """Runs the benchmark; exit status 1 if our own logits are wrong."""
    args = parse_arguments()
    add_package_to_path()
    from flashint8.models import PRESETS

    device = pick_device(args.device)
    cuda = device.type == "cuda"
    dtype = parse_dtype(args.dtype, torch.float16 if cuda else torch.bfloat16)
    default = "gpt2,gpt2-xl,llama-3b,llama-7b,smollm2-135m" if cuda else "smollm2-135m,gpt2"
    models = (args.models or default).split(",")
    unknown = [m for m in models if m not in PRESETS]
    if unknown:
        raise SystemExit(f"--models must be of {', '.join(PRESETS)}, got {', '.join(unknown)}")
    names = args.methods.split(",") if args.methods else list(NAMES[:-1] if cuda else CPU_NAMES)
    if not set(names) <= set(NAMES):
        raise SystemExit(f"--methods must be of {', '.join(NAMES)}, got {args.methods}")
    args.iters = min(args.iters, 10)
    cases = [
        (m, p, b) for m in models for b in numbers(args.batches) for p in numbers(args.prompts)
    ]
    screen = console()
    environment = describe(device, args.seed)
    rows: list[dict[str, Any]] = []
    with torch.inference_mode(), progress(screen) as bar:
        ceilings = measure_ceilings(device, dtype)
        budget = Budget(args.time_budget or BUDGET_S[device.type], len(cases))
        task = bar.add_task("generating", total=len(cases))
        made = base = None
        for model, prompt, batch in cases:
            if model != made:
                base = None
                gc.collect()
                config = PRESETS[model]
                if args.layers:
                    config = dataclasses.replace(config, num_layers=args.layers)
                base, made = base_model(config, dtype, device, args.seed), model
            case = {
                "model": model,
                "layers": base.config.num_layers,
                "batch": batch,
                "prompt": prompt,
                "new_tokens": args.new_tokens,
                "dtype": dtype_name(dtype),
            }
            try:
                methods = run_case(base, names, prompt, batch, args, budget.next_row())
            except CheckError as e:
                screen.print(f"[red]generate_bench: {model}: {e}; it was not timed[/red]")
                return 1
            rows.append({"case": case, "methods": methods})
            bar.advance(task)
    print_machine(screen, environment, [ceilings])
    result = {"benchmark": "generate", "environment": environment, "rows": rows}
    if ours_of(rows) is not None:
        print_table(screen, result)
    suite = "default" if args.models is None else "models"
    save(args.out, "generate", suite, environment, ceilings, rows, screen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
