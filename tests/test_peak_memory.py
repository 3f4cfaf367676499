"""Converting never holds the 16-bit model: peak memory, measured in child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peak_memory_child import LAYERS, SIZE, model_on_meta

import flashint8
from flashint8.checkpoint_writer import CheckpointWriter, Spec

TENSOR = 2 * SIZE * SIZE  # bytes of the largest tensor, in bfloat16
INT8 = LAYERS * SIZE * (SIZE + 4 + 2)  # of the int8 model: weights, scales, biases
SLACK = 24 * 2**20  # allocator, threads, Python
CHILD = Path(__file__).with_name("peak_memory_child.py")
LIMITS = {"load": INT8 + TENSOR + SLACK, "save": TENSOR + SLACK, "quantize": 2 * TENSOR + SLACK}

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peak") / "model.safetensors"
    specs = []
    for i in range(LAYERS):
        specs.append(Spec(f"{i}.weight", torch.bfloat16, (SIZE, SIZE)))
        specs.append(Spec(f"{i}.bias", torch.bfloat16, (SIZE,)))
    with CheckpointWriter(path, specs) as writer:
        weight = torch.randn(SIZE, SIZE).bfloat16()
        for name, dtype, shape in specs:
            writer.write(name, weight if len(shape) == 2 else torch.zeros(shape, dtype=dtype))
    return path


@pytest.mark.parametrize("action", LIMITS)
def test_peak(checkpoint: Path, tmp_path: Path, action: str) -> None:
    assert LIMITS[action] < LAYERS * TENSOR  # the 16-bit model would not fit the limit
    command = [sys.executable, str(CHILD), action, str(checkpoint), str(tmp_path / "x.safetensors")]
    path = os.pathsep.join([str(CHILD.parents[1]), str(CHILD.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    added = int(done.stdout.splitlines()[-1])
    assert added <= LIMITS[action], f"{added / 2**20:.1f} MiB, {LIMITS[action] / 2**20:.1f} allowed"
    if action == "load":
        assert added > INT8 / 2, f"{added} bytes: this measures nothing"


def test_peak_on_cuda(cuda: str, checkpoint: Path) -> None:
    """The device, too, holds the int8 model and one 16-bit tensor at most."""
    model = model_on_meta()
    flashint8.quantize_per_channel(torch.randn(64, 64, device=cuda))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    flashint8.load_quantized(model, checkpoint, device=cuda)
    added = torch.cuda.max_memory_allocated() - before
    assert INT8 <= added <= INT8 + TENSOR + 2**20, f"{added / 2**20:.1f} MiB"
