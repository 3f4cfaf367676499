"""attention: any strides with a contiguous last dimension, read in place; q's memory order out."""

from __future__ import annotations

import math

import pytest
import torch
from checking import assert_same_bits, attend, check_attention, dtypes_on, make_qkv, randn
from torch import Tensor

B, HQ, HKV, TQ, TK, D = 2, 4, 2, 37, 70, 64


def bthd(t: Tensor) -> Tensor:
    """(B, H, T, D) over (B, T, H, D) memory."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def hbtd(t: Tensor) -> Tensor:
    return t.transpose(0, 1).contiguous().transpose(0, 1)


def thbd(t: Tensor) -> Tensor:
    return t.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)


def tbhd(t: Tensor) -> Tensor:
    """(T, B, H, D) memory, fairseq's and Megatron's."""
    return t.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)


def inside(t: Tensor, margins: tuple[int, int, int, int], offset: int = 0) -> Tensor:
    """The same values inside a larger tensor of NaN that starts `offset` elements late."""
    shape = [size + 2 * margin for size, margin in zip(t.shape, margins, strict=True)]
    room = torch.full((math.prod(shape) + offset,), math.nan, dtype=t.dtype, device=t.device)
    view = room[offset:].view(shape)
    for dim, (size, margin) in enumerate(zip(t.shape, margins, strict=True)):
        view = view.narrow(dim, margin, size)
    return view.copy_(t)


LAYOUTS = {
    "contiguous": lambda t: t.contiguous(),
    "bthd": bthd,
    "hbtd": hbtd,
    "thbd": thbd,
    "tbhd": tbhd,
    "longer_cache": lambda t: inside(t, (0, 0, 9, 0)),
    "more_heads": lambda t: inside(t, (0, 1, 0, 0)),
    "wider_rows": lambda t: inside(t, (0, 0, 0, 8)),
    "odd_rows": lambda t: inside(t, (0, 0, 0, 3)),
    "odd_everything": lambda t: inside(t, (1, 1, 3, 5), offset=1),
    "bthd_longer": lambda t: inside(t.transpose(1, 2), (0, 5, 0, 0)).transpose(1, 2),
    "bthd_odd": lambda t: inside(t.transpose(1, 2), (0, 1, 1, 1)).transpose(1, 2),
    "offset_1": lambda t: inside(t, (0, 0, 0, 0), offset=1),
    "offset_3": lambda t: inside(t, (0, 0, 0, 0), offset=3),
    "offset_8": lambda t: inside(t, (0, 0, 0, 0), offset=8),
    "every_second": lambda t: t.repeat_interleave(2, dim=2)[:, :, ::2],
    "every_third_head": lambda t: t.repeat_interleave(3, dim=1)[:, ::3],
}


def expected_strides(q: Tensor) -> tuple[int, ...]:
    """q's own strides if q is dense; else its leading dimensions' order, packed."""
    dims = sorted(range(4), key=lambda d: q.stride(d), reverse=True)
    step, dense = 1, True
    for d in reversed(dims):
        if q.shape[d] != 1:
            dense = dense and q.stride(d) == step
            step *= q.shape[d]
    if dense:
        return q.stride()
    order = [0, 1, 2]
    for i in range(1, 3):  # stable insertion sort; size 1 and stride 0 do not move
        for j in range(i, 0, -1):
            left, right = order[j - 1], order[j]
            fixed = any(q.shape[d] == 1 or q.stride(d) == 0 for d in (left, right))
            if fixed or q.stride(left) >= q.stride(right):
                break
            order[j - 1], order[j] = right, left
    strides, step = [0, 0, 0, 1], q.shape[3]
    for d in reversed(order):
        strides[d] = step
        step *= q.shape[d]
    return tuple(strides)


def assert_memory_order(out: Tensor, q: Tensor) -> None:
    sized = [d for d in range(4) if out.shape[d] > 1]
    got, want = [out.stride(d) for d in sized], [expected_strides(q)[d] for d in sized]
    assert got == want, f"output strides {got}, want {want} for q of {q.shape} {q.stride()}"


@pytest.mark.parametrize("which", ["q", "k", "v", "kv", "qkv"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(device: str, layout: str, which: str) -> None:
    """Memory between the elements is NaN: what reads past a row's end fails."""
    for dtype in dtypes_on(device):
        for seq_len_q in (TQ, 1):
            q, k, v = make_qkv(B, HQ, HKV, seq_len_q, TK, D, dtype, device)
            views = {"q": q, "k": k, "v": v}
            for name in which:
                views[name] = LAYOUTS[layout](views[name])
                assert views[name].stride(-1) == 1
            out = attend(*views.values())
            check_attention(out, q, k, v, what=f"{which} as {layout}")
            assert_memory_order(out, views["q"])


