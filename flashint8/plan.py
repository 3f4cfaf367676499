"""`explain`: which kernel would run, and how, as data; also for cards that are not here."""

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from flashint8 import _C, _arch, _checks, _checks_cache, _layout


@dataclass(frozen=True)
class Card:
    """What a plan needs to know of a GPU. Card(86, 30, 101376) is an RTX 3060 Laptop GPU.

    Attributes:
        compute_capability: 10 * major + minor.
        sm_count: streaming multiprocessors.
        shared_memory_per_block: opt-in limit of dynamic shared memory, in bytes.
    """

    compute_capability: int
    sm_count: int
    shared_memory_per_block: int

    @classmethod
    def of(cls, device: torch.device | str | int | None = None) -> "Card":
        """The card that plans are made for on a CUDA device; default the current one.

        That is the device's own, or the one that the environment variable FLASHINT8_PLAN_CARD names
        as "compute_capability,sm_count,shared_memory_per_block".
        """
        forced = os.environ.get("FLASHINT8_PLAN_CARD")
        if forced is not None:
            numbers = forced.split(",")
            if len(numbers) != 3 or not all(n.isdecimal() and int(n) > 0 for n in numbers):
                raise ValueError(
                    "FLASHINT8_PLAN_CARD must be compute_capability,sm_count,"
                    f"shared_memory_per_block as in 86,30,101376, got {forced}"
                )
            return cls(*map(int, numbers))
        properties = torch.cuda.get_device_properties(device)
        return cls(
            compute_capability=10 * properties.major + properties.minor,
            sm_count=properties.multi_processor_count,
            shared_memory_per_block=properties.shared_memory_per_block_optin,  # type: ignore[attr-defined]
        )


@dataclass(frozen=True)
class Plan:
    """What would run. str() shows it at a glance.

    Attributes:
        op: "attention", "attention_with_kvcache" or "int8_linear".
        device: "cpu" or "cuda".
        kernel: on CUDA "prefill", "prefill_sm90", "decode", "gemv", "gemv_sm90", "gemm",
            "gemm_sm90" (sm90: built for Hopper alone) or "library" (torch's own 16-bit product on
            weights converted part by part); on the CPU its instruction set.
        details: tile sizes, splits, shared memory, workspace; the problem's sizes; on CUDA the
            built code the card would run ("code", None where there is none).
    """

    op: str
    device: str
    kernel: str
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.op} on {self.device}: {self.kernel}"]
        width = max((len(name) for name in self.details), default=0)
        lines += [f"  {name:<{width}}  {value}" for name, value in self.details.items()]
        return "\n".join(lines)


def explain(op: str, *args: Any, card: Card | None = None, **kwargs: Any) -> Plan:
    """The kernel, tile and splits that a call would use, without running it.

    Args:
        op: "attention", "attention_with_kvcache" or "int8_linear".
        *args: the operator's arguments; meta tensors will do.
        card: the GPU to plan for, which need not be here; None: the device of the tensors.
        **kwargs: the operator's keyword arguments.

    Raises:
        ValueError: an unknown op; arguments that the operator would reject on that device; meta
            tensors without a card; a card that no kernel fits.
    """
    planner = _PLANNERS.get(op)
    if planner is None:
        raise ValueError(f"explain: op must be one of {', '.join(_PLANNERS)}, got {op!r}")
    return planner(card, *args, **kwargs)


def _resolve(tensor: Tensor, card: Card | None) -> Card | None:
    """The card to plan for; None for the CPU."""
    if card is not None:
        return card
    if tensor.device.type == "meta":
        raise ValueError("explain: tensors on meta need a card, as in card=flashint8.Card(...)")
    return Card.of(tensor.device) if tensor.device.type == "cuda" else None


def _aligned(*tensors: Tensor) -> bool:
    """Whether 16-byte loads work: the first element, and every row's, on a 16-byte boundary."""
    for tensor in tensors:
        # A meta tensor's memory is taken to begin on a boundary, as torch's allocators make it.
        address = (
            tensor.storage_offset() * tensor.element_size() if tensor.is_meta else tensor.data_ptr()
        )
        if address % 16 != 0:
            return False
        for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True):
            if size > 1 and stride * tensor.element_size() % 16 != 0:
                return False
    return True


