"""What bounds each CUDA kernel: Nsight Compute's counters over one call of each kind.

    python profiler/profile_kernels.py [--out results/counters.json]

Runs itself under `ncu`, which must be installed and allowed to read the counters. Prints a row a
kernel: time, occupancy, issue slots and tensor pipe in use, memory bandwidth, and how many of the
reads and writes of shared memory were repeated because of bank conflicts.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import torch  # noqa: E402
from environment import add_package_to_path, describe, pick_device  # noqa: E402
from report import console, save  # noqa: E402
from rich.table import Table  # noqa: E402

# Column: the counter it is read from.
COUNTERS = {
    "us": "gpu__time_duration.sum",
    "occupancy_%": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "issue_%": "sm__inst_issued.avg.pct_of_peak_sustained_active",
    "tensor_%": "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active",
    "dram_%": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "l2_%": "lts__throughput.avg.pct_of_peak_sustained_elapsed",
    "shared_wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "conflicts_read": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_ld.sum",
    "conflicts_write": "l1tex__data_bank_conflicts_pipe_lsu_mem_shared_op_st.sum",
}
ATTENTION = {  # B, Hq, Hkv, Tq, Tk, D
    "prefill, D 64": (2, 32, 32, 4096, 4096, 64),
    "prefill, D 128": (2, 16, 16, 4096, 4096, 128),
    "prefill, short": (1, 8, 8, 512, 512, 64),
    "decode": (1, 32, 8, 1, 32768, 128),
}
LINEAR = {  # M, N, K
    "linear, M 1": (1, 11008, 4096),
    "linear, M 16": (16, 11008, 4096),
    "linear, M 64": (64, 11008, 4096),
    "linear, M 256": (256, 11008, 4096),
}


def run_cases() -> None:
    """The child: every case once to warm up, then once inside the profiler's range."""
    add_package_to_path()
    import flashint8

    calls = []
    for batch, heads, kv_heads, seq_q, seq_kv, dim in ATTENTION.values():
        sizes = ((heads, seq_q), (kv_heads, seq_kv), (kv_heads, seq_kv))
        q, k, v = (torch.randn(batch, h, t, dim, device="cuda").half() for h, t in sizes)
        calls.append(lambda q=q, k=k, v=v: flashint8.attention(q, k, v))
    for m, n, k in LINEAR.values():
        x = torch.randn(m, k, device="cuda").half()
        weight, scale = flashint8.quantize_per_channel(torch.randn(n, k, device="cuda"))
        calls.append(lambda x=x, w=weight, s=scale: flashint8.int8_linear(x, w, s))
    for call in calls:
        call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for call in calls:
        torch.cuda.nvtx.range_push("case")
        call()
        torch.cuda.nvtx.range_pop()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def profile() -> list[dict[str, str]]:
    """ncu's table of the child's kernels, in the order they ran."""
    command = ["ncu", "--profile-from-start", "off", "--csv", "--page", "raw", "--print-units"]
    command += ["base", "--metrics", ",".join(COUNTERS.values()), sys.executable, __file__]
    child = subprocess.run([*command, "--child"], capture_output=True, text=True)
    start = child.stdout.find('"ID"')
    if child.returncode != 0 or start < 0:
        said = [line for line in child.stdout.splitlines() if "==ERROR==" in line]
        raise SystemExit(f"not run: ncu: {(said or [child.stderr.strip()[-300:]])[0]}")
    rows = list(csv.DictReader(io.StringIO(child.stdout[start:])))
    return rows[1:]  # the first holds the units


def number(text: str) -> float | None:
    """A counter's value; None where this card has no such counter."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return None


def main() -> int:
    """Profiles, prints, saves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", default=str(ROOT / "results" / "counters.json"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        run_cases()
        return 0
    if shutil.which("ncu") is None:
        raise SystemExit("not run: ncu (Nsight Compute) is not installed")
    screen = console()
    table = Table("kernel", *COUNTERS, title="one call of each kind")
    rows: list[dict[str, Any]] = []
    for found in profile():
        name = re.sub(r"^void |flashint8::cuda::|\(.*$", "", found["Kernel Name"])
        values = {column: number(found.get(c, "")) for column, c in COUNTERS.items()}
        if values["us"] is not None:
            values["us"] /= 1000  # ncu's base unit of time is the nanosecond
        case = {"kernel": name, "grid": found["Grid Size"], "dtype": "float16"}
        rows.append({"case": case, "counters": values})
        shown = ("-" if x is None else f"{x:,.1f}" for x in values.values())
        table.add_row(name, *shown)
    screen.print(table)
    device = pick_device("cuda")
    cases = {**ATTENTION, **LINEAR}
    save(args.out, "counters", None, describe(device, 0), {}, rows, screen, cases=cases)
    return 0


if __name__ == "__main__":
    sys.exit(main())
