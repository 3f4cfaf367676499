"""On a GPU: graphs, streams, devices, synchronisation, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from checking import (
    assert_same_bits,
    check_attention,
    int32,
    make_qkv,
    quantised,
    randn,
    runs_hopper_code,
)
from torch import Tensor

import flashint8

SPIN = 200_000_000  # clock cycles, about 0.1 s
ATTENTION_SHAPES = {  # Tq, Tk
    "prefill": (150, 150),
    "long prefill": (1700, 1700),
    "decode": (1, 3000),
    "few": (5, 700),
}
LINEAR_ROWS = (1, 7, 33, 300)
# M, N, K of tiles that do not come out even on an H100: their k is dealt out over all blocks. One
# for each tile of Hopper's gemm, of 32, 64, 128, 192 and 256 rows, with up to dozens of blocks a
# tile that end at the same time: a flag still raised from a graph's last replay would show.
STREAMED = [
    (70, 16, 16_400),
    (40, 5100, 3088),
    (70, 5100, 4112),
    (130, 5100, 4112),
    (250, 17_000, 1024),
]


def attention_case(name: str, device: str, head_dim: int = 64) -> tuple[Tensor, ...]:
    q, k, v = make_qkv(2, 8, 2, *ATTENTION_SHAPES[name], head_dim, torch.float16, device)
    lengths = int32([ATTENTION_SHAPES[name][1], 60], device)
    assert lengths is not None
    return q, k, v, lengths


def kvcache_case(device: str) -> tuple[Tensor, ...]:
    q, k_cache, v_cache = make_qkv(2, 8, 2, 1, 3000, 64, torch.float16, device)
    k, v = (randn(2, 2, 1, 64, dtype=torch.float16, device=device) for _ in "kv")
    positions = int32([2000, 60], device)
    assert positions is not None
    cos_sin = randn(3000, 64, dtype=torch.float32, device=device)
    return q, k, v, k_cache, v_cache, positions, cos_sin


def linear_case(m: int, device: str, n: int = 520, k: int = 1024) -> tuple[Tensor, ...]:
    x = randn(m, k, dtype=torch.float16, device=device)
    return x, *quantised(n, k, device), randn(n, dtype=torch.float16, device=device)


CASES: dict[str, tuple[Callable[..., Tensor], Callable[[str], tuple[Tensor, ...]]]] = {
    **{
        f"attention-{name}": (flashint8.attention, lambda d, name=name: attention_case(name, d))
        for name in ATTENTION_SHAPES
    },
    "attention_with_kvcache": (flashint8.attention_with_kvcache, kvcache_case),
    **{
        f"int8_linear-{m}": (flashint8.int8_linear, lambda d, m=m: linear_case(m, d))
        for m in LINEAR_ROWS
    },
    **{
        f"int8_linear-{m}x{n}x{k}": (
            flashint8.int8_linear,
            lambda d, m=m, n=n, k=k: linear_case(m, d, n, k),
        )
        for m, n, k in STREAMED
    },
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, cuda: str) -> tuple[Callable[..., Tensor], tuple]:
    function, make = CASES[request.param]
    return function, make(cuda)


def new_values(args: tuple[Tensor, ...]) -> list[Tensor]:
    """Other values of the same shapes; int32 lengths become other lengths, all valid."""
    fresh = []
    for t in args:
        if t.dtype == torch.int32:
            fresh.append(torch.tensor([33, 0], dtype=torch.int32, device=t.device))
        elif t.dtype == torch.int8:
            fresh.append(t.flip(0))
        elif t.dtype == torch.float32:
            fresh.append(t * 0.5)
        else:
            fresh.append(randn(*t.shape, dtype=t.dtype, device="cuda"))
    return fresh


def test_graph_replay_with_changed_inputs(case) -> None:
    """Capture once, then replay on other values and other kv_lengths: the eager call's bits."""
    function, args = case
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function(*args)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function(*args)
    for _ in range(3):
        for t, fresh in zip(args, new_values(args), strict=True):
            t.copy_(fresh)
        out.fill_(float("nan"))
        graph.replay()
        assert_same_bits(out.clone(), function(*args), "replay against eager")


