"""A model under a memory limit: what loads, what peak was predicted, how long a context may be.

python benchmarks/memory_bench.py                              # a 3B Llama shape in 6 GB
python benchmarks/memory_bench.py --model gpt2-xl --vram 2GB

Random weights are written to a safetensors file as Hugging Face stores them, and streamed from it
under the limit (torch.cuda.set_per_process_memory_fraction), as from a download.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch
from environment import (
    add_common_arguments,
    add_package_to_path,
    describe,
    dtype_name,
    parse_dtype,
    pick_device,
)
from generate_peers import weights_bytes, with_weights
from generate_tables import cells
from harness import significant
from report import console, save
from rich.table import Table

METHODS = {  # name: (linears, attention)
    "flashint8_int8": ("int8", "flashint8"),
    "sdpa_int8": ("int8", "sdpa"),
    "naive_int8": ("int8", "naive"),
    "sdpa_float16": ("float", "sdpa"),
}
SHORT_CONTEXT, NEW_TOKENS = 2048, 64
RESOLUTION = 1.03  # the search for the longest context stops at neighbours this near


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    add_common_arguments(parser, "results/memory.json")
    parser.add_argument("--model", default="llama-3b", help="a preset (default llama-3b)")
    parser.add_argument("--vram", default="6GB", help="the limit (default 6GB)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--predict", metavar="JSON", help="only make the predictions of this result anew (any CPU)"
    )
    return parser.parse_args()


def write_checkpoint(path: Path, config: Any, dtype: torch.dtype, seed: int) -> None:
    """Random weights under Hugging Face's names; one block of noise, over and over, is them all."""
    from flashint8.checkpoint import tensor_bytes
    from flashint8.models import GPT, Llama
    from flashint8.models.loading import parts

    kind = GPT if config.architecture == "gpt2" else Llama
    like = kind(config, device="meta", linears="float", dtype=dtype)
    kind_name = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]
    header: dict[str, Any] = {}
    end = 0
    for part in parts(config):
        layer = like.get_submodule(part.target)
        sizes = {n: tuple(t.shape) for n, t in layer.named_parameters()}
        rows = [sizes["weight"][0]]
        if len(part.sources) == 3:
            kv = config.num_kv_heads * config.head_dim
            rows = [config.attention_features, kv, kv]
        elif len(part.sources) == 2:
            rows = [config.intermediate_size] * 2
        for source, count in zip(part.sources, rows, strict=True):
            for name, size in sizes.items():
                shape = (count, *size[1:])
                begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
                place = {"dtype": kind_name, "shape": shape, "data_offsets": [begin, end]}
                header[f"{source}.{name}"] = place
    generator = torch.Generator().manual_seed(seed)
    noise = (torch.randn(1 << 24, generator=generator) * 0.02).to(dtype)
    block = tensor_bytes(noise)
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for place in header.values():
            begin, end = place["data_offsets"]
            for at in range(begin, end, len(block)):
                file.write(block[: min(len(block), end - at)])


def ran_out(error: RuntimeError) -> bool:
    """Whether memory ran out; an operator's own allocation fails with a plain RuntimeError."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "flashint8: out of memory" in str(
        error
    )


def clean() -> None:
    """Gives back what torch holds, so that the next peak is that of the next method alone."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def attempt(model: Any, batch: int, context: int, new_tokens: int, seed: int) -> dict[str, Any]:
    """Reads a prompt and generates, up to `context` positions; raises where memory runs out."""
    from flashint8.generate import Generator

    clean()
    random = torch.Generator().manual_seed(seed)
    shape = (batch, context - new_tokens + 1)
    prompts = torch.randint(0, model.config.vocab_size, shape, generator=random).tolist()
    # A graph's capture keeps a pool of its own: the methods are compared without.
    generator = Generator(model, batch, context, graph=False)
    times: list[float] = []
    generator(prompts, new_tokens, on_token=lambda row, token: times.append(time.perf_counter()))
    peak = torch.cuda.max_memory_allocated()
    rate = batch * (new_tokens - 1) / (times[-1] - times[0])
    return {"context": context, "peak_bytes": peak, "tokens_per_s": significant(rate)}


def fits(model: Any, batch: int, context: int, seed: int) -> dict[str, Any] | None:
    """`attempt` with two new tokens; None where memory runs out."""
    try:
        return attempt(model, batch, context, 2, seed)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        return None


def longest(model: Any, batch: int, guess: int, seed: int) -> dict[str, Any] | None:
    """The longest context that runs, to RESOLUTION, searched from a guess."""
    most = model.config.max_positions
    low, high, best = 0, most + 1, None
    context = max(2, min(guess, most))
    while high > max(low * RESOLUTION, low + 1):
        found = fits(model, batch, context, seed)
        if found is None:
            high = context
        else:
            low, best = context, found
        if low == 0:
            context = max(2, int(high / 1.25))
            if high <= 2:
                return None
        elif high > most:
            context = min(most, int(low * 1.06) + 1)
        else:
            context = (low + high) // 2
    return best


