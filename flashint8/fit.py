"""What of a model fits into a GPU's memory: arithmetic on its config, nothing is loaded or run."""

import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from flashint8.models.config import PRESETS, ModelConfig

ATTENTIONS = ("flashint8", "sdpa", "naive")
LINEARS = ("int8", "float")
PREFILL_CHUNK = 2048
# What attention split over keys and an int8 product split over k may take at once.
_SPLIT_ATTENTION = 8 << 20
_SPLIT_LINEAR = 32 << 20
_LIBRARY = 32 << 20  # cuBLAS's workspace on Hopper
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_bytes(text: str | int) -> int:
    """A number of bytes: 6000000000, "6GB" (powers of 1000), "6GiB" (powers of 1024).

    Raises:
        ValueError: anything else, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?i?[bB]?)\s*", str(text))
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise ValueError(f"vram must be a size such as 6GB or 5.5GiB, got {text!r}")
    return int(float(match[1]) * unit)


@dataclass(frozen=True)
class Setup:
    """What is asked whether it fits.

    Attributes:
        config: of the model.
        context: positions of each row, prompt and new tokens.
        batch: rows.
        linears: "int8" or "float".
        attention: "flashint8", "sdpa" or "naive".
        dtype: of what is not int8: "float16", "bfloat16" or "float32".
        prefill_chunk: tokens of a prompt that are read at once.
    """

    config: ModelConfig
    context: int
    batch: int = 1
    linears: str = "int8"
    attention: str = "flashint8"
    dtype: str = "float16"
    prefill_chunk: int = PREFILL_CHUNK

    @property
    def itemsize(self) -> int:
        """Bytes of one number that is not int8."""
        return int(getattr(torch, self.dtype).itemsize)

    def weights(self) -> dict[str, int]:
        """Bytes of the weights by type."""
        config = self.config
        hidden, vocab = config.hidden_size, config.vocab_size
        products = [
            (config.qkv_features, hidden, config.attention_bias),
            (hidden, config.attention_features, config.attention_bias),
            (config.up_features, hidden, config.mlp_bias),
            (hidden, config.intermediate_size, config.mlp_bias),
        ]
        linear = config.num_layers * sum(n * k for n, k, _ in products)
        rows = config.num_layers * sum(n for n, _, _ in products)
        other = config.num_layers * sum(n for n, _, bias in products if bias)
        norm = 2 * hidden if config.architecture == "gpt2" else hidden
        other += (2 * config.num_layers + 1) * norm
        if config.architecture == "gpt2":
            other += config.max_positions * hidden
        if self.linears == "float":
            matrices = linear + vocab * hidden * (1 if config.tie_embeddings else 2)
            return {self.dtype: (matrices + other) * self.itemsize}
        other += 0 if config.tie_embeddings else vocab * hidden
        return {
            "int8": linear + vocab * hidden,
            "float32 (scales)": 4 * (rows + vocab),
            self.dtype: other * self.itemsize,
        }

    def cache(self) -> int:
        """Bytes of the KV cache, and of the rotary table beside it."""
        config = self.config
        per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim * self.itemsize
        table = 4 * config.head_dim * self.context if config.architecture == "llama" else 0
        return per_token * self.batch * self.context + table

    def workspace(self) -> int:
        """Bytes that reading the prompt takes at most beside weights and cache."""
        whole, rest = divmod(self.context, self.prefill_chunk)
        chunks = [(self.prefill_chunk, whole * self.prefill_chunk)] if whole else []
        chunks += [(rest, self.context)] if rest else []
        return max(self._chunk(length, keys) for length, keys in chunks)

    def _chunk(self, length: int, keys: int) -> int:
        """Bytes that reading `length` tokens takes, the last of which sees `keys`."""
        config, size = self.config, self.itemsize
        rows = self.batch * length
        hidden, inner = config.hidden_size, config.intermediate_size
        # The residual, what was added to it, and its norm are alive in both halves of a block.
        stream = 3 * rows * hidden * size
        # An int8 product applies the activation: its output stands beside that of the next one.
        beside = hidden if self.linears == "int8" else config.up_features
        mlp = rows * (beside + inner) * size
        attention = rows * (config.qkv_features + config.attention_features) * size
        logits = self.batch * config.vocab_size * (size + 4)
        linear = _SPLIT_LINEAR if self.linears == "int8" else 0
        return stream + max(mlp, attention + self._scores(rows, keys)) + logits + linear + _LIBRARY

    def _scores(self, rows: int, keys: int) -> int:
        """Bytes beyond q, k, v and the output while attention runs."""
        config, size = self.config, self.itemsize
        pairs = rows * keys
        if self.attention == "flashint8":
            return _SPLIT_ATTENTION
        # Plain PyTorch: rotated copies in float32 and back, a mask, keys and values of every head.
        group = config.num_heads // config.num_kv_heads
        repeated = 2 * self.batch * keys * config.attention_features * size
        rotated = rows * config.attention_features * (size + 4)
        chunked = keys * self.batch > rows
        if self.attention == "sdpa":
            masked = pairs * (1 + size) if chunked else 0
            return rotated + masked + (repeated if chunked and group > 1 else 0)
        scores = 2 * pairs * config.num_heads * size  # before and after scale, mask or softmax
        return rotated + 2 * pairs + scores + (repeated if group > 1 else 0)

    def total(self) -> int:
        """Bytes in all."""
        return sum(self.weights().values()) + self.cache() + self.workspace()

    def longest_context(self, vram: int) -> int:
        """Most positions of each row that fit into `vram` bytes; 0 if not one does."""
        fits = 0
        over = self.config.max_positions + 1
        while over - fits > 1:
            middle = (fits + over) // 2
            if dataclasses.replace(self, context=middle).total() <= vram:
                fits = middle
            else:
                over = middle
        return fits


@dataclass(frozen=True)
class Fit:
    """The answer of `will_it_fit`; true where it fits. str() explains it.

    Attributes:
        setup: what was asked.
        vram: bytes there are.
        weights: bytes by type.
        cache: bytes of the KV cache.
        workspace: bytes beside them while a prompt is read.
        total: bytes in all.
        longest_context: positions of each row that would fit.
        changes: up to three changes, in words, each of which alone would make it fit; empty where
            it fits, or where none does.
    """

    setup: Setup
    vram: int
    weights: dict[str, int]
    cache: int
    workspace: int
    total: int
    longest_context: int
    changes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether all of it fits."""
        return self.total <= self.vram

    def __bool__(self) -> bool:
        return self.fits

    def rows(self) -> list[tuple[str, str]]:
        """What takes how much, in words."""
        setup = self.setup
        parts = [(f"weights, {kind}", size) for kind, size in self.weights.items()]
        parts.append((f"KV cache, {setup.batch} x {setup.context} positions", self.cache))
        chunk = min(setup.prefill_chunk, setup.context)
        parts.append((f"workspace, {chunk} tokens at once", self.workspace))
        parts += [("in all", self.total), ("there is", self.vram)]
        return [(name, f"{size / 1e9:.3f} GB") for name, size in parts]

    def verdict(self) -> str:
        """One sentence: whether it fits, and how far the context could go."""
        longest = f"the longest context is {self.longest_context:,}"
        if self.longest_context == 0:
            longest = "no context fits"
        return (
            f"{'fits' if self.fits else 'does not fit'}; with batch {self.setup.batch}, {longest}"
        )

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {size:>12}" for name, size in rows]
        lines += [self.verdict(), *(f"would fit: {change}" for change in self.changes)]
        return "\n".join(lines)


