"""Every way to generate that the benchmark compares, on one set of weights."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from method import Skipped, reason
from torch import nn

Prompt = list[list[int]]


@dataclass
class Run:
    """One generation: seconds to the first token of all rows, and from it to the last one."""

    first: float
    rest: float
    steps: int  # tokens of a row after the first
    tokens: list[list[int]]


@dataclass
class Candidate:
    """A way to generate, ready to run.

    Attributes:
        name: key in the JSON's ``methods``.
        model: what it runs; its weights are counted.
        run: takes prompts and a number of new tokens.
        cache_bytes: of keys and values.
        steps: most tokens it is asked for (a method without a cache is slow), or None.
    """

    name: str
    model: nn.Module
    run: Callable[[Prompt, int], Run]
    cache_bytes: int
    steps: int | None = None
    note: str = ""


NAMES = (
    "flashint8",
    "flashint8_eager",
    "nanogpt",
    "transformers_eager",
    "sdpa_eager",
    "sdpa_graph",
    "torch_compile",
    "torch_compile_int8",
)
NANOGPT_STEPS = 16
WHOLE_LAYERS = 12  # a model of more layers is compiled block by block


class WeightOnlyInt8(nn.Module):
    """An int8 weight that torch.compile converts inside the product, as in gpt-fast."""

    def __init__(self, quantized: torch.Tensor, scale: torch.Tensor, bias: Any) -> None:
        super().__init__()
        self.register_buffer("weight", quantized)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., K) -> (..., N)."""
        out = nn.functional.linear(x, self.weight.to(x.dtype)) * self.scale
        return out if self.bias is None else out + self.bias


