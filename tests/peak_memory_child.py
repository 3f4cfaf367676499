"""Runs in a process of its own: one conversion; prints the peak memory it added, in bytes.

python peak_memory_child.py load|save|quantize IN OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

import flashint8
from flashint8.cli import main

LAYERS, SIZE = 24, 2048


def memory(key: str) -> int:
    """VmRSS or VmHWM of this process; its own, unlike getrusage's, which a parent's can be in."""
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


if __name__ == "__main__":
    print(run(*sys.argv[1:]))