def _expanded(*tensors: Tensor) -> bool:
    """Whether elements are repeated without being stored again, as expand() does."""
    return any(
        size > 1 and stride == 0
        for tensor in tensors
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _cuda_plan(op: str, plan: dict[str, Any], sizes: dict[str, Any], card: Card) -> Plan:
    details = dict(plan)
    kernel = str(details.pop("kernel"))
    limit = card.shared_memory_per_block
    if details["num_warps"] == 0 or details["shared_bytes"] > limit:
        raise ValueError(
            f"explain: no {op} kernel fits {limit} bytes of shared memory per block ({card})"
        )
    built: list[str] = list(_C.build_info()["cuda_architectures"])
    code = _arch.runnable(card.compute_capability, built)
    return Plan(op, "cuda", kernel, {**sizes, **details, "card": card, "code": code})


def _cpu_plan(op: str, sizes: dict[str, Any]) -> Plan:
    isa = _C.cpu_isa()
    return Plan(op, "cpu", isa, {**sizes, "isa": isa, "num_threads": torch.get_num_threads()})


def _explain_attention(
    card: Card | None,
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
) -> Plan:
    card = _resolve(q, card)
    _checks.check_attention(
        q,
        k,
        v,
        kv_lengths,
        kv_start,
        causal=causal,
        window=window,
        softcap=softcap,
        scale=scale,
        fp16_accumulate=fp16_accumulate,
        device_type="cpu" if card is None else "cuda",
    )
    return _attention_plan(
        "attention",
        card,
        (q, k, v),
        causal=causal,
        window=window,
        fp16_accumulate=fp16_accumulate,
        ragged=kv_lengths is not None or kv_start is not None,
    )


def _explain_attention_with_kvcache(
    card: Card | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None = None,
    *,
    interleaved: bool = False,
    scale: float | None = None,
    cache_ready: bool = False,
) -> Plan:
    card = _resolve(q, card)
    _checks_cache.check_attention_with_kvcache(
        q,
        k,
        v,
        k_cache,
        v_cache,
        positions,
        cos_sin,
        scale=scale,
        device_type="cpu" if card is None else "cuda",
    )
    table = () if cos_sin is None else (cos_sin,)

    def plan_for(queries: Tensor, appends: bool) -> Plan:
        return _attention_plan(
            "attention_with_kvcache",
            card,
            (queries, k_cache, v_cache),
            ragged=True,
            appends=appends,
            append_vectorized=_aligned(k, v, *table),
            rotary_dim=0 if cos_sin is None else cos_sin.shape[1],
            interleaved=interleaved,
        )

    plan = plan_for(q, True)
    if cos_sin is None or plan.details.get("appends", True):
        return plan
    # rope_append_ goes first, and leaves the rotated q in a tensor of its own.
    plan = plan_for(torch.empty(q.shape, dtype=q.dtype, device="meta"), False)
    return dataclasses.replace(plan, details={**plan.details, "appends": False})


def _attention_plan(
    op: str,
    card: Card | None,
    tensors: tuple[Tensor, Tensor, Tensor],
    *,
    causal: int = 1,
    window: int = -1,
    **options: Any,
) -> Plan:
    q, k, _ = tensors
    sizes: dict[str, Any] = {
        "batch": q.shape[0],
        "num_heads": q.shape[1],
        "num_kv_heads": k.shape[1],
        "seq_len_q": q.shape[2],
        "seq_len_kv": k.shape[2],
        "dtype": _checks.dtype_name(q.dtype),
        "causal": causal,
        "window": window,
    }
    if card is None:
        return _cpu_plan(op, {**sizes, "head_dim": q.shape[3]})
    plan = _C.attention_plan(
        **sizes,
        **options,
        head_dim=q.shape[3],
        vectorized=_aligned(*tensors),
        expanded=_expanded(*tensors),
        compute_capability=card.compute_capability,
        sm_count=card.sm_count,
        shared_memory_per_block=card.shared_memory_per_block,
    )
    return _cuda_plan(op, plan, sizes, card)


def _explain_int8_linear(
    card: Card | None,
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    weight_ready: bool = False,
) -> Plan:
    card = _resolve(x, card)
    device_type = "cpu" if card is None else "cuda"
    _checks.check_int8_linear(
        x, weight, weight_scale, bias, activation=activation, device_type=device_type
    )
    n, k = weight.shape
    sizes: dict[str, Any] = {
        "m": x.shape[:-1].numel(),
        "n": n,
        "k": k,
        "dtype": _checks.dtype_name(x.dtype),
        "activation": activation,
    }
    if card is None:
        return _cpu_plan("int8_linear", sizes)
    plan = _C.int8_linear_plan(
        **sizes,
        vectorized=_aligned(x, weight),
        plain_rows=_layout.plain_rows(x),
        compute_capability=card.compute_capability,
        sm_count=card.sm_count,
        shared_memory_per_block=card.shared_memory_per_block,
    )
    return _cuda_plan("int8_linear", plan, sizes, card)


_PLANNERS: dict[str, Callable[..., Plan]] = {
    "attention": _explain_attention,
    "attention_with_kvcache": _explain_attention_with_kvcache,
    "int8_linear": _explain_int8_linear,
}
