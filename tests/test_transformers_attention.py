"""`fi8` inside transformers: the tokens of its own attention, and errors where that cannot be."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checking import assert_close
from hf_models import CACHE, CONFIGS, batch, logits, make, peer, transformers
from torch import Tensor
from transformers import masking_utils

import flashint8
import flashint8.integrations.transformers as fi8
from flashint8 import cli

TOLERANCE = {"cpu": 2e-5, "cuda": 2e-2}


def both(name: str, device: str) -> tuple[Any, Any]:
    """The same model with transformers' attention and with ours."""
    theirs = make(name, device)
    ours = copy.deepcopy(theirs)
    theirs.set_attn_implementation(peer(name))
    ours.set_attn_implementation("fi8")
    return theirs, ours


def assert_near(got: Tensor, want: Tensor, device: str, what: str) -> None:
    scale = float(want.float().abs().max())
    assert_close(got.float(), want.float(), rtol=0, atol=TOLERANCE[device] * scale, what=what)


def test_the_names_are_not_taken_for_others() -> None:
    for name in (fi8.ATTENTION, fi8.ATTENTION_OR_SDPA):
        assert not [word for word in ("flash", "sdpa", "flex_attention", "/", "|") if word in name]
        assert name in transformers.AttentionInterface().valid_keys()
        assert name in masking_utils.AttentionMaskInterface().valid_keys()
    assert fi8.ATTENTION == "fi8"


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(name: str, device: str) -> None:
    """A left-padded prompt, at once and after a cached part of it; beyond the sliding window."""
    theirs, ours = both(name, device)
    inputs = batch(device, length=19)
    real = inputs["attention_mask"].bool()
    want = logits(theirs, **inputs)
    assert_near(logits(ours, **inputs)[real], want[real], device, "prompt")
    assert_near(
        logits(ours, input_ids=inputs["input_ids"]),
        logits(theirs, input_ids=inputs["input_ids"]),
        device,
        "no mask",
    )
    with torch.inference_mode():
        first = {key: value[:, :13] for key, value in inputs.items()}
        cache = getattr(ours(**first, use_cache=True), CACHE)
        rest = ours(
            input_ids=inputs["input_ids"][:, 13:],
            attention_mask=inputs["attention_mask"],
            **{CACHE: cache},
        ).logits
    assert_near(rest[1], want[1, 13:], device, "the second part")  # (a row without padding)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens(name: str, cache: str, device: str) -> None:
    """Past the sliding windows, with a batch padded on the left; in float32 on the CPU the same."""
    theirs, ours = both(name, device)
    options = {"max_new_tokens": 14, "do_sample": False, "cache_implementation": cache}
    if device == "cuda":  # else generate() compiles, which is not what this test is about
        options["disable_compile"] = True
    want = theirs.generate(**batch(device), **options)
    got = ours.generate(**batch(device), **options)
    assert got.shape == want.shape == (3, 25)
    assert len(want[:, 11:].unique()) > 5, "these tokens say nothing"
    if device == "cpu":
        assert torch.equal(got, want)
        alone = ours.generate(batch()["input_ids"][:1, 4:], **options)
        assert torch.equal(alone[0, 7:], got[0, 11:]), "padding changes the tokens"


def test_padding_is_not_dropped(device: str) -> None:
    """What another padding token says must not matter; with no mask function it would."""
    ours = make("llama", device)
    ours.set_attn_implementation("fi8")
    inputs = batch(device)
    real = inputs["attention_mask"].bool()
    changed = inputs["input_ids"].masked_fill(~real, 55)
    first = logits(ours, **inputs)[real]
    second = logits(ours, input_ids=changed, attention_mask=inputs["attention_mask"])[real]
    assert torch.equal(first, second)
    unmasked = logits(ours, input_ids=changed)[real]
    assert not torch.equal(first, unmasked)


