"""The operators' argument checks, in Python: for fake tensors (torch.compile, meta) and `explain`.

They mirror csrc/ops, message for message and in the same order; the eager path never comes here.
All raise ValueError.
"""

import ctypes
import math

import torch
from torch import Tensor

from flashint8._layout import MAX_ROW_RUNS, row_runs

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ACTIVATIONS = ("gelu", "gelu_tanh", "silu", "silu_mul")  # of int8_linear
MAX_HEAD_DIM = 256
SMALLEST_FLOAT32 = 2.0**-126  # that is normal


def dtype_name(dtype: torch.dtype) -> str:
    """ "float16" for torch.float16."""
    return str(dtype).removeprefix("torch.")


def shape_text(tensor: Tensor) -> str:
    """ "(2, 3)", "(2,)"."""
    return str(tuple(tensor.shape))


def _check_device(what: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    if tensor.device != reference.device:
        raise ValueError(f"{what} is on {tensor.device}, {reference_name} is on {reference.device}")


def _check_like(what: str, tensor: Tensor, reference_name: str, reference: Tensor) -> None:
    _check_device(what, tensor, reference_name, reference)
    if tensor.dtype != reference.dtype:
        raise ValueError(
            f"{what} has dtype {dtype_name(tensor.dtype)}, "
            f"{reference_name} has {dtype_name(reference.dtype)}"
        )


def _check_typed(
    what: str, tensor: Tensor, dtype: torch.dtype, reference_name: str, reference: Tensor
) -> None:
    _check_device(what, tensor, reference_name, reference)
    if tensor.dtype != dtype:
        raise ValueError(f"{what} must be {dtype_name(dtype)}, got {dtype_name(tensor.dtype)}")


def _check_last_dim(what: str, tensor: Tensor) -> None:
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise ValueError(
            f"{what}'s last dimension must be contiguous, got stride {tensor.stride(-1)}"
        )


def _check_float(what: str, tensor: Tensor, device_type: str) -> None:
    if device_type == "cuda":
        if tensor.dtype not in (torch.float16, torch.bfloat16):
            got = dtype_name(tensor.dtype)
            raise ValueError(f"{what} must be float16 or bfloat16 on CUDA, got {got}")
    elif tensor.dtype not in FLOAT_DTYPES:
        got = dtype_name(tensor.dtype)
        raise ValueError(f"{what} must be float16, bfloat16 or float32, got {got}")


def _check_like_q(what: str, tensor: Tensor, q: Tensor) -> None:
    _check_like(what, tensor, "q", q)
    if tensor.shape[0] != q.shape[0]:
        raise ValueError(f"{what} has batch {tensor.shape[0]}, q has {q.shape[0]}")
    if tensor.shape[3] != q.shape[3]:
        raise ValueError(f"{what} has head_dim {tensor.shape[3]}, q has {q.shape[3]}")
    _check_last_dim(what, tensor)


def _check_row_numbers(what: str, tensor: Tensor, q: Tensor) -> None:
    _check_typed(what, tensor, torch.int32, "q", q)
    if tensor.dim() != 1 or tensor.shape[0] != q.shape[0]:
        raise ValueError(f"{what} must have shape ({q.shape[0]},), got {shape_text(tensor)}")


def _check_head_dim(op: str, head_dim: int, device_type: str) -> None:
    if head_dim < 1:
        raise ValueError(f"{op}: head_dim must be at least 1, got {head_dim}")
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"{op}: head_dim must be at most {MAX_HEAD_DIM}, got {head_dim}")
    if device_type == "cuda" and head_dim % 8 != 0:
        raise ValueError(f"{op}: head_dim must be a multiple of 8 on CUDA, got {head_dim}")


def _check_scale_and_softcap(op: str, scale: float, softcap: float) -> None:
    """Both are used in float32."""
    cap = ctypes.c_float(softcap).value
    if not (softcap >= 0 and math.isfinite(cap)):
        raise ValueError(f"{op}: softcap must be finite and at least 0, got {softcap:g}")
    if not math.isfinite(ctypes.c_float(scale).value):
        raise ValueError(f"{op}: scale must be finite, got {scale:g}")
    if softcap > 0 and (
        cap < SMALLEST_FLOAT32 or not math.isfinite(ctypes.c_float(scale / cap).value)
    ):
        raise ValueError(
            f"{op}: scale / softcap must be finite in float32, got {scale:g} / {softcap:g}"
        )


