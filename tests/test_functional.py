"""scaled_dot_product_attention: F's signature and meaning, errors for what is not supported."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from checking import assert_close, assert_same_bits, dtypes_on, make_qkv, randn

import flashint8

DOCUMENTED = {  # of torch.nn.functional.scaled_dot_product_attention
    "query": inspect.Parameter.empty,
    "key": inspect.Parameter.empty,
    "value": inspect.Parameter.empty,
    "attn_mask": None,
    "dropout_p": 0.0,
    "is_causal": False,
    "scale": None,
    "enable_gqa": False,
}
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 3e-2, torch.float32: 1e-5}
sdpa = flashint8.scaled_dot_product_attention


def test_signature() -> None:
    """Names, order and defaults; the first six by position, as F takes them."""
    parameters = inspect.signature(sdpa).parameters
    assert {name: p.default for name, p in parameters.items()} == DOCUMENTED
    assert list(parameters) == list(DOCUMENTED)
    for name, parameter in parameters.items():
        allowed = {inspect.Parameter.POSITIONAL_OR_KEYWORD}
        if name in ("scale", "enable_gqa"):
            allowed.add(inspect.Parameter.KEYWORD_ONLY)
        assert parameter.kind in allowed, name


def test_documentation_of_torch_still_says_so() -> None:
    shown = (F.scaled_dot_product_attention.__doc__ or "").partition("->")[0]
    for name, default in DOCUMENTED.items():
        assert (name if default is inspect.Parameter.empty else f"{name}={default}") in shown


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("seq_len_q", "seq_len_kv"), [(9, 9), (1, 20), (6, 20), (20, 6)])
def test_meaning(device: str, seq_len_q: int, seq_len_kv: int, is_causal: bool) -> None:
    """is_causal aligns the diagonal to the first key, also where Tq differs from Tk."""
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(2, 4, 4, seq_len_q, seq_len_kv, 32, dtype, device)
        for scale in (None, 0.3):
            got = sdpa(q, k, v, is_causal=is_causal, scale=scale)
            want = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=scale)
            tol = TOLERANCE[dtype]
            assert_close(got, want, rtol=tol, atol=tol, what=f"{dtype} {is_causal=} {scale=}")


def test_positional_arguments(device: str) -> None:
    q, k, v = make_qkv(1, 2, 2, 5, 5, 16, torch.float16, device)
    want = flashint8.attention(q, k, v, causal=2)
    assert_same_bits(sdpa(q, k, v, None, 0.0, True), want, "by position")
    assert_same_bits(sdpa(query=q, key=k, value=v, is_causal=True), want, "by keyword")


def test_leading_dimensions(device: str) -> None:
    """(N, T, D) has a batch and no heads; more than four dimensions fold into the batch."""
    for dtype in dtypes_on(device):
        tol = TOLERANCE[dtype]
        for leading in ((), (3,), (2, 3, 4), (2, 1, 2, 3)):
            q, k, v = (randn(*leading, 7, 16, dtype=dtype, device=device) for _ in "qkv")
            got = sdpa(q, k, v, is_causal=True)
            want = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            assert_close(got, want, rtol=tol, atol=tol, what=f"leading {leading} {dtype}")


def test_grouped_heads(device: str) -> None:
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(2, 8, 2, 6, 6, 32, dtype, device)
        got = sdpa(q, k, v, is_causal=True, enable_gqa=True)
        k8, v8 = (t.repeat_interleave(4, dim=1) for t in (k, v))
        want = F.scaled_dot_product_attention(q, k8, v8, is_causal=True)
        assert_close(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], what=f"gqa {dtype}")
        with pytest.raises(ValueError, match="enable_gqa"):
            sdpa(q, k, v)


def test_monkeypatching_torch_works(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What 'drop-in' means: code that calls F's function runs with ours in its place."""
    q, k, v = make_qkv(2, 2, 2, 6, 6, 16, torch.float16, device)
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", sdpa)
    got = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=None, dropout_p=0.0, is_causal=True
    )
    assert_close(got, want, rtol=1e-2, atol=1e-2, what="patched F")


def test_unsupported_arguments_are_named(device: str) -> None:
    q, k, v = make_qkv(1, 2, 2, 5, 5, 16, torch.float16, device)
    mask = torch.ones(5, 5, dtype=torch.bool, device=device)
    with pytest.raises(ValueError, match="attn_mask"):
        sdpa(q, k, v, attn_mask=mask)
    with pytest.raises(ValueError, match="attn_mask"):
        sdpa(q, k, v, attn_mask=mask, is_causal=True)
    with pytest.raises(ValueError, match="dropout_p"):
        sdpa(q, k, v, dropout_p=0.1)


def test_unsupported_shapes_are_named(device: str) -> None:
    q, k, v = make_qkv(2, 2, 2, 5, 5, 16, torch.float16, device)
    with pytest.raises(ValueError, match="head_dim"):
        sdpa(q, k, v[..., :8])  # F allows a value width of its own
    with pytest.raises(ValueError, match=r"rank|dimension"):
        sdpa(q[0, 0, 0], k[0, 0, 0], v[0, 0, 0])
    with pytest.raises(ValueError, match=r"k|key"):
        sdpa(q, k[0], v[0])


def test_functional_module_has_both() -> None:
    assert flashint8.functional.attention is flashint8.attention
    assert flashint8.functional.scaled_dot_product_attention is sdpa


def test_keyword_only_as_in_torch() -> None:
    q = torch.zeros(1, 1, 2, 8)
    for function in (sdpa, F.scaled_dot_product_attention):
        with pytest.raises(TypeError):
            function(q, q, q, None, 0.0, False, 0.5)


def test_any_strides(device: str) -> None:
    """As F takes them; attention itself stays strict."""
    q, k, v = (randn(2, 3, 16, 7, dtype=torch.float16, device=device).mT for _ in "qkv")
    want = sdpa(q.contiguous(), k.contiguous(), v.contiguous(), is_causal=True)
    assert_same_bits(sdpa(q, k, v, is_causal=True), want, "all three")
    assert_same_bits(sdpa(q.contiguous(), k, v, is_causal=True), want, "k and v")
    assert_same_bits(sdpa(q[0], k[0], v[0], is_causal=True), want[0], "three dimensions")
    with pytest.raises(ValueError, match="contiguous"):
        flashint8.attention(q, k, v)


def test_errors_speak_of_query_key_value(device: str) -> None:
    q, k, v = make_qkv(2, 2, 2, 5, 5, 16, torch.float16, device)
    for args, message in (
        ((q, k[:1], v[:1]), "leading dimensions are not broadcast; got query (2, 2, 5, 16), key"),
        ((q, k[:, :1], v[:, :1]), "heads are not broadcast; key has 1 heads, query has 2"),
        ((q, k[..., :8], v), "key has head_dim 8, query has 16"),
        ((q, k, v[:, :, :3]), "value has 3 keys, key has 5"),
        ((q, k, v.bfloat16()), "value has dtype bfloat16, query has float16"),
        ((q[0, 0, 0],) * 3, "dimensions, 2 or more; got query (16,), key (16,), value (16,)"),
    ):
        with pytest.raises(ValueError, match=r"^scaled_dot_product_attention: ") as caught:
            sdpa(*args)
        assert message in str(caught.value)


def test_compiles_in_one_graph() -> None:
    q, k, v = make_qkv(1, 2, 2, 5, 5, 16, torch.float32, "cpu")
    compiled = torch.compile(sdpa, backend="aot_eager", fullgraph=True)
    assert_same_bits(compiled(q, k, v, is_causal=True), sdpa(q, k, v, is_causal=True), "compiled")