def predict(name: str, config: Any, limit: int, context: int, batch: int, dtype: str) -> Any:
    """What `will_it_fit` says of a method."""
    from flashint8.fit import will_it_fit

    linears, attention = METHODS[name]
    options = {"linears": linears, "attention": attention, "dtype": dtype}
    return will_it_fit(config, limit, context, batch, **options)


def predict_again(path: Path) -> None:
    """Makes a result's predictions anew: they are arithmetic, which this code may do otherwise."""
    from flashint8.models import PRESETS

    result = json.loads(path.read_text(encoding="utf-8"))
    for row in result["rows"]:
        case = row["case"]
        config = PRESETS[case["model"]]
        for name, method in row["methods"].items():
            if "skipped" in method:
                continue

            def at(context: int, name: str = name, case: Any = case, config: Any = config) -> Any:
                known = (case["limit_bytes"], context, case["batch"], case["dtype"])
                return predict(name, config, *known)

            short = method["short"]
            short["predicted_bytes"] = at(short["context"]).total
            method["predicted_longest_context"] = at(short["context"]).longest_context
            method["predicted_bytes"] = at(method["longest_context"]).total
    names = ("benchmark", "suite", "environment", "ceilings", "rows")
    save(str(path), *(result[name] for name in names))


def run_method(
    name: str, model: Any, args: argparse.Namespace, limit: int, dtype: torch.dtype
) -> dict[str, Any]:
    """A method's JSON: short context, longest context, predictions beside both."""

    def at(context: int) -> Any:
        return predict(name, model.config, limit, context, args.batch, dtype_name(dtype))

    try:
        short = attempt(model, args.batch, SHORT_CONTEXT, NEW_TOKENS, args.seed)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        return {"skipped": f"out of memory at a context of {SHORT_CONTEXT}"}
    short["predicted_bytes"] = at(SHORT_CONTEXT).total
    guess = at(SHORT_CONTEXT).longest_context
    found = longest(model, args.batch, guess, args.seed) or short
    return {
        "weights_bytes": weights_bytes(model),
        "short": short,
        "longest_context": found["context"],
        "predicted_longest_context": guess,
        "peak_bytes": found["peak_bytes"],
        "predicted_bytes": at(found["context"]).total,
    }


def load(path: Path, config: Any, linears: str, dtype: torch.dtype, device: Any) -> Any:
    """The model streamed from the file, with SDPA; None where memory runs out."""
    from flashint8.checkpoint import Checkpoint
    from flashint8.models import from_source

    clean()
    try:
        return from_source(
            config,
            Checkpoint(path),
            device=device,
            attention="sdpa",
            linears=linears,
            dtype=dtype,
        )
    except RuntimeError as error:
        if not ran_out(error):
            raise
        return None


def main() -> int:
    """Runs the benchmark."""
    args = parse_arguments()
    add_package_to_path()
    from flashint8.fit import parse_bytes
    from flashint8.models import PRESETS

    if args.predict:
        predict_again(Path(args.predict))
        return 0
    device = pick_device(args.device)
    if device.type != "cuda":
        raise SystemExit("memory_bench limits a GPU's memory: it needs a CUDA device")
    dtype = parse_dtype(args.dtype, torch.float16)
    config, limit = PRESETS[args.model], parse_bytes(args.vram)
    screen = console()
    environment = describe(device, args.seed)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    methods: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "model.safetensors"
        write_checkpoint(path, config, dtype, args.seed)
        file_bytes = path.stat().st_size
        for linears in ("int8", "float"):
            start = time.perf_counter()
            base = load(path, config, linears, dtype, device)
            load_s = significant(time.perf_counter() - start)
            peak = torch.cuda.max_memory_allocated()
            for name, (kind, attention) in METHODS.items():
                if kind != linears:
                    continue
                if base is None:
                    methods[name] = {"skipped": "out of memory while loading"}
                    continue
                model = with_weights(base, attention=attention, linears=linears)
                method = run_method(name, model, args, limit, dtype)
                methods[name] = {**method, "load_peak_bytes": peak, "load_s": load_s}
                screen.print(f"{name}: {methods[name]}")
                del model
            del base
    case = {
        "model": args.model,
        "limit_bytes": limit,
        "batch": args.batch,
        "file_bytes": file_bytes,
        "dtype": dtype_name(dtype),
    }
    rows = [{"case": case, "methods": methods}]
    header, lines = cells({"benchmark": "memory", "rows": rows})
    table = Table(title=f"{args.model} in {limit / 1e9:g} GB (GiB)")
    for column in header:
        table.add_column(column, justify="right")
    for line in lines:
        table.add_row(*(cell.replace("**", "") for cell in line))
    screen.print(table)
    save(args.out, "memory", args.model, environment, {}, rows, screen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