def load_config(config: ModelConfig | str | os.PathLike[str]) -> ModelConfig:
    """A config as it is, a preset's name, or a path to a `config.json` or its folder.

    Raises:
        ValueError: neither a preset's name nor a path, or a config of another kind of model.
    """
    if isinstance(config, ModelConfig):
        return config
    if isinstance(config, str) and config in PRESETS:
        return PRESETS[config]
    if not Path(config).exists():
        raise ValueError(
            f"config must be a config.json, its folder, or one of {', '.join(PRESETS)}; got "
            f"{os.fspath(config)!r}"
        )
    return ModelConfig.from_pretrained(config)


def _changes(setup: Setup, vram: int) -> Iterator[str]:
    """Changes that alone are enough, the least painful first."""
    tries: list[tuple[str, Setup]] = []
    if setup.linears == "float":
        tries.append(("int8 weights", dataclasses.replace(setup, linears="int8")))
    if setup.attention != "flashint8":
        fused = dataclasses.replace(setup, attention="flashint8")
        tries.append(("flashint8's attention", fused))
        if setup.linears == "float":
            both = dataclasses.replace(fused, linears="int8")
            tries.append(("flashint8's attention and int8 weights", both))
    for chunk in (512, 128):
        if chunk < min(setup.prefill_chunk, setup.context):
            smaller = dataclasses.replace(setup, prefill_chunk=chunk)
            tries.append((f"reading prompts {chunk} tokens at a time", smaller))
    found = [text for text, changed in tries if changed.total() <= vram]
    # Of the chunks, the larger one that is enough.
    chunks = [text for text in found if text.startswith("reading")]
    yield from (text for text in found if text not in chunks[1:])
    longest = setup.longest_context(vram)
    if longest:
        yield f"a context of {longest:,} instead of {setup.context:,}"
    batch = _most(setup.batch, lambda b: dataclasses.replace(setup, batch=b).total() <= vram)
    if batch:
        yield f"a batch of {batch} instead of {setup.batch}"
    alone = dataclasses.replace(setup, batch=1).longest_context(vram)
    if setup.batch > 1 and 0 < alone < setup.context:
        yield f"a batch of 1 and a context of {alone:,}"
    if longest == 0:
        int8 = dataclasses.replace(setup, linears="int8", attention="flashint8")
        longest = int8.longest_context(vram)
        if longest and setup.linears == "float":
            yield f"int8 weights and a context of {longest:,}"
        needed = int8.total()
        yield f"a card with {needed / 1e9:.1f} GB" + (
            "" if setup.linears == "int8" else " and int8 weights"
        )


def _most(below: int, enough: Callable[[int], bool]) -> int:
    """The largest number from 1 to below - 1 that is enough; 0 if none is."""
    for number in range(below - 1, 0, -1):
        if enough(number):
            return number
    return 0


def will_it_fit(
    config: ModelConfig | str | os.PathLike[str],
    vram: str | int = "6GB",
    context: int = 2048,
    batch: int = 1,
    *,
    linears: str = "int8",
    attention: str = "flashint8",
    dtype: str = "float16",
    prefill_chunk: int = PREFILL_CHUNK,
) -> Fit:
    """Whether a model and its cache fit into a GPU's memory, from its config alone.

    Counts what torch's allocator holds at most: weights, KV cache, and what reading a prompt takes
    beside them. CUDA itself (some 300 to 500 MB) and a desktop are not counted: give as `vram` what
    is left for torch.

    Args:
        config: a `ModelConfig`, a preset's name ("llama-3b"), or a path to a Hugging Face
            `config.json` or its folder.
        vram: bytes, or text such as "6GB" (powers of 1000) or "5.5GiB".
        context: positions of each row, prompt and new tokens together.
        batch: rows.
        linears: "int8", or "float" for weights of `dtype`.
        attention: "flashint8", "sdpa" or "naive", as in `flashint8.models`.
        dtype: "float16", "bfloat16" or "float32": of the cache, activations and other weights.
        prefill_chunk: tokens of a prompt that are read at once.

    Returns:
        A `Fit`: true where it fits, with the parts, the longest context, and what would help.

    Raises:
        ValueError: an argument out of range, or a config that is neither GPT-2's nor Llama's.
    """
    config = load_config(config)
    available = parse_bytes(vram)
    if not 1 <= context <= config.max_positions:
        raise ValueError(
            f"context must be from 1 to the model's {config.max_positions}, got {context}"
        )
    for name, value in (("batch", batch), ("prefill_chunk", prefill_chunk)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    choices = {
        "linears": (linears, LINEARS),
        "attention": (attention, ATTENTIONS),
        "dtype": (dtype, ("float16", "bfloat16", "float32")),
    }
    for name, (choice, allowed) in choices.items():
        if choice not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {choice!r}")
    setup = Setup(config, context, batch, linears, attention, dtype, prefill_chunk)
    total = setup.total()
    return Fit(
        setup=setup,
        vram=available,
        weights=setup.weights(),
        cache=setup.cache(),
        workspace=setup.workspace(),
        total=total,
        longest_context=setup.longest_context(available),
        changes=tuple(_changes(setup, available))[:3] if total > available else (),
    )
