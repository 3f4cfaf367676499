"""What the shared libraries ask of the machine: no ATen symbols, no paths, no surprises."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import flashint8

FOLDER = Path(flashint8._C.__file__).parent
OP_LIBRARIES = sorted(FOLDER.glob("libflashint8_*.so"))
LIBRARIES = [*OP_LIBRARIES, Path(flashint8._C.__file__)]
SYSTEM = r"libstdc\+\+\.so|libgcc_s\.so|libm\.so|libc\.so|libpthread|libdl|librt|ld-linux"


def output_of(*command: str | Path) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def needed(library: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "-d", library))


def test_libraries_are_there() -> None:
    names = [library.name for library in OP_LIBRARIES]
    assert "libflashint8_cpu.so" in names
    assert ("libflashint8_cuda.so" in names) == flashint8._C.build_info()["cuda"]


@pytest.mark.parametrize("library", OP_LIBRARIES, ids=lambda p: p.name)
def test_only_the_stable_abi(library: Path) -> None:
    """No mangled name of at:: or c10::, so that one binary serves every torch from 2.10."""
    undefined = output_of("nm", "-D", "--undefined-only", library)
    unstable = re.findall(r"\b_Z\w*?(?:N2at|N3c10|NK2at|NK3c10)\w*", undefined)
    assert not unstable, f"{len(unstable)} unstable symbols, first {unstable[:5]}"
    shown = output_of("nm", "-DC", "--undefined-only", library)
    assert not re.findall(r"\b(?:at|c10|torch::jit|torch::autograd)::.*", shown)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda p: p.name)
def test_no_paths_and_no_openmp(library: Path) -> None:
    dynamic = output_of("readelf", "-d", library)
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    undefined = output_of("nm", "-D", "--undefined-only", library)
    assert not re.findall(r"\b(?:GOMP|omp|__kmpc)_\w+", undefined), "kernels use no OpenMP"


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda p: p.name)
def test_no_build_paths_inside(library: Path) -> None:
    """A message that names a source file names it from csrc on."""
    text = library.read_bytes()
    named = set(re.findall(rb"[\x20-\x7e]*/(?:csrc/ops|site-packages)/[\x20-\x7e]*", text))
    assert not {path for path in named if path.startswith(b"/")}, sorted(named)[:3]


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda p: p.name)
def test_needed_libraries(library: Path) -> None:
    """The CUDA runtime is inside; torch's libraries are the process's own."""
    torch_names = {
        "libflashint8_cpu.so": r"libtorch\.so|libtorch_cpu\.so",
        "libflashint8_cuda.so": r"libtorch\.so|libtorch_cpu\.so|libtorch_cuda\.so",
    }
    allowed = "|".join(filter(None, (SYSTEM, torch_names.get(library.name))))
    extra = [name for name in needed(library) if not re.match(allowed, name)]
    assert not extra, f"{library.name} needs {extra}"


@pytest.mark.parametrize("library", OP_LIBRARIES, ids=lambda p: p.name)
def test_exports_are_few(library: Path) -> None:
    """Two libraries of this package, or two versions, must not bind to each other's functions."""
    defined = output_of("nm", "-DC", "--defined-only", library)
    ours = [line for line in defined.splitlines() if "flashint8::" in line]
    assert not ours, f"{len(ours)} of our functions are exported, first {ours[:3]}"
