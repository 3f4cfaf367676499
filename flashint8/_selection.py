"""Which layers of a model become int8, and why the others do not."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor, nn

from flashint8._linears import is_linear, linear_features, why_not_plain, why_not_quantizable
from flashint8.modules import QuantLinear

FilterFn = Callable[[str, nn.Module], bool]


@dataclass
class Selection:
    """What `select` found.

    Attributes:
        chosen: every name of each layer to swap, in the order of the model.
        skipped: the first name of each linear layer left alone, with the reason.
    """

    chosen: list[list[str]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def select(
    model: nn.Module,
    caller: str,
    skip: Iterable[str],
    filter_fn: FilterFn | None,
    min_features: int,
    force: Callable[[str], bool] = lambda name: False,
) -> Selection:
    """The linear layers of `model` to swap; the rules are `quantize_model`'s.

    Args:
        model: looked at only.
        caller: the public function's name, for messages.
        skip: names and patterns to leave alone.
        filter_fn: says whether to swap a layer.
        min_features: smaller layers are left alone.
        force: says of a name whether that layer must be swapped (the checkpoint has it in int8),
            against skip, filter_fn and min_features.

    Raises:
        TypeError: `model` itself is a linear layer, or `skip` is one string.
        ValueError: a layer to swap is not initialised, is of float64 or the like, or must be
            swapped and cannot.
    """
    if is_linear(model):
        raise TypeError(f"{caller}: model is a linear layer; use QuantLinear.from_linear(model)")
    if isinstance(skip, str):
        raise TypeError(f"{caller}: skip must be a list of names, got the string {skip!r}")
    patterns = tuple(skip)
    owners = _weight_owners(model)
    fast_path = _read_by_fast_path(model)
    names: dict[int, list[str]] = {}  # every name of each module
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)

    selection = Selection()
    for first, module in model.named_modules():
        module_names = names[id(module)]
        if isinstance(module, QuantLinear):
            selection.skipped[first] = "already quantised"
            continue
        if not is_linear(module):
            continue
        forced = any(map(force, module_names))
        reason = (
            None if forced else _unwanted(module_names, module, patterns, filter_fn, min_features)
        )
        reason = reason or _why_not(module, owners)
        if reason is None and id(module) in fast_path:
            reason = "the fast path of nn.TransformerEncoderLayer reads its weight directly"
        if reason is not None:
            if forced:
                raise ValueError(f"{caller}: {first} is in int8, but cannot be here: {reason}")
            selection.skipped[first] = reason
            continue
        problem = why_not_quantizable(module)
        if problem is not None:
            raise ValueError(f"{caller}: {first}: {problem}; or put it in skip")
        selection.chosen.append(module_names)
    return selection


def swap(model: nn.Module, names: list[str], layer: nn.Module) -> None:
    """Puts `layer` into `model` under each of its names."""
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer)


def matches(name: str, patterns: Iterable[str]) -> str | None:
    """The first pattern that a name or its last part matches."""
    last = name.rpartition(".")[2]
    return next((p for p in patterns if fnmatchcase(name, p) or fnmatchcase(last, p)), None)


def memory_key(tensor: Tensor) -> object:
    """Equal for tensors that are the same memory. On meta, the same object is the same memory."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta or tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr()


def model_bytes(model: nn.Module) -> int:
    """Of all parameters and buffers; shared ones count once."""
    tensors: dict[object, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        if not nn.parameter.is_lazy(tensor):
            key = memory_key(tensor)
            tensors[key] = max(tensors.get(key, 0), tensor.nbytes)
    return sum(tensors.values())


def _unwanted(
    names: list[str],
    linear: nn.Module,
    patterns: tuple[str, ...],
    filter_fn: FilterFn | None,
    min_features: int,
) -> str | None:
    """What the caller said against this layer."""
    for name in names:
        if pattern := matches(name, patterns):
            return f"matches skip {pattern!r}"
    if min(linear_features(linear)) < min_features:
        return f"fewer than {min_features} features"
    if filter_fn is not None and not filter_fn(names[0], linear):
        return "filter_fn said no"
    return None


def _why_not(linear: nn.Module, owners: dict[object, int]) -> str | None:
    """Why int8 would change what this layer means, or cost memory."""
    if isinstance(linear, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return "nn.MultiheadAttention reads its weight directly"
    problem = why_not_plain(linear)  # before its weight, which a parametrisation would compute
    if problem is None:
        weight = linear.weight
        assert isinstance(weight, Tensor)
        if owners.get(memory_key(weight), 1) > 1:
            return "its weight is shared with another module"
    return problem


def _read_by_fast_path(model: nn.Module) -> set[int]:
    """The layers (by id) whose weight nn.TransformerEncoderLayer hands to its fused kernel."""
    layers = (m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer))
    return {id(linear) for layer in layers for linear in (layer.linear1, layer.linear2)}


def _weight_owners(model: nn.Module) -> dict[object, int]:
    """How many modules hold each parameter."""
    owners: dict[object, int] = {}
    for module in model.modules():
        for key in {memory_key(p) for p in module._parameters.values() if p is not None}:
            owners[key] = owners.get(key, 0) + 1
    return owners
