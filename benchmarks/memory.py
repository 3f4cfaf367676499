"""Peak memory of one call beyond its inputs, output included."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from method import Method


def peak_bytes(method: Method, device: torch.device) -> int | None:
    """Most bytes of torch's allocator that one call holds at once, beyond what was there before.

    CUDA: the caching allocator's own counters. CPU: the allocation events of torch's profiler,
    summed in order; the method has run before, when it was checked. Scratch that a kernel takes
    straight from malloc is in neither.

    Returns:
        Bytes, or None where the profiler recorded no allocation at all.
    """
    if device.type == "cuda":
        method.call()
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        out = method.call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del out
        return peak
    return cpu_peak_bytes(method)


def cpu_peak_bytes(method: Method) -> int | None:
    """The CPU part of :func:`peak_bytes`."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        out = method.call()
    del out
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [e for e in events if e.get("name") == "[memory]"]
    if not changes:
        return None
    held = peak = 0
    for event in sorted(changes, key=lambda e: e["ts"]):
        held += int(event["args"]["Bytes"])
        peak = max(peak, held)
    return peak
