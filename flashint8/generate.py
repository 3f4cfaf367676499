"""Generation: the prompt once, then a token at a time; on a GPU a few tokens a CUDA graph."""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from flashint8.models.decoder import Decoder
from flashint8.recording import record
from flashint8.sampling import Sampling

PREFILL_CHUNK = 2048
GRAPH_STEPS = 4
RECORD_FROM = 32  # new tokens, of a single call: what a recording costs is won back then
_WARM_UP_CALLS = 2


class _Run(NamedTuple):
    """Steps whose tokens come to the host together."""

    first: int
    steps: int
    event: torch.cuda.Event | None


class Generator:
    """A model with a cache and captured graphs, to generate with again and again.

    A CUDA graph holds a few decoding steps, sampling included: between two graphs the GPU waits
    for some microseconds, the tokens' copy to the host among them. It is captured at the first call
    that needs it: each `Sampling` has one of `graph_steps` steps, and one of a single step for what
    is left over. The host waits for tokens only after the steps behind them have been
    queued, so the GPU is never idle; it has drawn up to twice `graph_steps` tokens in vain when
    all rows end with a stop token. On the CPU a step is recorded (`flashint8.recording`), which
    leaves the Python of the model's modules out. Neither sees what is done to the model later but
    for weights that change in place: where a tensor, a layer or a hook is another, make another
    Generator. Compiled models have no use for a recording: ``graph=False``.

    Args:
        model: a `GPT` or a `Llama`.
        batch_size: rows.
        capacity: positions of each row's cache: prompt and new tokens together.
        graph: whether to capture graphs, or on the CPU to record the step, instead of calling the
            model for each; default on a GPU, and on the CPU with flashint8's attention (the others
            then look at the whole cache).
        prefill_chunk: longer prompts are read in chunks of this many tokens, so that activations
            need no more memory than one chunk's.
        graph_steps: tokens of each row that come at once from a CUDA graph. What is left over at
            the end comes one by one.

    Raises:
        ValueError: a size is not positive or passes the model's context.
    """

    def __init__(
        self,
        model: Decoder,
        batch_size: int,
        capacity: int,
        *,
        graph: bool | None = None,
        prefill_chunk: int = PREFILL_CHUNK,
        graph_steps: int = GRAPH_STEPS,
    ) -> None:
        self.model = model
        self.cache = model.new_cache(batch_size, capacity)
        device = self.cache.positions.device
        if prefill_chunk < 1:
            raise ValueError(f"Generator: prefill_chunk must be at least 1, got {prefill_chunk}")
        if graph_steps < 1:
            raise ValueError(f"Generator: graph_steps must be at least 1, got {graph_steps}")
        cuda = self._cuda = device.type == "cuda"
        self.graph = cuda or model.attention == "flashint8" if graph is None else graph
        self.prefill_chunk = prefill_chunk
        self.graph_steps = graph_steps if cuda and self.graph else 1
        self._device = device
        # Of the last steps; the last of all is what the next step reads.
        shape = (self.graph_steps, batch_size, 1)
        self._tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self._random = torch.Generator(device)
        self._graphs: dict[tuple[Sampling, int], Callable[[], object]] = {}
        # One for all graphs: only one of them runs at a time, and none leaves anything in it.
        self._pool = torch.cuda.graph_pool_handle() if self.graph and cuda else None
        self._read = torch.zeros(capacity, batch_size, 1, dtype=torch.int64, pin_memory=cuda)

    @torch.inference_mode()
    def __call__(
        self,
        prompts: Sequence[Sequence[int] | Tensor],
        max_new_tokens: int,
        *,
        sampling: Sampling | None = None,
        stop_tokens: Collection[int] = (),
        seed: int = 0,
        on_token: Callable[[int, int], None] | None = None,
    ) -> list[list[int]]:
        """New tokens for each prompt.

        Args:
            prompts: one sequence of token numbers a row; lengths may differ.
            max_new_tokens: of each row, at most.
            sampling: how to draw; default greedy.
            stop_tokens: a row ends with the first of these (which it includes).
            seed: of what is drawn; the same seed gives the same tokens.
            on_token: called with (row, token) as each comes; from a graph, `graph_steps` at a time.

        Returns:
            For each row the new tokens.

        Raises:
            ValueError: as many prompts as rows are needed, each with a token that the model knows;
                prompt and new tokens do not fit the cache (nothing was written).
        """
        rows = self._check(prompts, max_new_tokens)
        sampling = sampling or Sampling()
        if self.graph:
            self._capture_for(sampling, max_new_tokens - 1)
        self.cache.reset()
        self._random.manual_seed(seed)
        sampling.draw_(self._tokens[-1], self._prefill(rows), self._random)
        output: list[list[int]] = [[] for _ in rows]
        stop = frozenset(stop_tokens)
        # With CUDA graphs the next run is queued before anyone waits for the one ahead.
        most = 2 if self.graph and self._cuda else 1
        runs = deque([self._send(0, 1)])
        drawn = 1
        while runs or drawn < max_new_tokens:
            if len(runs) < most and drawn < max_new_tokens:
                runs.append(self._advance(sampling, drawn, max_new_tokens - drawn))
                drawn += runs[-1].steps
            if self._receive(runs.popleft(), output, stop, on_token):
                break
        return output

    def _check(
        self, prompts: Sequence[Sequence[int] | Tensor], max_new_tokens: int
    ) -> list[list[int]]:
        if len(prompts) != self.cache.batch_size:
            raise ValueError(
                f"generate: prompts must be {self.cache.batch_size} rows, got {len(prompts)}"
            )
        if max_new_tokens < 1:
            raise ValueError(f"generate: max_new_tokens must be at least 1, got {max_new_tokens}")
        vocab = self.model.config.vocab_size
        rows = [p.tolist() if isinstance(p, Tensor) else list(p) for p in prompts]
        for index, row in enumerate(rows):
            if not row:
                raise ValueError(f"generate: prompt {index} is empty")
            if min(row) < 0 or max(row) >= vocab:
                raise ValueError(
                    f"generate: prompt {index} must have tokens from 0 to {vocab - 1}, got "
                    f"{min(row)} to {max(row)}"
                )
            # The last new token is never read, so it needs no place.
            needed = len(row) + max_new_tokens - 1
            if needed > self.cache.capacity:
                raise ValueError(
                    f"generate: prompt {index} of {len(row)} tokens and {max_new_tokens} new ones "
                    f"need {needed} positions, the cache has {self.cache.capacity}"
                )
        return rows

    def _prefill(self, rows: list[list[int]]) -> Tensor:
        """Reads the prompts, right-padded; the logits (B, V) of each one's last token."""
        longest = max(map(len, rows))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        padded = padded.to(self._device)
        logits: Tensor | None = None
        for begin in range(0, longest, self.prefill_chunk):
            end = min(begin + self.prefill_chunk, longest)
            counts = [min(max(len(row) - begin, 0), end - begin) for row in rows]
            chunk = self.model(padded[:, begin:end], self.cache, counts, last=True)
            if logits is None or min(counts) > 0:
                logits = chunk
            else:  # rows that ended in an earlier chunk keep what they had
                more = torch.tensor([count > 0 for count in counts], device=self._device)
                logits = torch.where(more[:, None], chunk, logits)
        assert logits is not None
        return logits

    def _step(self, sampling: Sampling, count: int) -> None:
        """Reads the last token and draws the next, all on the device: what a graph captures."""
        token = self._tokens[-1]
        for step in range(-count, 0):
            logits = self.model.decode(token, self.cache)
            token = self._tokens[step]
            sampling.draw_(token, logits, self._random, self.cache.positions)

    def _advance(self, sampling: Sampling, first: int, left: int) -> _Run:
        """Queues a graph, or a step without one: step `first` and what comes with it."""
        count = 1
        if self.graph:
            count = self.graph_steps if left >= self.graph_steps else 1
            self.cache.reserve(count)
            self._graphs[sampling, count]()
            self.cache.advance_host(count)
        else:
            logits = self.model(self._tokens[-1], self.cache, last=True)
            sampling.draw_(self._tokens[-1], logits, self._random)
        return self._send(first, count)

    def _send(self, first: int, count: int) -> _Run:
        """Starts the copy of the last `count` steps' tokens to the host."""
        self._read[first : first + count].copy_(self._tokens[-count:], non_blocking=True)
        event = None
        if self._cuda:
            event = torch.cuda.Event()
            event.record()
        return _Run(first, count, event)

    def _receive(
        self,
        run: _Run,
        output: list[list[int]],
        stop: frozenset[int],
        on_token: Callable[[int, int], None] | None,
    ) -> bool:
        """Waits for a run's tokens and hands them out; whether every row has ended."""
        if run.event is not None:
            run.event.synchronize()
        for tokens in self._read[run.first : run.first + run.steps].tolist():
            running = False
            for index, (row, (token,)) in enumerate(zip(output, tokens, strict=True)):
                if row and row[-1] in stop:
                    continue
                row.append(token)
                running = running or token not in stop
                if on_token is not None:
                    on_token(index, token)
            if not running:
                return True
        return False

    def _capture_for(self, sampling: Sampling, steps: int) -> None:
        """Captures the graphs that `steps` steps need, where they are not there yet."""
        counts = {self.graph_steps} if steps >= self.graph_steps else set()
        if steps % self.graph_steps:
            counts.add(1)
        for count in counts:
            if (sampling, count) not in self._graphs:
                self._graphs[sampling, count] = self._capture(sampling, count)

    def _capture(self, sampling: Sampling, count: int) -> Callable[[], object]:
        """Captures `count` steps; the caller empties the cache behind it."""
        self.cache.reset()
        if not self._cuda:
            return record(partial(self._step, sampling, count))
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_CALLS):
                self._step(sampling, 1)
                self.cache.reset()
        torch.cuda.current_stream(self._device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self._random)
        with torch.cuda.graph(graph, pool=self._pool):
            self._step(sampling, count)
        return graph.replay


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int] | Tensor],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Collection[int] = (),
    seed: int = 0,
    on_token: Callable[[int, int], None] | None = None,
    graph: bool | None = None,
) -> list[list[int]]:
    """New tokens for each prompt; a `Generator` made for this call.

    To generate more than once, make a `Generator` and keep it: its cache and its graphs stay.

    Args:
        model: a `GPT` or a `Llama`.
        prompts: one sequence of token numbers a row; lengths may differ.
        max_new_tokens: of each row, at most.
        temperature: 0 is greedy.
        top_k: only the k likeliest tokens may come.
        top_p: only the likeliest tokens that together reach this probability may come.
        stop_tokens: a row ends with the first of these (which it includes).
        seed: of what is drawn; the same seed gives the same tokens.
        on_token: called with (row, token) as each comes; on a GPU four at a time.
        graph: as `Generator` takes it; by default not for few tokens on the CPU.

    Returns:
        For each row the new tokens.

    Raises:
        ValueError: an argument is out of range; prompt and new tokens pass the model's context.
    """
    if not prompts:
        raise ValueError("generate: prompts must have at least one row, got none")
    sampling = Sampling(temperature, top_k, top_p)
    capacity = max(len(prompt) for prompt in prompts) + max(1, max_new_tokens) - 1
    if graph is None and max_new_tokens < RECORD_FROM and model.device.type == "cpu":
        graph = False
    generator = Generator(model, len(prompts), max(1, capacity), graph=graph)
    return generator(
        prompts,
        max_new_tokens,
        sampling=sampling,
        stop_tokens=stop_tokens,
        seed=seed,
        on_token=on_token,
    )
