"""What a benchmark times: one way to compute a case, or the reason it cannot."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch


class CheckError(RuntimeError):
    """Our own output is wrong: nothing of this case is timed and the benchmark exits non-zero."""


@dataclass
class Method:
    """One way to compute a case.

    Attributes:
        name: key in the JSON's ``methods``.
        calls: callables that compute the same thing on buffers of their own; call i uses
            ``calls[i % len(calls)]``, so enough of them keep a cache from holding the inputs.
        context: entered around whole loops, never inside one (pins an SDPA backend).
        note: how this method was made to run, where that is not plain.
        ours: a wrong result of ours stops the benchmark, a peer's is recorded as skipped.
        extra: further fields of the method's JSON (``weights_bytes``).
    """

    name: str
    calls: Sequence[Callable[[], torch.Tensor]]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext
    note: str = ""
    ours: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    error: float | None = None

    def call(self) -> torch.Tensor:
        """One call on the first buffers."""
        with self.context():
            return self.calls[0]()


@dataclass
class Skipped:
    """A method that cannot run a case, and why."""

    name: str
    why: str


def reason(error: BaseException, noted: Sequence[warnings.WarningMessage] = ()) -> str:
    """One line on why a call failed, without paths of the machine it failed on."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "out of memory"
    texts = [str(w.message) for w in noted] or [str(error) or type(error).__name__]
    text = next((t for t in texts if "not used" not in t), texts[0]).strip().splitlines()[0]
    text = re.sub(r"\(Triggered internally at .*?\)", "", text)
    return re.sub(r"(?<!\w)/[\w./+-]+", "<path>", text).strip()[:200]
