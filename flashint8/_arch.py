"""Which built CUDA code a GPU can run: the driver's rules, as a pure function."""

import re

OLDEST = 80  # the kernels' instructions: cp.async, mma on 16x8x16 tiles

_TARGET = re.compile(r"(\d+)([af]?)(-virtual|-real)?")


def _parse(target: str) -> tuple[int, str, bool]:
    match = _TARGET.fullmatch(target)
    if match is None:
        raise ValueError(f"not a CUDA architecture: {target!r}")
    number, suffix, kind = match.groups()
    return int(number), suffix, kind == "-virtual"


def _serves(target: str, cc: int) -> bool:
    number, suffix, virtual = _parse(target)
    if suffix == "a":  # architecture-specific: this one only
        return number == cc
    if virtual and not suffix:  # PTX: the driver compiles it for any later architecture
        return number <= cc
    return number // 10 == cc // 10 and number <= cc


def _preference(target: str) -> tuple[bool, int, int]:
    number, suffix, virtual = _parse(target)
    return not virtual, number, ("", "f", "a").index(suffix)


def runnable(cc: int, built: list[str]) -> str | None:
    """The entry of `built` that the driver picks for a GPU; None where none of them runs.

    Binary code for sm_XY runs on the same major version with minor >= Y; with the suffix "a" on
    that exact architecture only; with "f" within its family. PTX ("80-virtual") is compiled by
    the driver for any architecture from its own on. Binary code comes before PTX, the nearest
    architecture first (CUDA C++ Programming Guide, "Application Compatibility").

    Args:
        cc: compute capability as 10 * major + minor, 86 for 8.6.
        built: CMake's names, such as ["80", "90a", "120", "80-virtual"].

    Raises:
        ValueError: an entry of `built` is not a CUDA architecture.
    """
    candidates = [target for target in built if _serves(target, cc)]
    return max(candidates, key=_preference, default=None)


def describe(cc: int, built: list[str]) -> str:
    """What `runnable` picks and how near it is to the GPU, in words."""
    target = runnable(cc, built)
    if target is None:
        return f"no built code runs on sm_{cc} (built: {', '.join(built) or 'nothing'})"
    number, suffix, virtual = _parse(target)
    name = f"{number}{suffix}"
    if virtual:
        return f"compute_{name} PTX, compiled by the driver at first use"
    if number == cc:
        return f"sm_{name} binary, this architecture's own"
    return f"sm_{name} binary, which runs on every sm_{number // 10}x from it on"


def cure(cc: int) -> str:
    """What to do where no built code, or only PTX, serves this GPU; setup takes "9.0" for 90a."""
    if cc < OLDEST:
        return "GPUs before Ampere (sm_80) are not supported"
    arch = f"{cc // 10}.{cc % 10}"
    return f"rebuild with TORCH_CUDA_ARCH_LIST={arch} pip install -e . --no-build-isolation"
