"""`quantize_per_channel`: the operator's absmax, and a search for the least squared error."""

import torch
from torch import Tensor

from flashint8 import ops

METHODS = ("absmax", "mse")
_CHUNK = 1 << 18  # weights looked at together: they and four temporaries stay in a CPU's L2 cache
_CHUNK_CUDA = 1 << 24
_COARSE = tuple(0.9**i for i in range(1, 22))  # shares of absmax, down to a ninth of it
_FINE = tuple(0.9 ** (i / 6) for i in (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5))  # around the best


def quantize_per_channel(weight: Tensor, method: str = "absmax") -> tuple[Tensor, Tensor]:
    """Symmetric int8 quantisation of each output channel (row): weight ~ q * scale[:, None].

    "absmax": ``scale[n] = max_k |weight[n, k]| / 127``, ``q = clamp(round_half_even(weight /
    scale))``. A row of zeros gives zeros and scale 0.

    "mse": of that scale and smaller ones (which clip the row's largest weights), the one of least
    squared error: a geometric grid down to 0.11 of it, a finer one around the best, then the
    scale that least squares gives those integers. No row's error grows; the same bits on every run.
    With 8 bits there is little to gain but in very long rows with a few large weights, and the
    largest weights lose most: measure what matters to you. The idea of searching the clip is that
    of Banner et al. (arXiv:1810.05723); the alternation that of k-means (Lloyd).

    Args:
        weight: (N, K), float16, bfloat16 or float32, any strides.
        method: "absmax" or "mse".

    Returns:
        q (N, K) int8 and scale (N,) float32, both contiguous, on weight's device.

    Raises:
        ValueError: method is another one; weight's rank or dtype, or a NaN or infinity (the message
            names its row).
    """
    check_method(method, "quantize_per_channel")
    weight = weight.detach()
    q, scale = ops.quantize_per_channel(weight)
    if method == "absmax" or weight.is_meta or weight.numel() == 0:
        return q, scale
    chunk = _CHUNK_CUDA if weight.is_cuda else _CHUNK
    rows = max(1, chunk // weight.shape[1])
    for begin in range(0, weight.shape[0], rows):
        part = slice(begin, begin + rows)
        q[part], scale[part] = _least_error(weight[part].float().contiguous(), scale[part])
    return q, scale


def check_method(method: str, caller: str) -> None:
    """ValueError if `method` is not one of METHODS."""
    if method not in METHODS:
        raise ValueError(f"{caller}: method must be 'absmax' or 'mse', got {method!r}")


@torch.no_grad()
def _least_error(weight: Tensor, absmax_scale: Tensor) -> tuple[Tensor, Tensor]:
    """q and scale of float32 rows (n, K); begins at absmax and moves only to a smaller error."""
    q = torch.empty_like(weight)
    spare = torch.empty_like(weight)
    best_scale = absmax_scale.clone()
    best_error = _round(weight, best_scale, q, spare)

    def consider(scale: Tensor) -> None:
        error = _round(weight, scale, q, spare)
        better = (error < best_error) & (scale > 0)
        best_error.copy_(torch.where(better, error, best_error))
        best_scale.copy_(torch.where(better, scale, best_scale))

    for share in _COARSE:
        consider(absmax_scale * share)
    centre = best_scale.clone()
    for share in _FINE:
        consider(torch.minimum(centre * share, absmax_scale))
    for _ in range(2):
        _round(weight, best_scale, q, spare)
        norm = q.square().sum(-1, dtype=torch.float64)
        fit = (weight * q).sum(-1, dtype=torch.float64) / norm.clamp(min=1)
        consider(fit.float())
    _round(weight, best_scale, q, spare)
    return q.to(torch.int8), best_scale


def _round(weight: Tensor, scale: Tensor, q: Tensor, spare: Tensor) -> Tensor:
    """Fills q with the clamped integers of weight / scale; each row's squared error (float64)."""
    column = scale[:, None]
    safe = torch.where(column > 0, column, torch.ones_like(column))
    torch.div(weight, safe, out=q)
    q.round_().clamp_(-127, 127)
    torch.mul(q, column, out=spare)
    spare.sub_(weight)
    return spare.square_().sum(-1, dtype=torch.float64)
