"""`flashint8 info`, and what importing an unbuilt source tree says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import flashint8


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """In `cwd`, with the package under test importable also where it is built in place."""
    folders = [str(Path(flashint8.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_info(tmp_path: Path) -> None:
    """From another directory: versions, what was built, what this machine runs."""
    done = run(sys.executable, "-m", "flashint8", "info", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert flashint8.__version__ in done.stdout
    assert torch.__version__ in done.stdout
    assert flashint8._C.cpu_isa() in done.stdout
    assert "cuda" in done.stdout.lower()
    assert "Traceback" not in done.stdout + done.stderr


def test_info_json(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "flashint8", "info", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    info = json.loads(done.stdout)
    assert isinstance(info, dict)
    text = json.dumps(info)
    for part in (flashint8.__version__, torch.__version__, flashint8._C.cpu_isa()):
        assert part in text
    for architecture in flashint8._C.build_info()["cuda_architectures"]:
        assert architecture in text


def test_console_script(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("flashint8")
    if not script.exists():
        pytest.skip("the package is built in place, not installed: no console script")
    done = run(str(script), "info", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


def test_unknown_command(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "flashint8", "nonsense", cwd=tmp_path)
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def test_import_of_the_unbuilt_source_tree(tmp_path: Path) -> None:
    """After a plain install, python at the repository's root finds the sources first."""
    source = Path(flashint8.__file__).parent
    shutil.copytree(source, tmp_path / "flashint8", ignore=shutil.ignore_patterns("*.so", "__py*"))
    (tmp_path / "csrc").mkdir()
    done = run(sys.executable, "-c", "import flashint8", cwd=tmp_path)
    assert done.returncode != 0
    message = done.stderr.partition("ImportError: ")[2]
    assert "build" in message or "install" in message, done.stderr
    assert str(tmp_path) in message, f"the message does not say which tree it found: {message}"


def test_build_info() -> None:
    info = flashint8._C.build_info()
    assert info["version"] == flashint8.__version__
    assert isinstance(info["cuda"], bool)
    assert info["cuda"] == bool(info["cuda_architectures"])
    assert info["cuda"] == bool(info["cuda_toolkit"])
    assert info["compiler"]
    assert info["torch"]
    assert flashint8._C.cpu_isa() in flashint8._C.cpu_isa_supported()
    assert set(flashint8._C.cpu_isa_supported()) <= set(info["cpu_isa_built"])


def test_public_names() -> None:
    for name in [
        "attention",
        "attention_with_lse",
        "int8_linear",
        "quantize_per_channel",
        "rope_append_",
        "attention_with_kvcache",
        "add_norm_",
        "silu_mul",
        "explain",
        "Card",
        "Plan",
        "scaled_dot_product_attention",
        "QuantLinear",
        "CausalSelfAttention",
        "functional",
    ]:
        assert hasattr(flashint8, name), name
        if name in flashint8.__all__ and callable(getattr(flashint8, name)):
            assert getattr(flashint8, name).__doc__, f"{name} has no docstring"


def test_info_is_the_default(tmp_path: Path) -> None:
    done = run(sys.executable, "-m", "flashint8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("flashint8 ")
    done = run(sys.executable, "-m", "flashint8", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["flashint8"] == flashint8.__version__


def test_info_with_an_unknown_instruction_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHINT8_CPU_ISA", "mmx")
    done = run(sys.executable, "-m", "flashint8", "info", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mmx" in done.stdout.partition("Why not more:")[2]
