"""Timing loops: eager with the host included, and CUDA-graph replays; methods alternate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from method import Method, reason

MIN_ROUNDS = 5
# A method one call of which takes longer than this is timed in the first of these rounds only:
# three samples, and "samples" says so.
SLOW_US = 50_000.0
SLOW_ROUNDS = (0, 2, 4)
# A replay holds as many calls as take this long eagerly: far above the 0.5 us of an event, and
# the start of a graph is a small share.
GRAPH_TARGET_US = 2000.0
EAGER_TARGET_US = {"cuda": 3000.0, "cpu": 1000.0}
MAX_CALLS = 512


def call_sequence(method: Method, count: int, offset: int = 0) -> list[Callable[[], Any]]:
    """The callables of ``count`` calls in a row, rotated through the method's buffers."""
    return [method.calls[(offset + i) % len(method.calls)] for i in range(count)]


def estimate_us(method: Method, device: torch.device) -> float:
    """A first guess at the time of one eager call (after two to warm up, a slow one after one)."""
    best = math.inf
    with method.context():
        for i in range(4):
            synchronize(device)
            start = time.perf_counter()
            method.calls[i % len(method.calls)]()
            synchronize(device)
            taken = (time.perf_counter() - start) * 1e6
            if i >= 1 and taken > SLOW_US:
                return taken
            if i >= 2:
                best = min(best, taken)
    return best


def synchronize(device: torch.device) -> None:
    """Waits for the device, where there is something to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def round_robin(names: Sequence[str], turn: int) -> list[str]:
    """The methods in the order of round ``turn``."""
    start = turn % len(names)
    return [*names[start:], *names[:start]]


def time_eager(
    methods: Sequence[Method], device: torch.device, iters: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Host-included microseconds of one call, a sample a round; on CUDA the events' view too.

    One cursor goes round the buffers for all methods, which may share them: none starts with what
    the method before it left in the cache.
    """
    first_us = {m.name: estimate_us(m, device) for m in methods}
    target = EAGER_TARGET_US[device.type]
    counts = {name: max(1, min(100, int(target / us))) for name, us in first_us.items()}
    cursor = 0
    by_name = {m.name: m for m in methods}
    wall: dict[str, list[float]] = {m.name: [] for m in methods}
    events: dict[str, list[float]] = {m.name: [] for m in methods}
    cuda = device.type == "cuda"
    if cuda:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    started = time.perf_counter()
    for turn in range(iters):
        if turn >= MIN_ROUNDS and time.perf_counter() - started > seconds:
            break
        for name in round_robin(list(by_name), turn):
            if first_us[name] > SLOW_US and turn not in SLOW_ROUNDS:
                continue
            count = counts[name]
            sequence = call_sequence(by_name[name], count, offset=cursor)
            cursor += count
            with by_name[name].context():
                synchronize(device)
                if cuda:
                    begin.record()
                start = time.perf_counter()
                for call in sequence:
                    call()
                if cuda:
                    end.record()
                    torch.cuda.synchronize(device)
                wall[name].append((time.perf_counter() - start) * 1e6 / count)
                if cuda:
                    events[name].append(begin.elapsed_time(end) * 1e3 / count)
    return wall, events


def capture(method: Method, device: torch.device, pool: Any) -> tuple[torch.cuda.CUDAGraph, int]:
    """A CUDA graph of as many calls as take GRAPH_TARGET_US eagerly, and their number.

    The number is a multiple of the method's buffers, so that a replay never meets in the cache
    what the one before it left.
    """
    buffers = len(method.calls)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream), method.context():
        method.calls[0]()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        warm = max(3, buffers if buffers < 32 else 32)
        begin.record()
        for call in call_sequence(method, warm):
            call()
        end.record()
        end.synchronize()
        device_us = max(1.0, begin.elapsed_time(end) * 1e3 / warm)
        count = min(MAX_CALLS, math.ceil(GRAPH_TARGET_US / device_us))
        count = math.ceil(count / buffers) * buffers
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with method.context(), torch.cuda.graph(graph, pool=pool):
        for call in call_sequence(method, count):
            call()
    return graph, count


def time_graphs(
    methods: Sequence[Method], device: torch.device, iters: int, seconds: float
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Device microseconds of one call by CUDA-graph replays; reasons for what cannot be captured.

    Several rounds are queued before the host looks, behind one untimed replay: the device is
    never idle at a start event, so the host's share stays out.
    """
    graphs: dict[str, tuple[torch.cuda.CUDAGraph, int]] = {}
    failures: dict[str, str] = {}
    pool = torch.cuda.graph_pool_handle()  # shared: replays run one after another
    for method in methods:
        try:
            graphs[method.name] = capture(method, device, pool)
        except Exception as e:  # a method that cannot be captured still has its eager time
            failures[method.name] = reason(e)
            torch.cuda.synchronize(device)
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    if not graphs:
        return samples, failures
    started = time.perf_counter()
    turn = 0
    while turn < iters and (turn < MIN_ROUNDS or time.perf_counter() - started < seconds):
        queued = []
        next(iter(graphs.values()))[0].replay()
        for _ in range(min(5, iters - turn)):
            for name in round_robin(list(graphs), turn):
                graph, count = graphs[name]
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graph.replay()
                end.record()
                queued.append((name, count, begin, end))
            turn += 1
        torch.cuda.synchronize(device)
        for name, count, begin, end in queued:
            samples[name].append(begin.elapsed_time(end) * 1e3 / count)
    return samples, failures
