"""Drives CMake: decides what to build, builds it, puts the libraries beside the Python package.

Environment: FLASHINT8_CUDA=auto|0|1, TORCH_CUDA_ARCH_LIST (as torch reads it, also "90a",
"80-virtual", "native"), MAX_JOBS, FLASHINT8_SANITIZE (for -fsanitize=).
"""

from __future__ import annotations

import filecmp
import importlib.util
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = "flashint8"
OLDEST_TORCH = (2, 10)
OLDEST_CUDA = (12, 0)
OLDEST_CARD = 80  # the kernels copy with cp.async
OLDEST_SETUPTOOLS = 77  # reads the licence's name in pyproject.toml
DEFAULT_ARCHITECTURES = ["80-real", "90a-real", "120-real", "80-virtual"]
PLATFORMS = ("x86_64", "aarch64")


def say(text: str) -> None:
    print(f"flashint8: {text}", flush=True)


def check_platform() -> None:
    machine = platform.machine()
    if sys.platform != "linux" or machine not in PLATFORMS:
        raise SystemExit(
            f"flashint8 builds on Linux x86-64 and Arm64, not on {sys.platform} {machine}; "
            "on Windows, use WSL2."
        )


def find_package(name: str) -> Path | None:
    """The folder of an installed package, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def find_torch() -> tuple[Path, str]:
    folder = find_package("torch")
    if folder is None:
        raise SystemExit("flashint8 builds against the torch you will run: install torch first.")
    version = str(runpy.run_path(str(folder / "version.py"))["__version__"])
    if tuple(int(x) for x in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        raise SystemExit(f"flashint8 needs torch 2.10 or newer, this is torch {version}.")
    return folder, version


def find_program(name: str, package: str) -> str:
    """A build tool: from its PyPI package in this environment, else from PATH."""
    folder = find_package(package)
    places = [folder / "data" / "bin"] if folder is not None else []
    places.append(Path(sysconfig.get_path("scripts")))
    found = shutil.which(name, path=os.pathsep.join(map(str, places))) or shutil.which(name)
    if found is None:
        raise SystemExit(f"flashint8 needs {name} to build: pip install {package}")
    return found


def find_nvcc() -> str | None:
    for variable, tail in (("CUDACXX", ""), ("CUDA_HOME", "bin/nvcc"), ("CUDA_PATH", "bin/nvcc")):
        if value := os.environ.get(variable):
            return shutil.which(str(Path(value) / tail) if tail else value)
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def run_quietly(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def run_shown(command: list[str]) -> None:
    if status := subprocess.run(command).returncode:
        raise SystemExit(f"flashint8: failed with status {status}: {' '.join(command[:4])} ...")


def architecture(name: str) -> list[str]:
    """CMake's names for one entry: "8.0" -> 80-real; "8.6+PTX" -> 86-real, 86-virtual."""
    match = re.fullmatch(r"(\d+)\.?(\d)([af]?)(\+PTX|-real|-virtual)?", name)
    if match is None:
        raise SystemExit(
            f"flashint8: TORCH_CUDA_ARCH_LIST has {name!r}; "
            'expected entries such as "8.0", "8.6+PTX", "90a", "80-virtual" or "native".'
        )
    major, minor, letter, tail = match.groups()
    number = major + minor
    if tail == "-virtual":
        return [f"{number}{letter}-virtual"]
    # sm_90a runs where sm_90 does, on 9.0 alone, and has all of that card's instructions.
    real = f"{number}{letter or ('a' if number == '90' else '')}-real"
    return [real, f"{number}{letter}-virtual"] if tail == "+PTX" else [real]


def native_architectures() -> list[str]:
    """The cards of this machine."""
    names = run_quietly("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader").split()
    found = sorted({name for name in names if re.fullmatch(r"\d+\.\d", name)})
    return [a for name in found for a in architecture(name)]


def supported(architectures: list[str], nvcc: str) -> list[str]:
    """Those of the default list that this nvcc knows."""
    known = run_quietly(nvcc, "--list-gpu-arch")
    numbers = re.findall(r"compute_(\d+)", known)
    return [a for a in architectures if re.match(r"\d+", a).group() in numbers]


