"""What mma.sync can reach on this card: compiles and runs mma_rate.cu.

The library's matrix product uses other instructions on some cards (wgmma on Hopper); kernels made
of mma.sync are to be read against this rate.

    python benchmarks/mma_rate.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import significant

SOURCE = Path(__file__).with_suffix(".cu")
FLAGS = ("-std=c++20", "-O3", f"-I{SOURCE.parents[1] / 'csrc' / 'cuda'}")


def find_nvcc() -> str | None:
    """nvcc on the PATH or in CUDA_HOME, or None."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    return shutil.which("nvcc") or shutil.which(str(Path(home) / "bin" / "nvcc"))


def mma_sync_ceiling(device: torch.device) -> dict[str, Any]:
    """``mma_sync_tflops`` of a GPU, for a result's ``ceilings``.

    Returns:
        The rate in TFLOP/s (powers of 1000), of fp16 products with fp32 sums; None with the reason
        in ``mma_sync_note`` where there is none; an empty dict on a CPU.
    """
    if device.type != "cuda":
        return {}
    major, minor = torch.cuda.get_device_capability(device)
    try:
        return {"mma_sync_tflops": significant(run(f"sm_{major}{minor}", device.index or 0))}
    except (OSError, ValueError, KeyError) as e:
        return {"mma_sync_tflops": None, "mma_sync_note": str(e)[:200]}


def run(architecture: str, index: int) -> float:
    """Compiles for one architecture, runs on one device; TFLOP/s.

    Raises:
        FileNotFoundError: there is no nvcc.
        ValueError: it does not compile or does not run, and why.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise FileNotFoundError("no nvcc was found (PATH, CUDA_HOME)")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "mma_rate"
        output(nvcc, *FLAGS, f"-arch={architecture}", "-o", str(program), str(SOURCE))
        return float(json.loads(output(str(program), str(index)))["mma_sync_tflops"])


def output(*command: str) -> str:
    """What a command prints; ValueError with the last line of its errors where it fails."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{name} took over 60 s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise ValueError(f"{name}: {said[-1].replace(str(SOURCE), SOURCE.name)}")
    return done.stdout


if __name__ == "__main__":
    print(json.dumps(mma_sync_ceiling(torch.device("cuda", torch.cuda.current_device()))))
