"""The tables of `quality.py` and `weight_error.py`."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]
NAMES = {
    "torch_linear": "as they are (nn.Linear, SDPA)",
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
        return (
            "||W - q s|| / ||W||, all weights of a kind together; the largest error as a share of "
            "the largest weight"
        )
    return (
        f"{case['model']}, {case['tokens']} tokens of {case['text']} in windows of "
        f"{case['context']}; question: {case['question'].rstrip('.')}"
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
    header = ["weights", "N x K", "absmax", "mse", "change of the squared error"]
    header += ["largest error of a weight, absmax", "mse"]
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
                *(f"{100 * m['largest']:.2f}%" for m in (absmax, mse)),
            ]
        )
    return header, lines
