"""Plots and README tables from the result files.

    python benchmarks/plots.py            # docs/plots/*.svg, tables in README.md and docs/*.md
    python benchmarks/plots.py --check    # exit status 1 if a table is not what the JSON says
    python benchmarks/plots.py --tables   # tables only (needs no matplotlib)

Results in ``results/reference/<device>/`` give ``docs/plots/<device>-<name>.svg``; those in
``results/`` itself, from a run here, give ``results/plots/<name>.svg``. Several dtypes give a plot
each, with ``-<dtype>`` at the end of its name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generate_tables
from report import best_key, ceilings_of, p50
from tables import Result, case_cells, dtypes_of, load, ours_of, rewrite, timed_methods, title

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "results" / "reference"
COLORS = {
    "flashint8": "#c1272d",
    "optimized_mini_block": "#c1272d",
    "sdpa_flash": "#0057a8",
    "sdpa_cudnn": "#6aa84f",
    "sdpa_efficient": "#8e63b0",
    "sdpa_math": "#b08f4a",
    "sdpa_default": "#5aa9c9",
    "naive": "#888888",
    "torch_linear": "#0057a8",
    "torch_linear_float32": "#5aa9c9",
    "torch_linear_bfloat16": "#6aa84f",
    "torch_linear_float16": "#6aa84f",
    "unfused": "#888888",
    "torch_compile_int8": "#6aa84f",
    "torch_int8pack": "#8e63b0",
    "torch_dynamic_int8": "#b08f4a",
    "torch_mini_block": "#888888",
    "sdpa_block": "#0057a8",
}


def pyplot() -> Any:
    """matplotlib without a display, with output that is the same for the same data."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "flashint8",
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "figure.facecolor": "white",
            "legend.frameon": False,
        }
    )
    return plt


def labels(result: Result) -> list[str]:
    """Short names of the cases."""
    return ["\n".join(case_cells(result, row["case"]).values()) for row in result["rows"]]


def machine(result: Result) -> str:
    """Device, dtype and torch."""
    env = result["environment"]
    dtype = result["rows"][0]["case"]["dtype"]
    return f"{env['device']}, {dtype}, torch {env['torch'].split('+')[0]}"


def subtitle(result: Result) -> str:
    """Device, dtype, torch and kind of time."""
    kind = "CUDA-graph" if best_key(result["rows"]) == "graph_us" else "eager"
    return f"{machine(result)}, {kind} medians"


def plot_speedups(result: Result, plt: Any) -> Any:
    """How many times our time each peer takes, case by case: device time, and eager time."""
    rows, ours = result["rows"], ours_of(result)
    keys = {"eager_us": "eager, host included"}
    if best_key(rows) == "graph_us":
        keys = {"graph_us": "CUDA-graph replays", **keys}
    figure, panels = plt.subplots(
        1, len(keys), figsize=(4.6 * len(keys) + 0.8, 3.4), sharey=True, squeeze=False
    )
    for axes, (key, text) in zip(panels[0], keys.items(), strict=True):
        for name in timed_methods(rows):
            pairs = [(p50(r["methods"], ours, key), p50(r["methods"], name, key)) for r in rows]
            points = [(x, b / a) for x, (a, b) in enumerate(pairs) if a and b]
            if points and name != ours:
                xs, ys = zip(*points, strict=True)
                axes.plot(xs, ys, "o-", color=COLORS.get(name), label=title(name), lw=1, ms=4)
        axes.axhline(1.0, color=COLORS["flashint8"], lw=1.5)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}x")
        axes.set_xticks(range(len(rows)), labels(result), fontsize=7)
        axes.set_title(text, fontsize=9)
    left = panels[0][0]
    left.annotate(
        "\n".join(case_cells(result, rows[0]["case"])),
        (0, 0),
        xytext=(-14, -4),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=7,
        ha="right",
        va="top",
    )
    left.set_ylabel(f"time over {title(ours)}'s")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, ncols=6, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 0))
    figure.suptitle(f"Time of each peer over {title(ours)}'s: {machine(result)}", fontsize=9)
    figure.tight_layout()
    return figure


