"""`flashint8 quantize IN OUT`, from files, folders and with wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checking import assert_same_bits
from torch import Tensor
from toy_models import quantized_copy, run, toy

import flashint8
from flashint8.checkpoint import Checkpoint
from flashint8.checkpoint_writer import CheckpointWriter, Spec
from flashint8.cli import main


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    specs = [Spec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    with CheckpointWriter(path, specs, metadata) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A toy model's checkpoint, each tensor under one name."""
    state = {k: t for k, t in toy().state_dict().items() if not k.startswith(("blocks.2", "lm_h"))}
    write(tmp_path / "in.safetensors", state, {"format": "pt", "author": "me"})
    return tmp_path / "in.safetensors"


def test_a_file(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.safetensors"
    assert main(["quantize", str(source), str(target)]) == 0
    out = capsys.readouterr().out
    assert "6 layers swapped" in out
    assert "kept embed: matches skip '*embed*'" in out
    assert Checkpoint(target).metadata["author"] == "me"
    model, want = toy("meta"), toy()
    flashint8.load_quantized(model, target)
    flashint8.load_quantized(want, source)
    assert_same_bits(run(model), run(want), "outputs")
    first = target.read_bytes()
    assert main(["quantize", str(source), str(target)]) == 0  # an old file is replaced
    assert target.read_bytes() == first
    again = tmp_path / "again.safetensors"
    assert main(["quantize", str(target), str(again)]) == 0
    assert "kept blocks.0.up: already quantised" in capsys.readouterr().out
    same = {n: Checkpoint(again).tensor(n) for n in Checkpoint(again).names()}
    assert sorted(same) == sorted(Checkpoint(target).names())
    for name, tensor in same.items():
        assert torch.equal(tensor, Checkpoint(target).tensor(name)), name


def test_options(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    options = ["--skip", "blocks.1.*", "--skip", "embed", "--min-features", "9", "--method", "mse"]
    assert main(["quantize", str(source), str(target), *options, "--dtype", "float16"]) == 0
    checkpoint = Checkpoint(target)
    int8 = {n for n in checkpoint.names() if checkpoint.dtype(n) == torch.int8}
    assert int8 == {"blocks.0.up.weight", "blocks.0.down.weight"}
    weight = Checkpoint(source).tensor("blocks.0.up.weight")
    q, scale = flashint8.quantize_per_channel(weight, "mse")
    assert torch.equal(checkpoint.tensor("blocks.0.up.weight"), q)
    assert_same_bits(checkpoint.tensor("blocks.0.up.weight_scale"), scale, "scale")
    assert checkpoint.dtype("blocks.1.up.weight") == torch.float16
    assert checkpoint.dtype("blocks.0.steps") == torch.int64


def test_errors_are_one_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.safetensors"
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(source.read_bytes()[:-3])
    nan = tmp_path / "nan.safetensors"
    write(nan, {"a.weight": torch.full((2, 2), torch.nan)})
    for arguments, message in (
        ([str(tmp_path / "none"), str(target)], "no such file or folder"),
        ([str(bad), str(target)], "truncated"),
        ([str(nan), str(target)], "a.weight: quantize_per_channel: weight has a non-finite"),
        ([str(source), str(tmp_path / "x.bin")], "expected the name of a .safetensors file"),
        ([str(source), str(tmp_path / "no" / "x.safetensors")], "there is no folder"),
    ):
        before = sorted(file.name for file in tmp_path.iterdir())
        assert main(["quantize", *arguments]) == 1
        captured = capsys.readouterr()
        assert captured.err.startswith("flashint8 quantize: ")
        assert captured.err.count("\n") == 1
        assert message in captured.err
        assert sorted(file.name for file in tmp_path.iterdir()) == before
    with pytest.raises(SystemExit):
        main(["quantize", str(source), str(target), "--method", "best"])


def test_a_transformers_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers", minversion="5.23")
    from hf_models import make
    from transformers import AutoModelForCausalLM

    model = make("gpt2")
    folder, target = tmp_path / "in", tmp_path / "out"
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    assert main(["quantize", str(folder), str(target), "--method", "mse"]) == 0
    assert "8 layers swapped" in capsys.readouterr().out
    assert (target / "tokenizer.json").read_text() == "{}"
    assert not (target / "pytorch_model.bin").exists()
    config = json.loads((target / "config.json").read_text())
    assert config["quantization_config"]["method"] == "mse"
    again = AutoModelForCausalLM.from_pretrained(target)
    q, _ = flashint8.quantize_per_channel(model.transformer.h[1].mlp.c_fc.weight.t(), "mse")
    assert torch.equal(again.transformer.h[1].mlp.c_fc.weight, q)

    assert main(["quantize", str(folder), str(target)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert main(["quantize", str(tmp_path / "x.gguf"), str(tmp_path / "new")]) == 1
    assert "no such file" in capsys.readouterr().err

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(again), "save_pretrained", full)
    assert main(["quantize", str(folder), str(tmp_path / "new")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in", "out"]


def test_quantised_twice_is_the_same(tmp_path: Path) -> None:
    """The command's file and save_quantized's hold the same tensors."""
    model = quantized_copy(toy())
    flashint8.save_quantized(model, tmp_path / "x.safetensors")
    assert main(["quantize", str(tmp_path / "x.safetensors"), str(tmp_path / "y.safetensors")]) == 0
    ours, theirs = Checkpoint(tmp_path / "x.safetensors"), Checkpoint(tmp_path / "y.safetensors")
    assert sorted(ours.names()) == sorted(theirs.names())
    fresh = toy("meta")
    flashint8.load_quantized(fresh, tmp_path / "y.safetensors")
    assert_same_bits(run(fresh), run(model), "outputs")
