"""Reads what ptxas said of every CUDA kernel in a build folder; fails on spilled registers.

    python scripts/check_spills.py build/cmake-... [--kernels]

Prints, for each architecture, how many kernels there are and the most registers one uses. Fails
too where none was compiled.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Kernels that multiply, of one architecture: those that all have, and those built for it alone.
# Merges and conversions are small.
LIMITS = {
    "multiply": (re.compile(r"(prefill|decode|gemv|gemm)_kernel"), 50),
    "multiply, built for it alone": (re.compile(r"_sm\d+_kernel"), 20),
}
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass
class Kernel:
    name: str
    architecture: str
    source: str
    stack_bytes: int = 0
    spill_bytes: int = 0
    registers: int = 0


def kernels_of(log: Path) -> Iterator[Kernel]:
    """Kernels of one object file's log; functions called and not inlined count for their kernel."""
    kernel: Kernel | None = None
    for line in log.read_text().splitlines():
        if found := ENTRY.search(line):
            if kernel is not None:
                yield kernel
            kernel = Kernel(found[1], found[2], log.name.removesuffix(".o.ptxas"))
        elif kernel is None:
            continue
        elif found := SPILLS.search(line):
            kernel.stack_bytes += int(found[1])
            kernel.spill_bytes += int(found[2]) + int(found[3])
        elif found := REGISTERS.search(line):
            kernel.registers = int(found[1])
    if kernel is not None:
        yield kernel


def demangle(names: list[str]) -> list[str]:
    if not names or shutil.which("c++filt") is None:
        return names
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a CMake build folder")
    parser.add_argument("--kernels", action="store_true", help="list every kernel")
    arguments = parser.parse_args()
    logs = sorted(arguments.folder.rglob("*.o.ptxas"))
    kernels = [k for log in logs if log.with_suffix("").is_file() for k in kernels_of(log)]
    if not kernels:
        print(f"check_spills: no kernel was compiled in {arguments.folder}")
        return 1

    too_many = False
    for architecture in sorted({k.architecture for k in kernels}):
        ours = [k for k in kernels if k.architecture == architecture]
        most = max(k.registers for k in ours)
        print(f"check_spills: {architecture}: {len(ours)} kernels, at most {most} registers")
        for what, (pattern, limit) in LIMITS.items():
            count = sum(bool(pattern.search(k.name)) for k in ours)
            if count > limit:
                print(f"check_spills: {architecture}: {count} {what}, limit {limit}")
                too_many = True
    shown = [k for k in kernels if arguments.kernels or k.spill_bytes]
    for kernel, name in zip(shown, demangle([k.name for k in shown]), strict=True):
        print(
            f"{kernel.source} {kernel.architecture}: {kernel.registers} registers, "
            f"{kernel.spill_bytes} bytes spilled, {kernel.stack_bytes} bytes of stack: {name}"
        )
    return int(too_many or any(k.spill_bytes for k in kernels))


if __name__ == "__main__":
    sys.exit(main())
