"""README's tables, rendered from committed results.

A region between ``<!-- table:NAME [words] -->`` and ``<!-- /table -->`` is replaced by the table
of ``results/reference/NAME.json`` (NAME is "<device>/<file>"). Words: ``summary`` for geometric
means only, ``M=1,16`` or ``dtype=bfloat16`` to keep rows whose case has one of these values.
Where several dtypes are left, rows name theirs, and means have a column each.

    python benchmarks/tables.py FILE...    # a digest of results: ours, the best peer, the means
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import generate_tables
import quality_tables
from report import (
    READY,
    best_key,
    best_peer,
    ceilings_of,
    format_us,
    geometric_mean,
    is_peer,
    p50,
    speedups,
)

REGION = re.compile(
    r"(<!-- table:(?P<name>\S+)(?P<words>[^>]*?) -->\n)(?P<body>.*?)(<!-- /table -->)", re.DOTALL
)
OURS = {"block": "optimized_mini_block", "trace": "optimized_mini_block", "baseline": "naive"}
TITLES = {
    "flashint8": "flashint8",
    "sdpa_flash": "SDPA flash",
    "sdpa_cudnn": "SDPA cuDNN",
    "sdpa_efficient": "SDPA efficient",
    "sdpa_math": "SDPA math",
    "sdpa_default": "SDPA default",
    "naive": "naive",
    READY: "ready weights",
    "torch_linear": "nn.Linear",
    "torch_linear_float32": "nn.Linear float32",
    "torch_linear_bfloat16": "nn.Linear bfloat16",
    "torch_linear_float16": "nn.Linear float16",
    "unfused": "dequantise, then multiply",
    "torch_compile_int8": "torch.compile int8",
    "torch_int8pack": "torch int8pack",
    "torch_dynamic_int8": "torch dynamic int8",
    "torch_mini_block": "naive block",
    "sdpa_block": "SDPA block",
    "optimized_mini_block": "flashint8 block",
}

BEST = "the best of them in each row"

Result = dict[str, Any]


def load(path: Path) -> Result:
    """A result file; ValueError if it is of another schema."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if result.get("schema") != 1:
        raise ValueError(f"{path.name}: schema must be 1, got {result.get('schema')}")
    return result


def ours_of(result: Result) -> str:
    """Our method's name in a result."""
    return OURS.get(result["benchmark"], "flashint8")


def title(name: str) -> str:
    """How a method is called in print."""
    return TITLES.get(name, name)


def timed_methods(rows: Sequence[Result]) -> list[str]:
    """Methods that ran in at least one row, in their order."""
    names = dict.fromkeys(n for r in rows for n, m in r["methods"].items() if "skipped" not in m)
    return list(names)


def dtypes_of(rows: Sequence[Result]) -> list[str]:
    """The dtypes of the cases, in their order."""
    return list(dict.fromkeys(row["case"]["dtype"] for row in rows if "dtype" in row["case"]))


def filter_rows(rows: Sequence[Result], words: Sequence[str]) -> list[Result]:
    """Rows whose case agrees with every ``key=a,b`` word."""
    kept = list(rows)
    for word in words:
        key, found, values = word.partition("=")
        if found:
            kept = [r for r in kept if str(r["case"].get(key)) in values.split(",")]
    return kept


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    out = ["| " + " | ".join(header) + " |", "|" + "|".join(" ---: " for _ in header) + "|"]
    out += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(out) + "\n"


def case_cells(result: Result, case: Result) -> dict[str, str]:
    """The columns that name a case."""
    if result["benchmark"] == "linear":
        return {"N x K": f"{case['N']} x {case['K']}", "M": str(case["M"])}
    if result["benchmark"] == "block":
        return {k: str(case[k]) for k in ("B", "T", "C", "H")}
    heads = str(case["Hq"]) if case["Hq"] == case["Hkv"] else f"{case['Hq']}/{case['Hkv']}"
    length = str(case["Tq"]) if case["Tq"] == case["Tk"] else f"{case['Tq']} of {case['Tk']}"
    return {"B": str(case["B"]), "H": heads, "T": length, "D": str(case["D"])}


