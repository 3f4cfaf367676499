"""benchmarks/mma_rate: compiles for every card, says why there is no rate, and reaches captions."""

from __future__ import annotations

import importlib
import stat
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def mma_rate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("mma_rate")


def fake_nvcc(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """An nvcc on the PATH whose output, wherever it is asked for, is this shell script."""
    nvcc = folder / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != -o ]; do shift; done\n'
        f'printf \'#!/bin/sh\\n{program}\\n\' > "$2"; chmod +x "$2"\n'
    )
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_no_gpu_no_ceiling(mma_rate: ModuleType) -> None:
    assert mma_rate.mma_sync_ceiling(torch.device("cpu")) == {}


def test_reads_what_the_program_prints(
    mma_rate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device = torch.device("cuda", 0)
    fake_nvcc(tmp_path, monkeypatch, 'echo "{\\\\"mma_sync_tflops\\\\": 612.34}"')
    assert mma_rate.mma_sync_ceiling(device) == {"mma_sync_tflops": 612.3}
    fake_nvcc(tmp_path, monkeypatch, "echo no such device >&2; exit 1")
    found = mma_rate.mma_sync_ceiling(device)
    assert found == {"mma_sync_tflops": None, "mma_sync_note": "mma_rate: no such device"}


def test_says_that_there_is_no_nvcc(
    mma_rate: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    found = mma_rate.mma_sync_ceiling(torch.device("cuda", 0))
    assert found["mma_sync_tflops"] is None
    assert found["mma_sync_note"] == "no nvcc was found (PATH, CUDA_HOME)"


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
def test_compiles(mma_rate: ModuleType, architecture: str, tmp_path: Path) -> None:
    """Without a spilled register: the loop must hold nothing but products."""
    nvcc = mma_rate.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    flags = (*mma_rate.FLAGS, "-cubin", "-Xptxas=-warn-spills,-Werror")
    source, cubin = str(mma_rate.SOURCE), str(tmp_path / "mma_rate.cubin")
    mma_rate.output(nvcc, *flags, f"-arch={architecture}", "-o", cubin, source)


def test_caption_shows_it(mma_rate: ModuleType) -> None:
    tables = importlib.import_module("tables")
    environment = {
        "device": "NVIDIA H100",
        "driver": "580",
        "torch": "2.11.0",
        "git": "0" * 40,
        "dirty": False,
        "date": "2026-11-25",
    }
    ceilings = {"read_gb_s": 3112.0, "matmul_tflops": 705.1, "matmul_dtype": "float16"}
    rows = [{"case": {"M": 1, "dtype": "float16"}, "methods": {}}]
    result = {"environment": environment, "ceilings": ceilings, "rows": rows}
    assert "mma.sync" not in tables.origin(result, rows)
    ceilings["mma_sync_tflops"] = 612.3
    assert "matmul 705 TFLOP/s, mma.sync 612 TFLOP/s, commit" in tables.origin(result, rows)