@pytest.mark.parametrize("layout", ["bthd", "longer_cache", "odd_everything", "bthd_odd"])
@pytest.mark.parametrize("head_dim", [8, 24, 40, 72, 104, 160, 256])
def test_layout_of_filled_head_dims(device: str, layout: str, head_dim: int) -> None:
    """A head_dim that is filled into the next size must not read its neighbours."""
    for dtype in dtypes_on(device):
        for seq_len_q in (33, 2):
            q, k, v = make_qkv(2, 2, 1, seq_len_q, 65, head_dim, dtype, device)
            out = attend(*(LAYOUTS[layout](t) for t in (q, k, v)))
            check_attention(out, q, k, v, what=f"{layout} D {head_dim}")


def test_same_bits_in_every_dense_layout(device: str) -> None:
    for dtype in dtypes_on(device):
        q, k, v = make_qkv(B, HQ, HKV, TQ, TK, D, dtype, device)
        want = attend(q, k, v)
        for layout in ("bthd", "hbtd", "thbd", "tbhd", "longer_cache", "offset_8"):
            out = attend(*(LAYOUTS[layout](t) for t in (q, k, v)))
            assert_same_bits(out, want, f"{layout} against contiguous, {dtype}")


@pytest.mark.sanitizer
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
def test_packed_projection(device: str, num_kv_heads: int) -> None:
    """q, k and v as views of one (B, T, (Hq + 2 Hkv) D) projection, as a model holds them."""
    for dtype in dtypes_on(device):
        width = (HQ + 2 * num_kv_heads) * D
        packed = randn(B, 50, width, dtype=dtype, device=device)
        sizes = [HQ * D, num_kv_heads * D, num_kv_heads * D]
        q, k, v = (part.view(B, 50, -1, D).transpose(1, 2) for part in packed.split(sizes, dim=-1))
        out = attend(q, k, v)
        check_attention(out, q, k, v, what="packed projection")
        assert_memory_order(out, q)
        merged = out.transpose(1, 2).reshape(B, 50, HQ * D)
        assert merged.data_ptr() == out.data_ptr(), "merging the heads must be a view"


@pytest.mark.parametrize("dim", [0, 1, 2])
@pytest.mark.parametrize("which", ["q", "k", "v", "qkv"])
def test_expanded(device: str, which: str, dim: int) -> None:
    """Stride 0: one prefix shared by the batch, one head by all, one key repeated."""
    for dtype in dtypes_on(device):
        for seq_len_q in (20, 1):
            views = dict(
                zip("qkv", make_qkv(3, 4, 2, seq_len_q, 40, D, dtype, device), strict=True)
            )
            for name in which:
                t = views[name]
                views[name] = t.narrow(dim, 0, 1).expand(t.shape)
            out = attend(*views.values())
            check_attention(out, *views.values(), what=f"{which} expanded over {dim}")
            assert_memory_order(out, views["q"])
            assert out.untyped_storage().nbytes() >= out.numel() * out.element_size()


@pytest.mark.parametrize(
    "shape", [(1, 4, 37, 64), (2, 1, 37, 64), (2, 4, 1, 64), (1, 1, 1, 64), (1, 1, 5, 8)]
)
@pytest.mark.parametrize("layout", ["contiguous", "bthd", "bthd_longer", "odd_everything"])
def test_memory_order_with_size_one(device: str, shape: tuple[int, ...], layout: str) -> None:
    for dtype in dtypes_on(device):
        q = LAYOUTS[layout](randn(*shape, dtype=dtype, device=device))
        k, v = make_qkv(shape[0], 1, 1, 1, 30, shape[3], dtype, device)[1:]
        out = attend(q, k, v)
        check_attention(out, q, k, v, what=f"{layout} of size-1 dimensions")
        assert_memory_order(out, q)


def test_strides_of_size_one_do_not_matter(device: str) -> None:
    """PyTorch leaves any number as the stride of a dimension of size 1."""
    q, k, v = make_qkv(1, 1, 1, 1, 1, D, torch.float16, device)
    odd = [t.as_strided(t.shape, (7, 3, 5, 1)) for t in (q, k, v)]
    check_attention(attend(*odd), q, k, v, what="odd strides of size-1 dimensions")
    one = [t[..., :1].as_strided((1, 1, 1, 1), (1, 1, 1, 9)) for t in (q, k, v)]
    if device == "cpu":  # head_dim 1: the last stride does not matter either
        check_attention(attend(*one), *(t[..., :1] for t in (q, k, v)), what="D 1, last stride 9")


def test_output_does_not_alias_inputs(device: str) -> None:
    q, k, v = make_qkv(1, 1, 1, 1, 1, D, torch.float16, device)
    out = attend(q, k, v)
    assert out.data_ptr() not in {t.data_ptr() for t in (q, k, v)}
