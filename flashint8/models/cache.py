"""The keys and values of what a model has read so far, in memory taken once."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from flashint8.models.config import ModelConfig


class KVCache:
    """A static key-value cache: every row of a batch has a length of its own.

    The lengths are on the device, where kernels and captured graphs read them, and mirrored on the
    host, so that a full cache is noticed without a synchronisation.

    Args:
        config: of the model that will fill it.
        batch_size: rows B.
        capacity: positions S of each row.
        dtype: of keys and values.
        device: of everything.
        num_layers: layers that get a cache of their own; default all of the model's.

    Attributes:
        layers: for each layer its keys and its values, (B, num_kv_heads, S, head_dim) each.
        positions: (B,) int32, how many positions of each row are filled.
        lengths: the host's copy of `positions`.
        cos_sin: (S, head_dim) float32, the model's rotary table; None where it has none.

    Raises:
        ValueError: batch_size or capacity is not positive, or capacity passes the model's longest
            context.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        capacity: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        num_layers: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"KVCache: batch_size must be at least 1, got {batch_size}")
        if not 1 <= capacity <= config.max_positions:
            raise ValueError(
                f"KVCache: capacity must be from 1 to the model's {config.max_positions} "
                f"positions, got {capacity}"
            )
        self.batch_size, self.capacity = batch_size, capacity
        shape = (batch_size, config.num_kv_heads, capacity, config.head_dim)
        zeros = partial(torch.zeros, shape, dtype=dtype, device=device)
        layers = config.num_layers if num_layers is None else num_layers
        self.layers: list[tuple[Tensor, Tensor]] = [(zeros(), zeros()) for _ in range(layers)]
        self.positions = torch.zeros(batch_size, dtype=torch.int32, device=device)
        self.lengths = [0] * batch_size
        self.cos_sin: Tensor | None = None
        if config.architecture == "llama":
            self.cos_sin = config.rope_table(capacity, device)
        self.reset()

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(k.nbytes + v.nbytes for k, v in self.layers)

    def reset(self) -> None:
        """Forgets everything; the memory stays."""
        self.lengths = [0] * self.batch_size
        self.positions.zero_()

    def reserve(self, count: int) -> None:
        """Makes sure that each row has room for `count` positions more.

        Raises:
            ValueError: a row has not; nothing was written.
        """
        longest = max(self.lengths)
        if longest + count > self.capacity:
            row = self.lengths.index(longest)
            raise ValueError(
                f"KVCache: full: row {row} holds {longest} of {self.capacity} positions, {count} "
                "more do not fit"
            )

    def advance(self, counts: Sequence[int]) -> None:
        """Counts `counts[b]` positions more as filled in row b, on the host and on the device."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        if len(set(counts)) == 1:
            self.positions += counts[0]
        else:
            self.positions += torch.tensor(counts, dtype=torch.int32, device=self.positions.device)

    def advance_host(self, count: int) -> None:
        """`count` positions more in every row, on the host: a graph has counted on the device."""
        self.lengths = [length + count for length in self.lengths]
