"""A short check of an installed package; run it away from the source tree.

cd / && python .../scripts/check_install.py
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

import flashint8


def main() -> None:
    package = Path(flashint8.__file__).resolve().parent
    source = Path(__file__).resolve().parents[1] / "flashint8"
    assert package != source, f"this is the source tree, not an installation: {package}"

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() and flashint8._C.build_info()["cuda"] else "cpu"
    q = torch.randn(2, 4, 33, 64, dtype=torch.float16, device=device)
    k, v = torch.randn(2, 2, 2, 33, 64, dtype=torch.float16, device=device)
    out = flashint8.attention(q, k, v)
    reference = F.scaled_dot_product_attention(
        q.float(),
        k.float().repeat_interleave(2, 1),
        v.float().repeat_interleave(2, 1),
        is_causal=True,
    )
    torch.testing.assert_close(out.float(), reference, rtol=1e-2, atol=1e-2)

    linear = torch.nn.Linear(96, 40, dtype=torch.float16, device=device)
    x = torch.randn(3, 7, 96, dtype=torch.float16, device=device)
    quantized = flashint8.QuantLinear.from_linear(linear)
    torch.testing.assert_close(quantized(x), linear(x), rtol=2e-1, atol=2e-1)
    print(f"check_install: flashint8 {flashint8.__version__} in {package} works on {device}")


if __name__ == "__main__":
    main()
