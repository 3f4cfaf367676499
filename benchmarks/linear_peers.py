"""Every way to multiply by an int8 weight that the benchmark compares, on the same weights."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from environment import buffers_past_cache, dtype_name
from method import Method, Skipped, reason
from report import READY
from timing import synchronize
from torch import nn


@dataclass
class Weights:
    """Quantised weights of one (N, K), several sets to rotate through, all with the same values.

    The values being equal keeps one reference; the memory being different keeps a cache from
    holding them.
    """

    quantized: torch.Tensor  # (N, K) int8
    scale: torch.Tensor  # (N,) float32
    dtype: torch.dtype

    @property
    def n(self) -> int:
        """Output features."""
        return self.quantized.shape[0]

    @property
    def k(self) -> int:
        """Input features."""
        return self.quantized.shape[1]

    def dequantized(self) -> torch.Tensor:
        """(N, K) in dtype, rounded once."""
        return (self.quantized.float() * self.scale[:, None]).to(self.dtype)


def make_weights(n: int, k: int, dtype: torch.dtype, device: torch.device, seed: int) -> Weights:
    """Normal random weights of a linear layer's size (std 1/sqrt(K)), quantised per channel."""
    import flashint8

    generator = torch.Generator(device=device).manual_seed(seed)
    weight = torch.randn(n, k, generator=generator, device=device) / k**0.5
    quantized, scale = flashint8.quantize_per_channel(weight)
    return Weights(quantized, scale, dtype)


READY_UP_TO = 128  # rows: with more, the weights are little of the time
# nn.Linear is a peer in each of them: which one is fastest depends on the CPU and on M.
CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Layer = Callable[[torch.Tensor], torch.Tensor]
Maker = Callable[[Weights], Layer]


def quant_linear(w: Weights) -> Layer:
    """flashint8.QuantLinear, as a model holds it."""
    import flashint8

    layer = flashint8.QuantLinear(w.k, w.n, bias=False, device=w.quantized.device, dtype=w.dtype)
    layer.weight.copy_(w.quantized)
    layer.weight_scale.copy_(w.scale)
    return layer.eval()


def with_ready_weights(layer: Any) -> Layer:
    """The same layer, on the same memory, as flashint8.models would call it."""
    layer = copy.copy(layer)
    layer.weight_ready = True
    return layer


def torch_linear(w: Weights) -> Layer:
    """nn.Linear with the same weights in the activations' dtype."""
    layer = nn.Linear(w.k, w.n, bias=False, device="meta", dtype=w.dtype)
    layer.weight = nn.Parameter(w.dequantized(), requires_grad=False)
    return layer.eval()


def linear_of(dtype: torch.dtype) -> Maker:
    """nn.Linear with the same weights in this dtype; x is converted beforehand, untimed."""
    return lambda w: torch_linear(Weights(w.quantized, w.scale, dtype))


def unfused(w: Weights) -> Layer:
    """Dequantise the whole weight, then multiply: two kernels and a weight-sized temporary."""
    quantized, scale = w.quantized.clone(), w.scale.to(w.dtype)[:, None].clone()

    def layer(x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, quantized.to(x.dtype) * scale)

    return layer


