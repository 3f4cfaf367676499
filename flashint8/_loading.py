"""Which tensor of a checkpoint goes where in a model; decided, and checked, before any is read."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from flashint8._checks import FLOAT_DTYPES, dtype_name
from flashint8._linears import is_conv1d
from flashint8._selection import FilterFn, memory_key, select
from flashint8.checkpoint import Checkpoint
from flashint8.modules import QuantLinear

CALLER = "load_quantized"


@dataclass
class TensorJob:
    """A parameter or buffer to read as it is, into every place that holds it.

    Attributes:
        name: in the model.
        source: in the checkpoint.
        nbytes: of the source.
        like: the tensor that is there now; gives dtype and device.
        places: (module, attribute) of each place.
    """

    name: str
    source: str
    nbytes: int
    like: Tensor
    places: list[tuple[nn.Module, str]]

    def put(self, tensor: Tensor) -> None:
        """Gives every place the new tensor; a parameter stays one object."""
        parameter = None
        if isinstance(self.like, nn.Parameter):
            parameter = nn.Parameter(tensor, requires_grad=self.like.requires_grad)
        for module, attribute in self.places:
            if parameter is not None:
                module._parameters[attribute] = parameter
            else:
                module._buffers[attribute] = tensor


@dataclass
class LinearJob:
    """A layer to have in int8: weight in int8 with its scale, or in floating point.

    Attributes:
        name: the layer's first name.
        names: all of them.
        model: the root.
        layer: the layer that is there now.
        new: whether a QuantLinear takes its place (else it is one).
        like: its weight now; gives the device.
        weight: its weight in the checkpoint.
        scale: likewise; None where the weight is in floating point.
        zero_point: likewise, if there is one.
        bias: likewise.
        transposed: whether the checkpoint's weight is (K, N).
        nbytes: of the weight.
    """

    name: str
    names: list[str]
    model: nn.Module
    layer: nn.Module
    new: bool
    like: Tensor
    weight: str
    scale: str | None
    zero_point: str | None
    bias: str | None
    transposed: bool
    nbytes: int


Job = TensorJob | LinearJob


@dataclass
class LoadPlan:
    """What `plan_loading` decided."""

    jobs: list[Job] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)


class _Source:
    """The checkpoint's names, with those left out as tied, and which were used."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.used: set[str] = set()

    def _stored(self, name: str) -> str | None:
        """The name of the tensor in the checkpoint that `name` means; None if it has none."""
        stored = name if name in self.checkpoint else self.checkpoint.tied.get(name)
        return stored if stored in self.checkpoint else None

    def find(self, names: Iterable[str]) -> str | None:
        """The tensor that the first known of these names means; all of them count as used."""
        stored = [name for name in map(self._stored, names) if name is not None]
        self.used.update(stored)
        return stored[0] if stored else None

    def int8_weight(self, layer: str) -> str | None:
        """The int8 weight of a layer, if it is there in that form."""
        for name in (f"{layer}.weight_int8", f"{layer}.weight"):
            stored = self._stored(name)
            if stored is not None and self.checkpoint.dtype(stored) == torch.int8:
                return stored
        return None


def plan_loading(
    model: nn.Module,
    checkpoint: Checkpoint,
    skip: Iterable[str],
    filter_fn: FilterFn | None,
    min_features: int,
    strict: bool,
    buffers: Mapping[str, Tensor],
) -> LoadPlan:
    """Pairs a model with a checkpoint; arguments are `load_quantized`'s.

    Raises:
        ValueError: they do not fit.
    """
    source = _Source(checkpoint)
    chosen = select(
        model,
        CALLER,
        skip,
        filter_fn,
        min_features,
        force=lambda name: source.int8_weight(name) is not None,
    )
    plan = LoadPlan(skipped=chosen.skipped)
    missing: list[str] = []
    linears = {id(model.get_submodule(names[0])) for names in chosen.chosen}
    every: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        every.setdefault(id(module), []).append(name)
    for names in every.values():
        module = model.get_submodule(names[0])
        if id(module) in linears or isinstance(module, QuantLinear):
            job = _linear_job(model, module, names, source, missing)
            plan.jobs += [job] if job else []
            linears.add(id(module))
    plan.jobs += _tensor_jobs(model, linears, source, missing)
    plan.buffers = _check_buffers(model, buffers)
    if strict:
        unexpected = [name for name in checkpoint.names() if name not in source.used]
        _report(checkpoint, "lacks", missing)
        _report(checkpoint, "has, and the model lacks,", unexpected)
    return plan


