"""How the rows of int8_linear's x lie in memory: csrc/ops/linear_args.cpp, in Python."""

from torch import Tensor

MAX_ROW_RUNS = 4


def row_runs(x: Tensor) -> list[tuple[int, int]]:
    """The leading dimensions of x (..., K) merged: (size, stride) of each run, innermost first."""
    runs: list[tuple[int, int]] = []
    for d in range(x.dim() - 2, -1, -1):
        size, stride = x.shape[d], x.stride(d)
        if size == 1:
            continue
        if runs and stride == runs[-1][0] * runs[-1][1]:
            runs[-1] = (runs[-1][0] * size, runs[-1][1])
        else:
            runs.append((size, stride))
    return runs


def plain_rows(x: Tensor) -> bool:
    """Whether the rows of x are one matrix, none of which overlaps the next."""
    runs = row_runs(x)
    return not runs or (len(runs) == 1 and runs[0][1] >= x.shape[-1])


def readable_heads(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension is contiguous, else a contiguous copy."""
    return tensor.contiguous() if tensor.shape[-1] > 1 and tensor.stride(-1) != 1 else tensor


def readable_rows(x: Tensor) -> Tensor:
    """x itself where int8_linear reads it as it lies, else a contiguous copy."""
    if x.dim() > 5 and len(row_runs(x)) > MAX_ROW_RUNS:
        return x.contiguous()
    return readable_heads(x) if x.dim() > 0 else x