def weight_only_int8(x: torch.Tensor, quantized: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What torch.compile turns into one kernel."""
    return F.linear(x, quantized.to(x.dtype)) * scale


def torch_int8pack(w: Weights) -> Layer:
    """torch._weight_int8pack_mm, ATen's own weight-only int8 product on the CPU."""
    quantized, scale = w.quantized.clone(), w.scale.to(w.dtype)

    def layer(x: torch.Tensor) -> torch.Tensor:
        return torch._weight_int8pack_mm(x, quantized, scale)

    return layer


def torch_dynamic_int8(w: Weights) -> Layer:
    """torch's dynamic quantisation: 8-bit activations too, float32 in and out."""
    layer = nn.Linear(w.k, w.n, bias=False, dtype=torch.float32)
    layer.weight = nn.Parameter(w.quantized.float() * w.scale[:, None], requires_grad=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation of torch.ao
        converted = torch.ao.quantization.quantize_dynamic(
            nn.Sequential(layer), {nn.Linear}, dtype=torch.qint8
        )
    return converted[0]


@dataclass
class Bank:
    """The layers of one (N, K), made once and used for every M."""

    layers: dict[str, list[Layer]]
    weight_bytes: dict[str, int]
    failures: dict[str, str]


def make_bank(w: Weights, device: torch.device, only: Sequence[str] | None) -> Bank:
    """As many copies of each method's layer as it takes to leave the cache."""
    itemsize = w.dtype.itemsize
    makers: dict[str, tuple[Maker, int]] = {
        "flashint8": (quant_linear, 1),
        "torch_linear": (torch_linear, itemsize),
        "unfused": (unfused, 1),
    }
    if device.type == "cpu":
        for dtype in CPU_DTYPES:
            if dtype != w.dtype:
                makers[f"torch_linear_{dtype_name(dtype)}"] = (linear_of(dtype), dtype.itemsize)
        makers["torch_int8pack"] = (torch_int8pack, 1)
        makers["torch_dynamic_int8"] = (torch_dynamic_int8, 1)
    bank = Bank({}, {}, {})
    for name, (maker, bytes_per_weight) in makers.items():
        if only and name != "flashint8" and name not in only:
            continue
        size = w.n * w.k * bytes_per_weight + (4 * w.n if bytes_per_weight == 1 else 0)
        bank.weight_bytes[name] = size
        try:
            copies = buffers_past_cache(size, device)
            bank.layers[name] = [maker(w) for _ in range(copies)]
        except (RuntimeError, AttributeError, NotImplementedError) as e:
            if name == "flashint8":
                raise
            bank.failures[name] = f"cannot be made here: {str(e).splitlines()[0][:120]}"
    if device.type == "cuda":
        bank.layers[READY] = [with_ready_weights(layer) for layer in bank.layers["flashint8"]]
        bank.weight_bytes[READY] = bank.weight_bytes["flashint8"]
    return bank


def methods(bank: Bank, x: torch.Tensor) -> list[Method | Skipped]:
    """The methods of one M on a bank's layers.

    Args:
        bank: layers of one (N, K).
        x: activations (M, K), shared by all: a model's are in the cache too.
    """
    found: list[Method | Skipped] = []
    for name, layers in bank.layers.items():
        note = ""
        if name == READY:
            if x.shape[0] > READY_UP_TO:
                continue
            note = "weight_ready: no kernel under way writes the weights"
        given = x
        if name == "torch_dynamic_int8":
            given, note = x.float(), "8-bit activations too; float32 in and out"
        for dtype in CPU_DTYPES:
            if name == f"torch_linear_{dtype_name(dtype)}":
                given, note = x.to(dtype), f"{dtype_name(dtype)} in and out"
        found.append(
            Method(
                name,
                [partial(layer, given) for layer in layers],
                note=note,
                ours=name in ("flashint8", READY),
                extra={"weights_bytes": bank.weight_bytes[name]},
            )
        )
    found += [Skipped(name, why) for name, why in bank.failures.items()]
    return found


def compiled_method(w: Weights, x: torch.Tensor) -> Method | Skipped:
    """torch.compile'd weight-only int8 for one M (each M compiles anew), compiled and run once.

    max-autotune also has coordinate descent over a kernel's blocks, which is what makes inductor
    write the product of a few rows as a kernel of its own, as in gpt-fast. Without inductor's own
    CUDA graphs: the harness captures every method alike.
    """
    import torch._dynamo.config as dynamo

    for limit in ("recompile_limit", "cache_size_limit"):  # the name depends on torch's version
        if hasattr(dynamo, limit):
            setattr(dynamo, limit, 1024)  # one entry a shape
    compiled: Any = torch.compile(
        weight_only_int8, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False
    )
    scale = w.scale.to(w.dtype)
    size = w.n * w.k + 4 * w.n
    copies = [w.quantized.clone() for _ in range(buffers_past_cache(size, x.device))]
    method = Method(
        "torch_compile_int8",
        [partial(compiled, x, q, scale) for q in copies],
        extra={"weights_bytes": size},
    )
    begin = time.perf_counter()
    try:
        method.call()
        synchronize(x.device)
    except Exception as e:  # whatever a compiler raises is the reason it is skipped
        return Skipped(method.name, reason(e))
    method.extra["compile_s"] = round(time.perf_counter() - begin, 1)
    return method
