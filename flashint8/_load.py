"""Loads the compiled parts: the `_C` module and the operator libraries beside it."""

import importlib
import sys
from pathlib import Path

import torch

MINIMUM_TORCH = (2, 10)
CPU_LIBRARY = "libflashint8_cpu.so"
CUDA_LIBRARY = "libflashint8_cuda.so"

_BUILD_COMMAND = "pip install -e . --no-build-isolation"


def check_torch_version(version: str) -> None:
    """Raises ImportError where `version` ("2.13.0+cu130") is older than the op libraries need."""
    major, minor = version.split("+")[0].split(".")[:2]
    if (int(major), int(minor)) < MINIMUM_TORCH:
        needed = ".".join(map(str, MINIMUM_TORCH))
        raise ImportError(
            f"flashint8 needs torch >= {needed} (its operators use that version's stable "
            f"interface), found torch {version}"
        )


def unbuilt_message(package: Path) -> str:
    """What to tell a user whose `flashint8` folder has no compiled module for this Python."""
    python = f"Python {sys.version_info.major}.{sys.version_info.minor}"
    others = sorted(path.name for path in package.glob("_C.*.so"))
    built = f" (built for another Python: {', '.join(others)})" if others else ""
    if (package.parent / "csrc").is_dir():
        return (
            f"flashint8: {package} is the source tree, not built for {python}{built}. Run "
            f"`{_BUILD_COMMAND}` in {package.parent}; or, if flashint8 is installed already, leave "
            f"that folder, where Python finds the source tree first."
        )
    return (
        f"flashint8: the installation in {package} has no compiled module for {python}{built}; "
        "install it again"
    )


def _load_library(path: Path) -> None:
    if not path.is_file():
        raise ImportError(f"flashint8: {path} is missing; run `{_BUILD_COMMAND}` again")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        reason = error.__cause__ or error
        raise ImportError(
            f"flashint8: cannot load {path} under torch {torch.__version__}: {reason}"
        ) from error


def load() -> bool:
    """Loads the operator libraries; returns whether the CUDA one is among them.

    The CUDA library needs torch's own CUDA part, so under a CPU-only torch it is left alone.

    Raises:
        ImportError: torch is too old, or the package was not built for this Python.
    """
    check_torch_version(torch.__version__)
    package = Path(__file__).resolve().parent
    try:
        compiled = importlib.import_module("flashint8._C")
    except ModuleNotFoundError as error:
        raise ImportError(unbuilt_message(package)) from error
    folder = Path(str(compiled.__file__)).resolve().parent
    _load_library(folder / CPU_LIBRARY)
    cuda_library = folder / CUDA_LIBRARY
    if torch.version.cuda is None or not cuda_library.is_file():
        return False
    _load_library(cuda_library)
    return True


CUDA_LOADED: bool = load()
