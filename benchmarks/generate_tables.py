"""The tables and the plot of `generate_bench.py` and `memory_bench.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]
BENCHMARKS = ("generate", "memory")
OURS = ("flashint8", "flashint8_eager")  # the first of them that ran
TITLES = {
    "flashint8": "flashint8, graph",
    "flashint8_eager": "flashint8, eager",
    "nanogpt": "as nanoGPT, no cache",
    "transformers_eager": "transformers, eager",
    "sdpa_eager": "SDPA + cache, eager",
    "sdpa_graph": "SDPA + graph",
    "torch_compile": "torch.compile + graph",
    "torch_compile_int8": "torch.compile int8 + graph",
    "naive_int8": "naive, int8",
    "sdpa_int8": "SDPA, int8",
    "flashint8_int8": "flashint8, int8",
    "sdpa_float16": "SDPA, 16 bits",
}
COLORS = {
    "flashint8": "#c1272d",
    "flashint8_eager": "#e39a9c",
    "nanogpt": "#888888",
    "transformers_eager": "#b08f4a",
    "sdpa_eager": "#5aa9c9",
    "sdpa_graph": "#0057a8",
    "torch_compile": "#6aa84f",
    "torch_compile_int8": "#8e63b0",
}


def ours_of(rows: Sequence[Result]) -> str | None:
    """Our method in these rows: with a graph where there is one."""
    for name in OURS:
        if any("skipped" not in r["methods"].get(name, {"skipped": ""}) for r in rows):
            return name
    return None


def rate(row: Result, name: str) -> float | None:
    """Median tokens/s of a method, or None where it did not run."""
    found = row["methods"].get(name, {}).get("tokens_per_s")
    return found["p50"] if found else None


def methods_of(rows: Sequence[Result]) -> list[str]:
    """Methods that ran in a row."""
    names = dict.fromkeys(n for r in rows for n, m in r["methods"].items() if "skipped" not in m)
    return list(names)


def gib(value: float | None) -> str:
    """Bytes in GiB."""
    return "-" if value is None else f"{value / 2**30:.2f}"


def cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a result of one of BENCHMARKS."""
    return _memory(result) if result["benchmark"] == "memory" else _generate(result)


def note(result: Result) -> str:
    """What the caption says of the numbers."""
    case = result["rows"][0]["case"]
    if result["benchmark"] == "memory":
        return (
            f"{case['model']} shape, {case['limit_bytes'] / 1e9:g} GB of memory, batch "
            f"{case['batch']}; GiB; weights streamed from a {case['file_bytes'] / 1e9:.1f} GB file"
        )
    return (
        f"{case['new_tokens']} new tokens, greedy, random weights; tokens/s of all rows together "
        "after the first token, medians; in brackets: how many times faster ours is"
    )


def _generate(result: Result) -> tuple[list[str], list[list[str]]]:
    rows = result["rows"]
    ours = ours_of(rows)
    if ours is None:
        raise ValueError("generate: none of our methods ran")
    peers = [n for n in methods_of(rows) if n != ours]
    fixed = ["model", "batch", "prompt", f"{TITLES[ours]}, tok/s", "first token, ms"]
    header = [*fixed, "weights, cache, GiB", *(TITLES[p] for p in peers)]
    lines = []
    for row in rows:
        case, own = row["case"], row["methods"].get(ours, {})
        mine = rate(row, ours)
        name = case["model"]
        line = [name, str(case["batch"]), str(case["prompt"])]
        line.append("-" if mine is None else f"**{mine:,.0f}**")
        line.append(f"{own['ttft_ms']['p50']:.1f}" if mine else "-")
        line.append(f"{gib(own.get('weights_bytes'))} + {gib(own.get('cache_bytes'))}")
        for peer in peers:
            theirs = rate(row, peer)
            ratio = f" ({mine / theirs:.2f}x)" if mine and theirs else ""
            line.append(f"{theirs:,.0f}{ratio}" if theirs else "-")
        lines.append(line)
    return header, lines


def _memory(result: Result) -> tuple[list[str], list[list[str]]]:
    header = [
        "method",
        "weights",
        "longest context",
        "peak there, measured",
        "predicted",
        "peak at context",
        "predicted",
    ]
    lines = []
    for row in result["rows"]:
        for name, method in row["methods"].items():
            if "skipped" in method:
                lines.append([TITLES[name], method["skipped"], *["-"] * (len(header) - 2)])
                continue
            lines.append(
                [
                    TITLES[name],
                    gib(method["weights_bytes"]),
                    f"**{method['longest_context']:,}**",
                    gib(method["peak_bytes"]),
                    gib(method["predicted_bytes"]),
                    f"{gib(method['short']['peak_bytes'])} at {method['short']['context']:,}",
                    gib(method["short"]["predicted_bytes"]),
                ]
            )
    return header, lines


def plot(result: Result, plt: Any, subtitle: str) -> Any | None:
    """Tokens per second of every method, case by case; None for memory, which is a table."""
    if result["benchmark"] != "generate":
        return None
    rows, names = result["rows"], methods_of(result["rows"])
    figure, axes = plt.subplots(figsize=(8.4, 3.6))
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        xs = [x - 0.4 + (i + 0.5) * width for x in range(len(rows))]
        values = [rate(row, name) or 0.0 for row in rows]
        bars = axes.bar(xs, values, width * 0.92, color=COLORS.get(name), label=TITLES[name])
        if name == ours_of(rows):
            axes.bar_label(bars, [f"{v:,.0f}" if v else "" for v in values], fontsize=6)
    labels = []
    for row in rows:
        case = row["case"]
        labels.append(f"{case['model']}\nbatch {case['batch']}\nprompt {case['prompt']}")
    axes.set_xticks(range(len(rows)), labels, fontsize=7)
    axes.set_yscale("log")
    axes.set_ylabel("tokens/s")
    axes.set_title(f"Tokens per second: {subtitle}", fontsize=9)
    axes.grid(visible=False, axis="x")
    axes.legend(ncols=4, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure
