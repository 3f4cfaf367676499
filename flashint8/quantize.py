"""`quantize_model`: swaps a model's linear layers for QuantLinear."""

import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from flashint8._linears import linear_features
from flashint8._progress import progress_bar
from flashint8._selection import FilterFn, model_bytes, select, swap
from flashint8.modules import QuantLinear
from flashint8.per_channel import check_method


@dataclass
class QuantizeReport:
    """What was done to a model. str() gives a summary.

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
    filter_fn: FilterFn | None = None,
    min_features: int = 0,
    method: str = "absmax",
    progress: bool | None = None,
) -> QuantizeReport:
    """Swaps every linear layer inside `model` for a QuantLinear, in place, one at a time.

    Linear layers are nn.Linear and transformers' Conv1D (GPT-2). A layer that occurs twice in the
    model is quantised once and stays shared. A layer whose weight is also another module's (tied
    embeddings) is left alone: quantising it would add memory. So are layers that do more than
    nn.Linear (a forward of their own, forward hooks, parametrisations) and those whose weight torch
    reads past their forward (in nn.MultiheadAttention and nn.TransformerEncoderLayer). The report
    names each. Works on meta tensors, which stay on meta. A transformers model can afterwards be
    written with its ``save_pretrained`` (see `flashint8.integrations.transformers`; where the
    installed transformers is too old for that, a warning says so).

    Args:
        model: changed in place. It must not itself be the linear layer.
        skip: names to leave alone: full names ("model.lm_head"), last parts ("lm_head"), or
            patterns as in a shell ("layers.0.*").
        filter_fn: given a layer's name and the layer, says whether to swap it.
        min_features: layers with fewer input or output features are left alone.
        method: "absmax" or "mse", as `quantize_per_channel` takes it.
        progress: whether to show a progress bar on stderr; None: where rich is installed, stderr is
            a terminal and the model has more than 512 MiB to quantise.

    Returns:
        A `QuantizeReport`.

    Raises:
        TypeError: `model` itself is a linear layer, or `skip` is one string.
        ValueError: method is another one; a layer to swap is not initialised, or its weight is
            float64 or the like, or not finite; the message names it, and nothing, or only the
            layers before it, have been swapped.
    """
    check_method(method, "quantize_model")
    selection = select(model, "quantize_model", skip, filter_fn, min_features)
    report = QuantizeReport(skipped=selection.skipped, bytes_before=model_bytes(model))
    sizes = {n[0]: _weights(model.get_submodule(n[0])) for n in selection.chosen}
    with progress_bar("quantising", sum(sizes.values()), progress) as advance:
        for names in selection.chosen:
            advance(0, names[0])
            try:
                quant = QuantLinear.from_linear(model.get_submodule(names[0]), method)
            except ValueError as error:
                raise ValueError(f"quantize_model: {names[0]}: {error}") from error
            swap(model, names, quant)  # the float weight goes here
            report.swapped.append(names[0])
            advance(sizes[names[0]], names[0])
    report.bytes_after = model_bytes(model)
    adopt_pretrained(model, method)
    return report


def adopt_pretrained(model: nn.Module, method: str) -> None:
    """Makes transformers models inside `model` write their int8 layers as such."""
    library = sys.modules.get("transformers.modeling_utils")
    if library is None or not any(isinstance(m, library.PreTrainedModel) for m in model.modules()):
        return
    try:
        from flashint8.integrations import transformers
    except ImportError as error:  # an older one
        warnings.warn(
            f"{error}: save_pretrained would write int8 weights that from_pretrained takes for "
            "others; use flashint8.save_quantized",
            stacklevel=3,
        )
        return
    transformers.adopt(model, method)


def _weights(linear: nn.Module) -> int:
    """Bytes of a layer's weight as float16."""
    in_features, out_features = linear_features(linear)
    return 2 * in_features * out_features