def decide_cuda() -> tuple[str | None, list[str]]:
    """(nvcc or None, CMake's architectures); one line says which and why."""
    wanted = os.environ.get("FLASHINT8_CUDA", "auto").lower()
    if wanted not in ("auto", "0", "1"):
        raise SystemExit(f"flashint8: FLASHINT8_CUDA must be auto, 0 or 1, got {wanted!r}")
    if wanted == "0":
        say("CPU part only: FLASHINT8_CUDA=0")
        return None, []

    def without(reason: str) -> tuple[None, list[str]]:
        if wanted == "1":
            raise SystemExit(f"flashint8: FLASHINT8_CUDA=1, but {reason}")
        say(f"CPU part only: {reason}")
        return None, []

    nvcc = find_nvcc()
    if nvcc is None:
        return without("no nvcc was found (PATH, CUDA_HOME, CUDACXX)")
    release = re.search(r"release (\d+)\.(\d+)", run_quietly(nvcc, "--version"))
    if release is None:
        return without(f"{nvcc} does not run")
    version = tuple(map(int, release.groups()))
    if version < OLDEST_CUDA:
        return without(f"{nvcc} is CUDA {version[0]}.{version[1]}, 12.0 or newer is needed")

    listed = re.split(r"[;,\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
    if listed == [""]:
        architectures, why = supported(DEFAULT_ARCHITECTURES, nvcc), "the default list"
    elif listed == ["native"]:
        architectures, why = native_architectures(), "the card found here"
        if not architectures and wanted == "auto":
            return without("no NVIDIA GPU is here to build for (FLASHINT8_CUDA=1 builds for all)")
        if not architectures:
            architectures, why = supported(DEFAULT_ARCHITECTURES, nvcc), "the default list"
    else:
        architectures = list(dict.fromkeys(a for name in listed for a in architecture(name)))
        why = "TORCH_CUDA_ARCH_LIST"
    if old := [a for a in architectures if int(re.match(r"\d+", a).group()) < OLDEST_CARD]:
        return without(f"compute capability 8.0 or newer is needed, {why} has {' '.join(old)}")
    names = " ".join(a.removesuffix("-real") for a in architectures)
    say(f"CPU and CUDA parts: CUDA {version[0]}.{version[1]} at {nvcc}, for {names} ({why})")
    return nvcc, architectures


def jobs() -> int:
    """MAX_JOBS, else one a core as far as memory lasts (2 GiB for a compiler)."""
    if value := os.environ.get("MAX_JOBS"):
        return max(1, int(value))
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // 2**31))


def is_isolated(torch: Path) -> bool:
    """Whether a front end made this environment for this build alone: its paths will be gone."""
    return bool(re.search(r"build-env-|builds-v0|[/\\]\.tmp", f"{torch}|{sys.prefix}"))


class Build(build):
    """What an earlier build left in build/lib* must not enter a wheel."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """One extension stands for everything that CMake installs: _C and the op libraries."""

    def run(self) -> None:
        in_source = self.inplace or self.editable_mode
        target = ROOT / PACKAGE if in_source else Path(self.build_lib).resolve() / PACKAGE
        torch, torch_version = find_torch()
        nvcc, architectures = decide_cuda()
        if is_isolated(torch):
            with tempfile.TemporaryDirectory(prefix="flashint8-build-") as folder:
                self.compile(Path(folder), target, torch, torch_version, nvcc, architectures)
            return
        cuda = "cuda-" + "-".join(architectures).replace("-real", "") if nvcc else "cpu"
        words = [sys.implementation.cache_tag, f"torch-{torch_version}", platform.machine(), cuda]
        if sanitize := os.environ.get("FLASHINT8_SANITIZE"):
            words.append(sanitize)
        folder = ROOT / "build" / "-".join(["cmake", *words]).replace("+", "_").replace(",", "_")
        self.compile(folder, target, torch, torch_version, nvcc, architectures)

    def compile(
        self,
        folder: Path,
        target: Path,
        torch: Path,
        torch_version: str,
        nvcc: str | None,
        architectures: list[str],
    ) -> None:
        """Configures where an input changed, builds, and copies what changed."""
        count = jobs()
        cmake = find_program("cmake", "cmake")
        pybind11 = find_package("pybind11")
        if pybind11 is None:
            raise SystemExit("flashint8 needs pybind11 to build: pip install pybind11")
        configure = [
            cmake,
            *("-S", str(ROOT / "csrc"), "-B", str(folder), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={find_program('ninja', 'ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11 / 'share' / 'cmake' / 'pybind11'}",
            f"-DFLASHINT8_VERSION={self.distribution.get_version()}",
            f"-DFLASHINT8_TORCH_DIR={torch}",
            f"-DFLASHINT8_TORCH_VERSION={torch_version}",
            f"-DFLASHINT8_JOBS={count}",
            f"-DFLASHINT8_SANITIZE={os.environ.get('FLASHINT8_SANITIZE', '')}",
            f"-DFLASHINT8_CUDA={'ON' if nvcc else 'OFF'}",
        ]
        if nvcc:
            configure.append(f"-DCMAKE_CUDA_COMPILER={nvcc}")
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(architectures)}")
        flags = [f"{name}={os.environ.get(name, '')}" for name in ("CXX", "CXXFLAGS", "CUDAFLAGS")]
        recorded, inputs = folder / "configured", "\n".join([*configure, *flags])
        if not recorded.is_file() or recorded.read_text() != inputs:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            run_shown(configure)
            recorded.write_text(inputs)
        run_shown([cmake, "--build", str(folder), "--parallel", str(count)])
        self.install(folder, target, bool(nvcc))

    def install(self, folder: Path, target: Path, cuda: bool) -> None:
        """Copies what changed; a library in use keeps its file, the new one takes its name."""
        if not cuda:
            (target / "libflashint8_cuda.so").unlink(missing_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        for built in sorted(folder.glob("*.so")):
            goal = target / built.name
            if goal.is_file() and filecmp.cmp(built, goal, shallow=False):
                continue
            fresh = goal.with_suffix(".new")
            shutil.copy2(built, fresh)
            fresh.replace(goal)
            say(f"built {goal}")

    def get_outputs(self) -> list[str]:
        folder = Path(self.build_lib) / PACKAGE
        return [str(path) for path in folder.glob("*.so")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


check_platform()
if int(setuptools.__version__.partition(".")[0]) < OLDEST_SETUPTOOLS:
    raise SystemExit(f"flashint8 needs setuptools {OLDEST_SETUPTOOLS}: pip install -U setuptools")
setup(
    ext_modules=[Extension(f"{PACKAGE}._C", sources=[])],
    cmdclass={"build": Build, "build_ext": CMakeBuild},
)
