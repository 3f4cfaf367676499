"""The `flashint8` command."""

import argparse
import json
import sys
from collections.abc import Sequence

from flashint8 import _version


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="flashint8",
        description="Fused attention and INT8 weight-only linear layers for PyTorch inference.",
    )
    parser.add_argument("--version", action="version", version=f"flashint8 {_version.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    info = commands.add_parser(
        "info", help="what was built, what this machine will run, and why not more (the default)"
    )
    for place in (parser, info):  # suppressed: info's default would undo what stands before it
        place.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="info as JSON"
        )
    from flashint8 import _fit_command, _quantize_command

    _fit_command.add_arguments(
        commands.add_parser("fit", help="what of a model fits into a GPU's memory")
    )
    _quantize_command.add_arguments(
        commands.add_parser("quantize", help="make a checkpoint int8, one tensor at a time")
    )
    options = parser.parse_args(arguments)
    if options.command == "fit":
        return _fit_command.run(options)
    if options.command == "quantize":
        return _quantize_command.run(options)

    from flashint8 import _info

    report = _info.collect()
    if getattr(options, "json", False):
        json.dump(report, sys.stdout, indent=2)
        print()
    else:
        print(_info.render(report))
    return 0
