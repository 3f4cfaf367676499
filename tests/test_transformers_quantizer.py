"""FlashInt8Config: from_pretrained, save_pretrained and back, and what goes wrong in between."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checking import assert_same_bits
from hf_models import CONFIGS, batch, logits, make, transformers
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

import flashint8
import flashint8.integrations.transformers as fi8
from flashint8 import QuantLinear
from flashint8.checkpoint import Checkpoint

ROOT = Path(__file__).resolve().parents[1]


def load(folder: Path, device: str = "cpu", **options: Any) -> Any:
    """from_pretrained, with nothing missing, unexpected or of another shape."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        attn_implementation="fi8",
        device_map=device,
        output_loading_info=True,
        **options,
    )
    assert not any(info.values()), info
    return model


def assert_same_model(got: nn.Module, want: nn.Module) -> None:
    mine, theirs = got.state_dict(), want.state_dict()
    assert sorted(mine) == sorted(theirs)
    for name, tensor in theirs.items():
        assert_same_bits(mine[name], tensor, name)


def share_rotary_tables(got: nn.Module, want: nn.Module) -> None:
    """They are not stored but computed where a model is built: CUDA's pow is not the CPU's."""
    theirs = dict(want.named_buffers())
    for name, mine in got.named_buffers():
        if "inv_freq" in name:
            mine.copy_(theirs[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_load_save_load(name: str, device: str, tmp_path: Path) -> None:
    """As quantize_model quantises; the folder gives the same bits; near the float model."""
    original = make(name, device)
    original.set_attn_implementation("fi8")
    original.save_pretrained(tmp_path / "float")
    want = copy.deepcopy(original)
    report = flashint8.quantize_model(want)
    assert len(report.swapped) >= 8
    model = load(tmp_path / "float", device, quantization_config=fi8.FlashInt8Config())
    assert_same_model(model, want)
    share_rotary_tables(model, want)
    inputs = batch(device)
    assert_same_bits(logits(model, **inputs), logits(want, **inputs), "on loading")
    float_logits = logits(original, **inputs)[inputs["attention_mask"].bool()].double()
    error = logits(model, **inputs)[inputs["attention_mask"].bool()].double() - float_logits
    assert float(error.norm() / float_logits.norm()) < 0.05
    for i, source in enumerate((model, want)):
        folder = tmp_path / f"int8-{i}"
        source.save_pretrained(folder)
        assert_same_model(load(folder, device), want)
    names = Checkpoint(tmp_path / "int8-0").names()
    assert len([n for n in names if n.endswith(".weight_int8")]) == len(report.swapped)
    config = json.loads((tmp_path / "int8-0" / "config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "flashint8"
    assert sorted(config["layers"]) == sorted(report.swapped)


def test_gpt2_is_transposed(device: str, tmp_path: Path) -> None:
    original = make("gpt2", device)
    conv = original.transformer.h[0].attn.c_attn
    assert isinstance(conv, Conv1D)
    original.save_pretrained(tmp_path)
    model = load(tmp_path, device, quantization_config=fi8.FlashInt8Config())
    layer = model.transformer.h[0].attn.c_attn
    assert isinstance(layer, QuantLinear)
    assert (layer.in_features, layer.out_features) == (64, 192)
    q, scale = flashint8.quantize_per_channel(conv.weight.t())
    assert_same_bits(layer.weight, q, "weight")
    assert_same_bits(layer.weight_scale, scale, "scale")
    assert_same_bits(layer.bias, conv.bias.detach(), "bias")


def test_without_flashint8_weights_are_missing_not_wrong(tmp_path: Path) -> None:
    """A program that has not imported us: missing weights by name, no integers as floats."""
    model = make("llama")
    flashint8.quantize_model(model)
    model.save_pretrained(tmp_path)
    program = (
        "import sys\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model, info = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r}, "
        "output_loading_info=True)\n"
        "assert not [name for name in sys.modules if name.startswith('flashint8')]\n"
        "print(*sorted(info['missing_keys']))\n"
        "print(*sorted(info['unexpected_keys']))\n"
        "print(float(model.model.layers[0].mlp.up_proj.weight.abs().max()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    missing, unexpected, largest = done.stdout.splitlines()[-3:]
    assert len(missing.split()) == 14
    assert "model.layers.0.mlp.up_proj.weight" in missing.split()
    assert "model.layers.0.mlp.up_proj.weight_int8" in unexpected.split()
    assert float(largest) < 1, "integers were read as weights"
    assert "flashint8" in done.stderr, "transformers does not name the quantization it lacks"
    # With the import, the same folder loads whole.
    assert_same_model(load(tmp_path), model)


def test_tied_embeddings_stay_one_tensor(tmp_path: Path) -> None:
    original = make("qwen2")
    assert original.lm_head.weight is original.model.embed_tokens.weight
    original.save_pretrained(tmp_path / "float")
    config = fi8.FlashInt8Config(skip=())
    model = load(tmp_path / "float", quantization_config=config)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path / "int8")
    again = load(tmp_path / "int8")
    assert again.lm_head.weight is again.model.embed_tokens.weight

    def size(model: nn.Module) -> int:
        tensors = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
        return sum(tensors.values())

    assert size(again) == size(model) < size(original)


def test_what_is_chosen(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    config = fi8.FlashInt8Config(
        skip=["lm_head", "model.layers.1.*"], min_features=64, method="mse"
    )
    model = load(tmp_path, quantization_config=config)
    found = {n for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    attention = {f"model.layers.0.self_attn.{x}_proj" for x in "qo"}
    assert found == attention | {f"model.layers.0.mlp.{x}_proj" for x in ("up", "gate", "down")}
    want = flashint8.quantize_per_channel(
        Checkpoint(tmp_path).tensor("model.layers.0.mlp.up_proj.weight"), "mse"
    )
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, want[0])
    everything = load(tmp_path, quantization_config=fi8.FlashInt8Config(skip=()))
    assert isinstance(everything.lm_head, QuantLinear)
    everything.save_pretrained(tmp_path / "int8", max_shard_size="20KB")
    assert len(list((tmp_path / "int8").glob("*.safetensors"))) > 2
    assert_same_model(load(tmp_path / "int8"), everything)


def test_no_layer_is_a_warning(tmp_path: Path) -> None:
    make("llama").save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="no layer of this LlamaForCausalLM is quantised"):
        load(tmp_path, quantization_config=fi8.FlashInt8Config(skip=["*"]))


def test_dtype_of_what_is_not_int8(tmp_path: Path) -> None:
    make("gpt2").save_pretrained(tmp_path)
    model = load(tmp_path, quantization_config=fi8.FlashInt8Config(), dtype=torch.bfloat16)
    layer = model.transformer.h[0].mlp.c_fc
    assert layer.bias.dtype == torch.bfloat16
    assert layer.weight_scale.dtype == torch.float32
    assert model.transformer.wte.weight.dtype == torch.bfloat16
    model.save_pretrained(tmp_path / "int8")
    again = load(tmp_path / "int8", dtype=torch.float32)
    assert again.transformer.h[0].mlp.c_fc.weight_scale.dtype == torch.float32
    assert again.transformer.h[0].mlp.c_fc.bias.dtype == torch.float32
    assert_same_bits(again.transformer.h[0].mlp.c_fc.weight, layer.weight, "weight")


def test_base_model_from_the_folder_of_a_whole_one(tmp_path: Path) -> None:
    model = make("llama")
    flashint8.quantize_model(model)
    model.save_pretrained(tmp_path)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert_same_model(base, model.model)


def test_a_folder_that_lacks_a_weight(tmp_path: Path) -> None:
    """transformers draws it anew and says so; the layer is int8 all the same."""
    model = make("llama")
    state = model.state_dict()
    del state["model.layers.0.mlp.up_proj.weight"]
    model.save_pretrained(tmp_path, state_dict=state)
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=fi8.FlashInt8Config(), output_loading_info=True
    )
    assert info["missing_keys"] == {"model.layers.0.mlp.up_proj.weight"}
    assert isinstance(loaded.model.layers[0].mlp.up_proj, QuantLinear)
    assert bool(logits(loaded, **batch()).isfinite().all())


def test_weights_that_cannot_be_quantised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.logging.get_logger("transformers"), "propagate", True)
    model = make("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = torch.inf
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="issues during automatic conversion of the weights"):
        load(tmp_path, quantization_config=fi8.FlashInt8Config())
    assert "flashint8: model.layers.1.mlp.up_proj: " in caplog.text
    assert "non-finite value in row 3" in caplog.text


def test_config_refuses() -> None:
    with pytest.raises(ValueError, match="FlashInt8Config: method must be 'absmax' or 'mse'"):
        fi8.FlashInt8Config(method="best")
    with pytest.raises(TypeError, match="skip must be a list of names"):
        fi8.FlashInt8Config(skip="lm_head")
    with pytest.raises(ValueError, match="quant_method must be flashint8, got 'bitsandbytes'"):
        fi8.FlashInt8Config(quant_method="bitsandbytes")
    config = fi8.FlashInt8Config(skip=("a", "b"), min_features=3, method="mse")
    again = fi8.FlashInt8Config.from_dict(json.loads(config.to_json_string()))
    assert again.to_dict() == config.to_dict()


def test_a_config_of_other_layers_is_refused(tmp_path: Path) -> None:
    model = make("llama")
    flashint8.quantize_model(model)
    model.config.quantization_config.layers.append("model.embed_tokens")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has model\.embed_tokens in int8, which is no linear"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_not_trainable_but_dequantizable(device: str, tmp_path: Path) -> None:
    make("gpt2", device).save_pretrained(tmp_path)
    model = load(tmp_path, device, quantization_config=fi8.FlashInt8Config())
    assert model.hf_quantizer.is_serializable()
    assert not model.hf_quantizer.is_trainable
    want = logits(model, **batch(device))
    layers = [m for m in model.modules() if isinstance(m, QuantLinear)]
    model.dequantize()
    assert not [m for m in model.modules() if isinstance(m, QuantLinear)]
    assert len(layers) == 8
    got = logits(model, **batch(device))
    torch.testing.assert_close(got, want, rtol=5e-2, atol=5e-2 if device == "cuda" else 1e-3)


def test_quantize_model_inside_another_module(tmp_path: Path) -> None:
    inner = make("llama")
    outer = nn.ModuleDict({"model": inner, "head": nn.Linear(4, 4)})
    flashint8.quantize_model(outer)
    assert type(outer["head"]) is QuantLinear
    inner.save_pretrained(tmp_path)
    assert_same_model(load(tmp_path), inner)


def test_a_model_quantised_otherwise_is_refused() -> None:
    model = make("llama")
    model.hf_quantizer = type("Other", (), {"quantization_config": fi8.FlashInt8Config()})()
    model.hf_quantizer.quantization_config.quant_method = "bitsandbytes"
    with pytest.raises(ValueError, match=r"is quantised already \(bitsandbytes\)"):
        flashint8.quantize_model(model)


def test_load_quantized_and_save_quantized(device: str, tmp_path: Path) -> None:
    """A transformers model without transformers' loader; its rotary table is given."""
    original = make("llama", device)
    original.set_attn_implementation("fi8")
    original.save_pretrained(tmp_path / "float")
    want = copy.deepcopy(original)
    flashint8.quantize_model(want)
    flashint8.save_quantized(want, tmp_path / "x.safetensors")
    assert "model.layers.0.mlp.up_proj.weight" in Checkpoint(tmp_path / "x.safetensors")
    tables = {n: b.cpu() for n, b in original.named_buffers()}
    want.save_pretrained(tmp_path / "int8")
    for path in (tmp_path / "float", tmp_path / "x.safetensors", tmp_path / "int8"):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(original.config, attn_implementation="fi8")
        if path.name == "float":
            with pytest.raises(ValueError, match=r"inv_freq is on meta"):
                flashint8.load_quantized(model.to(original.dtype), path)
        model = model.to(original.dtype).eval()
        flashint8.load_quantized(model, path, device=device, buffers=tables)
        assert_same_model(model, want)
        inputs = batch(device)
        assert_same_bits(logits(model, **inputs), logits(want, **inputs), path.name)


def test_load_int8(tmp_path: Path) -> None:
    make("gpt2").save_pretrained(tmp_path / "float")
    model, report = fi8.load_int8(tmp_path / "float", fi8.FlashInt8Config(method="mse"))
    assert model.config._attn_implementation == "fi8"
    assert len(report.swapped) == 8
    assert list(report.skipped) == ["lm_head"]
    whole = make("gpt2")
    tensors: dict[int, Tensor] = {id(p): p for p in whole.parameters()}
    assert report.bytes_before == sum(p.nbytes for p in tensors.values())
    assert report.bytes_after < report.bytes_before / 2
    model.save_pretrained(tmp_path / "int8")
    again, second = fi8.load_int8(tmp_path / "int8", device="cpu")
    assert_same_model(again, model)
    assert second.swapped == report.swapped
    with pytest.raises(FileNotFoundError, match=r"none\.gguf: no such file"):
        fi8.load_int8(tmp_path / "none.gguf")
    (tmp_path / "odd").mkdir()
    transformers.LlamaConfig().save_pretrained(tmp_path / "odd")
    with pytest.raises(ValueError, match=r"its config\.json names no model"):
        fi8.load_int8(tmp_path / "odd")
    config = json.loads((tmp_path / "float" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "float" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"float: its weights are quantised already \(gptq\)"):
        fi8.load_int8(tmp_path / "float")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_our_own_models_read_int8_folders(name: str, device: str, tmp_path: Path) -> None:
    from flashint8.models import from_pretrained

    model = make(name, device)
    model.set_attn_implementation("fi8")
    flashint8.quantize_model(model)
    model.save_pretrained(tmp_path)
    ours = from_pretrained(tmp_path, device=device, dtype=model.dtype, int8_head=False)
    ids = batch(device)["input_ids"]
    want = logits(model, input_ids=ids)
    with torch.inference_mode():
        got = ours(ids)
    scale = 1e-4 if device == "cpu" else 2e-2
    torch.testing.assert_close(got, want, rtol=0, atol=scale * float(want.abs().max()))


def test_generate_with_int8(device: str) -> None:
    """The int8 model generates what its own dequantised weights would, in float32."""
    model = make("llama", device)
    model.set_attn_implementation("fi8")
    flashint8.quantize_model(model)
    options = {"max_new_tokens": 8, "do_sample": False}
    got = model.generate(**batch(device), **options)
    assert got.shape == (3, 19)
    if device == "cpu":
        model.dequantize()
        assert torch.equal(model.generate(**batch(device), **options), got)


def test_the_module_is_imported_only_when_asked() -> None:
    """`import flashint8` alone does not load transformers."""
    program = "import sys, flashint8; assert 'transformers' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)
