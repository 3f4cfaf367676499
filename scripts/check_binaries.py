"""Checks that built libraries bind to no torch version, and to no place on this machine.

    python scripts/check_binaries.py flashint8

Every undefined symbol of an op library is a C shim of torch's stable ABI (aoti_torch_*, torch_*) or
belongs to the C and C++ run-time libraries; no RPATH; no libcudart; _C needs no torch at all.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SYSTEM = r"(libstdc\+\+|libgcc_s|libc|libm|libdl|librt|libpthread|ld-linux-[\w-]+)\.so\.\d+"
ALLOWED_LIBRARIES = {
    "_C": re.compile(SYSTEM),
    "libflashint8_cpu": re.compile(rf"{SYSTEM}|libtorch_cpu\.so"),
    "libflashint8_cuda": re.compile(rf"{SYSTEM}|libtorch_cpu\.so|libtorch_cuda\.so"),
}
TORCH_SHIM = re.compile(r"(aoti_torch|torch)_\w+")
VERSIONED = re.compile(r"\S+@+(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+")
PYTHON = re.compile(r"_?Py\w+")


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check(path: Path) -> list[str]:
    kind = path.name.partition(".")[0]
    wrong = []
    dynamic = output("readelf", "-d", str(path))
    for library in re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic):
        if not ALLOWED_LIBRARIES[kind].fullmatch(library):
            wrong.append(f"needs {library}")
    if re.search(r"\((RPATH|RUNPATH)\)", dynamic):
        wrong.append("records a search path")
    shims = 0
    for line in output("nm", "-D", "--undefined-only", str(path)).splitlines():
        letter, symbol = line.split()[-2:]
        if letter in "wv" or VERSIONED.fullmatch(symbol):
            continue
        if TORCH_SHIM.fullmatch(symbol) and kind != "_C":
            shims += 1
        elif not (PYTHON.fullmatch(symbol) and kind == "_C"):
            wrong.append(f"binds to {symbol}")
    print(f"check_binaries: {path.name}: {path.stat().st_size >> 10} KiB, {shims} torch C shims")
    return [f"check_binaries: {path}: {what}" for what in wrong]


def main() -> int:
    folder = Path(sys.argv[1])
    paths = sorted(folder.glob("*.so"))
    found = {path.name.partition(".")[0] for path in paths}
    wrong = [line for path in paths for line in check(path)]
    if missing := {"_C", "libflashint8_cpu"} - found:
        wrong.append(f"check_binaries: {folder} lacks {', '.join(sorted(missing))}")
    print("\n".join(wrong), end="\n" if wrong else "")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
