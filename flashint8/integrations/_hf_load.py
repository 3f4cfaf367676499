"""Loads any transformers model with its linear layers in int8."""

import os
from pathlib import Path
from typing import Any

import torch
import transformers

from flashint8._selection import model_bytes, select
from flashint8.integrations._hf_attention import use_attention
from flashint8.integrations._hf_quantizer import METHOD, FlashInt8Config
from flashint8.modules import QuantLinear
from flashint8.quantize import QuantizeReport, quantize_model


def load_int8(
    source: str | os.PathLike[str],
    config: FlashInt8Config | None = None,
    dtype: str | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Any, QuantizeReport]:
    """Loads a model from a transformers folder or a .gguf file, quantised, with attention `fi8`.

    A folder is quantised tensor by tensor as it loads. A .gguf file is read whole first, in the
    float type, since transformers expands its own formats so.

    Args:
        source: a folder, or a .gguf file (needs the packages gguf and accelerate).
        config: what to quantise; not for folders that are int8 already.
        dtype: "float16", "bfloat16" or "float32", of what is not int8; None: the folder's, from a
            .gguf float16.
        device: where the model goes; a folder's weights one by one (needs accelerate).

    Returns:
        The model, in eval mode, and what was done; bytes_before are those of the model
        before, had it been loaded as it was.

    Raises:
        OSError, ValueError: transformers cannot load it, its weights are quantised in another way,
            or its attention cannot be exchanged.
    """
    model, report = load_int8_weights(source, config, dtype, device)
    use_attention(model)
    return model, report


def load_int8_weights(
    source: str | os.PathLike[str],
    config: FlashInt8Config | None = None,
    dtype: str | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Any, QuantizeReport]:
    """`load_int8` with transformers' own attention."""
    source, config = Path(source), config or FlashInt8Config()
    if source.suffix == ".gguf":
        if not source.is_file():
            raise FileNotFoundError(f"{source}: no such file")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=getattr(torch, dtype or "float16"),
        )
        report = quantize_model(
            model, skip=config.skip, min_features=config.min_features, method=config.method
        )
        return model.to(device), report
    base = transformers.AutoConfig.from_pretrained(source)
    names = base.architectures or []
    model_class = getattr(transformers, names[0], None) if names else None
    if model_class is None:
        raise ValueError(f"{source}: its config.json names no model of transformers, got {names}")
    stored = getattr(base, "quantization_config", None)
    if stored is not None and (other := _method(stored)) != METHOD:
        raise ValueError(f"{source}: its weights are quantised already ({other}), not by flashint8")
    model = model_class.from_pretrained(
        source,
        quantization_config=None if stored else config,
        dtype=dtype or "auto",
        device_map=None if torch.device(device).type == "cpu" else str(device),
    )
    return model, _report(model)


def _method(stored: Any) -> str:
    """The name of the method in a folder's quantization_config, a dict or an object."""
    name = stored.get("quant_method") if isinstance(stored, dict) else stored.quant_method
    return str(getattr(name, "value", name))


def _report(model: Any) -> QuantizeReport:
    config = model.config.quantization_config
    report = QuantizeReport(bytes_after=model_bytes(model))
    wide = 0
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLinear):
            report.swapped.append(name)
            wide += layer.weight.numel() * (layer.dtype.itemsize - 1) - layer.weight_scale.nbytes
    report.bytes_before = report.bytes_after + wide
    left = select(model, "load_int8", config.skip, None, config.min_features).skipped
    report.skipped = {n: why for n, why in left.items() if n not in report.swapped}
    return report
