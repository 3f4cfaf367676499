"""`will_it_fit` against models that are really made, and what it says in words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from model_cases import TINY_GPT, TINY_LLAMA

from flashint8 import will_it_fit
from flashint8.cli import main
from flashint8.fit import Fit, Setup, parse_bytes
from flashint8.models import GPT, PRESETS, Llama, ModelConfig

CONFIGS = {
    "gpt": TINY_GPT,
    "gpt-plain": dataclasses.replace(TINY_GPT, attention_bias=False, mlp_bias=False),
    "llama": TINY_LLAMA,
    "llama-untied": dataclasses.replace(TINY_LLAMA, tie_embeddings=False),
    "llama-bias": dataclasses.replace(TINY_LLAMA, attention_bias=True, mlp_bias=True),
}


def made(config: ModelConfig, **options: object) -> GPT | Llama:
    return (GPT if config.architecture == "gpt2" else Llama)(config, **options)


@pytest.mark.parametrize("linears", ["int8", "float"])
@pytest.mark.parametrize("name", CONFIGS)
def test_weights_are_those_of_the_model(name: str, linears: str) -> None:
    config = CONFIGS[name]
    model = made(config, linears=linears, dtype=torch.bfloat16)
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    by_type: dict[str, int] = {}
    for tensor in tensors.values():
        kind = {torch.int8: "int8", torch.float32: "float32 (scales)"}.get(tensor.dtype, "bfloat16")
        by_type[kind] = by_type.get(kind, 0) + tensor.nbytes
    assert Setup(config, 8, linears=linears, dtype="bfloat16").weights() == by_type


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_cache_is_the_models_cache(name: str) -> None:
    config = CONFIGS[name]
    cache = made(config, dtype=torch.float16).new_cache(3, 20)
    table = 0 if cache.cos_sin is None else cache.cos_sin.nbytes
    assert Setup(config, 20, batch=3).cache() == cache.nbytes + table


def test_seven_billion_do_not_fit_into_six_gigabytes() -> None:
    """6.6 GB of int8 weights and 13.5 GB of 16-bit ones, as arithmetic by hand says."""
    config = PRESETS["llama-7b"]
    block = 4096 * (3 * 4096) + 4096 * 4096 + 3 * 4096 * 11008
    fit = will_it_fit("llama-7b", "6GB", 2048)
    assert not fit
    assert fit.weights["int8"] == 32 * block + 32000 * 4096
    assert fit.longest_context == 0
    assert fit.cache == 2048 * (2 * 32 * 32 * 128 * 2 + 4 * 128)
    sixteen = will_it_fit(config, "16GB", 512, linears="float")
    norms = 65 * 4096
    assert sixteen.weights == {"float16": 2 * (32 * block + 2 * 32000 * 4096 + norms)}
    assert not will_it_fit(config, "13GB", 512, linears="float")


def test_three_billion_fit_in_int8_only() -> None:
    assert will_it_fit("llama-3b", "6GB", 8192)
    fit = will_it_fit("llama-3b", "6GB", 8192, linears="float")
    assert not fit
    assert "int8 weights" in fit.changes


@pytest.mark.parametrize("attention", ["flashint8", "sdpa", "naive"])
def test_longest_context_is_the_last_that_fits(attention: str) -> None:
    fit = will_it_fit("llama-3b", "6GB", 4096, attention=attention)
    longest = fit.longest_context
    assert 2048 < longest < 131072
    assert will_it_fit("llama-3b", "6GB", longest, attention=attention)
    assert not will_it_fit("llama-3b", "6GB", longest + 1, attention=attention)


def test_materialised_scores_cost_context() -> None:
    longest = [
        will_it_fit("llama-3b", "6GB", attention=a).longest_context
        for a in ("naive", "sdpa", "flashint8")
    ]
    assert longest[0] < longest[1] < longest[2]


def test_each_change_alone_is_enough() -> None:
    fit = will_it_fit("llama-3b", "6GB", 16384, 3, attention="naive")
    assert not fit
    assert 2 <= len(fit.changes) <= 3
    context = next(c for c in fit.changes if c.startswith("a context of"))
    number = int(context.split()[3].replace(",", ""))
    assert will_it_fit("llama-3b", "6GB", number, 3, attention="naive")
    assert not will_it_fit("llama-3b", "6GB", number + 1, 3, attention="naive")
    chunked = will_it_fit("llama-3b", "4.45GB", 8192)
    assert "reading prompts 512 tokens at a time" in will_it_fit("llama-3b", "4.3GB", 8192).changes
    assert chunked


def test_smaller_chunks_need_less() -> None:
    sizes = [Setup(TINY_LLAMA, 64, prefill_chunk=c).workspace() for c in (8, 32, 64, 2048)]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GB", 6 * 10**9),
        ("5.5GiB", 5905580032),
        ("512 MiB", 2**29),
        (123, 123),
        ("8gb", 8 * 10**9),
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "6TB", "GB", "-1GB", "0"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="vram must be a size such as 6GB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": "gpt5"}, r"config must be a config.json, its folder, or one of gpt2"),
        ({"context": 0}, "context must be from 1 to the model's 1024, got 0"),
        ({"context": 2000}, "context must be from 1 to the model's 1024, got 2000"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"linears": "int4"}, "linears must be one of int8, float, got 'int4'"),
        ({"dtype": "int8"}, "dtype must be one of float16, bfloat16, float32"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        will_it_fit(**{"config": "gpt2", "context": 512, **arguments})


def test_text_says_all_of_it() -> None:
    fit = will_it_fit("llama-3b", "6GB", 8192)
    assert isinstance(fit, Fit)
    text = str(fit)
    for word in ("weights, int8", "KV cache, 1 x 8192", "fits; with batch 1, the longest context"):
        assert word in text


@pytest.mark.parametrize("rich", [True, False], ids=["rich", "plain"])
def test_command(
    rich: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    values = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 64}
    (tmp_path / "config.json").write_text(
        json.dumps({**values, "n_positions": 128, "vocab_size": 100})
    )
    assert main(["fit", str(tmp_path), "--vram", "1GB", "--context", "128", "--batch", "2"]) == 0
    out = capsys.readouterr().out
    assert "KV cache, 2 x 128 positions" in out
    assert "fits; with batch 2" in out
    assert main(["fit", "llama-7b", "--vram", "6GB"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert main(["fit", "llama-7b", "--vram", "much"]) == 2
    assert "vram must be a size" in capsys.readouterr().err
