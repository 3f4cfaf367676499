"""Progress on the terminal, the table at the end, and the JSON file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

SCHEMA = 1
READY = "flashint8_ready"  # ours too, by a promise of its caller's: compared with nobody
Row = dict[str, Any]


def console() -> Console:
    """A console wide enough for a table, also where the output is a file."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=max(170, plain.width))


class Bar:
    """Progress over the rows of a table: a bar on a terminal, a line a row elsewhere."""

    def __init__(self, screen: Console) -> None:
        self.screen = screen
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=screen,
            transient=True,
            disable=not screen.is_terminal,
        )

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def add_task(self, description: str, total: int) -> TaskID:
        """Starts a task of ``total`` steps."""
        return self.progress.add_task(description, total=total)

    def advance(self, task: TaskID) -> None:
        """One step of a task is done."""
        self.progress.advance(task)
        if not self.screen.is_terminal:
            state = self.progress.tasks[task]
            self.screen.print(f"{state.description}: {state.completed:g} of {state.total:g}")


def progress(screen: Console) -> Bar:
    """Progress on this screen."""
    return Bar(screen)


def p50(methods: Row, name: str, key: str) -> float | None:
    """Median microseconds of a method, or None where it has none."""
    times = methods.get(name, {}).get(key)
    return times["p50"] if times else None


def best_key(rows: Iterable[Row]) -> str:
    """graph_us where the rows have it, else eager_us."""
    return (
        "graph_us"
        if any(m.get("graph_us") for r in rows for m in r["methods"].values())
        else ("eager_us")
    )


def is_peer(name: str, ours: str) -> bool:
    """Whether a method is one that ours is compared with."""
    return name not in (ours, READY)


def speedups(rows: Iterable[Row], ours: str, key: str) -> dict[str, list[float]]:
    """Per peer: its median over ours, for every row where both have one."""
    found: dict[str, list[float]] = {}
    for row in rows:
        methods = row["methods"]
        mine = p50(methods, ours, key)
        for name in methods:
            theirs = p50(methods, name, key)
            if is_peer(name, ours) and mine and theirs:
                found.setdefault(name, []).append(theirs / mine)
    return found


def best_peer(methods: Row, ours: str, key: str) -> float | None:
    """Smallest median of the peers, or None."""
    times = [p50(methods, name, key) for name in methods if is_peer(name, ours)]
    return min((t for t in times if t), default=None)


def ceilings_of(result: Row, row: Row) -> Row:
    """What the machine could do when a row was timed: the row's own figures before the run's."""
    return {**result["ceilings"], **row.get("ceilings", {})}


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean of positive numbers."""
    return math.exp(sum(math.log(v) for v in values) / len(values))


def print_geometric_means(screen: Console, rows: Sequence[Row], ours: str) -> None:
    """x against each peer, device time and eager time, and against the best peer of each row."""
    keys = ["graph_us", "eager_us"] if best_key(rows) == "graph_us" else ["eager_us"]
    table = Table(title=f"{ours}: times faster, geometric mean (smallest) over the rows")
    table.add_column("peer")
    for key in keys:
        table.add_column({"graph_us": "CUDA graph", "eager_us": "eager, host included"}[key])
    per_key = {key: speedups(rows, ours, key) for key in keys}
    for key in keys:
        pairs = [(p50(r["methods"], ours, key), best_peer(r["methods"], ours, key)) for r in rows]
        per_key[key]["best peer of the row"] = [b / a for a, b in pairs if a and b]
    names = dict.fromkeys(name for found in per_key.values() for name in found)
    for name in names:
        cells = []
        for key in keys:
            values = per_key[key].get(name)
            cells.append(
                f"{geometric_mean(values):.2f}x ({min(values):.2f}, {len(values)} rows)"
                if values
                else "-"
            )
        table.add_row(name, *cells)
    screen.print(table)


def format_us(value: float | None) -> str:
    """Microseconds in a cell."""
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def print_rows(
    screen: Console,
    title: str,
    rows: Sequence[Row],
    ours: str,
    case_columns: Callable[[Row], dict[str, str]],
    own_columns: Callable[[Row], dict[str, str]],
) -> None:
    """One line a case: ours with spread, then every peer's median and how many times ours it is."""
    key = best_key(rows)
    unit = "CUDA-graph us" if key == "graph_us" else "us, host included"
    table = Table(title=f"{title} ({unit}: median; x: times our time)")
    timed = (n for row in rows for n, m in row["methods"].items() if "skipped" not in m)
    names = list(dict.fromkeys(timed))
    for column in case_columns(rows[0]):
        table.add_column(column, justify="right")
    table.add_column(f"{ours} (p20-p80)", justify="right")
    if key == "graph_us":
        table.add_column("eager", justify="right")
    for column in own_columns(rows[0]):
        table.add_column(column, justify="right")
    peers = [n for n in names if n != ours]
    for name in peers:
        table.add_column(name, justify="right")
    for row in rows:
        methods = row["methods"]
        own = methods[ours]
        times = own.get(key) or own.get("eager_us")
        cells = list(case_columns(row).values())
        cells.append(
            f"{format_us(times['p50'])} ({format_us(times['p20'])}-{format_us(times['p80'])})"
            if times
            else "-"
        )
        if key == "graph_us":
            cells.append(format_us(p50(methods, ours, "eager_us")))
        cells += own_columns(row).values()
        for name in peers:
            theirs = p50(methods, name, key)
            mine = p50(methods, ours, key)
            ratio = f" {theirs / mine:.2f}x" if theirs and mine else ""
            cells.append(f"{format_us(theirs)}{ratio}" if theirs else "-")
        table.add_row(*cells)
    screen.print(table)
    unsteady = [
        times
        for row in rows
        for method in row["methods"].values()
        if (times := method.get(key)) and times["p80"] > 2 * times["p20"]
    ]
    if len(unsteady) > len(rows) // 4:
        screen.print(
            f"[yellow]{len(unsteady)} medians have a p80 over twice their p20: "
            "this machine is busy with something else[/yellow]"
        )
    for name, whys in skipped(rows).items():
        for why, count in whys.items():
            screen.print(f"[dim]{name}: skipped in {count} of {len(rows)} rows: {why}[/dim]")


