"""The mask that `fi8` registers with transformers: its numbers, and what it refuses."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hf_models import CACHE, transformers
from torch import Tensor
from transformers import masking_utils

import flashint8.integrations.transformers as fi8
from flashint8.integrations import _hf_mask


def mask(**changes: Any) -> Tensor:
    options: dict[str, Any] = {"batch_size": 2, "q_length": 3, "kv_length": 3, "q_offset": 0}
    return fi8.interval_mask(**{**options, **changes})


def test_mask_values() -> None:
    padded = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    for got, want in (
        (mask(), [[0, 3], [0, 3]]),
        (mask(q_offset=5, kv_length=8, attention_mask=padded), [[2, 8], [0, 8]]),
        # a static cache of 20: the end is where the queries stand, also from a tensor
        (mask(q_offset=5, kv_length=20, attention_mask=padded), [[2, 8], [0, 8]]),
        (mask(q_offset=torch.tensor(5), kv_length=20, attention_mask=padded), [[2, 8], [0, 8]]),
        # a sliding cache that has dropped the first four keys
        (mask(q_offset=5, kv_offset=4, kv_length=4, attention_mask=padded), [[0, 4], [0, 4]]),
        (mask(q_offset=5, kv_offset=1, kv_length=7, attention_mask=padded), [[1, 7], [0, 7]]),
        (mask(q_length=1, q_offset=7, kv_length=8, attention_mask=padded * 0), [[8, 8], [8, 8]]),
    ):
        assert got.dtype == torch.int32
        assert got.shape == (2, 1, 1, 2)
        assert got[:, 0, 0].tolist() == want
    window = masking_utils.sliding_window_causal_mask_function(5)
    got = mask(mask_function=window)
    assert got.shape == (2, 1, 1, 3)
    assert got[:, 0, 0].tolist() == [[0, 3, 5], [0, 3, 5]]
    right = torch.tensor([[1, 1, 0], [0, 1, 1]])
    full = masking_utils.bidirectional_mask_function
    got = mask(mask_function=full, attention_mask=right)
    assert got.shape == (2, 1, 2, 1)
    assert got[:, 0, :, 0].tolist() == [[0, 2], [1, 3]]


@pytest.mark.parametrize("q_offset", [0, 4, 9])
@pytest.mark.parametrize("kind", ["causal", "sliding", "full"])
@pytest.mark.parametrize("size", [0, 3])  # places of a static cache beyond the tokens
def test_mask_is_transformers_mask(kind: str, q_offset: int, size: int) -> None:
    """Its expansion is sdpa_mask's, in every row that sees a key."""
    q_length, tokens = 5, q_offset + 5
    function = {
        "causal": masking_utils.causal_mask_function,
        "sliding": masking_utils.sliding_window_causal_mask_function(4),
        "full": masking_utils.bidirectional_mask_function,
    }[kind]
    padding = torch.ones(3, tokens, dtype=torch.bool)
    padding[0, :2], padding[1, :tokens] = False, False
    options = {
        "batch_size": 3,
        "q_length": q_length,
        "kv_length": tokens + size,
        "q_offset": q_offset,
        "mask_function": function,
        "attention_mask": padding,
    }
    theirs = masking_utils.sdpa_mask(
        **options, allow_is_causal_skip=False, allow_is_bidirectional_skip=False
    )
    interval = _hf_mask.read(fi8.interval_mask(**options), 3)
    assert interval is not None
    ours = _hf_mask.expand(interval, q_length, tokens + size, 4)
    assert torch.equal(ours.expand_as(theirs), theirs)


def other(batch_idx: Any, head_idx: Any, q_idx: Any, kv_idx: Any) -> Any:
    return kv_idx % 2 == 0


class Odd:
    """A mask function that is no function."""

    def __call__(self, *indices: Any) -> Any:
        return other(*indices)


CAUSAL = masking_utils.causal_mask_function
IDS = torch.zeros(2, 3, dtype=torch.long)
PACKED = masking_utils.packed_sequence_mask_function(IDS)
REMAPPED = masking_utils.remap_positions_for_packed_sequence(CAUSAL, IDS)
BLOCKS = masking_utils.or_masks(CAUSAL, masking_utils.blockwise_overlay(IDS))