def _check_options(op: str, causal: int, window: int, softcap: float, scale: float | None) -> None:
    if causal not in (0, 1, 2):
        raise ValueError(f"attention: causal must be 0, 1 or 2, got {causal}")
    if window != -1 and window <= 0:
        raise ValueError(f"attention: window must be -1 or positive, got {window}")
    if window > 0 and causal == 0:
        raise ValueError("attention: window needs causal 1 or 2, got causal 0")
    _check_scale_and_softcap(op, 1.0 if scale is None else scale, softcap)


def check_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kv_lengths: Tensor | None = None,
    kv_start: Tensor | None = None,
    *,
    causal: int = 1,
    window: int = -1,
    softcap: float = 0.0,
    scale: float | None = None,
    fp16_accumulate: bool = False,
    device_type: str | None = None,
    op: str = "attention",
) -> None:
    """Checks `attention`'s arguments by the rules of `device_type` (None: that of q).

    op: named where another operator's own checks leave q, k and v to be refused.
    """
    device_type = device_type or q.device.type
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.dim() != 4:
            raise ValueError(
                f"attention: {name} must have 4 dimensions (B, H, T, D), got {tensor.dim()}"
            )
    _check_float("attention: q", q, device_type)
    _check_like_q("attention: k", k, q)
    _check_like_q("attention: v", v, q)
    _check_last_dim("attention: q", q)
    if v.shape[1] != k.shape[1]:
        raise ValueError(f"attention: v has {v.shape[1]} heads, k has {k.shape[1]}")
    if v.shape[2] != k.shape[2]:
        raise ValueError(f"attention: v has {v.shape[2]} keys, k has {k.shape[2]}")
    num_heads, num_kv_heads = q.shape[1], k.shape[1]
    if num_heads != 0 if num_kv_heads == 0 else num_heads % num_kv_heads != 0:
        raise ValueError(f"{op}: q has {num_heads} heads, not a multiple of k's {num_kv_heads}")
    _check_head_dim(op, q.shape[3], device_type)
    _check_options(op, causal, window, softcap, scale)
    if fp16_accumulate and q.dtype != torch.float16:
        raise ValueError(f"attention: fp16_accumulate needs float16, got {dtype_name(q.dtype)}")
    if kv_lengths is not None:
        _check_row_numbers("attention: kv_lengths", kv_lengths, q)
    if kv_start is not None:
        _check_row_numbers("attention: kv_start", kv_start, q)


def attention_output_strides(q: Tensor) -> list[int]:
    """Strides of `attention`'s output: dense, in the memory order of q's dimensions.

    The three leading dimensions go from the largest stride of q to the smallest, head_dim is
    innermost. Dimensions of size 1 or stride 0 have no order and keep their place.
    """
    sizes, strides = q.shape, q.stride()
    has_order = [sizes[d] > 1 and strides[d] != 0 for d in range(3)]
    ordered = sorted((d for d in range(3) if has_order[d]), key=lambda d: strides[d], reverse=True)
    result = [1, 1, 1, 1]
    step = sizes[3]
    for d in (2, 1, 0):
        dimension = ordered.pop() if has_order[d] else d
        result[dimension] = step
        if sizes[dimension] > 1:
            step = step * sizes[dimension]
    return result


def _check_row_layout(what: str, x: Tensor) -> None:
    """The leading dimensions of x merge into at most 4 strided ones."""
    if x.dim() <= 5 or x.numel() == 0 or len(row_runs(x)) <= MAX_ROW_RUNS:
        return
    raise ValueError(
        f"{what}'s leading dimensions must merge into at most {MAX_ROW_RUNS} strided ones, "
        f"got shape {shape_text(x)}; pass {what.partition(': ')[2]}.contiguous()"
    )


def _check_vector(what: str, tensor: Tensor, n: int) -> None:
    if tensor.dim() != 1 or tensor.shape[0] != n:
        raise ValueError(f"{what} must have shape ({n},), got {shape_text(tensor)}")
    if n > 1 and tensor.stride(0) != 1:
        raise ValueError(f"{what} must be contiguous, got stride {tensor.stride(0)}")


def one_of(names: tuple[str, ...]) -> str:
    """ "a, b or c"."""
    return f"{', '.join(names[:-1])} or {names[-1]}"


def check_activation(what: str, activation: str | None, rows: int) -> None:
    """Checks the activation of a weight of `rows` rows; what: whose argument it is."""
    if activation is None:
        return
    if activation not in ACTIVATIONS:
        raise ValueError(f"{what}: activation must be {one_of(ACTIVATIONS)}, got {activation!r}")
    if activation == "silu_mul" and rows % 2 != 0:
        raise ValueError(
            f"{what}: activation silu_mul needs an even number of weight rows (gate and up in "
            f"turn), got {rows}"
        )