def skipped(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    """Per method, how many rows it skipped for each reason."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        for name, method in row["methods"].items():
            why = method.get("skipped")
            if why:
                found.setdefault(name, {})
                found[name][why] = found[name].get(why, 0) + 1
    return found


def print_results(
    screen: Console,
    title: str,
    rows: Sequence[Row],
    ours: str,
    case_columns: Callable[[Row], dict[str, str]],
    own_columns: Callable[[Row], dict[str, str]],
) -> None:
    """For each dtype a table of rows and one of means."""
    for dtype in dict.fromkeys(row["case"]["dtype"] for row in rows):
        part = [row for row in rows if row["case"]["dtype"] == dtype]
        print_rows(screen, f"{title}, {dtype}", part, ours, case_columns, own_columns)
        print_geometric_means(screen, part, ours)


def print_machine(screen: Console, environment: Row, ceilings: Sequence[Row]) -> None:
    """One line on the machine, one on each of its ceilings."""
    cuda = f", CUDA {environment['cuda']}" if environment["cuda"] else ""
    threads = "" if environment["driver"] else f", {environment['threads']} threads"
    screen.print(f"{environment['device']}{threads}, torch {environment['torch']}{cuda}")
    for found in ceilings:
        mma = found.get("mma_sync_tflops")
        screen.print(
            f"ceilings measured now: read {found['read_gb_s']:.0f} GB/s, "
            f"matmul {found['matmul_tflops']:.3g} TFLOP/s ({found['matmul_dtype']})"
            + (f", mma.sync {mma:.3g} TFLOP/s" if mma else "")
        )
    for why in {found["mma_sync_note"] for found in ceilings if "mma_sync_note" in found}:
        screen.print(f"[dim]mma.sync: not measured: {why}[/dim]")


def save(
    path: str,
    benchmark: str,
    suite: str | None,
    environment: Row,
    ceilings: Row,
    rows: Sequence[Row],
    screen: Console | None = None,
    **more: Any,
) -> None:
    """Writes a result in the one shape all of them have (see benchmarks/README.md)."""
    result = {
        "schema": SCHEMA,
        "benchmark": benchmark,
        "suite": suite,
        "environment": environment,
        "ceilings": ceilings,
        **more,
        "rows": [],
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps(result, indent=1, allow_nan=False).removesuffix("[]\n}")
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)  # a row a line
    target.write_text(f"{head}[\n{lines}\n]\n}}\n", encoding="utf-8")
    if screen:
        screen.print(f"written: {target.name if target.is_absolute() else target}")