def plot_block(result: Result, plt: Any) -> Any:
    """Time of a block call, and the memory of weights and of what is alive beyond them."""
    rows, names = result["rows"], timed_methods(result["rows"])
    key = best_key(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        xs = [x - 0.4 + (i + 0.5) * width for x in range(len(rows))]
        methods = [row["methods"][name] for row in rows]
        color = COLORS.get(name)
        times = [(m.get(key) or {"p50": 0.0})["p50"] * 1e-3 for m in methods]
        weights = [(m.get("weights_bytes") or 0) / 2**20 for m in methods]
        peaks = [(m.get("peak_bytes") or 0) / 2**20 for m in methods]
        left.bar(xs, times, width * 0.92, color=color, label=title(name))
        right.bar(xs, weights, width * 0.92, color=color)
        right.bar(xs, peaks, width * 0.92, bottom=weights, color=color, alpha=0.45)
    left.set_ylabel("ms a call")
    right.set_ylabel("MiB: weights, and (pale) peak beyond")
    left.set_yscale("log")
    for axes in (left, right):
        axes.set_xticks(range(len(rows)), labels(result), fontsize=7)
        axes.grid(visible=False, axis="x")
    figure.legend(ncols=3, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, 0))
    figure.suptitle(f"Transformer block: {subtitle(result)}", fontsize=9)
    figure.tight_layout()
    return figure


