"""The harness every benchmark shares: what a method is, how it is checked, how it is timed.

Rules it keeps:

* A method is timed only after its output was compared with a float64 reference.
* Methods of one case alternate: round r times each of them once, starting at method r mod n, so
  that a drifting clock or a busy neighbour touches all alike.
* ``graph_us`` (CUDA) is the time of one call inside a CUDA graph that holds many: the device's
  share alone. ``eager_us`` is wall clock over many calls, host included, one synchronisation at
  the end. ``event_us`` (CUDA) is the same loop seen by two CUDA events.
* Every time is the median with the minimum and the 20th and 80th percentile, in microseconds of
  one call. A method that takes far longer than the others is timed less often (timing.py), and
  ``samples`` says how often.
"""

from __future__ import annotations

import gc
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from memory import peak_bytes
from method import CheckError, Method, Skipped, reason
from timing import time_eager, time_graphs


@dataclass
class Budget:
    """Seconds for a whole table; what a cheap row leaves goes to the rows after it."""

    seconds: float
    rows: int
    started: float = field(default_factory=time.perf_counter)
    done: int = 0

    def next_row(self) -> float:
        """Seconds the next row may take."""
        left = self.seconds - (time.perf_counter() - self.started)
        share = max(0.0, left) / max(1, self.rows - self.done)
        self.done += 1
        return share


def quantiles(samples: Sequence[float]) -> dict[str, float]:
    """Minimum, 20th, 50th and 80th percentile, linearly interpolated, four significant digits."""
    ordered = sorted(samples)

    def at(p: float) -> float:
        x = p * (len(ordered) - 1)
        low = math.floor(x)
        high = min(low + 1, len(ordered) - 1)
        return significant(ordered[low] + (ordered[high] - ordered[low]) * (x - low))

    return {"min": at(0.0), "p20": at(0.2), "p50": at(0.5), "p80": at(0.8)}


def significant(x: float, digits: int = 4) -> float:
    """x rounded to ``digits`` significant digits."""
    return float(f"{x:.{digits}g}")


def check(
    methods: Sequence[Method],
    error_of: Callable[[torch.Tensor], float],
    tolerance: float,
) -> list[Method | Skipped]:
    """Runs each method once and compares it with the reference.

    Args:
        methods: candidates for one case.
        error_of: largest absolute difference of an output to the float64 reference.
        tolerance: what ours must stay within; a peer may be up to ten times worse (its error is
            in the table), beyond that it is skipped as wrong.

    Returns:
        The methods that may be timed, with ``error`` filled, and the skipped ones, in order.

    Raises:
        CheckError: ours does not run or is not within the tolerance.
    """
    checked: list[Method | Skipped] = []
    for method in methods:
        with warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always")
            try:
                error = error_of(method.call())
            except Exception as e:  # whatever a backend raises is the reason it is skipped
                if method.ours:
                    raise
                checked.append(Skipped(method.name, reason(e, noted)))
                continue
        limit = tolerance if method.ours else 10 * tolerance
        if not error <= limit:  # also true for NaN
            text = f"error {error:.3g} against float64, limit {limit:.3g}"
            if method.ours:
                raise CheckError(f"{method.name}: {text}")
            checked.append(Skipped(method.name, f"wrong: {text}"))
            continue
        method.error = significant(error, 3)
        checked.append(method)
    return checked


def measure(
    checked: Sequence[Method | Skipped],
    device: torch.device,
    *,
    iters: int,
    seconds: float,
    flops: float = 0.0,
    bytes_moved: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """Times the checked methods of one case.

    Args:
        checked: what :func:`check` returned.
        iters: rounds at most, each giving a sample of every method.
        seconds: rounds stop after this (at least MIN_ROUNDS are run).
        flops: floating-point operations of one call, for ``tflops``.
        bytes_moved: by method, bytes of one call, for ``gb_s`` (powers of 1000).

    Returns:
        The row's ``methods`` as they stand in the JSON.
    """
    methods = [m for m in checked if isinstance(m, Method)]
    unchecked = [m.name for m in methods if m.error is None]
    if unchecked:
        raise CheckError(f"not checked against float64: {', '.join(unchecked)}")
    peaks = {m.name: peak_bytes(m, device) for m in methods}
    graph: dict[str, list[float]] = {}
    failures: dict[str, str] = {}
    collecting = gc.isenabled()
    gc.disable()
    try:
        if device.type == "cuda":
            graph, failures = time_graphs(methods, device, iters, seconds / 2)
            seconds /= 2
        wall, events = time_eager(methods, device, iters, seconds)
    finally:
        if collecting:
            gc.enable()
    rows: dict[str, dict[str, Any]] = {}
    for entry in checked:
        if isinstance(entry, Skipped):
            rows[entry.name] = {"skipped": entry.why}
            continue
        name = entry.name
        row: dict[str, Any] = {
            "eager_us": quantiles(wall[name]),
            "graph_us": quantiles(graph[name]) if graph.get(name) else None,
            "event_us": quantiles(events[name]) if events[name] else None,
            "samples": len(wall[name]),
            "peak_bytes": peaks[name],
            "error": entry.error,
        }
        best_us = (row["graph_us"] or row["eager_us"])["p50"]
        row["tflops"] = significant(flops / best_us * 1e-6) if flops else None
        moved = bytes_moved.get(name, 0.0) if bytes_moved else 0.0
        row["gb_s"] = significant(moved / best_us * 1e-3) if moved else None
        row.update(entry.extra)
        notes = [entry.note, f"no graph: {failures[name]}" if name in failures else ""]
        if any(notes):
            row["note"] = "; ".join(n for n in notes if n)
        rows[name] = row
    return rows
