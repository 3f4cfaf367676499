"""What the machine can do at best, measured in the same run as the methods."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from harness import significant
from method import Method
from timing import synchronize

READ_BYTES = {"cuda": 2 << 30, "cpu": 1 << 28}  # at most a quarter of a GPU's memory


def seconds_per_call(call: Callable[[], Any], device: torch.device, budget: float) -> float:
    """Median seconds of one call (CUDA events on a GPU), within about ``budget`` seconds."""
    for _ in range(2):
        started = time.perf_counter()
        call()
        synchronize(device)
        if time.perf_counter() - started > budget:
            return time.perf_counter() - started
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < 50 and (len(samples) < 3 or time.perf_counter() - started < budget):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            call()  # the device is busy while the host enqueues what is timed
            begin.record()
            call()
            end.record()
            end.synchronize()
            samples.append(begin.elapsed_time(end) * 1e-3)
        else:
            start = time.perf_counter()
            call()
            samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def read_gb_s(device: torch.device, budget: float) -> float:
    """Read bandwidth, GB/s (1000^3), of the best plain reduction over a buffer past every cache."""
    size = READ_BYTES[device.type]
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
        size = min(size, memory // 4 // 4096 * 4096)
    floats = torch.rand(size // 4, device=device)
    views: list[Callable[[], Any]] = [lambda: floats.sum(), lambda: floats.amax()]
    if device.type == "cuda":
        halves = floats.view(torch.float16)
        doubles = floats.view(torch.float64)
        views += [lambda: halves.amax(), lambda: doubles.amax()]
    best = min(seconds_per_call(view, device, budget / len(views)) for view in views)
    return size / best * 1e-9


READ = "read"


def read_method(
    device: torch.device, sets: Sequence[Sequence[torch.Tensor]]
) -> tuple[Method, float] | None:
    """A plain reduction to time in alternation with a row's methods, and its bytes; None on a GPU.

    A CPU's memory is often shared with other machines', and what it gives changes within seconds:
    a share of the read bandwidth means something only against what was there at that moment. It
    also depends on where the pages lie, so that the row's own tensors are reduced.

    Args:
        device: where the methods run.
        sets: what one call reads, once for each set of buffers that the row rotates through; as
            many sets of equal size, of tensors whose bytes are a multiple of eight.
    """
    if device.type != "cpu":
        return None

    def reduce(words: list[torch.Tensor]) -> torch.Tensor:
        for tensor in words[:-1]:
            tensor.sum()
        return words[-1].sum()

    views = [[t.reshape(-1).view(torch.int64) for t in tensors] for tensors in sets]
    size = float(sum(t.nbytes for t in sets[0]))
    return Method(READ, [partial(reduce, words) for words in views], error=0.0), size


def row_ceilings(ceilings: dict[str, Any], timed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The ``ceilings`` of a row; takes :func:`read_method` out of its methods."""
    read = timed.pop(READ, None)
    return {**ceilings, "read_gb_s": read["gb_s"]} if read else dict(ceilings)


def matmul_tflops(device: torch.device, dtype: torch.dtype, budget: float) -> float:
    """TFLOP/s of the largest library matrix product worth running here.

    On a CPU the product is that of F.linear, a times the transpose of b, whose fp16 is vectorised
    where mm's is not.
    """
    sizes = (8192, 16384) if device.type == "cuda" else (1536, 2048)
    best = 0.0
    for size in sizes:
        try:
            a = torch.randn(size, size, device=device).to(dtype)
            b = torch.randn(size, size, device=device).to(dtype)
            if device.type == "cuda":
                product = partial(torch.mm, a, b, out=torch.empty_like(a))
            else:
                product = partial(F.linear, a, b)
            seconds = seconds_per_call(product, device, budget / len(sizes))
        except torch.cuda.OutOfMemoryError:
            break
        best = max(best, 2.0 * size**3 / seconds * 1e-12)
        if seconds > budget / len(sizes):
            break
    return best


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The ``ceilings`` of a result: read bandwidth and matrix rate in ``dtype``."""
    budget = 1.0 if device.type == "cuda" else 1.5
    with torch.inference_mode():
        read = read_gb_s(device, budget)
        rate = matmul_tflops(device, dtype, budget)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return {
        "read_gb_s": significant(read),
        "matmul_tflops": significant(rate),
        "matmul_dtype": str(dtype).removeprefix("torch."),
    }