def _linear_job(
    model: nn.Module, layer: nn.Module, names: list[str], source: _Source, missing: list[str]
) -> LinearJob | None:
    new = not isinstance(layer, QuantLinear)
    like = layer.weight
    assert isinstance(like, Tensor)
    transposed = is_conv1d(layer)
    sizes = (like.shape[1], like.shape[0]) if transposed else tuple(like.shape)
    int8 = next((w for n in names if (w := source.int8_weight(n))), None)
    weight = source.find([int8] if int8 else [f"{n}.weight" for n in names])
    if weight is None:
        missing.append(f"{names[0]}.weight")
        return None
    scale = zero_point = None
    dtype, shape = source.checkpoint.dtype(weight), source.checkpoint.shape(weight)
    if int8 is not None:
        transposed = False
        stem = weight.removesuffix("_int8")
        scale = source.find([f"{stem}_scale"])
        zero_point = source.find([f"{stem}_zero_point"])
        if scale is None:
            raise ValueError(f"{CALLER}: {weight} is int8, but there is no {stem}_scale")
        _check_scale(source.checkpoint, scale, sizes[0])
    elif dtype not in FLOAT_DTYPES:
        raise ValueError(f"{CALLER}: {weight} is {dtype_name(dtype)}: int8 or 16 or 32 bits wanted")
    if shape != (sizes[::-1] if transposed else sizes):
        raise ValueError(
            f"{CALLER}: {weight} has shape {shape}, the model's is {tuple(like.shape)}"
        )
    bias = None
    if isinstance(layer.bias, Tensor):
        bias = source.find([f"{n}.bias" for n in names])
        if bias is None:
            missing.append(f"{names[0]}.bias")
            return None
        _check_tensor(source.checkpoint, bias, layer.bias)
    nbytes = source.checkpoint.nbytes(weight)
    return LinearJob(
        names[0],
        names,
        model,
        layer,
        new,
        like,
        weight,
        scale,
        zero_point,
        bias,
        transposed,
        nbytes,
    )


def _check_scale(checkpoint: Checkpoint, scale: str, n: int) -> None:
    shape, dtype = checkpoint.shape(scale), checkpoint.dtype(scale)
    if shape not in ((n,), (n, 1)):
        raise ValueError(
            f"{CALLER}: {scale} has shape {shape}; one scale per output channel, ({n},) or "
            f"({n}, 1), is supported"
        )
    if dtype not in FLOAT_DTYPES:
        raise ValueError(f"{CALLER}: {scale} is {dtype_name(dtype)}, not 16 or 32 bits floating")


def _tensor_jobs(
    model: nn.Module, linears: set[int], source: _Source, missing: list[str]
) -> Iterator[TensorJob]:
    """The parameters and persistent buffers outside of int8 layers, shared ones once."""
    groups: dict[object, tuple[Tensor, list[str], list[tuple[nn.Module, str]]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if id(module) in linears:
            continue
        for attribute, tensor in _persistent(module):
            full = f"{name}.{attribute}" if name else attribute
            group = groups.setdefault(memory_key(tensor), (tensor, [], []))
            group[1].append(full)
            group[2].append((module, attribute))
    for tensor, names, places in groups.values():
        found = source.find(names)
        if found is None:
            missing.append(names[0])
            continue
        _check_tensor(source.checkpoint, found, tensor)
        yield TensorJob(names[0], found, source.checkpoint.nbytes(found), tensor, places)


def _persistent(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None and name not in module._non_persistent_buffers_set:
            yield name, tensor


def _check_tensor(checkpoint: Checkpoint, name: str, like: Tensor) -> None:
    if nn.parameter.is_lazy(like):
        raise ValueError(f"{CALLER}: {name} belongs to a lazy layer: run the model once first")
    shape, dtype = checkpoint.shape(name), checkpoint.dtype(name)
    if shape != tuple(like.shape):
        raise ValueError(f"{CALLER}: {name} has shape {shape}, the model's is {tuple(like.shape)}")
    if dtype != like.dtype and not (dtype.is_floating_point and like.is_floating_point()):
        got, want = dtype_name(dtype), dtype_name(like.dtype)
        raise ValueError(f"{CALLER}: {name} is {got}, the model's is {want}")


def _check_buffers(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The caller's buffers; ValueError if one is unknown, or one on meta has no value."""
    known = dict(model.named_buffers())
    for name, value in given.items():
        if name not in known or known[name].shape != value.shape:
            raise ValueError(f"{CALLER}: buffers: the model has no {name} of shape {value.shape}")
    lost = []
    for name, module in model.named_modules():
        for attribute in module._non_persistent_buffers_set:
            buffer = module._buffers.get(attribute)
            full = f"{name}.{attribute}" if name else attribute
            if buffer is not None and buffer.is_meta and full not in given:
                lost.append(full)
    if lost:
        raise ValueError(
            f"{CALLER}: {lost[0]} is on meta and no checkpoint has it (it is not persistent): "
            f"give its value in buffers={{...}}{_others(lost)}"
        )
    return dict(given)


def _report(checkpoint: Checkpoint, verb: str, names: list[str]) -> None:
    if names:
        raise ValueError(f"{CALLER}: {checkpoint.path} {verb} {names[0]}{_others(names)}")


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
