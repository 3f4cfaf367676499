"""Which layers are linear, where their weight lies, what keeps one from being quantised."""

from typing import Any

from torch import Tensor, nn

from flashint8._checks import FLOAT_DTYPES, dtype_name


def is_conv1d(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D (GPT-2): a linear layer with its weight transposed."""
    return any(map(_is_conv1d_class, type(module).__mro__))


def _is_conv1d_class(cls: type) -> bool:
    return cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is an nn.Linear or a Conv1D."""
    return isinstance(module, nn.Linear) or is_conv1d(module)


def linear_weight(linear: nn.Module) -> Tensor:
    """The layer's weight as (N, K), detached; of a Conv1D a transposed view."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight.detach().t() if is_conv1d(linear) else weight.detach()


def why_not_plain(linear: nn.Module) -> str | None:
    """What this layer does beyond nn.Linear's forward, in words; None if nothing."""
    if nn.utils.parametrize.is_parametrized(linear):
        return (
            "it is parametrised (torch.nn.utils.parametrize): bake it in first with "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    base: Any = next(
        cls for cls in type(linear).__mro__ if cls is nn.Linear or _is_conv1d_class(cls)
    )
    if type(linear).forward is not base.forward or "forward" in vars(linear):
        return f"its forward is not nn.Linear's (it is a {type(linear).__name__})"
    if isinstance(linear.weight, nn.parameter.UninitializedParameter):
        return None  # a lazy layer's own hook initialises it
    if linear._forward_pre_hooks or linear._forward_hooks:
        return (
            "it has forward hooks (as weight_norm, spectral_norm and prune set them), which would "
            "be lost: remove them first"
        )
    return None


def why_not_quantizable(linear: nn.Module) -> str | None:
    """Why this plain layer's weight cannot be quantised, in words; None if it can."""
    weight = linear.weight
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return "its weight is not initialised yet (a lazy layer): run the model once first"
    if isinstance(weight, Tensor) and weight.dtype not in FLOAT_DTYPES:
        return f"its weight is {dtype_name(weight.dtype)}, not float16, bfloat16 or float32"
    return None


def linear_features(linear: nn.Module) -> tuple[int, int]:
    """(in, out) without a look at the weight, which a parametrisation would compute."""
    names = ("nx", "nf") if is_conv1d(linear) else ("in_features", "out_features")
    return getattr(linear, names[0]), getattr(linear, names[1])
