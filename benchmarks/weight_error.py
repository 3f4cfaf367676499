"""How far int8 weights are from the weights they stand for, by each way to choose scales.

    python benchmarks/weight_error.py                   # random weights, then SmolLM2's
    python benchmarks/weight_error.py --model FOLDER_OR_GGUF

The error is ||W - q s|| / ||W|| (Frobenius, in float64), over all weights of a kind together. Needs
transformers for a model's weights. Writes results/weight_error.json.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from environment import add_package_to_path, describe, pick_device
from quality import default_model, load_16_bit
from report import save

METHODS = {"flashint8": "absmax", "flashint8_mse": "mse"}


def random_weights(n: int, k: int) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Weights of known distributions."""
    yield "normal", [torch.randn(n, k)]
    yield "Laplace", [torch.distributions.Laplace(0.0, 1.0).sample((n, k))]
    yield "Student t, 4 degrees", [torch.distributions.StudentT(4.0).sample((n, k))]
    outliers = torch.randn(n, k)
    outliers[:, :: k // 4] *= 20
    yield "normal, 4 columns 20 times as large", [outliers]
    long = torch.randn(n // 32, 32 * k)
    long[:, 0] = 100
    yield "normal, one weight of 100 in a row", [long]


def model_weights(source: Path) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """A model's linear layers by the last part of their names."""
    kinds: dict[str, list[torch.Tensor]] = {}
    model = load_16_bit(source, torch.float32)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            kinds.setdefault(name.rpartition(".")[2], []).append(module.weight.detach())
    model_name = source.stem.partition(".")[0]
    for kind, weights in kinds.items():
        yield f"{model_name}: {len(weights)} of {kind}", weights


def measure(weights: list[torch.Tensor], method: str, device: torch.device) -> dict[str, Any]:
    """Relative and largest error."""
    import flashint8

    squared = norm = largest = 0.0
    for weight in weights:
        weight = weight.to(device)
        q, scale = flashint8.quantize_per_channel(weight, method)
        error = weight.double() - q.double() * scale.double()[:, None]
        squared += error.square().sum().item()
        norm += weight.double().square().sum().item()
        largest = max(largest, (error.abs().amax() / weight.abs().amax()).item())
    return {"error": math.sqrt(squared / norm), "largest": largest}


def main() -> None:
    """Measures and writes the result."""
    parser = argparse.ArgumentParser(description="Errors of int8 weights.")
    parser.add_argument("--model", help="a transformers folder or .gguf (default: SmolLM2)")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU if there is one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="results/weight_error.json")
    args = parser.parse_args()
    add_package_to_path()
    device = pick_device(args.device)
    from rich.console import Console

    screen = Console()
    torch.manual_seed(args.seed)
    source = Path(args.model) if args.model else default_model()
    environment, rows = describe(device, args.seed), []
    for part in (random_weights(2048, 2048), model_weights(source)):
        for name, weights in part:
            n, k = weights[0].shape
            case = {"weights": name, "N": n, "K": k, "dtype": "float32"}
            methods = {m: measure(weights, how, device) for m, how in METHODS.items()}
            rows.append({"case": case, "methods": methods})
            screen.print(f"{name}: {methods}")
    save(args.out, "weight_error", None, environment, {}, rows, screen)


if __name__ == "__main__":
    main()
