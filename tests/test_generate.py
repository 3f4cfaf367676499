"""Generation: greedy against whole forwards, sampling, rows, stop tokens, graphs, full caches."""

from __future__ import annotations

import pytest
import torch
from model_cases import TINY, draw_tokens, tiny_model

from flashint8.generate import Generator, generate
from flashint8.sampling import Sampling


def greedy(model: torch.nn.Module, prompt: list[int], count: int, device: str) -> list[int]:
    """Tokens by whole forwards without a cache."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens], device=device))[0, -1].argmax()))
    return tokens[len(prompt) :]


def prompts_of(*lengths: int) -> list[list[int]]:
    return [draw_tokens(n).tolist() for n in lengths]


@pytest.mark.parametrize("attention", ["flashint8", "sdpa", "naive"])
@pytest.mark.parametrize("name", TINY)
def test_greedy_equals_whole_forwards(name: str, attention: str, device: str) -> None:
    """Float linears of float32 leave no doubt which token is the likeliest; on a GPU most agree."""
    model = tiny_model(name, device, attention=attention, linears="float")
    rows = prompts_of(9, 4, 1)
    got = generate(model, rows, 20)
    expected = [greedy(model, row, 20, device) for row in rows]
    if device == "cpu":
        assert got == expected
    else:  # two tokens of one float16 logit may change places, and all that follows with them
        assert [g[:2] for g in got] == [e[:2] for e in expected]


def test_prompts_in_chunks(device: str) -> None:
    model = tiny_model("llama", device, linears="float")
    rows = prompts_of(19, 4, 8, 13)
    whole = Generator(model, 4, 40)(rows, 12)
    chunked = Generator(model, 4, 40, prefill_chunk=4)(rows, 12)
    same = [
        a[:2] == b[:2] if device == "cuda" else a == b for a, b in zip(whole, chunked, strict=True)
    ]
    assert all(same)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, 20, 0.9)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("attention", ["flashint8", "sdpa"])
@pytest.mark.parametrize("name", TINY)
def test_graph_equals_eager(name: str, attention: str, sampling: Sampling, device: str) -> None:
    """A CUDA graph, and on the CPU a recording."""
    model = tiny_model(name, device, attention=attention)
    rows = prompts_of(9, 4, 17)
    graph = Generator(model, 3, 48, graph=True)
    first = graph(rows, 24, sampling=sampling, seed=5)
    assert first == Generator(model, 3, 48, graph=False)(rows, 24, sampling=sampling, seed=5)
    graph(prompts_of(2, 30, 1), 10)  # another call between, another graph
    assert graph(rows, 24, sampling=sampling, seed=5) == first


@pytest.mark.parametrize("graph_steps", [1, 3, 64])
def test_steps_of_a_graph_change_no_token(graph_steps: int, device: str) -> None:
    """Whole runs of steps, some left over, stop tokens among them; the cache filled to its end."""
    model = tiny_model("llama", device)
    rows = prompts_of(9, 4)
    for count in (1, 2, 7, 24):
        generator = Generator(model, 2, 9 + count - 1, graph_steps=graph_steps)
        expected = Generator(model, 2, 9 + count - 1, graph=False)(rows, count)
        assert generator(rows, count) == expected
        assert generator.cache.lengths == generator.cache.positions.tolist()
        stop = expected[0][count // 2]
        stopped = generator(rows, count, stop_tokens=[stop])
        for free, short in zip(expected, stopped, strict=True):
            assert short == free[: free.index(stop) + 1 if stop in free else count]


def test_seed_decides_what_is_drawn(device: str) -> None:
    model = tiny_model("gpt", device)
    rows = prompts_of(5, 8)

    def draw(seed: int) -> list[list[int]]:
        return generate(model, rows, 20, temperature=1.0, top_k=50, top_p=0.95, seed=seed)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_no_temperature_is_greedy_and_little_nearly_so(device: str) -> None:
    model = tiny_model("gpt", device)
    rows = prompts_of(6)
    assert generate(model, rows, 10, temperature=1e-6, seed=3) == generate(model, rows, 10)


def test_stop_tokens_end_their_row_only(device: str) -> None:
    model = tiny_model("llama", device)
    rows = prompts_of(6, 9)
    free = generate(model, rows, 16)
    stop = free[0][3]
    stopped = generate(model, rows, 16, stop_tokens=[stop])
    for long, short in zip(free, stopped, strict=True):
        end = long.index(stop) + 1 if stop in long else 16
        assert short == long[:end]
    assert len(stopped[0]) <= 4


def test_tokens_are_handed_out_as_they_come(device: str) -> None:
    model = tiny_model("gpt", device)
    seen: list[tuple[int, int]] = []
    got = generate(
        model, prompts_of(3, 5), 6, on_token=lambda row, token: seen.append((row, token))
    )
    assert [[t for r, t in seen if r == row] for row in range(2)] == got
    assert [row for row, _ in seen] == [0, 1] * 6


def test_a_generator_serves_again(device: str) -> None:
    model = tiny_model("llama", device)
    generator = Generator(model, 2, 32)
    rows = prompts_of(7, 3)
    first = generator(rows, 12)
    generator(prompts_of(20, 20), 12)
    assert generator(rows, 12) == first
    tensors = [torch.tensor(row, device=device) for row in rows]
    assert generator(tensors, 12) == first


def test_too_long_is_refused_and_the_cache_untouched(device: str) -> None:
    model = tiny_model("gpt", device)
    generator = Generator(model, 2, 16)
    generator(prompts_of(9, 9), 8)  # 9 read and 7 of 8: the last is not read again
    before = [k.clone() for k, _ in generator.cache.layers]
    lengths = list(generator.cache.lengths)
    with pytest.raises(ValueError, match="prompt 1 of 10 tokens and 8 new ones need 17 positions"):
        generator(prompts_of(3, 10), 8)
    assert generator.cache.lengths == lengths
    assert all(torch.equal(k, b) for (k, _), b in zip(generator.cache.layers, before, strict=True))
    with pytest.raises(ValueError, match="capacity must be from 1 to the model's 64 positions"):
        generate(model, prompts_of(60), 10)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1], []], "prompt 1 is empty"),
        ([[1], [97]], "prompt 1 must have tokens from 0 to 96, got 97 to 97"),
        ([[1]], "prompts must be 2 rows, got 1"),
    ],
)
def test_prompts_are_checked(rows: list[list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Generator(tiny_model("gpt", "cpu"), 2, 16)(rows, 4)


def test_arguments_are_checked() -> None:
    model = tiny_model("gpt", "cpu")
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, got 0"):
        generate(model, [[1]], 0)
    with pytest.raises(ValueError, match="prompts must have at least one row"):
        generate(model, [], 4)
    assert Generator(model, 1, 8).graph
    assert not Generator(tiny_model("gpt", "cpu", attention="sdpa"), 1, 8).graph
    with pytest.raises(ValueError, match="prefill_chunk must be at least 1"):
        Generator(model, 1, 8, prefill_chunk=0)
    with pytest.raises(ValueError, match="graph_steps must be at least 1, got 0"):
        Generator(model, 1, 8, graph_steps=0)


class TestSampling:
    """`Sampling.draw` against the distribution it promises."""

    def frequencies(self, sampling: Sampling, logits: torch.Tensor, device: str) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(7)
        many = logits.to(device).expand(20000, -1)
        drawn = torch.empty(20000, 1, dtype=torch.int64, device=device)
        sampling.draw_(drawn, many.contiguous(), generator)
        return torch.bincount(drawn[:, 0].cpu(), minlength=logits.numel()) / 20000

    logits = torch.tensor([1.0, 3.0, 2.0, -1.0, 2.5])

    def test_temperature(self, device: str) -> None:
        expected = torch.softmax(self.logits / 1.5, 0)
        got = self.frequencies(Sampling(1.5), self.logits, device)
        torch.testing.assert_close(got, expected, rtol=0, atol=0.02)

    def test_top_k(self, device: str) -> None:
        kept = torch.tensor([-torch.inf, 3.0, 2.0, -torch.inf, 2.5])
        got = self.frequencies(Sampling(1.0, top_k=3), self.logits, device)
        torch.testing.assert_close(got, torch.softmax(kept, 0), rtol=0, atol=0.02)
        assert got[0] == got[3] == 0

    def test_top_p(self, device: str) -> None:
        """Probabilities 0.06, 0.46, 0.17, 0.01, 0.28: two reach 0.7, one alone 0.4."""
        kept = torch.tensor([-torch.inf, 3.0, -torch.inf, -torch.inf, 2.5])
        got = self.frequencies(Sampling(1.0, top_p=0.7), self.logits, device)
        torch.testing.assert_close(got, torch.softmax(kept, 0), rtol=0, atol=0.02)
        assert self.frequencies(Sampling(1.0, top_p=0.4), self.logits, device)[1] == 1

    def test_greedy_ignores_the_generator(self, device: str) -> None:
        drawn = torch.empty(1, 1, dtype=torch.int64, device=device)
        dtype = torch.float32 if device == "cpu" else torch.float16
        Sampling().draw_(drawn, self.logits.to(device, dtype)[None])
        assert drawn.tolist() == [[1]]

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ((-1.0,), "temperature must be finite and at least 0"),
            ((float("nan"),), "temperature must be finite and at least 0"),
            ((1.0, 0), "top_k must be at least 1"),
            ((1.0, None, 0.0), "top_p must be above 0 and at most 1"),
            ((1.0, None, 1.5), "top_p must be above 0 and at most 1"),
        ],
    )
    def test_checks(self, values: tuple[float, ...], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Sampling(*values)