def extra_cells(result: Result, row: Result, ours: str) -> dict[str, str]:
    """Rate, share of the ceiling, memory and error of our method."""
    own, case = row["methods"][ours], row["case"]
    cells: dict[str, str] = {}
    read = ceilings_of(result, row).get("read_gb_s")
    bandwidth = result["benchmark"] == "linear" or case.get("Tq") == 1
    if bandwidth and own.get("gb_s") and read:
        cells["% of read bandwidth"] = f"{100 * own['gb_s'] / read:.0f}%"
    elif own.get("tflops"):
        cells["TFLOP/s"] = f"{own['tflops']:.3g}"
    if result["benchmark"] == "block":
        for key, text in (("peak_bytes", "peak MiB"), ("weights_bytes", "weights MiB")):
            others = [row["methods"][n] for n in (ours, "sdpa_block", "torch_mini_block")]
            cells[f"{text}, ours / SDPA / naive"] = " / ".join(
                f"{o[key] / 2**20:.1f}" if o.get(key) is not None else "-" for o in others
            )
    cells["error"] = f"{own['error']:.0e}"
    return cells


def table_of_rows(result: Result, words: Sequence[str]) -> str:
    """One line a case: our median, then each peer's with how many times ours it is."""
    rows = filter_rows(result["rows"], words)
    if not rows:
        raise ValueError(f"no rows left by {' '.join(words)!r}")
    ours, key = ours_of(result), best_key(rows)
    timed = timed_methods(rows)
    peers, ready = [n for n in timed if is_peer(n, ours)], READY in timed
    unit = "us" if key == "graph_us" else "us, host included"
    several = len(dtypes_of(rows)) > 1
    header = [*case_cells(result, rows[0]["case"]), f"{title(ours)}, {unit}"]
    if several:
        header.insert(0, "dtype")
    if ready:
        header.append(f"{title(READY)}, us")
    if key == "graph_us":
        header.append("eager, us")
    header += [*extra_cells(result, rows[0], ours), *(title(p) for p in peers)]
    lines = []
    for row in rows:
        methods = row["methods"]
        mine = p50(methods, ours, key)
        line = [row["case"]["dtype"]] if several else []
        line += [*case_cells(result, row["case"]).values(), f"**{format_us(mine)}**"]
        if ready:
            line.append(format_us(p50(methods, READY, key)))
        if key == "graph_us":
            line.append(format_us(p50(methods, ours, "eager_us")))
        line += extra_cells(result, row, ours).values()
        for peer in peers:
            theirs = p50(methods, peer, key)
            ratio = f" ({theirs / mine:.2f}x)" if theirs and mine else ""
            line.append(f"{format_us(theirs)}{ratio}" if theirs else "-")
        lines.append(line)
    return markdown(header, lines)


def table_of_means(result: Result, words: Sequence[str]) -> str:
    """Times faster than each peer: geometric mean and smallest, device and eager time."""
    rows = filter_rows(result["rows"], words)
    ours, dtypes = ours_of(result), dtypes_of(rows)
    kinds = {"graph_us": "CUDA graph", "eager_us": "eager, host included"}
    keys = list(kinds) if best_key(rows) == "graph_us" else ["eager_us"]
    found: dict[str, dict[str, list[float]]] = {}  # by the head of the column, then by peer
    for key in keys:
        for dtype in dtypes:
            part = [row for row in rows if row["case"]["dtype"] == dtype]
            own = [p50(r["methods"], ours, key) for r in part]
            best = [best_peer(r["methods"], ours, key) for r in part]
            column = speedups(part, ours, key)
            column[BEST] = [b / a for a, b in zip(own, best, strict=True) if a and b]
            found[f"{dtype}, {kinds[key]}" if len(dtypes) > 1 else kinds[key]] = column
    names = dict.fromkeys(n for column in found.values() for n in column if n != BEST)
    lines = []
    for name in (*names, BEST):
        cells = (column.get(name) for column in found.values())
        texts = (f"{geometric_mean(v):.2f}x (at least {min(v):.2f}x)" if v else "-" for v in cells)
        lines.append([title(name), *texts])
    return markdown(["times faster than", *found], lines)


def table_of_trace(result: Result) -> str:
    """Each block's operators with at least 2% of its time."""
    lines = []
    for name, method in result["rows"][0]["methods"].items():
        for operator in method["operators"]:
            if operator["share"] >= 0.02:
                share = f"{100 * operator['share']:.0f}%"
                cells = (f"`{operator['name']}`", f"{operator['calls']:g}")
                lines.append([title(name), *cells, f"{operator['self_us']:.1f}", share])
    return markdown(["block", "operator", "calls", "us", "share"], lines)


def table_of_counters(result: Result) -> str:
    """A row a kernel, a column a counter, as profiler/profile_kernels.py read them."""
    columns = list(result["rows"][0]["counters"])
    lines = [
        [f"`{row['case']['kernel']}`"]
        + ["-" if (x := row["counters"][c]) is None else f"{x:,.4g}" for c in columns]
        for row in result["rows"]
    ]
    return markdown(["kernel", *(c.replace("_", " ") for c in columns)], lines)


