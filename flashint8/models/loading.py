"""Weights from where Hugging Face and nanoGPT keep them, one tensor at a time.

Each is read, moved to the device and quantised there, a piece of at most 64 MiB at a time, before
the next is read: beside the model, loading needs the memory of one tensor on the host and of one
piece on the device.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flashint8 import per_channel
from flashint8.checkpoint import Checkpoint
from flashint8.models.config import ModelConfig
from flashint8.models.decoder import Decoder
from flashint8.models.gpt import GPT
from flashint8.models.llama import Llama
from flashint8.modules import QuantLinear

PIECE_BYTES = 64 << 20
_NANOGPT_PREFIX = "_orig_mod."


class Source(Protocol):
    """Where tensors come from: a `Checkpoint`, or a state dict in a `StateDict`."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def tensor(self, name: str) -> Tensor: ...


class StateDict:
    """A mapping of tensors as a `Source`."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor."""
        return tuple(self._tensors[name].shape)

    def tensor(self, name: str) -> Tensor:
        """One tensor."""
        return self._tensors[name].detach()


@dataclass(frozen=True)
class Part:
    """One layer of ours and the layers of the checkpoint whose rows it holds, in order."""

    target: str
    sources: tuple[str, ...]


_GPT_BLOCK = (
    Part("norm1", ("ln_1",)),
    Part("qkv", ("attn.c_attn",)),
    Part("proj", ("attn.c_proj",)),
    Part("norm2", ("ln_2",)),
    Part("mlp.up", ("mlp.c_fc",)),
    Part("mlp.down", ("mlp.c_proj",)),
)
_LLAMA_BLOCK = (
    Part("norm1", ("input_layernorm",)),
    Part("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Part("proj", ("self_attn.o_proj",)),
    Part("norm2", ("post_attention_layernorm",)),
    Part("mlp.gate_up", ("mlp.gate_proj", "mlp.up_proj")),
    Part("mlp.down", ("mlp.down_proj",)),
)


def parts(config: ModelConfig) -> Iterator[Part]:
    """Every layer of a model, in the names of a Hugging Face checkpoint without their prefix."""
    gpt = config.architecture == "gpt2"
    yield Part("embed", ("wte" if gpt else "embed_tokens",))
    if gpt:
        yield Part("position_embed", ("wpe",))
    for layer in range(config.num_layers):
        place = f"h.{layer}" if gpt else f"layers.{layer}"
        for part in _GPT_BLOCK if gpt else _LLAMA_BLOCK:
            sources = tuple(f"{place}.{name}" for name in part.sources)
            yield Part(f"blocks.{layer}.{part.target}", sources)
    yield Part("norm", ("ln_f" if gpt else "norm",))
    if not config.tie_embeddings:
        yield Part("lm_head", ("lm_head",))


class _Names:
    """A source's names, whatever stands before them."""

    def __init__(self, source: Source) -> None:
        self.source = source
        prefixes = ("", "transformer.", "model.", "model.transformer.")
        self.full: dict[str, str] = {}
        for name in source.names():
            plain = name.removeprefix(_NANOGPT_PREFIX)
            if plain.endswith(".weight_int8"):  # as transformers folders call it
                plain = plain.removesuffix("_int8")
            for prefix in prefixes:
                if plain.startswith(prefix):
                    self.full.setdefault(plain.removeprefix(prefix), name)

    def get(self, name: str) -> Tensor | None:
        return self.source.tensor(self.full[name]) if name in self.full else None

    def need(self, name: str) -> Tensor:
        if name not in self.full:
            raise ValueError(f"load: the checkpoint has no tensor {name!r}")
        return self.source.tensor(self.full[name])

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.full:
            raise ValueError(f"load: the checkpoint has no tensor {name!r}")
        return self.source.shape(self.full[name])


def load_weights(model: Decoder, source: Source, device: torch.device | str) -> None:
    """Fills a model made on "meta" from a checkpoint, on `device`, quantising as it goes.

    GPT-2 as Hugging Face stores it (its Conv1D keep weights transposed) and as nanoGPT does (they
    are not) are told apart by their shapes. Weights that are int8 already, with their scale beside
    them (``NAME.weight_scale``), are taken as they are.

    Args:
        model: made on "meta".
        source: the tensors.
        device: where they go.

    Raises:
        ValueError: a tensor is missing, or has another shape than the model needs; the message
            names it.
    """
    names, config = _Names(source), model.config
    transposed = False
    if config.architecture == "gpt2":
        expected = (config.hidden_size, config.qkv_features)
        transposed = names.shape("h.0.attn.c_attn.weight") == expected
    for part in parts(config):
        target = part.target
        if target == "embed" and model.embed is None:
            target = "lm_head"  # tied, and int8: one matrix serves both
        if target.endswith("mlp.gate_up") and model.linears == "int8":
            target += "_pairs"
        module = model.get_submodule(target)
        if isinstance(module, QuantLinear):
            flip = transposed and target.startswith("blocks.")
            _load_quantized(module, names, part.sources, flip, device, model.dtype)
        else:
            flip = transposed and isinstance(module, nn.Linear) and target.startswith("blocks.")
            _load_float(module, names, part.sources, flip, device, model.dtype)
    if config.tie_embeddings and model.embed is not None:
        assert isinstance(model.embed.weight, nn.Parameter)
        model.lm_head.register_parameter("weight", model.embed.weight)


def _check(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise ValueError(f"load: {name} has shape {shape}, expected {expected}")


def _load_quantized(
    module: QuantLinear,
    names: _Names,
    sources: tuple[str, ...],
    flip: bool,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    shape = (module.out_features, module.in_features)
    weight = torch.empty(shape, dtype=torch.int8, device=device)
    scale = torch.empty(shape[0], dtype=torch.float32, device=device)
    bias = None if module.bias is None else _bias(names, sources, shape[0], device, dtype)
    if module.activation == "silu_mul":  # rows of gate and up in turn
        for i, name in enumerate(sources):
            own = scale[i :: len(sources)]
            row = _quantize_rows(weight[i :: len(sources)], own, 0, names, name, flip)
            _check(f"{name}: rows", (row,), tuple(own.shape))
        bias = None if bias is None else bias.view(len(sources), -1).t().flatten()
    else:
        row = 0
        for name in sources:
            row = _quantize_rows(weight, scale, row, names, name, flip)
        _check(f"{' and '.join(sources)}: rows", (row,), (shape[0],))
    module.weight, module.weight_scale = weight, scale
    if bias is not None:
        module.bias = bias


def _quantize_rows(
    weight: Tensor, scale: Tensor, row: int, names: _Names, name: str, flip: bool
) -> int:
    """Fills rows from `row` on with the tensor `name`; returns where they end."""
    stored = names.need(f"{name}.weight")
    stored = stored.t() if flip else stored
    end = row + stored.shape[0]
    _check(f"{name}.weight", tuple(stored.shape), (stored.shape[0], weight.shape[1]))
    if end > weight.shape[0]:
        raise ValueError(
            f"load: {name}.weight has shape {tuple(stored.shape)}, only {weight.shape[0] - row} "
            "rows more are expected"
        )
    stored_scale = names.get(f"{name}.weight_scale")
    if stored_scale is not None:
        weight[row:end] = stored
        scale[row:end] = stored_scale.reshape(-1)
        return end
    for piece in stored.split(max(1, PIECE_BYTES // (stored.shape[1] * stored.element_size()))):
        end = row + piece.shape[0]
        quantized = per_channel.quantize_per_channel(piece.to(weight.device))
        weight[row:end], scale[row:end] = quantized
        row = end
    return row


def _bias(
    names: _Names,
    sources: tuple[str, ...],
    size: int,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    bias = torch.cat([names.need(f"{name}.bias").to(device, dtype) for name in sources])
    _check(f"{' and '.join(sources)}: bias", tuple(bias.shape), (size,))
    return bias


def _load_float(
    module: nn.Module,
    names: _Names,
    sources: tuple[str, ...],
    flip: bool,
    device: torch.device | str,
    dtype: torch.dtype,
) -> None:
    expected = tuple(module.get_parameter("weight").shape)
    weight = torch.empty(expected, dtype=dtype, device=device)
    row = 0
    for name in sources:
        row = _copy_rows(weight, row, names, name, flip)
    _check(f"{' and '.join(sources)}: rows", (row,), expected[:1])
    module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    if module._parameters.get("bias") is not None:
        bias = _bias(names, sources, expected[0], device, dtype)
        module.register_parameter("bias", nn.Parameter(bias, requires_grad=False))


def _copy_rows(weight: Tensor, row: int, names: _Names, name: str, flip: bool) -> int:
    stored = names.need(f"{name}.weight")
    stored = stored.t() if flip else stored
    end = row + stored.shape[0]
    fits = stored.shape[1:] == weight.shape[1:] and end <= weight.shape[0]
    if not fits:
        _check(f"{name}.weight", tuple(stored.shape), (weight.shape[0] - row, *weight.shape[1:]))
    weight[row:end].copy_(stored)
    return end


def from_source(
    config: ModelConfig, source: Source, *, device: torch.device | str, **options: Any
) -> Decoder:
    """A model of `config` with the weights of `source`, quantised as they stream in.

    Args:
        config: says whether it is a `GPT` or a `Llama`.
        source: the tensors.
        device: where the model goes.
        **options: attention, linears, int8_head, dtype, as `Decoder` takes them.

    Raises:
        ValueError: an option or a tensor does not fit.
    """
    kind = GPT if config.architecture == "gpt2" else Llama
    model = kind(config, device="meta", **options)
    with torch.inference_mode():
        load_weights(model, source, device)
    return model


def from_pretrained(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu", **options: Any
) -> Decoder:
    """A model from a folder as Hugging Face stores it: `config.json` and safetensors.

    Args:
        path: the folder; its safetensors may be sharded.
        device: where the model goes.
        **options: attention, linears, int8_head, dtype, as `Decoder` takes them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the model is neither GPT-2 nor Llama, or a file is broken; the message names it.
    """
    folder = Path(path)
    config = ModelConfig.from_pretrained(folder)
    return from_source(config, Checkpoint(folder), device=device, **options)


def from_nanogpt(
    model_args: Mapping[str, Any],
    state_dict: Mapping[str, Tensor],
    *,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Decoder:
    """A model that nanoGPT trained, from its checkpoint's "model_args" and "model".

    Args:
        model_args: n_layer, n_head, n_embd, block_size, vocab_size, bias.
        state_dict: the weights.
        device: where the model goes.
        **options: attention, linears, int8_head, dtype, as `Decoder` takes them.

    Raises:
        ValueError: a missing argument; a tensor does not fit.
    """
    try:
        hidden, heads = model_args["n_embd"], model_args["n_head"]
        bias = model_args.get("bias", True)
        config = ModelConfig(
            architecture="gpt2",
            vocab_size=model_args["vocab_size"],
            hidden_size=hidden,
            num_layers=model_args["n_layer"],
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=hidden // heads,
            intermediate_size=4 * hidden,
            max_positions=model_args["block_size"],
            activation="gelu",
            attention_bias=bias,
            mlp_bias=bias,
        )
    except KeyError as error:
        raise ValueError(f"from_nanogpt: model_args has no {error.args[0]!r}") from None
    tensors = dict(state_dict)
    if not bias:  # its norms have none either; ours always add one
        for name in list(tensors):
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                tensors[name.removesuffix("weight") + "bias"] = torch.zeros_like(tensors[name])
    return from_source(config, StateDict(tensors), device=device, **options)
