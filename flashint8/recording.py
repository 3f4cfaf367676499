"""A function's operators, recorded once and run again without the Python that led to them.

To a decoding step on the CPU it is what a CUDA graph is to one on a GPU.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import TorchDispatchMode

# As methods these take a third of the time: their arguments are parsed by code made for them.
_METHODS = {
    torch.ops.aten.as_strided.default: "as_strided",
    torch.ops.aten.view.default: "view",
}

_Call = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any], Any]


class _Recorder(TorchDispatchMode):
    """Runs each operator, and keeps it with its arguments and its result."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to skip it, torch would import it: a second, the first time

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is torch.ops.aten.lift_fresh.default:  # torch.tensor: made anew each time
            func, args = torch.ops.aten.lift_fresh_copy.default, (args[0].clone(),)
        self.calls.append((func, args, kwargs, result))
        return result


def record(function: Callable[[], object]) -> Callable[[], object]:
    """Calls `function`, and returns what runs the same operators on the same tensors again.

    As with a CUDA graph, tensors made outside `function` are read and written where they are, and
    what Python decided while it was recorded stays decided: values that it read by `tolist` or
    `numpy` among them, which no operator shows.

    Args:
        function: what to record; its result is not kept.

    Raises:
        RuntimeError: an operator gave Python something other than tensors, as `item` does, which
            what follows may depend on.
    """
    with _Recorder() as recorder:
        function()
    graph = fx.Graph()
    outside = _made_outside(recorder.calls)
    nodes = {key: graph.placeholder(f"outside_{i}") for i, key in enumerate(outside)}
    for func, args, kwargs, result in recorder.calls:
        found = partial(map_aggregate, fn=lambda value: nodes.get(id(value), value))
        if func in _METHODS:
            node = graph.call_method(_METHODS[func], found(args), found(dict(kwargs)))
        else:
            node = graph.call_function(func, found(args), found(dict(kwargs)))
        for i, part in enumerate(_parts(result)):
            if part is None:
                continue
            if not isinstance(part, Tensor):
                raise RuntimeError(
                    f"record: {func} returned {type(part).__name__}, which cannot be recorded"
                )
            if id(part) not in nodes:  # what an operator wrote in place keeps its name
                whole = part is result
                nodes[id(part)] = (
                    node if whole else graph.call_function(operator.getitem, (node, i))
                )
    graph.output(None)
    # Not a GraphModule, whose source torch keeps for good.
    code = graph.python_code("self")
    scope = dict(code.globals)
    exec(code.src, scope)
    return partial(scope["forward"], None, *outside.values())


def _parts(result: Any) -> Sequence[Any]:
    return result if isinstance(result, (tuple, list)) else (result,)


def _made_outside(calls: list[_Call]) -> dict[int, Any]:
    """By their id the tensors, and random generators, that no operator of these made."""
    made: set[int] = set()
    outside: dict[int, Any] = {}

    def see(value: Any) -> Any:
        if isinstance(value, (Tensor, torch.Generator)) and id(value) not in made:
            outside[id(value)] = value
        return value

    for _, args, kwargs, result in calls:
        map_aggregate((args, dict(kwargs)), see)
        for part in _parts(result):
            if id(part) not in outside:
                made.add(id(part))
    return outside
