"""Whole models generating text: tokens per second, time to the first token, memory.

python benchmarks/generate_bench.py                                  # the default cases
python benchmarks/generate_bench.py --models gpt2 --prompts 64,512 --batches 1,4
python benchmarks/generate_bench.py --models llama-7b --methods flashint8,torch_compile
python benchmarks/generate_bench.py --suite reference   # what README shows of a GPU

The result is written anew after every method, so that a run that is stopped keeps what it has.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import math
import sys
import time
from collections.abc import Callable
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
from harness import quantiles, significant
from method import CheckError, Skipped, reason
from report import console, print_machine, progress, save
from rich.table import Table

BUDGET_S = {"cuda": 120.0, "cpu": 240.0}
# Relative to the spread of the plain model's logits; random weights take int8's rounding hard.
TOLERANCE = 0.25
CHECKED_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class Job:
    """Methods to time in one case; a case may come in several jobs."""

    model: str
    batch: int
    prompt: int
    methods: tuple[str, ...]


GRAPHS = ("flashint8", "sdpa_graph", "torch_compile")
# What takes long to compile comes last.
REFERENCE = (
    Job("gpt2", 1, 512, NAMES[:-1]),
    Job("gpt2", 8, 64, GRAPHS),
    Job("gpt2-xl", 1, 512, GRAPHS),
    Job("llama-3b", 1, 512, GRAPHS),
    Job("llama-7b", 1, 512, tuple(n for n in NAMES[:-1] if n != "transformers_eager")),
    Job("llama-7b", 1, 512, ("torch_compile_int8",)),
    Job("gpt2", 1, 512, ("torch_compile_int8",)),
)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add_common_arguments(parser, "results/generate.json")
    parser.add_argument(
        "--suite", choices=["reference"], help="README's cases, each with its own methods (GPU)"
    )
    parser.add_argument("--models", help="presets, commas between (default: by device)")
    parser.add_argument("--prompts", default="512", help="prompt lengths, commas between")
    parser.add_argument("--batches", default="1", help="batch sizes, commas between")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--methods", help=f"of {', '.join(NAMES)} (default: all but the last)")
    parser.add_argument(
        "--stop-after",
        type=float,
        default=math.inf,
        help="begin no further peer after so many seconds (default: no limit)",
    )
    parser.add_argument(
        "--layers", type=int, help="use only this many layers (to try a slow compilation)"
    )
    return parser.parse_args()


def jobs_of(args: argparse.Namespace, cuda: bool) -> list[Job]:
    """What is to be measured, in this order.

    Raises:
        SystemExit: an unknown model or method.
    """
    from flashint8.models import PRESETS

    if args.suite:
        if args.models or args.methods:
            raise SystemExit("--suite has its own models and methods; leave these options out")
        return list(REFERENCE)
    default = "gpt2,gpt2-xl,llama-3b,llama-7b,smollm2-135m" if cuda else "smollm2-135m,gpt2"
    models = (args.models or default).split(",")
    unknown = [m for m in models if m not in PRESETS]
    if unknown:
        raise SystemExit(f"--models must be of {', '.join(PRESETS)}, got {', '.join(unknown)}")
    names = args.methods.split(",") if args.methods else (NAMES[:-1] if cuda else CPU_NAMES)
    if not set(names) <= set(NAMES):
        raise SystemExit(f"--methods must be of {', '.join(NAMES)}, got {args.methods}")
    batches, prompts = numbers(args.batches), numbers(args.prompts)
    return [Job(m, b, p, tuple(names)) for m in models for b in batches for p in prompts]


def numbers(text: str) -> list[int]:
    """ "1,4" as numbers."""
    return [int(x) for x in text.split(",")]


def check_logits(base: Any, model: Any, seed: int) -> float:
    """Largest difference of a model's logits to the plain model's, over their spread.

    Raises:
        CheckError: it is above TOLERANCE.
    """
    device = base.device
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
    """The method's JSON, but for its error.

    Untimed first: a few tokens, which compile; then a whole round, whose peak memory is taken, and
    in which a peer may still meet lengths of the cache for the first time.
    """
    device = next(iter(candidate.model.buffers()), next(candidate.model.parameters())).device
    steps = min(new_tokens, candidate.steps or new_tokens)
    candidate.run(prompts, min(steps, 4))
    runs: list[Run] = []
    working = peak_of(device, lambda: candidate.run(prompts, steps))
    spent = 0.0
    while not runs or (len(runs) < rounds and spent < budget):
        runs.append(candidate.run(prompts, steps))
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
    base: Any,
    job: Job,
    args: argparse.Namespace,
    share: float,
    deadline: float,
    found: Callable[[str, dict[str, Any]], None],
) -> None:
    """The job's methods on the same prompts; each is handed on as soon as it is known.

    Args:
        base: the plain model.
        job: the case and its methods.
        args: the command line.
        share: seconds of rounds for one method.
        deadline: no peer is begun after it (time.perf_counter).
        found: takes a method's name and its JSON.

    Raises:
        CheckError: our logits are wrong.
    """
    generator = torch.Generator().manual_seed(args.seed)
    vocab = base.config.vocab_size
    prompts = torch.randint(0, vocab, (job.batch, job.prompt), generator=generator).tolist()
    capacity = job.prompt + args.new_tokens - 1
    for candidate in candidates(job.methods, base, job.batch, capacity):
        name = candidate.name
        if isinstance(candidate, Skipped):
            found(name, {"skipped": candidate.why})
            continue
        if time.perf_counter() > deadline and not name.startswith("flashint8"):
            found(name, {"skipped": "the time for the run was up"})
            continue
        ours = name.startswith("flashint8")
        error = check_logits(base, candidate.model, args.seed) if ours else None
        try:
            row = time_candidate(candidate, prompts, args.new_tokens, args.iters, share)
        except torch.cuda.OutOfMemoryError:
            found(name, {"skipped": "out of memory"})
            continue
        except Exception as e:  # whatever a peer raises is the reason it is skipped
            if ours:
                raise
            found(name, {"skipped": reason(e)})
            continue
        found(name, {**row, "error": error})
        del candidate  # before the next one is made


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
    started = time.perf_counter()
    args = parse_arguments()
    add_package_to_path()
    from flashint8.models import PRESETS

    device = pick_device(args.device)
    dtype = parse_dtype(args.dtype, torch.float16 if device.type == "cuda" else torch.bfloat16)
    jobs = jobs_of(args, device.type == "cuda")
    args.iters = min(args.iters, 10)
    share = (args.time_budget or BUDGET_S[device.type]) / sum(len(job.methods) for job in jobs)
    suite = args.suite or ("default" if args.models is None else "models")
    screen = console()
    environment = describe(device, args.seed)
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    with torch.inference_mode(), progress(screen) as bar:
        ceilings = measure_ceilings(device, dtype)
        task = bar.add_task("generating", total=len(jobs))
        made = base = None
        for job in jobs:
            if job.model != made:
                base = None
                gc.collect()
                config = PRESETS[job.model]
                if args.layers:
                    config = dataclasses.replace(config, num_layers=args.layers)
                base, made = base_model(config, dtype, device, args.seed), job.model
            case = {
                "model": job.model,
                "layers": base.config.num_layers,
                "batch": job.batch,
                "prompt": job.prompt,
                "new_tokens": args.new_tokens,
                "dtype": dtype_name(dtype),
            }
            key = (job.model, job.batch, job.prompt)
            methods = rows.setdefault(key, {"case": case, "methods": {}})["methods"]

            def found(name: str, row: dict[str, Any], methods: dict[str, Any] = methods) -> None:
                methods[name] = row
                save(args.out, "generate", suite, environment, ceilings, list(rows.values()))

            try:
                run_case(base, job, args, share, started + args.stop_after, found)
            except CheckError as e:
                screen.print(f"[red]generate_bench: {job.model}: {e}; it was not timed[/red]")
                return 1
            bar.advance(task)
    print_machine(screen, environment, [ceilings])
    result = {"benchmark": "generate", "environment": environment, "rows": list(rows.values())}
    if ours_of(result["rows"]) is not None:
        print_table(screen, result)
    save(args.out, "generate", suite, environment, ceilings, result["rows"], screen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
