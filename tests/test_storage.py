"""save_quantized and load_quantized: bits kept, errors before anything changes, memory bounded."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checking import assert_same_bits
from torch import Tensor, nn
from toy_models import ToyModel, quantized_copy, run, toy

import flashint8
from flashint8 import QuantLinear
from flashint8.checkpoint import Checkpoint
from flashint8.checkpoint_writer import CheckpointWriter, Spec


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    specs = [Spec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]
    with CheckpointWriter(path, specs) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def float_state(model: nn.Module) -> dict[str, Tensor]:
    """As other programs write it: one name a tensor."""
    known: dict[int, str] = {}
    state = model.state_dict(keep_vars=True)
    return {k: t.detach() for k, t in state.items() if known.setdefault(id(t), k) == k}


def assert_same_state(got: nn.Module, want: nn.Module) -> None:
    mine, theirs = got.state_dict(), want.state_dict()
    assert list(mine) == list(theirs)
    for name, tensor in theirs.items():
        assert mine[name].device == tensor.device, name
        assert torch.equal(mine[name], tensor), name
        assert mine[name].dtype == tensor.dtype, name


def test_round_trip_is_bit_exact(device: str, tmp_path: Path) -> None:
    model = quantized_copy(toy(device))
    path = tmp_path / "toy.safetensors"
    flashint8.save_quantized(model, path)
    for fresh in (toy("meta"), toy(device), quantized_copy(toy("meta")), quantized_copy(toy())):
        if device == "cuda":
            fresh = fresh.half()
        report = flashint8.load_quantized(fresh, path, device=device)
        assert_same_state(fresh, model)
        assert_same_bits(run(fresh, device), run(model, device), "outputs")
        assert fresh.lm_head.weight is fresh.embed.weight
        assert fresh.blocks[2] is fresh.blocks[0]
        assert isinstance(fresh.embed.weight, nn.Parameter)
        already = [n for n, reason in report.skipped.items() if reason == "already quantised"]
        assert len(report.swapped + already) == 6
        assert report.skipped["lm_head"] == "matches skip 'lm_head'"


def test_a_float_checkpoint_becomes_what_quantize_model_gives(device: str, tmp_path: Path) -> None:
    model = toy(device)
    write(tmp_path / "float.safetensors", float_state(model))
    want = quantized_copy(model)
    for fresh in (toy("meta"), toy()):
        fresh = fresh.to(model.embed.weight.dtype)
        report = flashint8.load_quantized(fresh, tmp_path, device=device)
        assert_same_state(fresh, want)
        assert_same_bits(run(fresh, device), run(want, device), "outputs")
        assert report.bytes_after == sum(t.nbytes for t in float_state(want).values())


def test_choice_of_layers(tmp_path: Path) -> None:
    write(tmp_path / "float.safetensors", float_state(toy()))
    model = toy("meta")
    report = flashint8.load_quantized(
        model,
        tmp_path,
        skip=["blocks.1.*", "lm_head"],
        filter_fn=lambda name, layer: not name.endswith("down"),
        min_features=9,
    )
    assert report.swapped == ["blocks.0.up"]
    assert set(report.skipped) == {
        "blocks.0.down",
        "blocks.1.up",
        "blocks.1.down",
        "heads.0",
        "heads.1",
        "lm_head",
    }
    assert report.skipped["heads.0"] == "fewer than 9 features"
    flashint8.save_quantized(model, tmp_path / "part.safetensors")
    again = toy("meta")  # int8 is int8 and float is float, whatever skip says
    flashint8.load_quantized(again, tmp_path / "part.safetensors", skip=["blocks.*", "heads.*"])
    assert isinstance(again.blocks[0].up, QuantLinear)
    assert isinstance(again.blocks[0].down, nn.Linear)
    mse = toy("meta")
    flashint8.load_quantized(mse, tmp_path / "float.safetensors", method="mse")
    weight = toy().blocks[0].up.weight  # another draw: only shapes are alike
    assert mse.blocks[0].up.weight.shape == weight.shape
    want = flashint8.quantize_per_channel(
        Checkpoint(tmp_path / "float.safetensors").tensor("blocks.0.up.weight"), "mse"
    )
    assert torch.equal(mse.blocks[0].up.weight, want[0])
    with pytest.raises(ValueError, match="load_quantized: method must be 'absmax' or 'mse'"):
        flashint8.load_quantized(toy("meta"), tmp_path / "float.safetensors", method="best")


def test_dtypes_follow_the_model(tmp_path: Path) -> None:
    """A bf16 checkpoint into a float32 model, and the other way; scales come from the file."""
    model = toy().bfloat16()
    write(tmp_path / "x.safetensors", float_state(model))
    fresh = toy("meta")
    flashint8.load_quantized(fresh, tmp_path)
    assert fresh.embed.weight.dtype == torch.float32
    assert fresh.blocks[0].up.bias.dtype == torch.float32
    assert fresh.blocks[0].up.dtype == torch.float32
    q, scale = flashint8.quantize_per_channel(model.blocks[0].up.weight)
    assert torch.equal(fresh.blocks[0].up.weight, q)
    assert torch.equal(fresh.blocks[0].up.weight_scale, scale)
    half = toy("meta").half()
    flashint8.load_quantized(half, tmp_path)
    assert half.blocks[0].up.bias.dtype == torch.float16
    assert half.blocks[0].up.weight_scale.dtype == torch.float32


def test_sharded(tmp_path: Path) -> None:
    model = toy()
    state = float_state(model)
    names = list(state)
    weight_map = {}
    for i in range(3):
        part = names[i::3]
        write(tmp_path / f"model-{i}.safetensors", {n: state[n] for n in part})
        weight_map |= dict.fromkeys(part, f"model-{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for path in (tmp_path, index):
        fresh = toy("meta")
        flashint8.load_quantized(fresh, path)
        assert_same_state(fresh, quantized_copy(model))
    (tmp_path / "model-1.safetensors").write_bytes(b"cut")
    assert_refused(tmp_path, "model-1.safetensors: not a safetensors file")


# ---- compressed-tensors' int-quantized form, as its version 0.20 writes it ----------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("column", [False, True])
def test_compressed_tensors(device: str, tmp_path: Path, dtype: torch.dtype, column: bool) -> None:
    state = {}
    for name, tensor in float_state(toy()).items():
        if name.endswith(("up.weight", "down.weight")):
            q, scale = flashint8.quantize_per_channel(tensor)
            scale = scale.to(dtype)
            q[::3, 0] = -128  # its range goes one further than ours
            state[name] = q
            state[f"{name}_scale"] = scale[:, None] if column else scale
            state[f"{name}_zero_point"] = torch.zeros_like(scale, dtype=torch.int8)
        else:
            state[name] = tensor
    write(tmp_path / "model.safetensors", state)
    model = toy("meta").to(torch.float32 if device == "cpu" else torch.float16)
    flashint8.load_quantized(model, tmp_path, device=device, skip=["*"])
    layer = model.blocks[0].up
    assert torch.equal(layer.weight.cpu(), state["blocks.0.up.weight"])
    assert layer.weight_scale.shape == (96,)
    want = state["blocks.0.up.weight_scale"].float().flatten()
    assert_same_bits(layer.weight_scale.cpu(), want, "scale")
    x = torch.randn(3, 32, dtype=layer.dtype, device=device)
    product = (x.double() @ layer.weight.double().t()) * layer.weight_scale.double()
    tolerance = 1e-5 if device == "cpu" else 2e-3
    with torch.inference_mode():
        assert torch.allclose(
            layer(x).double(), product + layer.bias.double(), rtol=tolerance, atol=tolerance
        )
    assert isinstance(model.heads[0], nn.Linear)
    assert bool(run(model, device).isfinite().all())


def int8_state(**changes: Tensor | None) -> dict[str, Tensor]:
    q, scale = flashint8.quantize_per_channel(torch.randn(8, 4))
    state: dict[str, Tensor | None] = {"0.weight": q, "0.weight_scale": scale}
    state["0.bias"] = torch.zeros(8)
    state |= {name.replace("_0_", "0."): value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


UNFIT = {
    "no scale": ({"_0_weight_scale": None}, r"0\.weight is int8, but there is no 0\.weight_scale"),
    "groups": ({"_0_weight_scale": torch.ones(8, 2)}, r"shape \(8, 2\); one scale per output"),
    "one scale": ({"_0_weight_scale": torch.ones(1)}, r"shape \(1,\); one scale per output"),
    "scale's type": ({"_0_weight_scale": torch.ones(8).double()}, "weight_scale is float64"),
    "infinite": ({"_0_weight_scale": torch.full((8,), torch.inf)}, "a value that is not finite"),
    "asymmetric": (
        {"_0_weight_zero_point": torch.arange(8, dtype=torch.int8)},
        r"0\.weight_zero_point is not zero: only symmetric",
    ),
    "shape": ({"_0_weight": torch.zeros(8, 5, dtype=torch.int8)}, r"has shape \(8, 5\)"),
    "uint8": ({"_0_weight": torch.zeros(8, 4, dtype=torch.uint8)}, r"0\.weight is uint8"),
    "bias": ({"_0_bias": None}, r"lacks 0\.bias"),
    "bias shape": ({"_0_bias": torch.zeros(7)}, r"0\.bias has shape \(7,\)"),
    "bias type": ({"_0_bias": torch.zeros(8).int()}, r"0\.bias is int32, the model's is float32"),
    "more": ({"_0_weight_g_idx": torch.zeros(4)}, r"has, and the model lacks, 0\.weight_g_idx"),
}


def test_int8_for_a_layer_that_cannot_be_int8(tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", int8_state())
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 8)))
    with pytest.raises(ValueError, match="0 is in int8, but cannot be here: it is parametrised"):
        flashint8.load_quantized(model, tmp_path)
    assert nn.utils.parametrize.is_parametrized(model[0])


@pytest.mark.parametrize("kind", UNFIT)
def test_int8_that_does_not_fit_is_refused(tmp_path: Path, kind: str) -> None:
    changes, message = UNFIT[kind]
    write(tmp_path / "x.safetensors", int8_state(**changes))
    model = nn.Sequential(nn.Linear(4, 8))
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        flashint8.load_quantized(model, tmp_path)
    assert_same_state(model, before)
    write(tmp_path / "x.safetensors", int8_state())
    flashint8.load_quantized(model, tmp_path)
    assert isinstance(model[0], QuantLinear)


# ---- errors leave the model as it was ----------------------------------------------------------


def assert_refused(path: Path, message: str, make: Callable[[], nn.Module] = toy) -> None:
    model = make()
    before, layers = copy.deepcopy(model), dict(model.named_modules())
    parameters = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        flashint8.load_quantized(model, path)
    assert dict(model.named_modules()) == layers
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert_same_state(model, before)


def test_a_broken_file_leaves_the_model_untouched(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    flashint8.save_quantized(quantized_copy(toy()), path)
    whole = path.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_refused(path, r"x\.safetensors: (truncated|not a safetensors)")
    path.write_bytes(whole + b"\0")
    assert_refused(path, r"x\.safetensors: too long")
    flipped = bytearray(whole)
    flipped[-5] ^= 1  # of the last tensor: everything before it was read
    path.write_bytes(flipped)
    assert_refused(path, "is corrupted: its check sum is wrong")
    assert_refused(tmp_path / "none.safetensors", "no such file")


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    state = float_state(toy())
    write(path, float_state(toy(size=16)))
    assert_refused(path, r"has shape \(48, 16\), the model's is \(96, 32\)")
    write(path, {k: t for k, t in state.items() if k not in ("blocks.1.norm.bias", "heads.0.bias")})
    assert_refused(path, r"lacks heads\.0\.bias \(and 1 more\)")
    write(path, {**state, "other": torch.ones(1), "another": torch.ones(1)})
    assert_refused(path, r"has, and the model lacks, another \(and 1 more\)|lacks, other")
    write(path, {**state, "blocks.1.steps": torch.zeros(())})
    assert_refused(path, r"blocks\.1\.steps is float32, the model's is int64")
    write(path, {**state, "heads.1.weight": state["heads.1.weight"].double()})
    assert_refused(path, r"heads\.1\.weight is float64")
    bad = state["heads.1.weight"].clone()
    bad[3, 4] = torch.nan
    write(path, {**state, "heads.1.weight": bad})
    assert_refused(path, r"heads\.1\.weight: .*non-finite value in row 3")


def test_not_strict(tmp_path: Path) -> None:
    state = float_state(toy())
    del state["blocks.0.norm.weight"], state["heads.0.weight"]
    write(tmp_path / "x.safetensors", {**state, "other": torch.ones(1)})
    model = toy()
    before = copy.deepcopy(model)
    flashint8.load_quantized(model, tmp_path, strict=False)
    assert torch.equal(model.blocks[0].norm.weight, before.blocks[0].norm.weight)
    assert torch.equal(model.heads[0].weight, before.heads[0].weight)
    assert isinstance(model.heads[1], QuantLinear)


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0), persistent=False)


def test_buffers_that_no_checkpoint_has(device: str, tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", Rotary().state_dict())
    with torch.device("meta"):
        model = Rotary()
    with pytest.raises(ValueError, match=r"table is on meta and no checkpoint has it"):
        flashint8.load_quantized(model, tmp_path)
    with pytest.raises(ValueError, match="buffers: the model has no table of shape"):
        flashint8.load_quantized(model, tmp_path, buffers={"table": torch.ones(3)})
    assert isinstance(model.linear, nn.Linear)
    flashint8.load_quantized(model, tmp_path, buffers={"table": torch.ones(4)}, device=device)
    assert torch.equal(model.table, torch.ones(4, device=device))
    real = Rotary()
    flashint8.load_quantized(real, tmp_path, device=device)
    assert torch.equal(real.table, torch.arange(4.0, device=device))


# ---- writing ------------------------------------------------------------------------------------


def test_saving_refuses_and_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    model = quantized_copy(toy())
    flashint8.save_quantized(model, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="is on meta: there is nothing to write"):
        flashint8.save_quantized(toy("meta"), path)
    with pytest.raises(ValueError, match=r"name of a \.safetensors file"):
        flashint8.save_quantized(model, tmp_path / "x.pt")

    def full(self: CheckpointWriter, name: str, tensor: Tensor) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "write", full)
        with pytest.raises(OSError, match="No space left"):
            flashint8.save_quantized(model, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_tensor_of_several_names_is_written_once(tmp_path: Path) -> None:
    model = quantized_copy(toy())
    flashint8.save_quantized(model, tmp_path / "x.safetensors")
    names = Checkpoint(tmp_path / "x.safetensors").names()
    assert "embed.weight" in names
    assert "lm_head.weight" not in names
    assert not [name for name in names if name.startswith("blocks.2.")]
    untied = toy("meta")  # a model that does not tie them still finds its tensors
    untied.lm_head.weight = nn.Parameter(torch.empty(48, 32, device="meta"))
    untied.blocks[2] = copy.deepcopy(untied.blocks[1])
    flashint8.load_quantized(untied, tmp_path)
    assert torch.equal(untied.lm_head.weight, model.embed.weight)
    assert torch.equal(untied.blocks[2].up.weight, model.blocks[0].up.weight)
    assert_same_bits(run(untied), run(model), "outputs")


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Extra(ToyModel):
        def get_extra_state(self) -> str:
            return "state"

        def set_extra_state(self, state: str) -> None:
            pass

    with pytest.raises(ValueError, match="_extra_state is no tensor"):
        flashint8.save_quantized(Extra(), tmp_path / "x.safetensors")