def test_graph_of_a_growing_cache(cuda: str) -> None:
    """Decoding in a graph: one static cache, a length that grows between the replays."""
    q, k, v = make_qkv(2, 8, 2, 1, 512, 64, torch.float16, cuda)
    lengths = torch.zeros(2, dtype=torch.int32, device=cuda)
    flashint8.attention(q, k, v, lengths)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = flashint8.attention(q, k, v, lengths)
    for length in (0, 1, 2, 63, 64, 65, 200, 511, 512):
        lengths.copy_(torch.tensor([length, length // 2]))
        graph.replay()
        check_attention(out, q, k, v, lengths, what=f"length {length}")


def test_current_stream_is_used(case) -> None:
    """Inputs that become right only after a long spin on the current stream."""
    function, args = case
    right = [t.clone() for t in args]
    want = function(*right)
    for t in args:
        if t.dtype == torch.float16:
            t.fill_(float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(SPIN)
        for t, value in zip(args, right, strict=True):
            t.copy_(value)
        out = function(*args)
    stream.synchronize()
    assert_same_bits(out, want, "on a stream of its own")


def test_no_synchronisation(case) -> None:
    """The call comes back while the stream is still busy, and torch sees no synchronising call."""
    function, args = case
    function(*args)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(SPIN)
        function(*args)
        done = torch.cuda.current_stream().query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not done, "the call waited for the stream"
    torch.cuda.synchronize()


def test_two_streams_at_once(case) -> None:
    """Interleaved calls on two streams, inputs of their own: a shared scratch would mix them."""
    function, args = case
    other = tuple(new_values(args))
    want = [function(*args), function(*other)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SPIN // 20)
    outs: list[list[Tensor]] = [[], []]
    for _ in range(20):
        for which, inputs in enumerate((args, other)):
            with torch.cuda.stream(streams[which]):
                outs[which].append(function(*inputs))
    torch.cuda.synchronize()
    for which in range(2):
        for out in outs[which]:
            assert_same_bits(out, want[which], f"stream {which}")


def test_second_device(case) -> None:
    """Tensors on cuda:1 while cuda:0 is current: the kernel runs there, cuda:0 stays current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    function, args = case
    want = function(*args)
    moved = [t.to("cuda:1") for t in args]
    out = function(*moved)
    assert out.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    if torch.cuda.get_device_name(0) == torch.cuda.get_device_name(1):
        assert_same_bits(out.cpu(), want.cpu(), "on the second device")


def peak_beyond_output(function: Callable[..., Tensor], *args: Tensor) -> int:
    """Bytes the call held at its peak beyond its inputs and its output."""
    function(*args)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    out = function(*args)
    torch.cuda.synchronize()
    peak = torch.cuda.memory_stats()["requested_bytes.all.peak"]
    return peak - before - out.numel() * out.element_size()


def test_prefill_memory_is_the_output_alone(cuda: str) -> None:
    for seq_len, head_dim in ((128, 64), (1024, 64), (2000, 40), (777, 128)):
        args = make_qkv(2, 4, 2, seq_len, seq_len, head_dim, torch.float16, cuda)
        assert peak_beyond_output(flashint8.attention, *args) == 0, f"T {seq_len} D {head_dim}"
    packed = randn(2, 300, 3, 4, 64, dtype=torch.float16, device=cuda)
    q, k, v = packed.permute(2, 0, 3, 1, 4)
    assert peak_beyond_output(flashint8.attention, q, k, v) == 0, "views must not be copied"


def test_decode_memory_is_the_plans_workspace(cuda: str) -> None:
    for seq_len_kv in (100, 4096, 60_000):
        args = make_qkv(1, 16, 2, 1, seq_len_kv, 128, torch.float16, cuda)
        planned = flashint8.explain("attention", *args).details["workspace_bytes"]
        peak = peak_beyond_output(flashint8.attention, *args)
        assert peak <= planned <= 8 * 2**20, f"Tk {seq_len_kv}: {peak} bytes, planned {planned}"


def test_linear_memory_is_the_plans_workspace(cuda: str) -> None:
    problems = [(m, 520, 1024) for m in (1, 16, 300, 2000)] + STREAMED
    for m, n, k in problems:
        args = linear_case(m, cuda, n, k)
        planned = flashint8.explain("int8_linear", *args).details["workspace_bytes"]
        peak = peak_beyond_output(flashint8.int8_linear, *args)
        assert peak <= planned <= 32 * 2**20, f"M {m} N {n}: {peak} bytes, planned {planned}"


# By the kernel on an H100 of 132 multiprocessors. Of Hopper's gemm: tiles of a cluster, whole ones
# with less k than its ring holds, and the streamed ones.
READY = {
    "gemv": [(m, 520, 1024) for m in (1, 8, 16, 32)],
    "gemv_sm90": [(12, 8190, 3088), (20, 4090, 4112), (32, 6130, 208)],
    "gemm_sm90": [(40, 4096, 4096), (40, 9000, 208), *STREAMED],
}


@pytest.mark.parametrize(
    ("kernel", "m", "n", "k"), [(kernel, *problem) for kernel in READY for problem in READY[kernel]]
)
def test_ready_weights(cuda: str, kernel: str, m: int, n: int, k: int) -> None:
    """The same bits as without the promise, also in a graph and behind a change of the weights that
    another kernel follows."""
    x, weight, scale, bias = linear_case(m, cuda, n, k)
    if runs_hopper_code() and flashint8.Card.of().sm_count == 132:
        plan = flashint8.explain("int8_linear", x, weight, scale, bias)
        assert plan.kernel == kernel
        assert (plan.details["streamed_tiles"] > 0) == ((m, n, k) in STREAMED)
    residual, norm = torch.zeros_like(x), torch.ones_like(x[0])

    def run(ready: bool) -> Tensor:
        out = flashint8.add_norm_(residual.zero_(), x, norm)
        for _ in range(3):
            y = flashint8.int8_linear(out, weight, scale, bias, weight_ready=ready)
            out[:, :n] = y[:, :k]
        return y

    want = run(False)
    assert_same_bits(run(True), want, "eager")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(True)
    graph.replay()
    assert_same_bits(out, want, "in a graph")
    for round_ in range(5):
        weight.copy_(weight.flip(round_ % 2))
        graph.replay()
        assert_same_bits(out, run(False), f"changed weights, {round_}")


def test_quantize_on_a_stream(cuda: str) -> None:
    weight = randn(300, 500, dtype=torch.float32, device=cuda)
    want = flashint8.quantize_per_channel(weight)
    late = torch.full_like(weight, float("nan"))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(SPIN)
        late.copy_(weight)
        got = flashint8.quantize_per_channel(late)
        torch.cuda.current_stream().synchronize()
    for one, other in zip(got, want, strict=True):
        assert_same_bits(one, other, "quantised on a stream of its own")


def chain(x: Tensor, weights: list[tuple[Tensor, Tensor]], wait: bool) -> Tensor:
    """Operators that each read what the one before just wrote, on one stream."""
    batch, seq_len, _ = x.shape
    cache = torch.zeros(2, batch, 4, 2000, 64, dtype=x.dtype, device=x.device)
    lengths = torch.zeros(batch, dtype=torch.int32, device=x.device)
    for step, (weight, scale) in enumerate(weights):
        heads = flashint8.int8_linear(x, weight, scale).view(batch, seq_len, 4, 64).transpose(1, 2)
        cache[:, :, :, 100 * step : 100 * step + seq_len] = heads
        lengths.fill_(100 * step + seq_len)
        if wait:
            torch.cuda.synchronize()
        x = flashint8.attention(heads, cache[0], cache[1], lengths)
        if wait:
            torch.cuda.synchronize()
        x = flashint8.attention(x, cache[1], cache[0], lengths).transpose(1, 2).flatten(2)
        if wait:
            torch.cuda.synchronize()
        x = flashint8.int8_linear(x, weight, scale)
        if wait:
            torch.cuda.synchronize()
    return x


@pytest.mark.parametrize("seq_len", [1, 5, 40, 90])
def test_a_kernel_waits_for_the_one_ahead(cuda: str, seq_len: int) -> None:
    """Kernels may be on the chip before the one ahead has ended: they must not read too soon."""
    weights = [quantised(256, 256, cuda, spread=0.15) for _ in range(15)]
    for repeat in range(5):
        x = randn(3, seq_len, 256, dtype=torch.float16, device=cuda)
        want = chain(x, weights, wait=True)
        assert bool(want.isfinite().all())
        assert bool(want.any())
        assert_same_bits(chain(x, weights, wait=False), want, f"eager, repeat {repeat}")
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = chain(x, weights, wait=False)
        for _ in range(3):
            graph.replay()
            assert_same_bits(out.clone(), want, f"graph, repeat {repeat}")


def test_graph_with_branches(cuda: str) -> None:
    """Capture on two streams that fork and join: dependent launches at both."""
    x = randn(4, 256, dtype=torch.float16, device=cuda)
    first, second, third = (quantised(256, 256, cuda) for _ in range(3))

    def forked() -> Tensor:
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        start = flashint8.int8_linear(x, *first)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            other = flashint8.int8_linear(start, *second)
        mine = flashint8.int8_linear(start, *third)
        main.wait_stream(side)
        return flashint8.int8_linear(mine + other, *first)

    want = forked()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = forked()
    for _ in range(5):
        out.zero_()
        graph.replay()
        assert_same_bits(out.clone(), want, "replay of a forked graph")


@pytest.mark.parametrize("text", ["86", "86,30,x", "0,30,101376"])
def test_plan_card_malformed(cuda: str, text: str) -> None:
    code = "import torch, flashint8; q = torch.zeros(1, 1, 1, 64, device='cuda').half()\n"
    code += "flashint8.attention(q, q, q)"
    environment = {**os.environ, "FLASHINT8_PLAN_CARD": text}
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert "FLASHINT8_PLAN_CARD must be compute_capability,sm_count," in child.stderr
