"""GPT and Llama: the three attentions agree, cached equals uncached, lengths and full caches."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from model_cases import TINY, TINY_GPT, TINY_LLAMA, draw_tokens, model_dtype, tiny_model, tolerance
from torch import nn

import flashint8
from flashint8 import silu_mul
from flashint8.generate import generate
from flashint8.models import GPT, KVCache, Llama, ModelConfig

pytestmark = pytest.mark.usefixtures("inference")


@pytest.fixture
def inference():
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("attention", ["flashint8", "sdpa"])
@pytest.mark.parametrize("linears", ["float", "int8"])
@pytest.mark.parametrize("name", TINY)
def test_attentions_agree(name: str, linears: str, attention: str, device: str) -> None:
    naive = tiny_model(name, device, attention="naive", linears=linears)
    other = tiny_model(name, device, attention=attention, linears=linears)
    other.load_state_dict(naive.state_dict())
    tokens = draw_tokens(2, 33, device=device)
    expected = naive(tokens)
    assert expected.std() > 0.05
    torch.testing.assert_close(other(tokens), expected, rtol=0, atol=tolerance(device))


@pytest.mark.parametrize("attention", ["flashint8", "sdpa", "naive"])
@pytest.mark.parametrize("name", TINY)
def test_cached_equals_uncached(name: str, attention: str, device: str) -> None:
    """A prompt, a second piece of it, single tokens, and single tokens as a graph reads them."""
    model = tiny_model(name, device, attention=attention)
    tokens = draw_tokens(2, 24, device=device)
    cache = model.new_cache(2, 32)
    out = [model(tokens[:, :9], cache), model(tokens[:, 9:14], cache)]
    out += [model(tokens[:, i : i + 1], cache) for i in range(14, 18)]
    for i in range(18, 24):
        cache.reserve(1)
        out.append(model.decode(tokens[:, i : i + 1], cache)[:, None])
        cache.positions += 1
        cache.advance_host(1)
    assert cache.lengths == cache.positions.tolist() == [24, 24]
    expected = model(tokens)
    torch.testing.assert_close(torch.cat(out, 1), expected, rtol=0, atol=tolerance(device))


@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize("name", TINY)
def test_few_tokens_in_a_long_cache(name: str, head_dim: int, device: str) -> None:
    """Fewer than the splits that the cache is read by, so that some of these have nothing."""
    config = dataclasses.replace(TINY[name], max_positions=4096, head_dim=head_dim)
    model = (GPT if name == "gpt" else Llama)(config, device=device, dtype=model_dtype(device))
    tokens = draw_tokens(2, 40, device=device)
    cache = model.new_cache(2, 4096)
    out = [model.decode(tokens[:, :1], cache)[:, None]]
    for i in range(1, 40):
        cache.positions += 1
        out.append(model.decode(tokens[:, i : i + 1], cache)[:, None])
    expected = model(tokens)
    torch.testing.assert_close(torch.cat(out, 1), expected, rtol=0, atol=tolerance(device))


@pytest.mark.parametrize("attention", ["flashint8", "sdpa", "naive"])
@pytest.mark.parametrize("name", TINY)
def test_rows_of_different_length(name: str, attention: str, device: str) -> None:
    """Each row of a right-padded batch gives what it gives alone, in prompt and decoding."""
    model = tiny_model(name, device, attention=attention)
    counts = [5, 11, 1]
    tokens = draw_tokens(3, 11, device=device)
    new = draw_tokens(3, 4, device=device)
    cache = model.new_cache(3, 16)
    out = [model(tokens, cache, counts, last=True)]
    assert cache.lengths == cache.positions.tolist() == counts
    out += [model(new[:, i : i + 1], cache, last=True) for i in range(4)]
    for row, count in enumerate(counts):
        alone = torch.cat([tokens[row : row + 1, :count], new[row : row + 1]], dim=1)
        expected = model(alone)[0, count - 1 :]
        got = torch.stack([logits[row] for logits in out])
        torch.testing.assert_close(got, expected, rtol=0, atol=tolerance(device))


@pytest.mark.parametrize("name", TINY)
def test_full_cache_is_refused_before_it_is_touched(name: str, device: str) -> None:
    model = tiny_model(name, device)
    cache = model.new_cache(2, 8)
    model(draw_tokens(2, 6, device=device), cache, [6, 3])
    before = [(k.clone(), v.clone()) for k, v in cache.layers]
    with pytest.raises(ValueError, match=r"row 0 holds 6 of 8 positions, 3 more do not fit"):
        model(draw_tokens(2, 3, device=device), cache)
    assert cache.lengths == cache.positions.tolist() == [6, 3]
    for (k, v), (old_k, old_v) in zip(cache.layers, before, strict=True):
        assert torch.equal(k, old_k)
        assert torch.equal(v, old_v)
    model(draw_tokens(2, 2, device=device), cache)  # what does fit, fits
    with pytest.raises(ValueError, match="do not fit"):
        model(draw_tokens(2, 1, device=device), cache)
    cache.reset()
    assert cache.positions.tolist() == [0, 0]
    model(draw_tokens(2, 8, device=device), cache)


def test_other_tokens_do_not_matter_after_reset(device: str) -> None:
    model = tiny_model("llama", device)
    cache = model.new_cache(1, 16)
    model(draw_tokens(1, 16, device=device), cache)
    cache.reset()
    tokens = draw_tokens(1, 7, device=device)
    assert torch.equal(model(tokens, cache), model(tokens, model.new_cache(1, 16)))


class ActivationApart(nn.Module):
    """An int8 model's MLP with the activation behind its product, as an operator of its own."""

    def __init__(self, mlp: nn.Module, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.architecture == "llama"
        self.up = copy.deepcopy(mlp.gate_up_pairs if self.gated else mlp.up)
        self.up.activation = None
        self.down = mlp.down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.up(x)
        if self.gated:
            return self.down(silu_mul(torch.cat([y[..., ::2], y[..., 1::2]], dim=-1)))
        return self.down(F.gelu(y, approximate="tanh"))


@pytest.mark.parametrize("name", TINY)
def test_activation_in_the_product_changes_no_token(name: str, device: str) -> None:
    model = tiny_model(name, device)
    apart = copy.deepcopy(model)
    for block in apart.blocks:
        block.mlp = ActivationApart(block.mlp, model.config)
    tokens = draw_tokens(2, 30, device=device)
    torch.testing.assert_close(model(tokens), apart(tokens), rtol=0, atol=tolerance(device))
    prompts = [draw_tokens(n).tolist() for n in (9, 4)]
    got, want = generate(model, prompts, 20), generate(apart, prompts, 20)
    if device == "cpu":
        assert got == want
    else:  # rounded once less: two tokens of nearly one logit may change places
        assert [g[:2] for g in got] == [w[:2] for w in want]


def test_state_of_gate_and_up_is_brought_into_turn() -> None:
    """Float or int8, gate's rows and then up's become rows in turn; in turn, they stay."""
    config = dataclasses.replace(TINY_LLAMA, mlp_bias=True)
    plain = Llama(config, linears="float", dtype=torch.float32)
    for block in plain.blocks:
        nn.init.normal_(block.mlp.gate_up.bias)
    state = plain.state_dict()
    state.pop("embed.weight")
    halves = dict(state)
    for name in [n for n in state if n.endswith("gate_up.weight")]:
        halves[name], halves[f"{name}_scale"] = flashint8.quantize_per_channel(state[name])
    first, second, third = (Llama(config, dtype=torch.float32) for _ in range(3))
    first.load_state_dict(state)
    second.load_state_dict(halves)
    third.load_state_dict(first.state_dict())
    tokens = draw_tokens(2, 12)
    for other in (second, third):
        assert torch.equal(other(tokens), first(tokens))
    torch.testing.assert_close(first(tokens), plain(tokens), rtol=0, atol=0.1)
    pairs = first.blocks[0].mlp.gate_up_pairs
    gate = state["blocks.0.mlp.gate_up.weight"][: config.intermediate_size]
    assert torch.equal(pairs.weight[::2], flashint8.quantize_per_channel(gate)[0])
    assert torch.equal(pairs.bias[1::2], state["blocks.0.mlp.gate_up.bias"].chunk(2)[1])
    assert "blocks.0.mlp.gate_up.weight" in state, "the caller's state is left alone"


def test_quantized_later_the_gate_stays_an_operator() -> None:
    """A float model that quantize_model turns to int8 keeps its rows and its gate."""
    model = Llama(TINY_LLAMA, linears="float", dtype=torch.float32)
    tokens = draw_tokens(1, 9)
    before = model(tokens)
    flashint8.quantize_model(model)
    assert model.blocks[0].mlp.gate_up.activation is None
    torch.testing.assert_close(model(tokens), before, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", TINY)
def test_weights_are_ready_in_every_layer(name: str) -> None:
    """Behind each other's kernels they may be read early; a layer of its own promises nothing."""
    model = tiny_model(name, "cpu", linears="int8")
    layers = [m for m in model.modules() if isinstance(m, flashint8.QuantLinear)]
    assert len(layers) > 4
    assert all(layer.weight_ready for layer in layers)
    assert not flashint8.QuantLinear(8, 8).weight_ready


@pytest.mark.parametrize("linears", ["int8", "float"])
def test_tied_embeddings_are_one_matrix(linears: str) -> None:
    model = Llama(TINY_LLAMA, linears=linears)
    largest = [t for t in model.state_dict().values() if t.shape == (97, 64)]
    assert len({t.data_ptr() for t in largest}) == 1
    untied = dataclasses.replace(TINY_LLAMA, tie_embeddings=False)
    assert Llama(untied, linears=linears).embed is not None


def test_int8_is_half_the_bytes_of_sixteen_bits() -> None:
    def size(linears: str) -> int:
        model = GPT(TINY_GPT, linears=linears, dtype=torch.bfloat16)
        return sum(t.nbytes for t in [*model.parameters(), *model.buffers()])

    assert size("int8") < 0.65 * size("float")  # tiny: scales, norms and positions weigh much


def test_scaled_rotary_frequencies() -> None:
    """Llama 3.1's scaling keeps short waves and stretches long ones by the factor."""
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    config = dataclasses.replace(TINY_LLAMA, rope_scaling=scaling)
    plain, scaled = TINY_LLAMA.rope_table(9), config.rope_table(9)
    assert plain.shape == scaled.shape == (9, 16)
    assert plain.dtype == torch.float32
    # the last angle is the longest wave: at position 8 it stands where it stood at position 1
    torch.testing.assert_close(scaled[8, 7], plain[1, 7])
    linear = dataclasses.replace(TINY_LLAMA, rope_scaling={"rope_type": "linear", "factor": 2.0})
    torch.testing.assert_close(linear.rope_table(9)[8], plain[4])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": "flash"}, "attention must be one of"),
        ({"linears": "int4"}, "linears must be one of"),
        ({"dtype": torch.float64}, "dtype must be float16, bfloat16 or float32, got float64"),
    ],
)
def test_options_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPT(TINY_GPT, **change)


