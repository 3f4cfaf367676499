"""What `flashint8 info` says: collected as data, rendered as text."""

import os
import platform
from dataclasses import asdict
from typing import Any

import torch

from flashint8 import _C, _arch, _driver, _load, _version

_NO_CUDA_BUILD = (
    "the CUDA part was not built: install nvcc (CUDA 12 or 13) and rebuild with FLASHINT8_CUDA=1 "
    "pip install -e . --no-build-isolation"
)


def collect() -> dict[str, Any]:
    """Versions, what was built, what each GPU and the CPU here will run, and why not more."""
    build = dict(_C.build_info())
    driver = _driver.query()
    isa, isa_problem = _cpu_isa()
    reasons = why_not_more(build, driver, _load.CUDA_LOADED, torch.version.cuda)
    gpus = [_gpu_report(gpu, build, _load.CUDA_LOADED) for gpu in driver.gpus]
    return {
        "flashint8": _version.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "build": build,
        "cuda_library_loaded": _load.CUDA_LOADED,
        "driver": {"cuda": driver.cuda, "problem": driver.problem},
        "gpus": gpus,
        "cpu": {
            "isa": isa,
            "isa_supported": list(_C.cpu_isa_supported()),
            "threads": torch.get_num_threads(),
        },
        "why_not_more": [*isa_problem, *reasons],
    }


def _cpu_isa() -> tuple[str | None, list[str]]:
    """The CPU kernels' instruction set; None, and why, where FLASHINT8_CPU_ISA names no such."""
    try:
        return _C.cpu_isa(), []
    except ValueError:
        wanted = os.environ.get("FLASHINT8_CPU_ISA", "")
        known = ", ".join(_C.cpu_isa_supported())
        return None, [f"FLASHINT8_CPU_ISA is {wanted!r}, this machine runs {known}: unset it"]


def _gpu_report(gpu: _driver.Gpu, build: dict[str, Any], loaded: bool) -> dict[str, Any]:
    built: list[str] = build["cuda_architectures"]
    code = _arch.runnable(gpu.compute_capability, built)
    runs = _arch.describe(gpu.compute_capability, built)
    if code is not None and not loaded:
        runs = f"nothing now; once the CUDA library is loaded, {runs}"
    return {**asdict(gpu), "code": code, "runs": runs}


def _version_pair(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def driver_problem(driver_cuda: str, toolkit: str, uses_ptx: bool) -> str | None:
    """Why a driver cannot run code of a toolkit; None where it can. Versions as "13.0".

    Within a major version a binary runs on any driver ("minor version compatibility" in NVIDIA's
    CUDA Compatibility guide); PTX needs a driver at least as new as the compiler that wrote it.
    """
    driver, built = _version_pair(driver_cuda), _version_pair(toolkit)
    if driver[0] < built[0]:
        return (
            f"the driver speaks CUDA {driver_cuda}, the CUDA part was built with {toolkit}: update "
            f"the driver, or rebuild with a CUDA {driver[0]} nvcc"
        )
    if uses_ptx and driver < built:
        return (
            f"the driver speaks CUDA {driver_cuda} and cannot compile PTX of CUDA {toolkit}: "
            "update the driver, or rebuild for this GPU's own architecture"
        )
    return None


def why_not_more(
    build: dict[str, Any], driver: _driver.Driver, loaded: bool, torch_cuda: str | None
) -> list[str]:
    """Each thing that keeps this machine from running more, with its cure."""
    reasons = []
    if driver.problem:
        reasons.append(driver.problem)
    if not build["cuda"]:
        if driver.gpus:
            reasons.append(_NO_CUDA_BUILD)
        return reasons
    if torch_cuda is None:
        if driver.gpus:
            reasons.append(
                "this torch has no CUDA part, so the CUDA library is not loaded: install a CUDA "
                "build of torch"
            )
    elif not loaded:
        reasons.append("the CUDA library's file is missing: install flashint8 again")
    built: list[str] = build["cuda_architectures"]
    for gpu in driver.gpus:
        cc = gpu.compute_capability
        code = _arch.runnable(cc, built)
        where = f"GPU {gpu.index} ({gpu.name})"
        if code is None:
            reasons.append(f"{where}: {_arch.describe(cc, built)}; {_arch.cure(cc)}")
            continue
        uses_ptx = code.endswith("-virtual")
        problem = driver_problem(driver.cuda, build["cuda_toolkit"], uses_ptx)
        if problem:
            reasons.append(f"{where}: {problem}")
        elif uses_ptx:
            reasons.append(
                f"{where}: PTX is compiled at first use; for a binary of its own, {_arch.cure(cc)}"
            )
    return reasons


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    build, driver, cpu = report["build"], report["driver"], report["cpu"]
    rows = [
        ("flashint8", report["flashint8"]),
        ("Python", report["python"]),
        ("torch", f"{report['torch']} (CUDA: {report['torch_cuda'] or 'none'})"),
        ("built against", f"torch {build['torch']}, {build['compiler']}"),
        ("CPU part", ", ".join(build["cpu_isa_built"])),
        ("  runs", f"{cpu['isa'] or 'nothing'}, {cpu['threads']} threads"),
    ]
    if build["cuda"]:
        architectures = ", ".join(build["cuda_architectures"])
        state = "loaded" if report["cuda_library_loaded"] else "not loaded"
        rows.append(("CUDA part", f"CUDA {build['cuda_toolkit']} for {architectures}; {state}"))
    else:
        rows.append(("CUDA part", "not built"))
    rows.append(("driver", f"CUDA {driver['cuda']}" if driver["cuda"] else "none"))
    for gpu in report["gpus"]:
        memory = gpu["memory"] / 2**30
        rows.append(
            (
                f"GPU {gpu['index']}",
                f"{gpu['name']}, sm_{gpu['compute_capability']}, {gpu['sm_count']} SMs, "
                f"{memory:.0f} GiB",
            )
        )
        rows.append(("  runs", gpu["runs"]))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    if report["why_not_more"]:
        lines += ["", "Why not more:", *(f"  - {reason}" for reason in report["why_not_more"])]
    return "\n".join(lines)