REFUSED_MASKS = {
    "a custom function": (other, "the custom mask function other"),
    "joined": (
        masking_utils.and_masks(masking_utils.causal_mask_function, other),
        "the custom mask function other",
    ),
    "or": (
        masking_utils.or_masks(masking_utils.causal_mask_function, other),
        "the custom mask function or_masks",
    ),
    "an object": (Odd(), "the custom mask function Odd"),
    "inside": (
        masking_utils.and_masks(masking_utils.sliding_window_causal_mask_function(3), other),
        "the custom mask function other",
    ),
    "two windows": (
        masking_utils.and_masks(
            masking_utils.sliding_window_overlay(3),
            masking_utils.sliding_window_causal_mask_function(2),
        ),
        "the custom mask function sliding_window_overlay",
    ),
    "a window alone": (
        masking_utils.sliding_window_overlay(3),
        "the custom mask function sliding_window_overlay",
    ),
    "packed": (masking_utils.and_masks(REMAPPED, PACKED), "packed sequences"),  # 5.24
    "packed before": (masking_utils.and_masks(PACKED, REMAPPED), "packed sequences"),  # 5.23
    "chunked": (
        masking_utils.chunked_causal_mask_function(2, torch.zeros(2)),
        "chunked attention",
    ),
    "bidirectional window": (
        masking_utils.sliding_window_bidirectional_mask_function(2),
        "a sliding window without causality",
    ),
    "blocks": (BLOCKS, "blocks that attend to themselves"),
    "packed blocks": (
        masking_utils.and_masks(
            masking_utils.or_masks(REMAPPED, masking_utils.blockwise_overlay(IDS)), PACKED
        ),
        "packed sequences",
    ),
}


@pytest.mark.parametrize("kind", REFUSED_MASKS)
def test_masks_that_are_refused(kind: str) -> None:
    function, message = REFUSED_MASKS[kind]
    with pytest.raises(ValueError, match=f"fi8: attention with {message}"):
        mask(mask_function=function)


def test_functions_named_like_transformers_are_others() -> None:
    """Looked at is what made them, not what they are called."""

    def impostor(*indices: Any) -> Any:
        return other(*indices)

    for real in (
        masking_utils.sliding_window_overlay(3),
        masking_utils.sliding_window_causal_mask_function(3),
        CAUSAL,
    ):
        impostor.__qualname__ = real.__qualname__
        for function in (impostor, masking_utils.and_masks(impostor, CAUSAL)):
            with pytest.raises(ValueError, match="the custom mask function "):
                mask(mask_function=function)


MAKERS = {
    "causal": (masking_utils.create_causal_mask, {}, "causal"),
    "sliding": (masking_utils.create_sliding_window_causal_mask, {"sliding_window": 5}, "sliding"),
    "full": (masking_utils.create_bidirectional_mask, {}, "full"),
    "chunked": (
        masking_utils.create_chunked_causal_mask,
        {"attention_chunk_size": 2},
        "chunked attention",
    ),
    "full, window": (
        masking_utils.create_bidirectional_sliding_window_mask,
        {"sliding_window": 5},
        "a sliding window without causality",
    ),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_masks_that_transformers_makes(kind: str) -> None:
    """Through its own functions, with padding: known by what they are, or refused by name."""
    maker, options, meaning = MAKERS[kind]
    config = transformers.LlamaConfig(num_attention_heads=4, hidden_size=64, **options)
    config._attn_implementation = fi8.ATTENTION
    padding = torch.tensor([[0, 1, 1], [1, 1, 1]])
    arguments = {"config": config, "inputs_embeds": torch.zeros(2, 3, 64)}
    arguments["attention_mask"] = padding
    if kind.startswith("full"):
        call = partial(maker, **arguments)
    else:
        call = partial(maker, **arguments, **{CACHE: None})
    if " " in meaning:
        with pytest.raises(ValueError, match=f"fi8: attention with {meaning}"):
            call()
        return
    interval = _hf_mask.read(call(), 2)
    assert interval is not None
    assert interval.kind == meaning
    assert interval.start.tolist() == [1, 0]
    for extra, message in (
        ({"and_mask_function": other}, "the custom mask function other"),
        ({"or_mask_function": other}, "the custom mask function or_masks"),
    ):
        with pytest.raises(ValueError, match=f"fi8: attention with {message}"):
            call(**extra)
    if kind == "full":
        return
    with pytest.raises(ValueError, match="blocks that attend to themselves"):
        call(block_sequence_ids=IDS)
    packed = {"position_ids": torch.tensor([[0, 0, 1]]), "attention_mask": None}
    with pytest.raises(ValueError, match="fi8: attention with packed sequences"):
        call(**packed)
    with pytest.raises(ValueError, match=r"fi8: attention with (packed sequences|blocks that)"):
        call(**packed, block_sequence_ids=IDS)


def test_holes_are_refused(device: str) -> None:
    for rows in ([[1, 0, 1], [1, 1, 1]], [[1, 1, 1], [0, 1, 0]]):
        padding = torch.tensor(rows, device=device)
        if rows[1] == [0, 1, 0]:  # padding at both ends is none
            assert mask(attention_mask=padding, device=device)[1, 0, 0].tolist() == [1, 3]
            continue
        with pytest.raises(ValueError, match="attention_mask has a hole"):
            mask(attention_mask=padding, device=device)
    with pytest.raises(ValueError, match="attention_mask has 3 places, there are more tokens"):
        mask(attention_mask=torch.ones(2, 3), q_offset=1, kv_length=4)
