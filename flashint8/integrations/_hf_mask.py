"""transformers' attention masks as the few numbers our kernel takes.

A mask here is an int32 tensor on the model's device whose shape says what it is:

* (B, 1, 1, 2), causal: first key and end of the keys, the end being where the last query stands;
* (B, 1, 1, 3), causal with a sliding window: the same, then the window;
* (B, 1, 2, 1), not causal: first key and end of the keys.

All count from the first key that the attention gets. Four dimensions, since transformers takes
a mask of two for a padding mask.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import masking_utils

_SHAPES = {(1, 2): "causal", (1, 3): "sliding", (2, 1): "full"}
_WORDS = {  # factories of mask functions that our kernel has nothing for
    "packed_sequence_mask_function": "packed sequences",
    "remap_positions_for_packed_sequence": "packed sequences",
    "chunked_overlay": "chunked attention",
    "blockwise_overlay": "blocks that attend to themselves (block_sequence_ids)",
    "sliding_window_bidirectional_overlay": "a sliding window without causality",
}


class Interval(NamedTuple):
    """A mask, unpacked.

    Attributes:
        kind: "causal", "sliding" or "full" (not causal).
        start: (B,) int32, the first key of each row.
        end: (B,) int32, where its keys end; if causal the last query sees key ``end - 1``.
    """

    kind: str
    start: Tensor
    end: Tensor


def read(mask: Tensor, batch: int) -> Interval | None:
    """What `interval_mask` has put into a mask; None if it is another one."""
    if mask.dtype != torch.int32 or mask.dim() != 4 or mask.shape[1] != 1:
        return None
    kind = _SHAPES.get((mask.shape[2], mask.shape[3]))
    if kind is None:
        return None
    rows = mask.flatten(1).expand(batch, -1)
    return Interval(kind, rows[:, 0].contiguous(), rows[:, 1].contiguous())


def expand(mask: Interval, seq_len_q: int, seq_len_kv: int, window: int | None) -> Tensor:
    """The boolean mask (B, 1, Tq, Tk) of the same meaning."""
    j = torch.arange(seq_len_kv, device=mask.start.device)
    seen = (j >= mask.start[:, None]) & (j < mask.end[:, None])
    if mask.kind == "full":
        return seen[:, None, None, :].expand(-1, 1, seq_len_q, -1)
    last = mask.end[:, None] - seq_len_q + torch.arange(seq_len_q, device=j.device)
    visible = j <= last[..., None]
    if mask.kind == "sliding" and window is not None:
        visible &= j > last[..., None] - window
    return (seen[:, None] & visible)[:, None]


# A compiled graph cannot look into mask functions.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def interval_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor:
    """The mask function registered for `fi8`; arguments are transformers'.

    The rows of `attention_mask` (B, seen tokens) must be ones between paddings: zeros, ones, zeros.
    During CUDA-graph capture that is asserted on the device, else on the host. Under torch.compile
    this runs between two graphs; ``generate`` calls it outside of them, and loses nothing.

    Returns:
        An int32 mask as this file describes it.

    Raises:
        ValueError: the mask function, or a hole in attention_mask, is more than a first and a last
            key and a window; the message names it.
    """
    kind, window = classify(mask_function)
    zero = torch.zeros(batch_size, dtype=torch.int64, device=device)
    causal = kind != "full"
    start, end = zero, zero + (q_offset + q_length if causal else kv_length + kv_offset)
    if attention_mask is not None:
        first, stop = _ones(attention_mask)
        start = first
        if causal:
            _check(
                attention_mask.shape[-1] >= end,
                f"attention_mask has {attention_mask.shape[-1]} places, there are more tokens",
            )
        else:
            end = torch.minimum(end, stop)
    numbers = [(x - kv_offset).clamp(0, kv_length) for x in (start, end)]
    if kind == "sliding":
        numbers.append(zero + window)
    mask = torch.stack(numbers).to(torch.int32).t()
    return mask[:, None, :, None] if kind == "full" else mask[:, None, None, :]


def classify(mask_function: Callable[..., Any]) -> tuple[str, int]:
    """("causal" | "sliding" | "full", window or -1) of one of transformers' mask functions.

    Raises:
        ValueError: it is another one.
    """
    if mask_function is masking_utils.causal_mask_function:
        return "causal", -1
    if mask_function is masking_utils.bidirectional_mask_function:
        return "full", -1
    parts = _parts(mask_function)
    windows = [w for part in parts if (w := _window(part)) is not None]
    others = [part for part in parts if _window(part) is None]
    if len(windows) == 1 and others == [masking_utils.causal_mask_function]:
        return "sliding", windows[0]
    plain = (masking_utils.causal_mask_function, masking_utils.bidirectional_mask_function)
    unknown = [f for f in others if f not in plain] or parts
    raise ValueError(f"fi8: attention with {_words(unknown)} is not supported")


def _parts(mask_function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions that and_masks joined; others stay whole."""
    if not _made_by(masking_utils.and_masks, mask_function):
        return [mask_function]
    return [part for function in _captured(mask_function) for part in _parts(function)]


def _window(mask_function: Callable[..., Any]) -> int | None:
    """The window of a function made by sliding_window_overlay."""
    if not _made_by(masking_utils.sliding_window_overlay, mask_function):
        return None
    (window,) = mask_function.__closure__ or ()
    return int(window.cell_contents)


def _made_by(factory: Callable[..., Any], function: Callable[..., Any]) -> bool:
    """Whether a function is the inner one of this very factory; its code object is a constant."""
    code = getattr(function, "__code__", None)
    return code is not None and any(code is c for c in factory.__code__.co_consts)


def _captured(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions that an inner function has captured, alone or in a tuple."""
    values = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    each = [x for value in values for x in (value if isinstance(value, tuple) else (value,))]
    return [x for x in each if callable(x)]


def _words(functions: list[Callable[..., Any]]) -> str:
    """What they are: the first that transformers has made is named, else the first."""
    inside = list(functions)
    for function in inside:  # (grows)
        inside += [f for f in _captured(function) if f not in inside]
    names = [str(getattr(f, "__qualname__", type(f).__qualname__)) for f in inside]
    known = [_WORDS[n] for name in names if (n := name.partition(".")[0]) in _WORDS]
    return known[0] if known else f"the custom mask function {names[0]}"


def _ones(attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row's ones begin and end; of a row of zeros, both its length."""
    length = attention_mask.shape[-1]
    ones = attention_mask != 0
    place = torch.arange(length, device=ones.device)
    first = torch.where(ones, place, length).amin(-1)
    stop = torch.where(ones, place + 1, 0).amax(-1)
    stop = torch.maximum(stop, first)
    _check(
        ones.sum(-1) == (stop - first).where(first < length, 0),
        "attention_mask has a hole: zeros between ones in a row",
    )
    return first, stop


def _check(fine: Tensor, message: str) -> None:
    """Raises ValueError where not all are true; where the host may not look, asserts on device."""
    text = f"fi8: {message}; only padding at the ends is supported"
    if fine.is_cuda and torch.cuda.is_current_stream_capturing():
        torch._assert_async(fine.all(), text)
    elif not bool(fine.all()):
        raise ValueError(text)
