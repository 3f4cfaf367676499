"""Attention with a cache, two ways: flashint8's operators, and plain PyTorch to compare with.

One object serves every layer of one forward: what the layers share (positions, masks, rotary
angles) is made once.
"""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from flashint8 import functional
from flashint8.decoder import attention_with_kvcache, rope_append_
from flashint8.models.cache import KVCache
from flashint8.models.config import ModelConfig

BACKENDS = ("flashint8", "sdpa", "naive")


class Attend(Protocol):
    """Takes a layer's fused qkv product (B, T, qkv_features) to its attention (B, T, Hq * D).

    `keys` and `values` are the layer's cache, (B, num_kv_heads, S, D) each, or both None.
    """

    def __call__(self, qkv: Tensor, keys: Tensor | None, values: Tensor | None) -> Tensor: ...


class FusedAttend:
    """`attention_with_kvcache`; for more tokens than one `rope_append_` and `attention`.

    Args:
        config: of the model.
        cache: filled up to its lengths; the new keys and values go behind them.
        length: new positions T of each row.
        static: whether nothing may depend on the host's lengths (a graph will replay this); of one
            token nothing does.
    """

    def __init__(self, config: ModelConfig, cache: KVCache, length: int, static: bool) -> None:
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim, self.positions, self.cos_sin = (
            config.head_dim,
            cache.positions,
            cache.cos_sin,
        )
        if length > 1:
            self.ends = cache.positions + length
            # The plan of a prompt goes by the keys it is given.
            self.keys = None if static else max(cache.lengths) + length

    def __call__(self, qkv: Tensor, keys: Tensor | None, values: Tensor | None) -> Tensor:
        assert keys is not None
        assert values is not None
        batch, length, width = qkv.shape
        heads, kv_heads, dim = self.num_heads, self.num_kv_heads, self.head_dim
        strides = (length * width, dim, width, 1)
        first = qkv.storage_offset()
        after_q, after_k = first + heads * dim, first + (heads + kv_heads) * dim
        q = qkv.as_strided((batch, heads, length, dim), strides, first)
        k = qkv.as_strided((batch, kv_heads, length, dim), strides, after_q)
        v = qkv.as_strided((batch, kv_heads, length, dim), strides, after_k)
        if length == 1:
            # What it reads early was written by forwards before this one, and this one's first
            # kernel, the embedding, let none follow before those had ended.
            out = attention_with_kvcache(
                q, k, v, keys, values, self.positions, self.cos_sin, cache_ready=True
            )
            return out.view(batch, 1, heads * dim)
        rope_append_(q, k, v, keys, values, self.positions, self.cos_sin)
        if self.keys is not None:
            keys, values = keys[:, :, : self.keys], values[:, :, : self.keys]
        out = functional.attention(q, keys, values, self.ends)
        return out.transpose(1, 2).reshape(batch, length, heads * dim)


class TorchAttend:
    """The same in plain PyTorch: `F.scaled_dot_product_attention`, or materialised scores.

    Args:
        config: of the model.
        cache: as for `FusedAttend`; None: the tokens see only each other.
        length: new positions T of each row.
        static: as for `FusedAttend`: every key of the cache is looked at, through a mask.
        naive: scores, mask and probabilities are materialised, as in nanoGPT without flash.
        like: any tensor of the model's dtype and device.
    """

    def __init__(
        self,
        config: ModelConfig,
        cache: KVCache | None,
        length: int,
        static: bool,
        naive: bool,
        like: Tensor,
    ) -> None:
        self.config, self.length, self.naive = config, length, naive
        device = like.device
        columns = torch.arange(length, device=device)
        uniform = cache is None or (not static and len(set(cache.lengths)) == 1)
        begin = 0 if cache is None or static else cache.lengths[0]
        if cache is None:
            self.positions = columns[None, :]
        else:
            self.positions = cache.positions[:, None] + columns  # (B, T)
            self.rows = torch.arange(cache.batch_size, device=device)[:, None]
        self.begin = begin if uniform else None
        keys = (
            length if cache is None else cache.capacity if static else max(cache.lengths) + length
        )
        self.keys = keys
        self.mask: Tensor | None = None
        self.causal = length > 1
        if self.naive or not uniform or (length > 1 and begin > 0):
            seen = torch.arange(keys, device=device) <= self.positions[:, :, None]
            self.mask, self.causal = seen[:, None], False  # (B, 1, T, keys)
        self.cos_sin: tuple[Tensor, Tensor] | None = None
        if config.architecture == "llama":
            table = config.rope_table(length, device) if cache is None else cache.cos_sin
            assert table is not None
            angles = table[self.positions][:, None]  # (B, 1, T, D)
            half = config.head_dim // 2
            self.cos_sin = (angles[..., :half], angles[..., half:])

    def __call__(self, qkv: Tensor, keys: Tensor | None, values: Tensor | None) -> Tensor:
        config = self.config
        batch, length, _ = qkv.shape
        q_heads, kv_heads = config.num_heads, config.num_kv_heads
        heads = qkv.view(batch, length, q_heads + 2 * kv_heads, config.head_dim).transpose(1, 2)
        q, k, v = heads.split((q_heads, kv_heads, kv_heads), dim=1)
        if self.cos_sin is not None:
            q, k = _rotate(q, *self.cos_sin), _rotate(k, *self.cos_sin)
        if keys is not None and values is not None:
            k, v = self._append(k, v, keys, values)
        out = (_naive if self.naive else _sdpa)(q, k, v, self.mask, self.causal)
        return out.transpose(1, 2).reshape(batch, length, q_heads * config.head_dim)

    def _append(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.begin is not None:
            place = slice(self.begin, self.begin + self.length)
            keys[:, :, place], values[:, :, place] = k, v
        else:
            keys[self.rows, :, self.positions] = k.transpose(1, 2)
            values[self.rows, :, self.positions] = v.transpose(1, 2)
        return keys[:, :, : self.keys], values[:, :, : self.keys]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return rotated.to(x.dtype)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    group = q.shape[1] // k.shape[1]
    if group > 1 and q.shape[2] == 1:
        # The heads that share keys become the queries of one: nothing is copied.
        out = F.scaled_dot_product_attention(q.view(*k.shape[:2], group, -1), k, v, mask)
        return out.view(q.shape)
    if group > 1 and mask is not None:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        group = 1
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=group > 1)


def _naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.shape[-1]))
    assert mask is not None
    scores = scores.masked_fill(~mask, float("-inf"))
    return torch.softmax(scores, dim=-1) @ v
