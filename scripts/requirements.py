"""Prints what pyproject.toml asks of a developer's environment, torch left out, one a line."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path


def requirements() -> list[str]:
    """Build requirements and all extras; references to the extras of our own are resolved."""
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    extras = pyproject["project"]["optional-dependencies"]
    every = [
        *pyproject["build-system"]["requires"],
        *(x for extra in extras.values() for x in extra),
    ]
    return sorted({x for x in every if re.match(r"[\w-]+", x)[0] not in ("torch", "flashint8")})


if __name__ == "__main__":
    print("\n".join(requirements()))