def test_configs_are_checked() -> None:
    with pytest.raises(ValueError, match="architecture gpt2, got llama"):
        GPT(TINY_LLAMA)
    with pytest.raises(ValueError, match="num_heads must be a multiple of num_kv_heads"):
        dataclasses.replace(TINY_LLAMA, num_kv_heads=3)
    with pytest.raises(ValueError, match="model_type must be gpt2 or llama, got 'bert'"):
        ModelConfig.from_dict({"model_type": "bert"})
    with pytest.raises(ValueError, match="the llama config has no 'vocab_size'"):
        ModelConfig.from_dict({"model_type": "llama", "num_attention_heads": 4})


def test_calls_are_checked() -> None:
    model = GPT(TINY_GPT)
    with pytest.raises(ValueError, match="capacity must be from 1 to the model's 64"):
        model.new_cache(1, 65)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        KVCache(TINY_GPT, 0, 8, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="the cache has 2 rows, tokens have 1"):
        model(draw_tokens(1, 3), model.new_cache(2, 8))
    with pytest.raises(ValueError, match="counts must be 2 numbers from 0 to 3"):
        model(draw_tokens(2, 3), model.new_cache(2, 8), [1, 4])
    with pytest.raises(ValueError, match="tokens must be at most 64 long"):
        model(draw_tokens(1, 65))
