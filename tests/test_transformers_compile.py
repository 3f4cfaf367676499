"""`fi8` and int8 layers under torch.compile and in CUDA graphs, with static caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_models import CACHE, batch, make, transformers
from torch import Tensor
from transformers import masking_utils

import flashint8
import flashint8.integrations.transformers as fi8


def int8_model(name: str, device: str) -> Any:
    model = make(name, device)
    model.set_attn_implementation(fi8.ATTENTION)
    flashint8.quantize_model(model)
    return model


def decode(model: Any, forward: Any, device: str, whole: bool) -> Tensor:
    """Logits of four steps after a prompt; `whole`: masks made before, as generate() does."""
    inputs = batch(device)
    cache = transformers.StaticCache(model.config, max_cache_len=24)
    mask = torch.zeros(3, 24, dtype=torch.long, device=device)
    mask[:, :11] = inputs["attention_mask"]
    outs = []
    with torch.inference_mode():
        token = model(**inputs, **{CACHE: cache}).logits[:, -1:].argmax(-1)
        for step in range(4):
            mask[:, 11 + step] = 1
            ready: Any = mask
            if whole:
                embeds = torch.empty(3, 1, 64, dtype=model.dtype, device=device)
                ready = masking_utils.create_masks_for_generate(
                    model.config, embeds, mask, cache, torch.full((3, 1), 11 + step, device=device)
                )
            out = forward(input_ids=token, attention_mask=ready, **{CACHE: cache}).logits
            token = out[:, -1:].argmax(-1)
            outs.append(out)
    return torch.cat(outs, 1)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_compiled_decoding(name: str, whole: bool, device: str) -> None:
    """Traced, not generated: the graph holds our operators; whole where masks come from outside."""
    model = int8_model(name, device)
    want = decode(model, model, device, whole)
    torch.compiler.reset()
    compiled = torch.compile(model.forward, backend="aot_eager", fullgraph=whole)
    got = decode(model, compiled, device, whole)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_generate_compiles_on_cuda(cuda: str) -> None:
    """With a static cache generate() compiles by itself there."""
    model = int8_model("llama", cuda)
    options = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": "static"}
    want = model.generate(**batch(cuda), **options, disable_compile=True)
    torch.compiler.reset()
    got = model.generate(**batch(cuda), **options)
    assert got.shape == want.shape
    assert float((got == want).float().mean()) > 0.6  # a rounding may turn a token and what follows


def test_cuda_graph(cuda: str) -> None:
    """A decoding step captured once and replayed with other lengths and tokens."""
    model = int8_model("llama", cuda)
    q, k, v = torch.randn(3, 2, 4, 20, 16, dtype=torch.float16, device=cuda)
    q, layer = q[:, :, :1].clone(), model.model.layers[0].self_attn
    padding = torch.ones(2, 20, dtype=torch.long, device=cuda)
    offset = torch.tensor(5, device=cuda)

    def step() -> Tensor:
        mask = fi8.interval_mask(2, 1, 20, offset, 0, attention_mask=padding, device=cuda)
        return fi8.attention_forward(layer, q, k, v, mask)[0]

    with torch.inference_mode():
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step()
        for position, left in ((5, 0), (11, 3), (19, 10)):
            offset.fill_(position)
            padding.fill_(1)
            padding[0, :left] = 0
            graph.replay()
            torch.testing.assert_close(out, step(), rtol=0, atol=0)
