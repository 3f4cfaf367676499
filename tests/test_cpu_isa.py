"""Every instruction set this machine runs passes the sanitizer cases, not only the widest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import flashint8

TESTS = Path(__file__).parent


def run_python(*arguments: str, isa: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS.parent,
        env={**os.environ, "FLASHINT8_CPU_ISA": isa},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("isa", flashint8._C.cpu_isa_supported())
def test_instruction_set(isa: str, request: pytest.FixtureRequest) -> None:
    shown = run_python("-c", "import flashint8; print(flashint8._C.cpu_isa())", isa=isa)
    assert shown.stdout.strip() == isa, shown.stderr
    seed = f"--seed={request.config.getoption('--seed')}"
    cases = ["-m", "sanitizer", "-k", "cpu", "-q", "-x", "-p", "no:cacheprovider", str(TESTS)]
    done = run_python("-m", "pytest", *cases, seed, isa=isa)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("call", ["attention(t, t, t)", "int8_linear(t[0, 0], w, s)"])
def test_unknown_instruction_set(call: str) -> None:
    """Refused by name on every call, never replaced in silence."""
    code = (
        "import flashint8, torch\n"
        "t, w, s = torch.ones(1, 1, 2, 8), torch.ones(3, 8, dtype=torch.int8), torch.ones(3)\n"
        "for _ in range(2):\n"
        f"    try: flashint8.{call}\n"
        "    except ValueError as error: print('ValueError', error)\n"
    )
    done = run_python("-c", code, isa="mmx")
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    assert all(line.startswith("ValueError") and "mmx" in line for line in lines)
