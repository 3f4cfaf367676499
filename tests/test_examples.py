"""The notebook and the scripts in examples/ run, on the CPU, from a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code cells one after the other; it is committed without outputs."""
    pytest.importorskip("transformers", minversion="5.23")
    monkeypatch.chdir(tmp_path)
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(sources) > 3
    assert not any(cell.get("outputs") for cell in cells)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, source in enumerate(sources):
        exec(compile(source, f"{path.name}, code cell {number}", "exec"), namespace)


def test_quickstart(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "layers swapped" in done.stdout