def origin(result: Result, rows: Sequence[Result]) -> str:
    """Where the numbers of these rows come from."""
    env, found = result["environment"], [ceilings_of(result, row) for row in rows]
    parts = [env["device"]]
    if env["driver"]:
        parts.append(f"driver {env['driver']}")
    else:
        parts.append(f"{env['threads']} threads, {env['cpu_isa']}")
    parts.append(f"torch {env['torch']}")
    dtypes = dtypes_of(rows)
    parts += dtypes[:1] if len(dtypes) == 1 else []
    if found and all(found):
        least, most = (f"{f(c['read_gb_s'] for c in found):.0f}" for f in (min, max))
        read = least if least == most else f"{least} to {most}"
        rates = dict.fromkeys(
            f"{c['matmul_tflops']:.3g} TFLOP/s" + (f" in {c['matmul_dtype']}" * (len(dtypes) > 1))
            for c in found
        )
        parts.append(f"ceilings: read {read} GB/s, matmul {', '.join(rates)}")
        if mma := found[0].get("mma_sync_tflops"):
            parts[-1] += f", mma.sync {mma:.3g} TFLOP/s"
    if env["git"]:
        parts.append(f"commit {env['git'][:10]}{' with changes' if env['dirty'] else ''}")
    if env.get("date"):
        parts.append(env["date"])
    return ", ".join(parts)


def caption(result: Result, rows: Sequence[Result]) -> str:
    """Where the numbers come from, and what they are."""
    key = best_key(result["rows"])
    how = "medians of CUDA-graph replays" if key == "graph_us" else "medians"
    return f"<sub>{origin(result, rows)}; {how}; in brackets: times our time.</sub>\n"


def render(path: Path, words: Sequence[str] = ()) -> str:
    """The Markdown of one region."""
    result = load(path)
    if result["benchmark"] == "counters":
        note = "counters of Nsight Compute, one call of each kind"
        text = origin(result, result["rows"])
        return f"\n{table_of_counters(result)}\n<sub>{text}; {note}.</sub>\n\n"
    if result["benchmark"] == "trace":
        return f"\n{table_of_trace(result)}\n"
    for module in (quality_tables, generate_tables):
        if result["benchmark"] in module.BENCHMARKS:
            result["rows"] = filter_rows(result["rows"], words)
            table = markdown(*module.cells(result))
            text = origin(result, result["rows"])
            return f"\n{table}\n<sub>{text}; {module.note(result)}.</sub>\n\n"
    rendered = table_of_means if "summary" in words else table_of_rows
    text = caption(result, filter_rows(result["rows"], words))
    return f"\n{rendered(result, words)}\n{text}\n"


def rewrite(text: str, reference: Path) -> str:
    """``text`` with every marked region made anew.

    Raises:
        FileNotFoundError: a region names a result that is not there.
        ValueError: a result that does not fit its region.
    """

    def replace(match: re.Match[str]) -> str:
        path = reference / f"{match['name']}.json"
        if not path.is_file():
            raise FileNotFoundError(f"table:{match['name']} has no {match['name']}.json")
        return match[1] + render(path, match["words"].split()) + match[5]

    return REGION.sub(replace, text)


def digest(result: Result) -> str:
    """A result in a few lines of text: each case with its best peer, then the means."""
    if result["benchmark"] == "counters":
        return table_of_counters(result)
    ours, key = ours_of(result), best_key(result["rows"])
    lines = [f"{result['benchmark']} {result['suite']}: us, best peer, its time over ours"]
    for row in result["rows"]:
        case, methods = row["case"], row["methods"]
        if case.get("M", 1) not in (1, 16, 64, 256, 1024, 4096):
            continue
        mine, best = p50(methods, ours, key), best_peer(methods, ours, key)
        if mine is None or best is None:
            continue
        name = next(n for n in methods if n != ours and p50(methods, n, key) == best)
        label = " ".join(f"{k}{v}" for k, v in case.items() if k != "causal")
        eager = format_us(p50(methods, ours, "eager_us"))
        own = f"{format_us(mine)} (eager {eager})"
        lines.append(f"  {label:52s} {own:24s} {name} {format_us(best)} {best / mine:.2f}x")
    lines.append(table_of_means(result, ()))
    return "\n".join(lines)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(digest(load(Path(argument))))
