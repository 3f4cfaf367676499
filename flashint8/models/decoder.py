"""What GPT-2 and Llama share: the norm, the block, and the decoder around them.

A block is ``x + attention(norm(x))``, then ``x + mlp(norm(x))``. It is computed as
``residual += x; norm(residual)``, so that each addition and the norm behind it are one operator.
"""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flashint8._checks import FLOAT_DTYPES, dtype_name
from flashint8.decoder import add_norm_, embed_
from flashint8.models.attention import BACKENDS, Attend, FusedAttend, TorchAttend
from flashint8.models.cache import KVCache
from flashint8.models.config import ModelConfig
from flashint8.modules import QuantLinear

LINEARS = ("int8", "float")


class MakeLinear(Protocol):
    """Makes a layer; an int8 one applies `activation`, a float one leaves it to its caller."""

    def __call__(
        self, inputs: int, outputs: int, bias: bool, *, activation: str | None = None
    ) -> nn.Module: ...


class Norm(nn.Module):
    """RMSNorm, or LayerNorm where it has a bias, of a sum: ``residual += x; norm(residual)``.

    Args:
        features: channels C.
        eps: added to the variance.
        rms: RMSNorm (Zhang and Sennrich, arXiv:1910.07467), without a bias; else LayerNorm.
        fused: one operator of flashint8 instead of PyTorch's.
        device: of the parameters.
        dtype: of the parameters.
    """

    def __init__(
        self,
        features: int,
        eps: float,
        rms: bool,
        fused: bool,
        device: torch.device | str | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        ones = torch.ones(features, device=device, dtype=dtype)
        self.weight = nn.Parameter(ones, requires_grad=False)
        bias = None if rms else torch.zeros(features, device=device, dtype=dtype)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.eps, self.rms, self.fused = eps, rms, fused

    def forward(self, residual: Tensor, x: Tensor | None) -> Tensor:
        """residual (B, T, C), x the same or None for no addition; residual changes in place."""
        if self.fused:
            return add_norm_(residual, x, self.weight, self.bias, eps=self.eps, rms=self.rms)
        if x is not None:
            residual.add_(x)
        shape = self.weight.shape
        if self.rms:
            return F.rms_norm(residual, shape, self.weight, self.eps)
        return F.layer_norm(residual, shape, self.weight, self.bias, self.eps)


class Block(nn.Module):
    """One transformer block: fused qkv product, attention, output product, MLP.

    Args:
        config: sizes.
        mlp: the model's own MLP.
        linear: makes a linear layer.
        norm: makes a norm.
    """

    def __init__(
        self,
        config: ModelConfig,
        mlp: nn.Module,
        linear: MakeLinear,
        norm: Callable[[], Norm],
    ) -> None:
        super().__init__()
        bias = config.attention_bias
        self.norm1 = norm()
        self.qkv = linear(config.hidden_size, config.qkv_features, bias)
        self.proj = linear(config.attention_features, config.hidden_size, bias)
        self.norm2 = norm()
        self.mlp = mlp

    def forward(
        self,
        residual: Tensor,
        x: Tensor | None,
        attend: Attend,
        keys: Tensor | None,
        values: Tensor | None,
    ) -> Tensor:
        """What is to be added to the residual (B, T, C) next; the residual changes in place."""
        x = self.qkv(self.norm1(residual, x))
        x = self.proj(attend(x, keys, values))
        x = self.norm2(residual, x)
        result: Tensor = self.mlp(x)
        return result


class Decoder(nn.Module):
    """A decoder-only model; `GPT` and `Llama` say what their MLP and their positions are.

    For inference. Every linear product of a block is one matrix: q, k and v together, gate and up
    together. With ``linears="int8"`` they are QuantLinear, of which the MLP's first applies the
    activation, and so is the output product, unless ``int8_head`` is False; where the token
    embedding is tied to it, the int8 matrix serves both.

    Args:
        config: sizes; of the class's architecture.
        attention: "flashint8" (its operators, norms and activations too), or, in plain PyTorch,
            "sdpa" or "naive" (scores are materialised).
        linears: "int8" or "float".
        int8_head: whether the output product is int8; default: as `linears`.
        dtype: of weights that are not int8, of activations and of the cache.
        device: where the weights are made, with random values; nothing is drawn on "meta".

    Raises:
        ValueError: an argument has a value not named here.
    """

    architecture: ClassVar[str]

    def __init__(
        self,
        config: ModelConfig,
        *,
        attention: str = "flashint8",
        linears: str = "int8",
        int8_head: bool | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        name = type(self).__name__
        if config.architecture != self.architecture:
            raise ValueError(
                f"{name}: config must be of architecture {self.architecture}, got "
                f"{config.architecture}"
            )
        if attention not in BACKENDS:
            raise ValueError(f"{name}: attention must be one of {BACKENDS}, got {attention!r}")
        if linears not in LINEARS:
            raise ValueError(f"{name}: linears must be one of {LINEARS}, got {linears!r}")
        if dtype not in FLOAT_DTYPES:
            raise ValueError(
                f"{name}: dtype must be float16, bfloat16 or float32, got {dtype_name(dtype)}"
            )
        self.config, self.attention, self.linears, self.dtype = config, attention, linears, dtype
        fused = attention == "flashint8"

        def norm() -> Norm:
            rms = self.architecture == "llama"
            return Norm(config.hidden_size, config.norm_eps, rms, fused, device, dtype)

        def linear(
            inputs: int,
            outputs: int,
            bias: bool,
            int8: bool = linears == "int8",
            *,
            activation: str | None = None,
        ) -> nn.Module:
            if int8:
                quant = QuantLinear(inputs, outputs, bias, device, dtype, activation)
                quant.weight_ready = True  # what runs ahead of it is always a kernel of the model
                return quant
            layer = nn.Linear(inputs, outputs, bias, device=device, dtype=dtype)
            return layer.requires_grad_(False)

        int8_head = linears == "int8" if int8_head is None else int8_head
        self.lm_head = linear(config.hidden_size, config.vocab_size, False, int8_head)
        self.embed: nn.Embedding | None = None
        if not (config.tie_embeddings and int8_head):
            weight = torch.empty(config.vocab_size, config.hidden_size, device=device, dtype=dtype)
            if not weight.is_meta:
                nn.init.normal_(weight, std=0.02)
            self.embed = nn.Embedding.from_pretrained(weight)
            if config.tie_embeddings:
                assert isinstance(self.lm_head, nn.Linear)
                self.lm_head.weight = self.embed.weight
        self.blocks = nn.ModuleList(
            Block(config, self.make_mlp(linear, fused), linear, norm)
            for _ in range(config.num_layers)
        )
        self.norm = norm()
        self.eval()

    def make_mlp(self, linear: MakeLinear, fused: bool) -> nn.Module:
        """The architecture's MLP."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.norm.weight.device

    def embed_tokens(self, tokens: Tensor, cache: KVCache | None) -> Tensor:
        """(B, T) -> (B, T, C): the tokens' rows of the embedding, and learned positions' rows."""
        if self.embed is not None:
            x: Tensor = self.embed(tokens)
            positions, table = self.learned_positions(tokens, cache)
            if positions is None or table is None:
                return x
            place = positions[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
            return x.add_(F.embedding(place.clamp(max=table.shape[0] - 1), table))
        head = self.lm_head
        assert isinstance(head, QuantLinear)
        out = torch.empty(*tokens.shape, head.in_features, dtype=self.dtype, device=tokens.device)
        positions, table = self.learned_positions(tokens, cache)
        embed_(out, tokens, head.weight, head.weight_scale, positions, table)
        return out

    def learned_positions(
        self, tokens: Tensor, cache: KVCache | None
    ) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Where each row's tokens begin, (B,) int32, and the table of positions; or None twice."""
        return None, None

    def new_cache(self, batch_size: int, capacity: int) -> KVCache:
        """An empty cache for this model, on its device."""
        return KVCache(self.config, batch_size, capacity, dtype=self.dtype, device=self.device)

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        counts: Sequence[int] | None = None,
        *,
        last: bool = False,
    ) -> Tensor:
        """Logits of new tokens, which see what is in the cache and those before themselves.

        Args:
            tokens: (B, T) int64.
            cache: gets the new keys and values, and is advanced; None: the tokens stand alone.
            counts: for rows of different length, how many of the T tokens of each row are real;
                the rest is padding to the right. Default all.
            last: only the logits of each row's last real token.

        Returns:
            (B, T, vocab_size), or with `last` (B, vocab_size), in the model's dtype.

        Raises:
            ValueError: shapes that do not fit; the cache has no room for T more (nothing was
                written).
        """
        batch, length = tokens.shape
        counts = [length] * batch if counts is None else list(counts)
        if len(counts) != batch or not all(0 <= count <= length for count in counts):
            raise ValueError(
                f"{type(self).__name__}: counts must be {batch} numbers from 0 to {length}, got "
                f"{counts}"
            )
        if cache is not None:
            if cache.batch_size != batch:
                raise ValueError(
                    f"{type(self).__name__}: the cache has {cache.batch_size} rows, tokens have "
                    f"{batch}"
                )
            cache.reserve(length)
        elif length > self.config.max_positions:
            raise ValueError(
                f"{type(self).__name__}: tokens must be at most {self.config.max_positions} long, "
                f"got {length}"
            )
        hidden = self._hidden(tokens, cache, static=False)
        if last and length > 1:
            if min(counts) == length:
                hidden = hidden[:, -1]
            else:
                index = torch.tensor([max(count - 1, 0) for count in counts], device=tokens.device)
                hidden = hidden[torch.arange(batch, device=tokens.device), index]
        elif last:
            hidden = hidden[:, 0]
        if cache is not None:
            cache.advance(counts)
        return self.lm_head(hidden)  # type: ignore[no-any-return]

    def decode(self, tokens: Tensor, cache: KVCache) -> Tensor:
        """Logits (B, vocab_size) of one token a row, (B, 1), by the device's lengths alone.

        What a CUDA graph captures, or a recording: shapes and addresses are the same every time.
        The caller sees to `KVCache.reserve`, counts up `KVCache.positions` on the device, as
        `argmax_` does, and calls `KVCache.advance_host`.
        """
        hidden = self._hidden(tokens, cache, static=True)
        return self.lm_head(hidden[:, 0])  # type: ignore[no-any-return]

    def _hidden(self, tokens: Tensor, cache: KVCache | None, static: bool) -> Tensor:
        """(B, T, C), behind the last norm."""
        length = tokens.shape[1]
        residual = self.embed_tokens(tokens, cache)
        attend: Attend
        layers: Sequence[tuple[Tensor | None, Tensor | None]]
        if self.attention == "flashint8":
            if cache is None:  # one layer's, for all of them: nothing is kept
                scratch = (self.config, tokens.shape[0], length)
                cache = KVCache(*scratch, dtype=self.dtype, device=residual.device, num_layers=1)
            attend = FusedAttend(self.config, cache, length, static)
        else:
            naive = self.attention == "naive"
            attend = TorchAttend(self.config, cache, length, static, naive, residual)
        layers = [(None, None)] if cache is None else cache.layers
        x = None
        for block, (keys, values) in zip(self.blocks, cycle(layers), strict=False):
            x = block(residual, x, attend, keys, values)
        return self.norm(residual, x)  # type: ignore[no-any-return]
