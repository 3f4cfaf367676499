"""int8 weights as a quantization method of transformers, called `flashint8`."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from flashint8._linears import is_conv1d, is_linear
from flashint8._selection import select, swap
from flashint8.modules import QuantLinear
from flashint8.per_channel import check_method

METHOD = "flashint8"


class PretrainedQuantLinear(QuantLinear):
    """A QuantLinear whose int8 buffer is called ``weight_int8``; ``weight`` is an alias."""

    WEIGHT_NAME = "weight_int8"

    @property
    def weight(self) -> Tensor:
        """(out_features, in_features) int8."""
        tensor = self._buffers[self.WEIGHT_NAME]
        assert tensor is not None
        return tensor

    @weight.setter
    def weight(self, tensor: Tensor) -> None:
        self._buffers[self.WEIGHT_NAME] = tensor


@register_quantization_config(METHOD)
class FlashInt8Config(QuantizationConfigMixin):  # type: ignore[misc]
    """What to quantise when a transformers model is loaded.

    Args:
        skip: names and patterns of layers to leave alone, as `flashint8.quantize_model` takes them.
            Tied weights are left alone in any case.
        min_features: layers with fewer input or output features are left alone.
        method: "absmax" or "mse", as `flashint8.quantize_per_channel` takes it.
        layers: the names of the int8 layers; written by ``save_pretrained``, not meant for others.
        quant_method: "flashint8"; from the file.

    Raises:
        ValueError: method or quant_method is another one.
    """

    def __init__(
        self,
        skip: Iterable[str] = ("lm_head",),
        min_features: int = 0,
        method: str = "absmax",
        layers: list[str] | None = None,
        quant_method: str = METHOD,
    ) -> None:
        check_method(method, "FlashInt8Config")
        if quant_method != METHOD:
            raise ValueError(
                f"FlashInt8Config: quant_method must be {METHOD}, got {quant_method!r}"
            )
        if isinstance(skip, str):
            raise TypeError(f"FlashInt8Config: skip must be a list of names, got {skip!r}")
        self.quant_method = quant_method
        self.skip = list(skip)
        self.min_features = min_features
        self.method = method
        self.layers = layers


@register_quantizer(METHOD)
class FlashInt8Quantizer(HfQuantizer):  # type: ignore[misc]
    """Quantises weights one by one as they are loaded, or takes a folder that has them in int8."""

    quantization_config: FlashInt8Config

    def __init__(self, quantization_config: FlashInt8Config, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._names: dict[str, list[str]] = {}  # of each chosen layer: every name, by each name

    @property
    def quantized_element_size(self) -> float:
        return 1

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        """Finds the layers. In a folder with int8 they are swapped now, else as weights come."""
        config = self.quantization_config
        if self.pre_quantized and config.layers is not None:
            wanted = _present(model, config.layers)
            chosen = select(model, METHOD, (), lambda name, _: name in wanted, 0).chosen
            missing = wanted - {name for names in chosen for name in names}
            if missing:
                raise ValueError(
                    f"flashint8: the folder has {sorted(missing)[0]} in int8, which is no linear "
                    f"layer of this {type(model).__name__}"
                )
        else:
            tied = _tied_layers(model)
            chosen = select(
                model, METHOD, config.skip, lambda name, _: name not in tied, config.min_features
            ).chosen
        self._names = {name: names for names in chosen for name in names}
        if not chosen:
            warnings.warn(
                f"flashint8: no layer of this {type(model).__name__} is quantised", stacklevel=2
            )
        if self.pre_quantized:
            for names in chosen:
                swap(model, names, PretrainedQuantLinear.empty_like(model.get_submodule(names[0])))

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        module, _, tensor = param_name.rpartition(".")
        return tensor == "weight" and module in self._names and not self.pre_quantized

    def get_quantize_ops(self) -> "QuantizeOnLoad":
        return QuantizeOnLoad(self)

    def quantize(self, model: nn.Module, name: str, weight: Tensor) -> None:
        """Puts a QuantLinear with this loaded weight in the place of the layer `name`."""
        linear = model.get_submodule(name)
        quant = PretrainedQuantLinear.empty_like(linear)
        weight = weight.t() if is_conv1d(linear) else weight
        try:
            quant._set_weight(weight, self.quantization_config.method)
        except ValueError as error:
            raise ValueError(f"flashint8: {name}: {error}") from error
        if isinstance(linear.bias, Tensor):  # on meta, if it comes after the weight
            quant.bias = linear.bias.detach()
        for tensor in quant.buffers():  # else transformers would draw them anew
            tensor._is_hf_initialized = not tensor.is_meta  # type: ignore[attr-defined]
        swap(model, self._names[name], quant)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for name in self._names:  # those that the folder has no weight of
            linear = model.get_submodule(name)
            if is_linear(linear) and isinstance(linear.weight, Tensor):
                self.quantize(model, name, linear.weight.detach())
        self.quantization_config.layers = list(dict.fromkeys(n[0] for n in self._names.values()))
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        for names in self._names.values():
            layer = model.get_submodule(names[0])
            if isinstance(layer, QuantLinear):
                swap(model, names, layer.to(dtype).to_linear() if dtype else layer.to_linear())
        return model


class QuantizeOnLoad(ConversionOps):  # type: ignore[misc]
    """The step between a tensor read from a file and the layer it belongs to."""

    def __init__(self, quantizer: FlashInt8Quantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        model: nn.Module | None = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Quantises the weights among the tensors into their layers; returns the others."""
        assert model is not None
        others: dict[str, Any] = {}
        for name, value in input_dict.items():
            if not self.quantizer.param_needs_quantization(model, name):
                others[name] = value
                continue
            weight = value[0] if isinstance(value, list) else value
            self.quantizer.quantize(model, name.removesuffix(".weight"), weight)
            if missing_keys is not None:
                missing_keys.discard(name)
        return others


