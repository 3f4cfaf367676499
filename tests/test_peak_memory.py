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


def measure(action: str, source: Path, target: Path) -> int:
    """Bytes, from a process of its own."""
    command = [sys.executable, str(CHILD), action, str(source), str(target)]
    path = os.pathsep.join([str(CHILD.parents[1]), str(CHILD.parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("action", LIMITS)
def test_peak(checkpoint: Path, tmp_path: Path, action: str) -> None:
    assert LIMITS[action] < LAYERS * TENSOR  # the 16-bit model would not fit the limit
    added = measure(action, checkpoint, tmp_path / "x.safetensors")
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


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, int]:
    """A folder of a bfloat16 Llama: bytes of the model, and of it once it is int8."""
    transformers = pytest.importorskip("transformers", minversion="5.23")
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).bfloat16()
    model = model.to_empty(device="cpu")
    model.tie_weights()
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    folder = tmp_path_factory.mktemp("peak") / "llama"
    model.save_pretrained(folder)
    report = flashint8.quantize_model(model)
    return folder, report.bytes_before, report.bytes_after


HF_TENSOR = 2 * 1024 * 3072


def test_peak_in_transformers(pretrained: tuple[Path, int, int], tmp_path: Path) -> None:
    """Beside the file, which it maps, from_pretrained holds the int8 model and about a tensor."""
    folder, wide, narrow = pretrained
    limit = narrow + 2 * HF_TENSOR + SLACK
    assert limit < wide
    added = measure("transformers", folder, tmp_path)
    assert added <= limit, f"{added / 2**20:.1f} MiB, {limit / 2**20:.1f} allowed"
    assert added > narrow / 2, f"{added} bytes: this measures nothing"


def test_peak_in_transformers_on_cuda(cuda: str, pretrained: tuple[Path, int, int]) -> None:
    import flashint8.integrations.transformers as fi8

    folder, wide, narrow = pretrained
    flashint8.quantize_per_channel(torch.randn(64, 64, device=cuda))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = fi8.load_int8(folder, device=cuda)[0]
    added = torch.cuda.max_memory_allocated() - before
    assert model.dtype == torch.bfloat16
    assert narrow / 2 <= added <= narrow + 2 * HF_TENSOR + SLACK < wide, f"{added / 2**20:.1f} MiB"
