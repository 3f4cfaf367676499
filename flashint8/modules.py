"""Drop-in modules: `QuantLinear` for nn.Linear, `CausalSelfAttention`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flashint8 import _layout, functional
from flashint8._checks import FLOAT_DTYPES, check_activation, dtype_name
from flashint8._linears import is_linear, linear_weight, why_not_plain, why_not_quantizable
from flashint8.per_channel import quantize_per_channel


class QuantLinear(nn.Module):
    """nn.Linear with its weight in int8, one float32 scale per output channel. Inference only.

    Buffers: ``weight`` (out_features, in_features) int8, ``weight_scale`` (out_features,) float32,
    ``bias`` (out_features,) in the layer's dtype, or None. ``.to(dtype)``, ``.half()`` and the like
    change the bias and the dtype that `dequantize` gives, never the weight or its scale.
    ``load_state_dict`` takes this layer's own state, and also that of a float nn.Linear, which is
    quantised as it loads.

    As nn.Linear's, x may have any strides. It copies x where the last dimension is not contiguous,
    or the leading ones do not merge into at most four strided ones (`int8_linear` refuses both).

    Args:
        in_features: size K of each input row.
        out_features: size N of each output row; with activation "silu_mul" the rows of the weight,
            two for each output.
        bias: whether there is one.
        device: of the buffers; on "meta" nothing is initialised.
        dtype: float16, bfloat16 or float32, of x and bias; default torch's default.
        activation: None, "gelu", "gelu_tanh", "silu" or "silu_mul", applied to the product before
            it is rounded (`int8_linear`); "silu_mul" takes the weight's rows as gate and up in
            turn. An option of the layer, as its sizes are: not in its state.

    Attributes:
        weight_ready: passed to `int8_linear` on a GPU. `flashint8.models` set it on their layers,
            which always run behind a kernel of the model. Unset it on a layer whose weight a hook
            writes just before the call.

    Shape: (..., in_features) -> (..., out_features), with "silu_mul" (..., out_features / 2).

    Raises:
        ValueError: dtype or activation is another one; out_features is odd with "silu_mul".
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None
    weight_ready = False
    WEIGHT_NAME = "weight"  # of the int8 buffer

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        check_activation("QuantLinear", activation, out_features)
        if dtype not in FLOAT_DTYPES:
            raise ValueError(
                f"QuantLinear: dtype must be float16, bfloat16 or float32, got {dtype_name(dtype)}"
            )
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self._dtype = dtype
        shape = (out_features, in_features)
        weight = torch.empty(shape, dtype=torch.int8, device=device)
        self.register_buffer(self.WEIGHT_NAME, weight)
        scale = torch.empty(out_features, dtype=torch.float32, device=device)
        self.register_buffer("weight_scale", scale)
        bias_buffer = torch.empty(out_features, dtype=dtype, device=device) if bias else None
        self.register_buffer("bias", bias_buffer)
        if not self.weight.is_meta:
            self.reset_parameters()

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of bias and of `dequantize`."""
        return self._dtype if self.bias is None else self.bias.dtype

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the weight and bias that nn.Linear would, and quantises the weight."""
        weight = torch.empty(self.weight.shape, dtype=self.dtype, device=self.weight.device)
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self._set_weight(weight)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
            nn.init.uniform_(self.bias, -bound, bound)

    def _set_weight(self, weight: Tensor, method: str = "absmax") -> None:
        self.weight, self.weight_scale = quantize_per_channel(weight, method)

    @classmethod
    def from_linear(
        cls, linear: nn.Module, method: str = "absmax", activation: str | None = None
    ) -> "QuantLinear":
        """A QuantLinear with `linear`'s weight quantised, on its device, in its dtype.

        Args:
            linear: an nn.Linear, or transformers' Conv1D, whose weight is (K, N).
            method: as `quantize_per_channel` takes it.
            activation: that the layer shall apply behind `linear`'s product; with "silu_mul" its
                rows are gate and up in turn already.

        Raises:
            TypeError: `linear` is neither.
            ValueError: it is more than a plain nn.Linear (a subclass or an instance with a forward
                of its own, forward hooks, a parametrisation), or its weight is not yet initialised,
                of another dtype than float16, bfloat16 or float32, or has a non-finite value; or
                the activation is unknown.
        """
        if not is_linear(linear):
            raise TypeError(f"from_linear: expected an nn.Linear, got {type(linear).__name__}")
        reason = why_not_plain(linear) or why_not_quantizable(linear)
        if reason:
            raise ValueError(f"from_linear: {reason}")
        weight, bias = linear_weight(linear), linear.bias
        quant = cls.empty_like(linear, activation)
        quant._set_weight(weight, method)
        if isinstance(bias, Tensor):
            quant.bias = bias.detach().clone()
        return quant

    @classmethod
    def empty_like(cls, linear: nn.Module, activation: str | None = None) -> "QuantLinear":
        """A QuantLinear on "meta" with `linear`'s sizes, dtype and mode."""
        weight = linear_weight(linear)
        quant = cls(
            weight.shape[1],
            weight.shape[0],
            bias=linear.bias is not None,
            device="meta",
            dtype=weight.dtype,
            activation=activation,
        )
        quant.train(linear.training)
        return quant

    def dequantize(self) -> Tensor:
        """The weight (out_features, in_features) in the layer's dtype, as the product sees it.

        The activation is no part of it.
        """
        return (self.weight.float() * self.weight_scale[:, None]).to(self.dtype)

    def to_linear(self) -> nn.Linear:
        """An nn.Linear with the dequantised weight: to train, or to run where int8 cannot.

        Raises:
            ValueError: the layer applies an activation, which an nn.Linear cannot.
        """
        if self.activation is not None:
            raise ValueError(
                f"QuantLinear.to_linear: an nn.Linear would leave out this layer's activation "
                f"{self.activation!r}; set activation = None first, and apply it behind the layer"
            )
        linear = nn.Linear(
            self.in_features,
            self.out_features,
            bias=self.bias is not None,
            device="meta",
            dtype=self.dtype,
        )
        linear.weight = nn.Parameter(self.dequantize())
        if self.bias is not None:
            linear.bias = nn.Parameter(self.bias.clone())
        linear.train(self.training)
        return linear

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), x in the layer's dtype.

        With "silu_mul" the result has out_features / 2 columns.
        """
        if not x.is_contiguous():
            x = _layout.readable_rows(x)
        buffers = self._buffers  # nn.Module.__getattr__ would cost a microsecond
        weight: Any = buffers[self.WEIGHT_NAME]
        scale: Any = buffers["weight_scale"]
        activation = self.activation
        ready = self.weight_ready and weight.is_cuda
        if activation is None and not ready:  # each keyword passed costs 0.3 us
            return functional.int8_linear(x, weight, scale, buffers["bias"])
        return functional.int8_linear(
            x, weight, scale, buffers["bias"], activation=activation, weight_ready=ready
        )

    def extra_repr(self) -> str:
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}{activation}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "QuantLinear":
        probe = fn(torch.empty(0, dtype=self._dtype, device=self.weight.device))

        def apply(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            if result.dtype == tensor.dtype:
                return result
            if tensor is self.weight or tensor is self.weight_scale:
                return tensor.to(result.device)
            return result

        super()._apply(apply, recurse)  # type: ignore[no-untyped-call]
        if probe.dtype.is_floating_point:
            self._dtype = probe.dtype
        return self

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        mine = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        assign = local_metadata.get("assign_to_params_buffers", False)
        try:
            self._prepare_state(mine, prefix, assign)
        except ValueError as error:
            error_msgs.append(f"While loading {prefix}weight: {error}")
            return
        super()._load_from_state_dict(
            mine, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if assign and self.bias is not None:
            self._dtype = self.bias.dtype

    @torch.no_grad()
    def _prepare_state(self, state: dict[str, Any], prefix: str, assign: bool) -> None:
        """Turns a float weight into int8 and its scale; refuses what copying would garble."""
        if prefix + self.WEIGHT_NAME not in state and prefix + "weight" in state:
            state[prefix + self.WEIGHT_NAME] = state.pop(prefix + "weight")
        weight, scale = state.get(prefix + self.WEIGHT_NAME), state.get(prefix + "weight_scale")
        if scale is not None:
            if weight is not None and weight.dtype != torch.int8:
                raise ValueError(
                    f"QuantLinear: weight_scale belongs to an int8 weight, got {weight.dtype}"
                )
            if scale.dim() == 2 and scale.shape[1] == 1:
                scale = scale[:, 0]
            if not scale.is_floating_point():
                raise ValueError(f"QuantLinear: weight_scale must be float32, got {scale.dtype}")
            state[prefix + "weight_scale"] = scale.detach().float().contiguous()
        if weight is None:
            return
        if not weight.is_floating_point():
            if weight.dtype != torch.int8:
                raise ValueError(f"QuantLinear: weight must be int8 or float, got {weight.dtype}")
            return
        quantized = quantize_per_channel(weight)
        state[prefix + self.WEIGHT_NAME], state[prefix + "weight_scale"] = quantized
        if assign:
            self._dtype = weight.dtype


class CausalSelfAttention(nn.Module):
    """Causal multi-head self-attention: one qkv product, fused `attention`, an output product.

    q, k and v are views of the qkv product's output, and the attention's output is written in
    (B, T, H, D) order, so nothing is copied. The forward works anywhere; there is no backward.

    Args:
        embed_dim: size C of each position.
        num_heads: query heads; C is a multiple of it.
        num_kv_heads: key and value heads, a divisor of num_heads; default num_heads.
        bias: of both linear layers.
        quantized: whether they are QuantLinear from the start.
        device: of the parameters.
        dtype: of the parameters.

    Shape: (B, T, embed_dim) -> (B, T, embed_dim).

    Raises:
        ValueError: sizes that do not divide.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        bias: bool = True,
        quantized: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or embed_dim % num_heads != 0:
            raise ValueError(
                f"CausalSelfAttention: embed_dim must be a multiple of num_heads, got {embed_dim} "
                f"and {num_heads}"
            )
        if num_kv_heads < 1 or num_heads % num_kv_heads != 0:
            raise ValueError(
                f"CausalSelfAttention: num_heads must be a multiple of num_kv_heads, got "
                f"{num_heads} and {num_kv_heads}"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = embed_dim // num_heads
        qkv_features = (num_heads + 2 * num_kv_heads) * self.head_dim
        linear = QuantLinear if quantized else nn.Linear
        self.qkv: nn.Module = linear(embed_dim, qkv_features, bias, device=device, dtype=dtype)
        self.proj: nn.Module = linear(embed_dim, embed_dim, bias, device=device, dtype=dtype)

    def quantize_(self) -> "CausalSelfAttention":
        """Turns the two linear layers into QuantLinear, in place; returns self."""
        if isinstance(self.qkv, nn.Linear):
            self.qkv = QuantLinear.from_linear(self.qkv)
        if isinstance(self.proj, nn.Linear):
            self.proj = QuantLinear.from_linear(self.proj)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, embed_dim) -> (B, T, embed_dim)."""
        batch, seq_len, _ = x.shape
        split = (self.num_heads, self.num_kv_heads, self.num_kv_heads)
        heads = self.qkv(x).view(batch, seq_len, sum(split), self.head_dim).transpose(1, 2)
        q, k, v = heads.split(split, dim=1)
        out = functional.attention(q, k, v)
        result: Tensor = self.proj(out.transpose(1, 2).reshape(batch, seq_len, self.embed_dim))
        return result

    def extra_repr(self) -> str:
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
            f"num_kv_heads={self.num_kv_heads}"
        )