def output_features(activation: str | None, rows: int) -> int:
    """Columns of the output of a weight of `rows` rows."""
    return rows // 2 if activation == "silu_mul" else rows


def check_int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    device_type: str | None = None,
) -> None:
    """Checks `int8_linear`'s arguments by the rules of `device_type` (None: that of x)."""
    if x.dim() < 1:
        raise ValueError("int8_linear: x must have at least 1 dimension, got 0")
    _check_float("int8_linear: x", x, device_type or x.device.type)
    _check_device("int8_linear: weight", weight, "x", x)
    if weight.dtype != torch.int8:
        raise ValueError(f"int8_linear: weight must be int8, got {dtype_name(weight.dtype)}")
    if weight.dim() != 2:
        raise ValueError(f"int8_linear: weight must have 2 dimensions (N, K), got {weight.dim()}")
    if weight.shape[1] != x.shape[-1]:
        raise ValueError(f"int8_linear: x has {x.shape[-1]} features, weight has {weight.shape[1]}")
    _check_last_dim("int8_linear: weight", weight)
    _check_last_dim("int8_linear: x", x)
    _check_typed("int8_linear: weight_scale", weight_scale, torch.float32, "x", x)
    _check_vector("int8_linear: weight_scale", weight_scale, weight.shape[0])
    if bias is not None:
        _check_like("int8_linear: bias", bias, "x", x)
        _check_vector("int8_linear: bias", bias, weight.shape[0])
    check_activation("int8_linear", activation, weight.shape[0])
    _check_row_layout("int8_linear: x", x)


def check_quantize_per_channel(weight: Tensor) -> None:
    """Checks `quantize_per_channel`'s argument, all but the values."""
    if weight.dim() != 2:
        raise ValueError(
            f"quantize_per_channel: weight must have 2 dimensions (N, K), got {weight.dim()}"
        )
    if weight.dtype not in FLOAT_DTYPES:
        raise ValueError(
            "quantize_per_channel: weight must be float16, bfloat16 or float32, got "
            f"{dtype_name(weight.dtype)}"
        )


def _check_shape(what: str, tensor: Tensor, *sizes: int | None) -> None:
    """None: any size."""
    if tensor.dim() == len(sizes) and all(
        expected is None or size == expected
        for size, expected in zip(tensor.shape, sizes, strict=True)
    ):
        return
    shown = ", ".join("*" if size is None else str(size) for size in sizes)
    shown += "," if len(sizes) == 1 else ""
    raise ValueError(f"{what} must have shape ({shown}), got {shape_text(tensor)}")


def _check_written(what: str, tensor: Tensor) -> None:
    """What is written in place must not name an element twice, as an expanded tensor does."""
    for d in range(tensor.dim()):
        if tensor.shape[d] > 1 and tensor.stride(d) == 0:
            raise ValueError(
                f"{what} is written in place and must not be expanded, "
                f"got stride 0 in dimension {d}"
            )


def check_add_norm(
    residual: Tensor, x: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> None:
    """Checks `add_norm_`'s arguments."""
    if residual.dim() < 1:
        raise ValueError("add_norm_: residual must have at least 1 dimension, got 0")
    _check_float("add_norm_: residual", residual, residual.device.type)
    _check_last_dim("add_norm_: residual", residual)
    if x is not None:
        _check_like("add_norm_: x", x, "residual", residual)
        if x.shape != residual.shape:
            raise ValueError(
                f"add_norm_: x must have residual's shape {shape_text(residual)}, "
                f"got {shape_text(x)}"
            )
        _check_last_dim("add_norm_: x", x)
        _check_row_layout("add_norm_: x", x)
    for name, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            _check_like(f"add_norm_: {name}", vector, "residual", residual)
            _check_vector(f"add_norm_: {name}", vector, residual.shape[-1])
    if not (eps >= 0 and math.isfinite(eps)):
        raise ValueError(f"add_norm_: eps must be finite and at least 0, got {eps:g}")
    _check_written("add_norm_: residual", residual)
    _check_row_layout("add_norm_: residual", residual)


def check_silu_mul(gate_up: Tensor) -> None:
    """Checks `silu_mul`'s argument."""
    if gate_up.dim() < 1:
        raise ValueError("silu_mul: gate_up must have at least 1 dimension, got 0")
    _check_float("silu_mul: gate_up", gate_up, gate_up.device.type)
    _check_last_dim("silu_mul: gate_up", gate_up)
    if gate_up.shape[-1] % 2 != 0:
        raise ValueError(
            f"silu_mul: gate_up must have an even last dimension, got {gate_up.shape[-1]}"
        )
    _check_row_layout("silu_mul: gate_up", gate_up)
