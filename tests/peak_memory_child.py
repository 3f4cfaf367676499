"""Runs in a process of its own: one conversion; prints the peak memory it added, in bytes.

python peak_memory_child.py load|save|quantize|transformers IN OUT
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn

import flashint8
from flashint8.cli import main

LAYERS, SIZE = 24, 2048


def memory(key: str) -> int:
    """VmRSS, VmHWM or RssAnon of this process; getrusage's can be a parent's."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def model_on_meta() -> nn.Module:
    with torch.device("meta"):
        linears = [nn.Linear(SIZE, SIZE, dtype=torch.bfloat16) for _ in range(LAYERS)]
    return nn.Sequential(*linears)


def run(action: str, source: str, target: str) -> int:
    """The most that was resident during the action, beyond what was before."""
    torch.set_num_threads(2)
    flashint8.quantize_per_channel(torch.randn(64, 64))  # what loads at first use is not counted
    model = model_on_meta()
    if action == "save":
        flashint8.load_quantized(model, source)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    if action == "load":
        flashint8.load_quantized(model, source)
    elif action == "save":
        flashint8.save_quantized(model, target)
    else:
        assert main(["quantize", source, target]) == 0
    return memory("VmHWM") - before


def run_transformers(source: str) -> int:
    """Likewise of from_pretrained, without the pages of the file, which transformers maps."""
    from transformers import AutoModelForCausalLM

    import flashint8.integrations.transformers as fi8

    torch.set_num_threads(2)
    flashint8.quantize_per_channel(torch.randn(64, 64))
    before, seen, done = memory("RssAnon"), [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(memory("RssAnon"))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=fi8.FlashInt8Config())
    done.set()
    watcher.join()
    assert len(seen) > 20, "too few looks to say anything"
    added = max(*seen, memory("RssAnon")) - before
    del model  # (it lived until here)
    return added


if __name__ == "__main__":
    action, source, target = sys.argv[1:]
    print(run_transformers(source) if action == "transformers" else run(action, source, target))
