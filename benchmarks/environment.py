"""What a result must say about the machine and the build it came from; no paths, no host names."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def add_package_to_path() -> None:
    """Lets an in-place build be imported; an installed flashint8 keeps its precedence."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))


def run_text(*command: str) -> str | None:
    """Output of a command run in the repository, or None where it fails or is not there."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def cpu_name() -> str:
    """The CPU's model name."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as f:
            for line in f:
                if line.lower().startswith(("model name", "cpu model")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def revision() -> tuple[str | None, bool | None]:
    """Commit and whether tracked files differ from it.

    FLASHINT8_REVISION ("<commit>" or "<commit>-dirty") answers where the tree has no .git.
    """
    given = os.environ.get("FLASHINT8_REVISION")
    if given:
        return given.removesuffix("-dirty"), given.endswith("-dirty")
    commit = run_text("git", "rev-parse", "HEAD")
    if commit is None:
        return None, None
    return commit, bool(run_text("git", "status", "--porcelain", "--untracked-files=no"))


def flags(argv: list[str]) -> str:
    """The command line without the output's place, and without folders."""
    kept: list[str] = []
    skip = False
    for word in argv:
        if skip:
            skip = False
        elif word in ("--out", "--summary-out"):
            skip = True
        elif not word.startswith(("--out=", "--summary-out=")):
            kept.append(Path(word).name if "/" in word else word)
    return " ".join(kept)


def describe(device: torch.device, seed: int, argv: list[str] | None = None) -> dict[str, Any]:
    """The ``environment`` of a result."""
    import flashint8
    from flashint8 import _C

    commit, dirty = revision()
    info: dict[str, Any] = {
        "device": cpu_name(),
        "driver": None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "git": commit,
        "dirty": dirty,
        "flags": flags(sys.argv[1:] if argv is None else argv),
        "seed": seed,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "flashint8": getattr(flashint8, "__version__", None),
        "python": platform.python_version(),
        "host_cpu": cpu_name(),
        "cpu_isa": None,
        "threads": torch.get_num_threads(),
        "cache_bytes": cache_bytes(device),
    }
    try:
        info["cpu_isa"] = _C.cpu_isa()
        info["cuda_architectures"] = _C.build_info()["cuda_architectures"]
    except (AttributeError, KeyError):
        pass
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        smi = run_text(
            "nvidia-smi",
            f"--id={device.index or 0}",
            "--query-gpu=driver_version,power.limit",
            "--format=csv,noheader",
        )
        driver, _, power = (smi or "").partition(", ")
        info.update(
            device=properties.name,
            driver=driver or None,
            power_limit=power or None,
            compute_capability=f"{properties.major}.{properties.minor}",
            sm_count=properties.multi_processor_count,
            memory_bytes=properties.total_memory,
            cudnn=torch.backends.cudnn.version(),
        )
    return info


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache before memory: L2 on CUDA, the last level's on the CPU."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20))
    sizes = []
    for entry in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = entry.read_text().strip()
        unit = {"K": 1 << 10, "M": 1 << 20}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KM")) * unit)
    return max(sizes, default=32 << 20)


def buffers_past_cache(bytes_per_call: float, device: torch.device) -> int:
    """How many buffers to rotate through so that each comes from memory.

    Past twice the cache at least. On a GPU past 16 times, as far as 256 buffers go: what a kernel
    marks to leave L2 first leaves the rest there for longer than one turn through twice its size.
    """
    cache, size = cache_bytes(device), max(1, int(bytes_per_call))
    needed = -(-2 * cache // size) + 1
    more = min(256, -(-16 * cache // size)) if device.type == "cuda" else 0
    return max(2, needed, more)


def pick_device(name: str | None) -> torch.device:
    """``--device``, or the first GPU torch can use, else the CPU."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit(f"--device {device}: this torch ({torch.__version__}) sees no GPU")
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    return device


def add_common_arguments(parser: argparse.ArgumentParser, out: str) -> None:
    """Arguments that every benchmark takes."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--dtype", help="float16, bfloat16 or float32; attention and linear take several, commas"
    )
    parser.add_argument(
        "--iters", type=int, default=100, help="rounds, a sample of every method each"
    )
    parser.add_argument("--time-budget", type=float, help="seconds for timing the whole table")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=out, help=f"JSON file (default {out})")


def parse_dtype(name: str | None, default: torch.dtype) -> torch.dtype:
    """``--dtype``: float16, bfloat16, float32, or fp16, bf16, fp32."""
    if name is None:
        return default
    names = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32"}
    name = names.get(name, name)
    if name not in ("float16", "bfloat16", "float32"):
        raise SystemExit(f"--dtype must be float16, bfloat16 or float32, got {name}")
    return getattr(torch, name)


def parse_dtypes(names: str | None, default: torch.dtype) -> list[torch.dtype]:
    """``--dtype`` of a benchmark that takes several: "float32,bfloat16,float16"."""
    if names is None:
        return [default]
    return list(dict.fromkeys(parse_dtype(name.strip(), default) for name in names.split(",")))


def dtype_name(dtype: torch.dtype) -> str:
    """float16 for torch.float16."""
    return str(dtype).removeprefix("torch.")
