"""flashint8 in one page: attention as a drop-in, then a small model with its weights in int8.

Runs on a GPU if there is one, else on the CPU: python examples/quickstart.py
"""

import torch
from torch import nn
from torch.nn import functional as F

import flashint8

device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.float16 if device == "cuda" else torch.float32


def drop_in_attention() -> None:
    """The same call as torch's, then what torch's call cannot say."""
    q, k, v = (torch.randn(2, 8, 256, 64, device=device, dtype=dtype) for _ in range(3))
    ours = flashint8.scaled_dot_product_attention(q, k, v, is_causal=True)
    torchs = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    print(f"attention: largest difference from torch's {(ours - torchs).abs().max():.1e}")

    # Decoding: one query a row against a static cache, filled to 100 and 200 of its 256 places.
    lengths = torch.tensor([100, 200], dtype=torch.int32, device=device)
    out = flashint8.attention(q[:, :, -1:], k, v, kv_lengths=lengths)
    alone = flashint8.attention(q[:1, :, -1:], k[:1, :, :100], v[:1, :, :100])
    print(f"           row 0 alone differs by {(out[:1] - alone).abs().max():.1e}")
    print(flashint8.explain("attention", q, k, v))


def int8_model() -> None:
    """Swaps nn.Linear for QuantLinear in a model and compares outputs and sizes."""
    model = nn.Sequential(nn.Linear(768, 3072), nn.GELU(), nn.Linear(3072, 768))
    model = model.to(device, dtype).eval()
    x = torch.randn(4, 768, device=device, dtype=dtype)
    with torch.inference_mode():
        before = model(x)
        report = flashint8.quantize_model(model)
        after = model(x)
    print(f"\nint8 model: {report}")
    print(
        f"            relative change of the output {(after - before).norm() / before.norm():.4f}"
    )
    print(model)


if __name__ == "__main__":
    torch.manual_seed(0)
    drop_in_attention()
    int8_model()
