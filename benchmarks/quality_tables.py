"""The tables of `quality.py` and `weight_error.py`."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]
NAMES = {
    "torch_linear": "16 or 32 bits (nn.Linear, SDPA)",
    "flashint8": "int8, absmax",
    "flashint8_mse": "int8, mse",
}
BENCHMARKS = ("quality", "weight_error")


def cells(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a result of one of BENCHMARKS."""
    return _quality(result) if result["benchmark"] == "quality" else _weight_error(result)


def note(result: Result) -> str:
    """What the caption says of the numbers."""
    case = result["rows"][0]["case"]
    if result["benchmark"] == "weight_error":
        return "||W - q s|| / ||W||, all weights of a kind together"
    return (
        f"{case['model']}, {case['tokens']} tokens of {case['text']} in windows of "
        f"{case['context']}; question: {case['question']}"
    )


def _mib(number: float) -> str:
    return f"{number / 2**20:.1f}"


def _quality(result: Result) -> tuple[list[str], list[list[str]]]:
    header = [
        "dtype",
        "weights",
        "MiB of weights",
        "MiB more in memory after the answer",
        "perplexity",
    ]
    header += ["change", "answer"]
    lines = []
    for row in result["rows"]:
        base = row["methods"]["torch_linear"]["perplexity"]
        for name, method in row["methods"].items():
            change = method["perplexity"] / base - 1
            lines.append(
                [
                    row["case"]["dtype"],
                    NAMES[name],
                    _mib(method["weights_bytes"]),
                    _mib(method["resident_bytes"]),
                    f"{method['perplexity']:.3f}",
                    "" if name == "torch_linear" else f"{100 * change:+.2f}%",
                    method["answer"].replace("|", "\\|").replace("\n", " "),
                ]
            )
    return header, lines


def _weight_error(result: Result) -> tuple[list[str], list[list[str]]]:
    header = ["weights", "N x K", "absmax", "mse", "change of the squared error", "search"]
    lines = []
    for row in result["rows"]:
        case, absmax = row["case"], row["methods"]["flashint8"]
        mse = row["methods"]["flashint8_mse"]
        change = (mse["error"] / absmax["error"]) ** 2 - 1
        lines.append(
            [
                case["weights"],
                f"{case['N']} x {case['K']}",
                f"{100 * absmax['error']:.3f}%",
                f"{100 * mse['error']:.3f}%",
                f"{100 * change:+.1f}%",
                f"{mse['ns_per_weight']:.1f} ns a weight",
            ]
        )
    return header, lines