def adopt(model: nn.Module, method: str = "absmax") -> None:
    """Tells transformers models, that are or lie in `model`, that their QuantLinears are int8.

    `flashint8.quantize_model` calls this, so that ``save_pretrained`` writes a folder that
    ``from_pretrained`` reads.

    Args:
        model: of any kind; only transformers models inside change.
        method: what quantised them, for the record.

    Raises:
        ValueError: such a model is already quantised in another way.
    """
    if isinstance(model, PreTrainedModel):
        _adopt_one(model, method)
        return
    for child in model.children():
        adopt(child, method)


def _adopt_one(model: Any, method: str) -> None:
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, QuantLinear)]
    if not layers:
        return
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not isinstance(quantizer, FlashInt8Quantizer):
        other = quantizer.quantization_config.quant_method
        raise ValueError(f"quantize_model: this transformers model is quantised already ({other})")
    for _, layer in layers:
        if type(layer) is QuantLinear:
            layer._buffers[PretrainedQuantLinear.WEIGHT_NAME] = layer._buffers.pop("weight")
            layer.__class__ = PretrainedQuantLinear
    config = FlashInt8Config(method=method, layers=[name for name, _ in layers])
    quantizer = FlashInt8Quantizer(config, pre_quantized=False)
    every: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantLinear):
            every.setdefault(id(module), []).append(name)
    quantizer._names = {name: names for names in every.values() for name in names}
    model.hf_quantizer = quantizer
    model.config.quantization_config = config
    model.is_quantized = True
    model.quantization_method = METHOD


def _tied_layers(model: Any) -> set[str]:
    """Layers whose weight will be another's: on meta, transformers has not tied them yet."""
    pairs = getattr(model, "all_tied_weights_keys", {}).items()
    return {name.removesuffix(".weight") for pair in pairs for name in pair}


def _present(model: Any, layers: Iterable[str]) -> set[str]:
    """Names of the folder's int8 layers in this model, which may be its base or be built on it."""
    modules = dict(model.named_modules())
    prefix = model.base_model_prefix + "."
    found: set[str] = set()
    for name in layers:
        spellings = (name, prefix + name, name.removeprefix(prefix))
        found.update(s for s in spellings if s in modules)
    return found
