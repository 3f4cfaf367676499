# ruff: noqa: N999
"""The compiled module: no tensors, build information and kernel plans as data."""

from typing import Any

def build_info() -> dict[str, Any]: ...
def cpu_isa() -> str: ...
def cpu_isa_supported() -> list[str]: ...
def attention_plan(
    *,
    batch: int,
    num_heads: int,
    num_kv_heads: int,
    seq_len_q: int,
    seq_len_kv: int,
    head_dim: int,
    dtype: str,
    causal: int,
    window: int,
    fp16_accumulate: bool = False,
    ragged: bool = False,
    vectorized: bool = True,
    expanded: bool = False,
    appends: bool = False,
    append_vectorized: bool = True,
    rotary_dim: int = 0,
    interleaved: bool = False,
    compute_capability: int,
    sm_count: int,
    shared_memory_per_block: int,
) -> dict[str, Any]: ...
def int8_linear_plan(
    *,
    m: int,
    n: int,
    k: int,
    dtype: str,
    activation: str | None = None,
    vectorized: bool = True,
    plain_rows: bool = True,
    compute_capability: int,
    sm_count: int,
    shared_memory_per_block: int,
) -> dict[str, Any]: ...
