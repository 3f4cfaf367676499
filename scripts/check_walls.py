"""The rules of structure that no compiler checks; DESIGN and CONTRIBUTING.md say why.

Prints one line a breach and exits with 1 if there is any.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".cpp", ".h", ".cu", ".cuh", ".cmake", ".py", ".sh", ".in", ".toml", ".yaml"}
NAMES = {"Makefile", "CMakeLists.txt", "run"}
SKIPPED = {"build", "dist", "results", "__pycache__"}
LONG_FILE, TOO_LONG_FILE = 400, 450

TORCH_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"](torch|ATen|c10|aten)[/>]', re.M)
# What the stable C++ ABI consists of; anything else binds a library to one torch version.
STABLE_INCLUDE = re.compile(
    r"<torch/(csrc/stable/|headeronly/|csrc/inductor/aoti_torch/c/shim\.h)[\w/.]*>"
)
ASSEMBLY = re.compile(r"\basm\b\s*(volatile|\()")
OPENMP = re.compile(r"#\s*pragma\s+omp|#\s*include\s*<omp\.h>|\bomp_\w+\s*\(")
OUTPUT = re.compile(r"\b(printf|fprintf|puts|exit|abort|_exit|quick_exit)\s*\(|std::(cout|cerr)\b")
FAST_MATH = re.compile(r"-ffast-math|-use_fast_math|--use_fast_math|-Ofast|-fopenmp")
UNFINISHED = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")


def source_files() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if any(part in SKIPPED or (part.startswith(".") and part != ".ci") for part in parts):
            continue
        if path.is_file() and (path.suffix in SUFFIXES or path.name in NAMES):
            yield path


def without_comments(text: str) -> str:
    """C++ without its comments; line breaks stay."""
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


def native_breaches(name: str, text: str) -> Iterator[tuple[int, str]]:
    code = without_comments(text)

    def matches(pattern: re.Pattern[str]) -> Iterator[tuple[int, str]]:
        for match in pattern.finditer(code):
            line = code.count("\n", 0, match.start() + len(match[0]) - len(match[0].lstrip())) + 1
            yield line, code.splitlines()[line - 1].strip()

    for line, source in matches(TORCH_INCLUDE):
        if not name.startswith("csrc/ops/"):
            yield line, f"torch headers belong in csrc/ops: {source}"
        elif not STABLE_INCLUDE.search(source):
            yield line, f"not part of torch's stable ABI: {source}"
    for line, source in matches(OPENMP):
        yield line, f"threads come through CpuThreads, not OpenMP: {source}"
    for line, source in matches(OUTPUT):
        yield line, f"native code neither prints nor exits: {source}"
    if not name.startswith("csrc/cuda/device/"):
        for line, source in matches(ASSEMBLY):
            yield line, f"assembly belongs in csrc/cuda/device: {source}"


def breaches(path: Path) -> Iterator[tuple[int, str]]:
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text()
    lines = text.splitlines()
    if len(lines) > TOO_LONG_FILE:
        yield len(lines), f"{len(lines)} lines; split it ({TOO_LONG_FILE} at most)"
    elif len(lines) > LONG_FILE:
        print(f"{name}: warning: {len(lines)} lines, {LONG_FILE} is long")
    for number, line in enumerate(lines, 1):
        if found := UNFINISHED.search(line):
            yield number, f"unfinished work belongs in an issue: {found[0]}"
        if name.startswith("csrc/") and (found := FAST_MATH.search(line)):
            yield number, f"changes results or adds threads everywhere: {found[0]}"
    if name.startswith("csrc/") and path.suffix in {".cpp", ".h", ".cu", ".cuh"}:
        yield from native_breaches(name, text)


def main() -> int:
    count = 0
    for path in source_files():
        for line, text in breaches(path):
            print(f"{path.relative_to(ROOT)}:{line}: {text}")
            count += 1
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
