"""Every bad input is a ValueError that names the argument, what was expected, what came."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checking import refuses

import flashint8

HALF = torch.float16


def ones(*shape: int, dtype: torch.dtype = HALF, device: str = "cpu") -> torch.Tensor:
    return torch.ones(shape, dtype=dtype, device=device)


def attention_args(device: str, **changes: Any) -> dict[str, Any]:
    """Good arguments, then `changes`: a callable makes a tensor on the device."""
    args: dict[str, Any] = {name: ones(2, 4, 5, 16, device=device) for name in "qkv"}
    for name, value in changes.items():
        args[name] = value(device) if callable(value) else value
    return args


def tensor(*shape: int, dtype: torch.dtype = HALF) -> Callable[[str], torch.Tensor]:
    return lambda device: ones(*shape, dtype=dtype, device=device)


def last_stride_two(device: str) -> torch.Tensor:
    return ones(2, 4, 5, 32, device=device)[..., ::2]


def transposed_rows(device: str) -> torch.Tensor:
    return ones(2, 4, 16, 5, device=device).transpose(2, 3)


INT32 = torch.int32
LENGTHS = tensor(2, dtype=INT32)

ATTENTION = {
    "q rank 3": ({"q": tensor(4, 5, 16)}, "q must have 4 dimensions (B, H, T, D), got 3"),
    "k rank 5": ({"k": tensor(1, 2, 4, 5, 16)}, "k must have 4 dimensions (B, H, T, D), got 5"),
    "v rank 0": ({"v": tensor()}, "v must have 4 dimensions (B, H, T, D), got 0"),
    "k dtype": (
        {"k": tensor(2, 4, 5, 16, dtype=torch.bfloat16)},
        "k has dtype bfloat16, q has float16",
    ),
    "v dtype": (
        {"v": tensor(2, 4, 5, 16, dtype=torch.float32)},
        "v has dtype float32, q has float16",
    ),
    "k batch": ({"k": tensor(3, 4, 5, 16)}, "k has batch 3, q has 2"),
    "v batch": ({"v": tensor(1, 4, 5, 16)}, "v has batch 1, q has 2"),
    "k head_dim": ({"k": tensor(2, 4, 5, 24)}, "k has head_dim 24, q has 16"),
    "v head_dim": ({"v": tensor(2, 4, 5, 8)}, "v has head_dim 8, q has 16"),
    "v heads": ({"v": tensor(2, 2, 5, 16)}, "v has 2 heads, k has 4"),
    "v keys": ({"v": tensor(2, 4, 6, 16)}, "v has 6 keys, k has 5"),
    "q heads": (
        {"k": tensor(2, 3, 5, 16), "v": tensor(2, 3, 5, 16)},
        "q has 4 heads, not a multiple of k's 3",
    ),
    "fewer q heads": (
        {"k": tensor(2, 8, 5, 16), "v": tensor(2, 8, 5, 16)},
        "q has 4 heads, not a multiple of k's 8",
    ),
    "no kv heads": (
        {"k": tensor(2, 0, 5, 16), "v": tensor(2, 0, 5, 16)},
        "q has 4 heads, not a multiple of k's 0",
    ),
    "head_dim 264": (
        {name: tensor(2, 4, 5, 264) for name in "qkv"},
        "head_dim must be at most 256, got 264",
    ),
    "head_dim 0": ({n: tensor(2, 4, 5, 0) for n in "qkv"}, "head_dim must be at least 1, got 0"),
    "q stride": ({"q": last_stride_two}, "q's last dimension must be contiguous, got stride 2"),
    "k stride": ({"k": last_stride_two}, "k's last dimension must be contiguous, got stride 2"),
    "v stride": ({"v": transposed_rows}, "v's last dimension must be contiguous, got stride 5"),
    "expanded stride": (
        {"q": lambda device: ones(2, 4, 5, 1, device=device).expand(2, 4, 5, 16)},
        "q's last dimension must be contiguous, got stride 0",
    ),
    "kv_lengths dtype": (
        {"kv_lengths": tensor(2, dtype=torch.int64)},
        "kv_lengths must be int32, got int64",
    ),
    "kv_start dtype": ({"kv_start": tensor(2)}, "kv_start must be int32, got float16"),
    "kv_lengths size": (
        {"kv_lengths": tensor(3, dtype=INT32)},
        "kv_lengths must have shape (2,), got (3,)",
    ),
    "kv_lengths rank 2": (
        {"kv_lengths": tensor(2, 1, dtype=INT32)},
        "kv_lengths must have shape (2,), got (2, 1)",
    ),
    "kv_start rank 0": (
        {"kv_start": tensor(dtype=INT32)},
        "kv_start must have shape (2,), got ()",
    ),
    "causal 3": ({"causal": 3}, "causal must be 0, 1 or 2, got 3"),
    "causal -1": ({"causal": -1}, "causal must be 0, 1 or 2, got -1"),
    "window 0": ({"window": 0}, "window must be -1 or positive, got 0"),
    "window -2": ({"window": -2}, "window must be -1 or positive, got -2"),
    "window causal 0": ({"window": 4, "causal": 0}, "window needs causal 1 or 2, got causal 0"),
    "softcap negative": ({"softcap": -1.5}, "softcap must be finite and at least 0, got -1.5"),
    "softcap inf": ({"softcap": math.inf}, "softcap must be finite and at least 0, got inf"),
    "softcap nan": ({"softcap": math.nan}, "softcap must be finite and at least 0, got nan"),
    "softcap past float32": ({"softcap": 1e39}, "softcap must be finite and at least 0, got 1e+39"),
    "softcap under float32": (
        {"softcap": 1e-46, "scale": 2.0},
        "scale / softcap must be finite in float32, got 2 / 1e-46",
    ),
    "scale past float32": ({"scale": -1e39}, "scale must be finite, got -1e+39"),
    "scale inf": ({"scale": math.inf}, "scale must be finite, got inf"),
    "scale nan": ({"scale": math.nan}, "scale must be finite, got nan"),
}


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("op", ["attention", "attention_with_lse"])
def test_attention(device: str, op: str, name: str) -> None:
    changes, message = ATTENTION[name]
    with refuses(f"attention: {message}"):
        getattr(flashint8, op)(**attention_args(device, **changes))


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_on_meta(name: str) -> None:
    """The fake kernel refuses what the kernels refuse, so that torch.compile fails early."""
    changes, message = ATTENTION[name]
    with refuses(f"attention: {message}"):
        torch.ops.flashint8.attention(**attention_args("meta", **changes))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.complex64, torch.bool])
def test_attention_dtype(device: str, dtype: torch.dtype) -> None:
    kinds = "float16, bfloat16 or float32" if device == "cpu" else "float16 or bfloat16 on CUDA"
    shown = str(dtype).removeprefix("torch.")
    with refuses(f"attention: q must be {kinds}, got {shown}"):
        flashint8.attention(*(ones(1, 1, 2, 8, dtype=dtype, device=device) for _ in "qkv"))


def test_attention_cuda_limits(cuda: str) -> None:
    bad = {
        "q must be float16 or bfloat16 on CUDA, got float32": (8, torch.float32),
        "head_dim must be a multiple of 8 on CUDA, got 12": (12, HALF),
        "head_dim must be a multiple of 8 on CUDA, got 1": (1, HALF),
    }
    for message, (head_dim, dtype) in bad.items():
        with refuses(f"attention: {message}"):
            flashint8.attention(*(ones(1, 1, 2, head_dim, dtype=dtype, device=cuda) for _ in "qkv"))


def test_attention_device_mix(cuda: str) -> None:
    here, there = torch.device(cuda, torch.cuda.current_device()), "cpu"
    for name in ("k", "v", "kv_lengths", "kv_start"):
        make = LENGTHS if name.startswith("kv") else tensor(2, 4, 5, 16)
        with refuses(f"attention: {name} is on cpu, q is on {here}"):
            flashint8.attention(**attention_args(cuda, **{name: make(there)}))
    with refuses(f"attention: k is on {here}, q is on cpu"):
        flashint8.attention(**attention_args(there, k=ones(2, 4, 5, 16, device=cuda)))


# ---- int8_linear -----------------------------------------------------------------------------


def linear_args(device: str, **changes: Any) -> dict[str, Any]:
    """x (3, 16), weight (5, 16)."""
    args: dict[str, Any] = {
        "x": ones(3, 16, device=device),
        "weight": ones(5, 16, dtype=torch.int8, device=device),
        "weight_scale": ones(5, dtype=torch.float32, device=device),
        "bias": ones(5, device=device),
    }
    for name, value in changes.items():
        args[name] = value(device) if callable(value) else value
    return args


def five_strided_dimensions(device: str) -> torch.Tensor:
    """(2, 2, 2, 2, 2, 16) whose five leading dimensions do not merge."""
    return ones(3, 3, 3, 3, 3, 16, device=device)[:2, :2, :2, :2, :2]


INT8 = torch.int8
LINEAR = {
    "x rank 0": ({"x": tensor()}, "x must have at least 1 dimension, got 0"),
    "weight dtype": ({"weight": tensor(5, 16)}, "weight must be int8, got float16"),
    "weight uint8": (
        {"weight": tensor(5, 16, dtype=torch.uint8)},
        "weight must be int8, got uint8",
    ),
    "weight rank 1": (
        {"weight": tensor(16, dtype=INT8)},
        "weight must have 2 dimensions (N, K), got 1",
    ),
    "weight rank 3": (
        {"weight": tensor(1, 5, 16, dtype=INT8)},
        "weight must have 2 dimensions (N, K), got 3",
    ),
    "features": ({"weight": tensor(5, 17, dtype=INT8)}, "x has 16 features, weight has 17"),
    "scale size": (
        {"weight_scale": tensor(4, dtype=torch.float32)},
        "weight_scale must have shape (5,), got (4,)",
    ),
    "scale of one": (
        {"weight_scale": tensor(1, dtype=torch.float32)},
        "weight_scale must have shape (5,), got (1,)",
    ),
    "scale rank 2": (
        {"weight_scale": tensor(5, 1, dtype=torch.float32)},
        "weight_scale must have shape (5,), got (5, 1)",
    ),
    "scale rank 0": (
        {"weight_scale": tensor(dtype=torch.float32)},
        "weight_scale must have shape (5,), got ()",
    ),
    "scale dtype": ({"weight_scale": tensor(5)}, "weight_scale must be float32, got float16"),
    "bias size": ({"bias": tensor(6)}, "bias must have shape (5,), got (6,)"),
    "bias rank 2": ({"bias": tensor(1, 5)}, "bias must have shape (5,), got (1, 5)"),
    "bias dtype": (
        {"bias": tensor(5, dtype=torch.float32)},
        "bias has dtype float32, x has float16",
    ),
    "x stride": (
        {"x": lambda device: ones(3, 32, device=device)[:, ::2]},
        "x's last dimension must be contiguous, got stride 2",
    ),
    "weight stride": (
        {"weight": lambda device: ones(16, 5, dtype=INT8, device=device).T},
        "weight's last dimension must be contiguous, got stride 5",
    ),
    "scale stride": (
        {"weight_scale": lambda device: ones(10, dtype=torch.float32, device=device)[::2]},
        "weight_scale must be contiguous, got stride 2",
    ),
    "scale expanded": (
        {"weight_scale": lambda device: ones(1, dtype=torch.float32, device=device).expand(5)},
        "weight_scale must be contiguous, got stride 0",
    ),
    "activation": (
        {"activation": "relu"},
        "activation must be gelu, gelu_tanh, silu or silu_mul, got 'relu'",
    ),
    "no activation": (
        {"activation": ""},
        "activation must be gelu, gelu_tanh, silu or silu_mul, got ''",
    ),
    "odd rows to gate": (
        {"activation": "silu_mul"},
        "activation silu_mul needs an even number of weight rows (gate and up in turn), got 5",
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_int8_linear(device: str, name: str) -> None:
    changes, message = LINEAR[name]
    with refuses(f"int8_linear: {message}"):
        flashint8.int8_linear(**linear_args(device, **changes))


@pytest.mark.parametrize("name", LINEAR)
def test_int8_linear_on_meta(name: str) -> None:
    changes, message = LINEAR[name]
    with refuses(f"int8_linear: {message}"):
        torch.ops.flashint8.int8_linear(**linear_args("meta", **changes))


def test_int8_linear_too_many_strided_dimensions(device: str) -> None:
    with pytest.raises(ValueError, match=r"^int8_linear: x.*dimensions"):
        flashint8.int8_linear(**linear_args(device, x=five_strided_dimensions))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, torch.int32])
def test_int8_linear_dtype(device: str, dtype: torch.dtype) -> None:
    kinds = "float16, bfloat16 or float32" if device == "cpu" else "float16.* or bfloat16.*"
    shown = str(dtype).removeprefix("torch.")
    args = linear_args(device, x=tensor(3, 16, dtype=dtype), bias=None)
    with pytest.raises(ValueError, match=rf"^int8_linear: x must be {kinds}, got {shown}$"):
        flashint8.int8_linear(**args)


def test_int8_linear_float32_on_cuda(cuda: str) -> None:
    with pytest.raises(ValueError, match=r"^int8_linear: x must be float16.*got float32$"):
        flashint8.int8_linear(**linear_args(cuda, x=tensor(3, 16, dtype=torch.float32), bias=None))


def test_int8_linear_device_mix(cuda: str) -> None:
    here = torch.device(cuda, torch.cuda.current_device())
    for name in ("weight", "weight_scale", "bias"):
        with refuses(f"int8_linear: {name} is on cpu, x is on {here}"):
            flashint8.int8_linear(**linear_args(cuda, **{name: linear_args("cpu")[name]}))


# ---- quantize_per_channel --------------------------------------------------------------------

QUANTIZE = {
    "rank 1": (tensor(5), "weight must have 2 dimensions (N, K), got 1"),
    "rank 3": (tensor(1, 5, 2), "weight must have 2 dimensions (N, K), got 3"),
    "int8": (tensor(5, 2, dtype=INT8), "weight must be float16, bfloat16 or float32, got int8"),
    "float64": (
        tensor(5, 2, dtype=torch.float64),
        "weight must be float16, bfloat16 or float32, got float64",
    ),
}


@pytest.mark.parametrize("name", QUANTIZE)
def test_quantize_per_channel(device: str, name: str) -> None:
    make, message = QUANTIZE[name]
    with refuses(f"quantize_per_channel: {message}"):
        flashint8.quantize_per_channel(make(device))


def test_errors_hold_no_path(device: str) -> None:
    """A user's error is one clean line: no source file, no C++ frame."""
    with pytest.raises(ValueError, match="causal") as caught:
        flashint8.attention(**attention_args(device, causal=9))
    assert "\n" not in str(caught.value)
    assert ".cpp" not in str(caught.value)


def test_a_call_after_an_error_works(device: str) -> None:
    with pytest.raises(ValueError, match="causal"):
        flashint8.attention(**attention_args(device, causal=9))
    out = flashint8.attention(**attention_args(device))
    assert torch.equal(out, torch.ones_like(out))


def test_out_of_memory_says_so() -> None:
    """The stable interface hides torch's error: ours says what could not be allocated."""
    x = torch.zeros(1, 8).expand(2**44, 8)
    with pytest.raises(RuntimeError, match=r"out of memory.* elements of float32 on cpu"):
        flashint8.int8_linear(x, torch.ones(16, 8, dtype=torch.int8), torch.ones(16))