def base_model(config: Any, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    """The plain PyTorch model whose random weights all methods share."""
    from flashint8.models import GPT, Llama

    torch.manual_seed(seed)
    kind = GPT if config.architecture == "gpt2" else Llama
    return kind(config, attention="sdpa", linears="float", dtype=dtype, device=device)


def with_weights(model: Any, **options: Any) -> Any:
    """Another model with the same weights: shared where they are float, quantised where not."""
    kind = type(model)
    other = kind(model.config, dtype=model.dtype, device="meta", **options)
    state = model.state_dict()
    if other.embed is None:
        state.pop("embed.weight", None)
    other.load_state_dict(state, assign=True)
    return other


def weight_only(model: Any) -> Any:
    """A copy of the plain model with WeightOnlyInt8 in the place of every linear layer."""
    import flashint8

    copy = with_weights(model, attention="sdpa", linears="float")
    for name, layer in list(copy.named_modules()):
        if isinstance(layer, nn.Linear):
            quantized, scale = flashint8.quantize_per_channel(layer.weight)
            parent, _, child = name.rpartition(".")
            new = WeightOnlyInt8(quantized, scale.to(model.dtype), layer.bias)
            setattr(copy.get_submodule(parent), child, new)
    return copy


class Compiled:
    """A model whose decoding is compiled; prompts are read by the plain one.

    The whole step from token to logits is one graph, or, for many layers, each block is (and an
    int8 head): one compilation then serves them all. Nothing fuses across a block's border but the
    addition and the norm at its start, and these are inside the block here.
    """

    def __init__(self, plain: Any, model: Any, tune: bool, whole: bool) -> None:
        self.plain, self.config, self.new_cache = plain, plain.config, plain.new_cache
        options = {"coordinate_descent_tuning": True, "max_autotune": True} if tune else None

        self.decode = model.decode
        if whole:
            self.decode = torch.compile(
                model.decode, fullgraph=True, dynamic=False, options=options
            )
            return
        for block in list(model.blocks)[1:]:  # the first has no addition: it would be another graph
            block.compile(fullgraph=True, dynamic=False, options=options)
        if not isinstance(model.lm_head, nn.Linear):  # a library product has nothing to fuse
            model.lm_head.compile(fullgraph=True, dynamic=False, options=options)

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.plain(*args, **kwargs)


class Timed:
    """A `flashint8.generate.Generator` with a clock."""

    def __init__(self, model: Any, batch: int, capacity: int, graph: bool) -> None:
        from flashint8.generate import Generator

        self.generator = Generator(model, batch, capacity, graph=graph)

    def __call__(self, prompts: Prompt, new_tokens: int) -> Run:
        times: list[float] = []
        last = len(prompts) - 1

        def on_token(row: int, token: int) -> None:
            if row == last:
                times.append(time.perf_counter())

        start = time.perf_counter()
        tokens = self.generator(prompts, new_tokens, on_token=on_token)
        return Run(times[0] - start, times[-1] - times[0], new_tokens - 1, tokens)


def whole_forwards(model: Any) -> Callable[[Prompt, int], Run]:
    """nanoGPT's loop: every token from a whole forward over all tokens so far."""

    @torch.inference_mode()
    def run(prompts: Prompt, new_tokens: int) -> Run:
        device = model.device
        start = time.perf_counter()
        tokens = torch.tensor(prompts, device=device)
        prompt = tokens.shape[1]
        times = []
        for _ in range(new_tokens):
            logits = model(tokens, last=True)
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
            tokens[0, -1].item()
            times.append(time.perf_counter())
        new = tokens[:, prompt:].tolist()
        return Run(times[0] - start, times[-1] - times[0], new_tokens - 1, new)

    return run


def transformers_loop(model: Any, dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """A transformers model of the same sizes (random weights of its own), and its greedy loop."""
    import transformers

    config = model.config
    if config.architecture == "gpt2":
        kind, values = (
            transformers.GPT2LMHeadModel,
            transformers.GPT2Config(
                vocab_size=config.vocab_size,
                n_embd=config.hidden_size,
                n_layer=config.num_layers,
                n_head=config.num_heads,
            ),
        )
    else:
        kind, values = (
            transformers.LlamaForCausalLM,
            transformers.LlamaConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                num_key_value_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                intermediate_size=config.intermediate_size,
                max_position_embeddings=config.max_positions,
                tie_word_embeddings=config.tie_embeddings,
            ),
        )
    with torch.device(device):
        peer = kind(values).to(dtype).eval()

    @torch.inference_mode()
    def run(prompts: Prompt, new_tokens: int) -> Run:
        start = time.perf_counter()
        tokens = torch.tensor(prompts, device=device)
        out = peer(tokens, use_cache=True, logits_to_keep=1)
        cache = "cache" if "cache" in out else "past_key_values"  # (before transformers 5.24)
        new, times = [], []
        for step in range(new_tokens):
            tokens = out.logits[:, -1].argmax(-1, keepdim=True)
            new.append(tokens.flatten().tolist())
            times.append(time.perf_counter())
            if step + 1 < new_tokens:
                out = peer(tokens, **{cache: out[cache]}, use_cache=True)
        rows = [list(row) for row in zip(*new, strict=True)]
        return Run(times[0] - start, times[-1] - times[0], new_tokens - 1, rows)

    return peer, run


def make(name: str, base: Any, batch: int, capacity: int) -> Candidate:
    """One method on the base model's weights."""
    device = base.device
    dtype = base.dtype
    if name == "nanogpt":
        model = with_weights(base, attention="naive", linears="float")
        return Candidate(name, model, whole_forwards(model), 0, NANOGPT_STEPS)
    if name == "transformers_eager":
        peer, run = transformers_loop(base, dtype, device)
        config = base.config
        per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
        return Candidate(name, peer, run, per_token * batch * capacity * dtype.itemsize)
    graph = not name.endswith("_eager")
    served: Any
    note = ""
    if name.startswith("flashint8"):
        model = served = with_weights(base, attention="flashint8", linears="int8")
    elif name.startswith("torch_compile"):
        int8 = name == "torch_compile_int8"
        torch._dynamo.reset()
        plain = weight_only(base) if int8 else base
        model = weight_only(base) if int8 else with_weights(base, attention="sdpa", linears="float")
        if int8:
            model.load_state_dict(plain.state_dict(), assign=True)  # one copy of the weights
        whole = base.config.num_layers <= WHOLE_LAYERS
        served = Compiled(plain, model, int8, whole)
        note = "compiled whole" if whole else "compiled block by block"
    else:
        model = served = base
    timed = Timed(served, batch, capacity, graph)
    return Candidate(name, model, timed, timed.generator.cache.nbytes, note=note)


def candidates(
    names: Sequence[str], base: Any, batch: int, capacity: int
) -> Iterator[Candidate | Skipped]:
    """The named methods, one after the other; one that cannot be made says why."""
    device = base.device
    for name in names:
        if device.type == "cpu" and name not in CPU_NAMES:
            yield Skipped(name, "a CUDA graph needs a GPU")
            continue
        try:
            candidate = make(name, base, batch, capacity)
        except Exception as e:  # whatever a peer raises is the reason it is skipped
            if name.startswith("flashint8"):
                raise
            yield Skipped(name, reason(e))
        else:
            yield candidate
            del candidate
        gc.collect()


CPU_NAMES = ("flashint8", "flashint8_eager", "nanogpt", "transformers_eager", "sdpa_eager")


def weights_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once."""
    tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
    return sum(t.nbytes for t in tensors.values())