def plot_bars(result: Result, plt: Any, field: str, label: str, ceiling: float | None) -> Any:
    """A field of every method as grouped bars, the measured ceiling as a line."""
    rows, names = result["rows"], timed_methods(result["rows"])
    figure, axes = plt.subplots(figsize=(7.2, 3.4))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        values = [row["methods"][name].get(field) or 0.0 for row in rows]
        xs = [x - 0.4 + (i + 0.5) * width for x in range(len(rows))]
        axes.bar(xs, values, width * 0.92, color=COLORS.get(name), label=title(name))
    if ceiling:
        axes.axhline(ceiling, color="black", lw=1, ls="--")
        axes.annotate("measured ceiling", (0, ceiling), fontsize=7, va="bottom")
    axes.set_xticks(range(len(rows)), labels(result), fontsize=7)
    axes.set_ylabel(label)
    axes.set_title(f"{label}\n{subtitle(result)}", fontsize=9)
    axes.grid(visible=False, axis="x")
    axes.legend(ncols=4, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def plot_linear(result: Result, plt: Any) -> Any:
    """Times faster than nn.Linear over M, and the share of the read bandwidth."""
    key = best_key(result["rows"])
    shapes = dict.fromkeys((r["case"]["N"], r["case"]["K"]) for r in result["rows"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.4))
    for i, (n, k) in enumerate(shapes):
        rows = [r for r in result["rows"] if (r["case"]["N"], r["case"]["K"]) == (n, k)]
        color = plt.get_cmap("viridis")(i / max(1, len(shapes)))
        points = [
            (r["case"]["M"], p50(r["methods"], "torch_linear", key), r["methods"]["flashint8"], r)
            for r in rows
        ]
        ms = [m for m, linear, _, _ in points if linear]
        ratios = [linear / own[key]["p50"] for _, linear, own, _ in points if linear]
        left.plot(ms, ratios, "o-", color=color, lw=1, ms=3, label=f"{n} x {k}")
        few = [
            (m, 100 * own["gb_s"] / ceilings_of(result, row)["read_gb_s"])
            for m, _, own, row in points
            if m <= 64
        ]
        right.plot(*zip(*few, strict=True), "o-", color=color, lw=1, ms=3)
    left.axhline(1.0, color="black", lw=1)
    left.set_ylabel("times faster than nn.Linear")
    right.set_ylabel("% of the measured read bandwidth")
    right.set_ylim(0, 105)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        axes.set_xlabel("M (rows of activations)")
    left.legend(fontsize=7, title="N x K", title_fontsize=7)
    figure.suptitle(f"INT8 linear: {subtitle(result)}", fontsize=9)
    return figure


def by_dtype(result: Result) -> dict[str, Result]:
    """A result for each dtype, under what its plot's name ends with."""
    dtypes = dtypes_of(result["rows"]) if result["benchmark"] != "trace" else []
    if len(dtypes) < 2:
        return {"": result}
    parts = {d: [r for r in result["rows"] if r["case"]["dtype"] == d] for d in dtypes}
    return {
        f"-{dtype}": {**result, "rows": rows, "ceilings": ceilings_of(result, rows[0])}
        for dtype, rows in parts.items()
    }


def plot(result: Result, plt: Any) -> Any | None:
    """The figure of a result, or None where it has none."""
    benchmark, ceilings = result["benchmark"], result["ceilings"]
    if not result["rows"] or benchmark in ("trace", "baseline"):
        return None
    if benchmark == "linear":
        return plot_linear(result, plt)
    if benchmark == "attention" and all(r["case"]["Tq"] == 1 for r in result["rows"]):
        return plot_bars(result, plt, "gb_s", "GB/s of keys and values", ceilings["read_gb_s"])
    if benchmark == "attention" and result["suite"] == "prefill":
        return plot_bars(result, plt, "tflops", "TFLOP/s (causal half)", ceilings["matmul_tflops"])
    if benchmark == "block":
        return plot_block(result, plt)
    if benchmark in generate_tables.BENCHMARKS:
        return generate_tables.plot(result, plt, machine(result))
    if benchmark == "attention":
        return plot_speedups(result, plt)
    return None


def write_plots(screen: Callable[[str], None]) -> None:
    """Every plot of the committed results and of those made here."""
    jobs = []
    for path in sorted(REFERENCE.glob("*/*.json")):
        target = ROOT / "docs" / "plots" / f"{path.parent.name}-{path.stem}.svg"
        jobs.append((path, target))
    for path in sorted((ROOT / "results").glob("*.json")):
        jobs.append((path, ROOT / "results" / "plots" / f"{path.stem}.svg"))
    if not jobs:
        screen("no results yet: run a benchmark first")
        return
    plt = pyplot()
    for path, target in jobs:
        for ending, result in by_dtype(load(path)).items():
            figure = plot(result, plt)
            if figure is None:
                continue
            file = target.with_name(f"{target.stem}{ending}.svg")
            file.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
            plt.close(figure)
            screen(f"written: {file.relative_to(ROOT)}")


def documents() -> list[Path]:
    """Files that may hold table regions."""
    return [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if p.is_file()]


def update_tables(check: bool, screen: Callable[[str], None]) -> bool:
    """Rewrites (or, with ``check``, compares) every region.

    Returns:
        False if a result does not fit its region, or, with ``check``, if a region's result is
        missing or says something else.
    """
    fine = True
    for path in documents():
        text = path.read_text(encoding="utf-8")
        try:
            fresh = rewrite(text, REFERENCE)
        except FileNotFoundError as e:
            screen(
                f"{path.relative_to(ROOT)}: {e} in results/reference; its tables stay as they are"
            )
            fine = fine and not check
            continue
        except (ValueError, KeyError) as e:
            screen(f"{path.relative_to(ROOT)}: {e}")
            fine = False
            continue
        if fresh == text:
            continue
        if check:
            fine = False
            screen(f"{path.relative_to(ROOT)}: tables differ from results/reference: make plots")
        else:
            path.write_text(fresh, encoding="utf-8")
            screen(f"tables written: {path.relative_to(ROOT)}")
    return fine


def main() -> int:
    """Plots and tables; with --check only compares tables."""
    parser = argparse.ArgumentParser(description="Plots and README tables from the result files.")
    parser.add_argument("--check", action="store_true", help="compare tables, write nothing")
    parser.add_argument("--tables", action="store_true", help="tables only, no plots")
    args = parser.parse_args()
    fine = update_tables(args.check, print)
    if not args.check and not args.tables:
        write_plots(print)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