def test_without_its_mask_function_padding_would_be_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why both are registered: transformers then passes no mask, and says nothing."""
    ours = make("llama")
    ours.set_attn_implementation("fi8")
    inputs = batch()
    real = inputs["attention_mask"].bool()
    want = logits(ours, **inputs)[real]
    known = masking_utils.AttentionMaskInterface._global_mapping
    monkeypatch.setattr(
        masking_utils.AttentionMaskInterface,
        "_global_mapping",
        {name: function for name, function in known.items() if name != fi8.ATTENTION},
    )
    assert not torch.allclose(logits(ours, **inputs)[real], want, atol=1e-2)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_sliding_caches_slide(name: str) -> None:
    """The caches of test_greedy_tokens hold no more keys than the window."""
    ours = make(name)
    ours.set_attn_implementation("fi8")
    window = ours.config.sliding_window
    options = {"max_new_tokens": 14, "do_sample": False, "return_dict_in_generate": True}
    for kind, most in (("dynamic", window - 1), ("static", window)):
        out = ours.generate(**batch(), **options, cache_implementation=kind)
        layer = getattr(out, CACHE).layers[0]
        assert layer.is_sliding
        assert "Static" in type(layer).__name__ or kind == "dynamic"
        assert layer.keys.shape[2] == most


def test_right_padding(device: str) -> None:
    theirs, ours = both("llama", device)
    inputs = batch(device)
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    real = inputs["attention_mask"].bool()
    assert_near(logits(ours, **inputs)[real], logits(theirs, **inputs)[real], device, "right")


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt2"])
def test_several_tokens_against_a_cache(name: str) -> None:
    """Prompts in chunks, and tokens guessed from the prompt and checked together."""
    theirs, ours = both(name, "cpu")
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7]])
    ways: list[dict[str, Any]] = [
        {"cache_implementation": "dynamic", "prefill_chunk_size": 4},
        {"cache_implementation": "static", "prefill_chunk_size": 4},
        {"cache_implementation": "dynamic", "prompt_lookup_num_tokens": 3},
    ]
    if name == "llama" and CACHE == "cache":  # static caches can be cropped from 5.24 on
        ways.append({"cache_implementation": "static", "prompt_lookup_num_tokens": 3})
    for way in ways:
        want = theirs.generate(ids, max_new_tokens=14, do_sample=False, **way)
        assert torch.equal(ours.generate(ids, max_new_tokens=14, do_sample=False, **way), want), way


def test_beams_and_continued_caches() -> None:
    theirs, ours = both("qwen2", "cpu")
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3}
    want = theirs.generate(**batch(), **options)
    assert torch.equal(ours.generate(**batch(), **options), want)
    for kind in ("dynamic", "static"):
        found = []
        for model in (theirs, ours):
            inputs, cache = batch(), None
            out = model.generate(
                **inputs,
                max_new_tokens=5,
                do_sample=False,
                cache_implementation=kind if kind == "static" else None,
                return_dict_in_generate=True,
            )
            cache, ids = getattr(out, CACHE), out.sequences
            more = torch.cat([ids, ids[:, :3]], 1)
            mask = torch.cat([inputs["attention_mask"], torch.ones(3, more.shape[1] - 11)], 1)
            if kind == "dynamic":
                found.append(
                    model.generate(
                        more,
                        attention_mask=mask.long(),
                        **{CACHE: cache},
                        max_new_tokens=5,
                        do_sample=False,
                    )
                )
            else:
                found.append(ids)
        assert torch.equal(*found)


# ---- calls that are refused, and the fallback ---------------------------------------------------


def call(**options: Any) -> tuple[Tensor, None]:
    q, k, v = torch.randn(3, 2, 4, 3, 8)
    module = options.pop("module", SimpleNamespace(is_causal=True))
    mask = options.pop("mask", None)
    return fi8.attention_forward(module, q, k, v, mask, **options)


REFUSED_CALLS = {
    "sinks": ({"s_aux": torch.ones(4)}, "attention sinks"),
    "bias": ({"position_bias": torch.ones(1)}, "a position bias"),
    "paged": ({"read_index": [torch.ones(2)], "cu_seq_lens_q": torch.ones(2)}, "a paged cache"),
    "paged, blocks": ({"block_table": torch.ones(1, 2)}, "a paged cache"),
    "packed": ({"cu_seq_lens_q": torch.ones(2)}, "packed sequences"),
    "dropout": ({"dropout": 0.1}, r"dropout \(0.1\)"),
    "weights": ({"output_attentions": True}, "output_attentions"),
    "4-D": ({"mask": torch.zeros(2, 1, 3, 3)}, r"a mask of one's own \(shape \(2, 1, 3, 3\)"),
    "2-D": ({"mask": torch.ones(2, 3, dtype=torch.int32)}, r"a mask of one's own \(shape \(2, 3\)"),
    "no window": (
        {"mask": torch.zeros(2, 1, 1, 3, dtype=torch.int32)},
        "the mask has a sliding window, but SimpleNamespace passes none",
    ),
}


@pytest.mark.parametrize("kind", REFUSED_CALLS)
def test_calls_that_are_refused(kind: str) -> None:
    options, message = REFUSED_CALLS[kind]
    with pytest.raises(ValueError, match=f"fi8: {message}"):
        call(**options)


def test_calls_without_a_mask() -> None:
    """As SDPA: causal from the start (a prompt in an empty static cache), one query sees all."""
    q = torch.randn(2, 4, 3, 8)
    k, v = torch.randn(2, 2, 2, 6, 8)
    module = SimpleNamespace(is_causal=True)

    def want(**options: Any) -> Tensor:
        options = {"enable_gqa": True, **options}
        sdpa = torch.nn.functional.scaled_dot_product_attention
        return sdpa(options.pop("q", q), k, v, **options).transpose(1, 2)

    out, weights = fi8.attention_forward(module, q, k, v, None)
    assert weights is None
    torch.testing.assert_close(out, want(is_causal=True))
    one = q[:, :, :1]
    torch.testing.assert_close(fi8.attention_forward(module, one, k, v, None)[0], want(q=one))
    loose = SimpleNamespace(is_causal=False)
    torch.testing.assert_close(fi8.attention_forward(loose, q, k, v, None)[0], want())
    out, _ = fi8.attention_forward(module, q, k, v, None, is_causal=False, scaling=0.5)
    torch.testing.assert_close(out, want(scale=0.5))


def test_models_that_are_refused() -> None:
    model = make("llama")
    model.set_attn_implementation("fi8")
    ids = batch()["input_ids"]
    packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2]]).expand(3, -1)
    with pytest.raises(ValueError, match="packed sequences"):
        model(ids, position_ids=packed, use_cache=False)
    own = torch.ones(3, 1, 11, 11, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="a mask of one's own"):
        model(ids, attention_mask=own)
    hole = torch.ones_like(ids)
    hole[1, 4] = 0
    with pytest.raises(ValueError, match="a hole"):
        model(ids, attention_mask=hole)


def test_attention_sinks_are_refused() -> None:
    config = transformers.GptOssConfig(
        vocab_size=101,
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        pad_token_id=0,
        layer_types=["full_attention"],
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.set_attn_implementation("fi8")
    with pytest.raises(ValueError, match="attention sinks"):
        model(batch()["input_ids"])


def test_fallback_to_torch() -> None:
    theirs, ours = both("llama", "cpu")
    fi8.use_attention(ours, fallback="sdpa")
    assert ours.config._attn_implementation == fi8.ATTENTION_OR_SDPA
    ids = batch()["input_ids"]
    packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2]]).expand(3, -1)
    own = torch.ones(3, 1, 11, 11, dtype=torch.bool).tril()
    own[:, :, :, 2] = False
    own[:, :, 2, 2] = True
    hole = torch.ones_like(ids)
    hole[1, 4] = 0
    for options in (
        {"position_ids": packed, "use_cache": False},
        {"attention_mask": own},
        {"attention_mask": hole},
    ):
        with pytest.warns(UserWarning, match="torch's attention is used: fi8: "):
            got = logits(ours, input_ids=ids, **options)
        torch.testing.assert_close(got, logits(theirs, input_ids=ids, **options))
    # What the kernel refuses by itself: a mask of ours is expanded.
    q, k, v = torch.randn(3, 2, 4, 3, 300)
    module = SimpleNamespace(is_causal=True)
    padding = torch.tensor([[0, 1, 1], [1, 1, 1]])
    compact = fi8.interval_mask(2, 3, 3, attention_mask=padding)
    with pytest.raises(ValueError, match="head_dim must be at most 256"):
        fi8.attention_forward(module, q, k, v, compact)
    from flashint8.integrations._hf_attention import attention_or_sdpa_forward

    with pytest.warns(UserWarning, match="head_dim must be at most 256"):
        got, _ = attention_or_sdpa_forward(module, q, k, v, compact)
    seen = torch.ones(3, 3, dtype=torch.bool).tril() & padding.bool()[:, None, None]
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    torch.testing.assert_close(got[:, 1:], want.transpose(1, 2)[:, 1:])


def test_use_attention() -> None:
    model = torch.nn.Sequential(make("llama"))
    fi8.use_attention(model)
    assert model[0].config._attn_implementation == "fi8"
    with pytest.raises(ValueError, match="fallback must be None or 'sdpa', got 'eager'"):
        fi8.use_attention(model, fallback="eager")
    with pytest.raises(ValueError, match="no transformers model in this Linear"):
        fi8.use_attention(torch.nn.Linear(2, 2))


def test_models_whose_attention_cannot_be_exchanged(tmp_path: Path) -> None:
    config = transformers.BloomConfig(vocab_size=101, hidden_size=64, n_layer=1, n_head=4)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match="BloomForCausalLM stays with its own attention"):
        fi8.use_attention(model)
    model.save_pretrained(tmp_path / "float")
    with pytest.raises(ValueError, match="stays with its own attention"):
        fi8.load_int8(tmp_path / "float")
    assert cli.main(["quantize", str(tmp_path / "float"), str(tmp_path / "int8")]) == 0
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    assert isinstance(again.transformer.h[0].mlp.dense_h_to_4h, flashint8.QuantLinear)
    assert bool(logits(again, input_ids=batch()["input_ids"]).isfinite().all())


def test_bidirectional_models(device: str) -> None:
    """BERT: no causality, padding on the right."""
    config = transformers.BertConfig(
        vocab_size=101,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    torch.manual_seed(1)
    dtype = torch.float32 if device == "cpu" else torch.float16
    model = transformers.BertModel(config).to(device, dtype).eval()
    inputs = batch(device)
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    real = inputs["attention_mask"].bool()
    found = []
    for name in ("sdpa", "fi8"):
        model.set_attn_implementation(name)
        with torch.inference_mode():
            found.append(model(**inputs).last_hidden_state[real])
    assert_near(found[1], found[0], device, "BERT")
