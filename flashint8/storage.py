"""`save_quantized` and `load_quantized`: int8 models on disk; 16-bit ones, made int8 as they load.

Memory never holds more than the int8 model and one tensor of the checkpoint.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from flashint8._loading import Job, LinearJob, LoadPlan, TensorJob, plan_loading
from flashint8._progress import progress_bar
from flashint8._selection import FilterFn, memory_key, model_bytes, swap
from flashint8.checkpoint import TIED_KEY, Checkpoint
from flashint8.checkpoint_writer import CheckpointWriter, Spec
from flashint8.modules import QuantLinear
from flashint8.per_channel import check_method
from flashint8.quantize import QuantizeReport, adopt_pretrained


def save_quantized(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes a model's state to one safetensors file; `load_quantized` gives the same bits back.

    A QuantLinear is written as ``weight`` (int8) and ``weight_scale`` (float32). A tensor that has
    several names is written once. The file appears under its name only when it is whole.

    Args:
        model: any module; layers that are not QuantLinear are written as they are.
        path: ends in ".safetensors"; its folder exists. An existing file is replaced.

    Raises:
        ValueError: path has another ending; a tensor is on meta, or is no tensor (extra state).
        FileNotFoundError: path's folder is not there.
    """
    names: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"save_quantized: {name} is no tensor ({type(tensor).__name__})")
        if tensor.is_meta:
            raise ValueError(f"save_quantized: {name} is on meta: there is nothing to write")
        name = _canonical(model, name)
        key = (memory_key(tensor), tensor.shape, tensor.stride(), tensor.dtype)
        if first.setdefault(key, name) == name:
            names[name] = tensor
        else:
            tied[name] = first[key]
    specs = [Spec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in names.items()]
    metadata = {"format": "pt", TIED_KEY: json.dumps(tied)}
    with CheckpointWriter(path, specs, metadata) as writer:
        for name, tensor in names.items():
            writer.write(name, tensor)


def load_quantized(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    skip: Iterable[str] = ("lm_head",),
    filter_fn: FilterFn | None = None,
    min_features: int = 0,
    method: str = "absmax",
    device: torch.device | str | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    strict: bool = True,
    progress: bool | None = None,
) -> QuantizeReport:
    """Fills a model from a safetensors checkpoint, its linear layers in int8.

    Tensors are read one by one; a linear layer's weight is quantised as it comes, or taken as it is
    where the checkpoint has it in int8: a file of `save_quantized`, or compressed-tensors'
    int-quantized form (``weight`` int8, ``weight_scale`` (N,) or (N, 1), float16, bfloat16 or
    float32). Build the model on meta (``with torch.device("meta")``), and it never exists in 16
    bits. The model changes only after everything was read: an error leaves it as it was.

    Args:
        model: on meta or not; changed in place. Floating-point tensors get the dtypes it has.
        path: a .safetensors file, an index of shards, or a folder with one, as `Checkpoint` takes.
        skip: layers to leave in floating point, as `quantize_model` takes them.
        filter_fn: likewise. Layers that the checkpoint has in int8 are int8 in any case.
        min_features: likewise.
        method: likewise, for weights that are quantised here.
        device: where everything goes; None: where the model has it, from meta to the CPU.
        buffers: by name, values of buffers that no checkpoint has (non-persistent ones, such as
            rotary tables) and that the model has on meta.
        strict: False leaves what the checkpoint lacks as it is and ignores what the model lacks.
        progress: as `quantize_model` takes it.

    Returns:
        A `QuantizeReport`; its ``bytes_before`` are those of the model as it was given.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint is broken, or is not this model's: missing or unexpected tensors,
            other shapes, other types, int8 weights that are not symmetric and per channel, or
            values that are not finite; the message names the tensor.
    """
    check_method(method, "load_quantized")
    checkpoint = Checkpoint(path)
    plan = plan_loading(model, checkpoint, skip, filter_fn, min_features, strict, buffers or {})
    report = QuantizeReport(skipped=plan.skipped, bytes_before=model_bytes(model))
    target = None if device is None else torch.device(device)
    commits: list[Callable[[], None]] = []
    with progress_bar("loading", sum(job.nbytes for job in plan.jobs), progress) as advance:
        for job in plan.jobs:
            advance(0, job.name)
            commits.append(_load(job, checkpoint, method, target))
            advance(job.nbytes, job.name)
    for commit in commits:
        commit()
    _place_buffers(model, plan, target)
    report.swapped = [job.name for job in plan.jobs if isinstance(job, LinearJob) and job.new]
    report.bytes_after = model_bytes(model)
    adopt_pretrained(model, method)
    return report


def _load(
    job: Job, checkpoint: Checkpoint, method: str, device: torch.device | None
) -> Callable[[], None]:
    """Reads a job's tensors; returns what puts them into the model."""
    if isinstance(job, TensorJob):
        tensor = checkpoint.tensor(job.source).to(
            device or _home(job.like), job.like.dtype, copy=False
        )
        return lambda: job.put(tensor)
    return _load_linear(job, checkpoint, method, device)


def _load_linear(
    job: LinearJob, checkpoint: Checkpoint, method: str, device: torch.device | None
) -> Callable[[], None]:
    layer = QuantLinear.empty_like(job.layer) if job.new else job.layer
    assert isinstance(layer, QuantLinear)
    home = device or _home(job.like)
    weight = checkpoint.tensor(job.weight).to(home)
    if job.scale is None:
        loaded = QuantLinear(0, 0, bias=False, device="meta")
        try:
            loaded._set_weight(weight.t() if job.transposed else weight, method)
        except ValueError as error:
            raise ValueError(f"load_quantized: {job.weight}: {error}") from error
        weight, scale = loaded.weight, loaded.weight_scale
    else:
        scale = checkpoint.tensor(job.scale).to(home).float().flatten()
        if not bool(scale.isfinite().all()):
            raise ValueError(f"load_quantized: {job.scale} has a value that is not finite")
        if job.zero_point is not None and bool(checkpoint.tensor(job.zero_point).any()):
            raise ValueError(
                f"load_quantized: {job.zero_point} is not zero: only symmetric int8 is supported"
            )
    bias = None
    if job.bias is not None:
        bias = checkpoint.tensor(job.bias).to(home, layer.dtype)

    def put() -> None:
        layer.weight, layer.weight_scale, layer.bias = weight, scale, bias
        if job.new:
            swap(job.model, job.names, layer)

    return put


def _home(like: Tensor) -> torch.device:
    return torch.device("cpu") if like.is_meta else like.device


def _place_buffers(model: nn.Module, plan: LoadPlan, device: torch.device | None) -> None:
    """Puts the caller's buffers in, and moves what no checkpoint has."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta and device is not None:
                module._buffers[name] = buffer.to(device)
    for name, value in plan.buffers.items():
        parent, _, child = name.rpartition(".")
        module = model.get_submodule(parent)
        home = device or _home(module._buffers[child] or value)
        module._buffers[child] = value.to(home)


def _canonical(model: nn.Module, name: str) -> str:
    """A state's name, of the int8 tensor in any kind of QuantLinear `weight`."""
    parent, _, child = name.rpartition(".")
    layer = model.get_submodule(parent)
    if isinstance(layer, QuantLinear) and child == layer.WEIGHT_NAME:
        return f"{parent}.weight" if parent else "weight"
    return name
