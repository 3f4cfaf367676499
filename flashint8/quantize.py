"""`quantize_model`: swaps a model's nn.Linear layers for QuantLinear."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor, nn

from flashint8.modules import QuantLinear, why_not_plain, why_not_quantizable


@dataclass
class QuantizeReport:
    """What `quantize_model` did. str() gives a summary.

    Attributes:
        swapped: names of the layers that became QuantLinear.
        skipped: names of the linear layers left alone, with the reason.
        bytes_before: of all parameters and buffers, shared ones counted once.
        bytes_after: the same, afterwards.
    """

    swapped: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0

    def __str__(self) -> str:
        before, after = self.bytes_before / 2**20, self.bytes_after / 2**20
        lines = [f"{len(self.swapped)} layers swapped; {before:.1f} MiB became {after:.1f} MiB"]
        lines += [f"  kept {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def quantize_model(
    model: nn.Module,
    *,
    skip: Iterable[str] = ("lm_head",),
    filter_fn: Callable[[str, nn.Linear], bool] | None = None,
    min_features: int = 0,
) -> QuantizeReport:
    """Swaps every nn.Linear inside `model` for a QuantLinear, in place, one at a time.

    A layer that occurs twice in the model is quantised once and stays shared. A layer whose weight
    is also another module's (tied embeddings) is left alone: quantising it would add memory. So
    are layers that do more than nn.Linear (a forward of their own, forward hooks, parametrisations)
    and those whose weight torch reads past their forward (in nn.MultiheadAttention and
    nn.TransformerEncoderLayer). The report names each. Works on meta tensors.

    Args:
        model: changed in place. It must not itself be the nn.Linear.
        skip: names to leave alone: full names ("model.lm_head"), last parts ("lm_head"), or
            patterns as in a shell ("layers.0.*").
        filter_fn: given a layer's name and the layer, says whether to swap it.
        min_features: layers with fewer input or output features are left alone.

    Returns:
        A `QuantizeReport`.

    Raises:
        TypeError: `model` itself is an nn.Linear, or `skip` is one string.
        ValueError: a layer to swap is not initialised, or its weight is float64 or the like, or not
            finite; the message names it, and nothing, or only the layers before it, have been
            swapped.
    """
    if isinstance(model, nn.Linear):
        raise TypeError("quantize_model: model is an nn.Linear; use QuantLinear.from_linear(model)")
    if isinstance(skip, str):
        raise TypeError(f"quantize_model: skip must be a list of names, got the string {skip!r}")
    patterns = tuple(skip)
    report = QuantizeReport(bytes_before=_model_bytes(model))
    owners = _weight_owners(model)
    fast_path = _read_by_fast_path(model)
    names: dict[int, list[str]] = {}  # every name of each module
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module

    chosen: list[nn.Linear] = []
    for key, module in modules.items():
        if isinstance(module, QuantLinear):
            reason: str | None = "already quantised"
        elif isinstance(module, nn.Linear):
            reason = _why_skip(names[key], module, patterns, filter_fn, min_features, owners)
            if reason is None and key in fast_path:
                reason = "the fast path of nn.TransformerEncoderLayer reads its weight directly"
        else:
            continue
        if reason is not None:
            report.skipped[names[key][0]] = reason
            continue
        assert isinstance(module, nn.Linear)
        problem = why_not_quantizable(module)
        if problem is not None:
            raise ValueError(f"quantize_model: {names[key][0]}: {problem}; or put it in skip")
        chosen.append(module)

    while chosen:
        linear = chosen.pop(0)
        linear_names = names[id(linear)]
        modules.pop(id(linear))  # the last reference to it, so that its memory goes now
        try:
            quant = QuantLinear.from_linear(linear)
        except ValueError as error:
            raise ValueError(f"quantize_model: {linear_names[0]}: {error}") from error
        for name in linear_names:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, quant)
        report.swapped.append(linear_names[0])
    report.bytes_after = _model_bytes(model)
    return report


def _why_skip(
    names: list[str],
    linear: nn.Linear,
    patterns: tuple[str, ...],
    filter_fn: Callable[[str, nn.Linear], bool] | None,
    min_features: int,
    owners: dict[int, int],
) -> str | None:
    for name in names:
        for pattern in patterns:
            if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern):
                return f"matches skip {pattern!r}"
    if min(linear.in_features, linear.out_features) < min_features:
        return f"fewer than {min_features} features"
    if filter_fn is not None and not filter_fn(names[0], linear):
        return "filter_fn said no"
    if isinstance(linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight directly"
    problem = why_not_plain(linear)  # before its weight, which a parametrisation would compute
    if problem is None and owners.get(id(linear.weight), 1) > 1:
        return "its weight is shared with another module"
    return problem


def _read_by_fast_path(model: nn.Module) -> set[int]:
    """The layers (by id) whose weight nn.TransformerEncoderLayer hands to its fused kernel."""
    layers = (m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer))
    return {id(linear) for layer in layers for linear in (layer.linear1, layer.linear2)}


def _weight_owners(model: nn.Module) -> dict[int, int]:
    """How many modules hold each parameter."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in {id(p): p for p in module._parameters.values() if p is not None}:
            owners[parameter] = owners.get(parameter, 0) + 1
    return owners


def _model_bytes(model: nn.Module) -> int:
    tensors: dict[object, Tensor] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        if nn.parameter.is_lazy(tensor):
            continue
        # Meta tensors have no memory to compare: there, the same object is the same memory.
        key = id(tensor) if tensor.is_meta else (tensor.device, tensor.untyped_storage().data_ptr())
        if key not in tensors or tensors[key].nbytes < tensor.nbytes:
            tensors[key] = tensor
    return sum(tensor.nbytes for tensor in tensors.values())
