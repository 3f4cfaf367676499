"""`flashint8 fit MODEL_CONFIG`: what of a model fits into a GPU's memory."""

import argparse
import sys

from flashint8.fit import ATTENTIONS, LINEARS, PREFILL_CHUNK, Fit, will_it_fit
from flashint8.models.config import PRESETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument(
        "config",
        metavar="MODEL_CONFIG",
        help=f"a config.json, its folder, or one of {', '.join(PRESETS)}",
    )
    parser.add_argument("--vram", default="6GB", help="such as 6GB or 5.5GiB (default 6GB)")
    parser.add_argument("--context", type=int, default=2048, help="positions (default 2048)")
    parser.add_argument("--batch", type=int, default=1, help="rows (default 1)")
    parser.add_argument("--linears", choices=LINEARS, default="int8")
    parser.add_argument("--attention", choices=ATTENTIONS, default="flashint8")
    parser.add_argument("--dtype", default="float16", help="of all that is not int8")
    parser.add_argument(
        "--prefill-chunk",
        type=int,
        default=PREFILL_CHUNK,
        help=f"tokens of a prompt read at once (default {PREFILL_CHUNK})",
    )


def run(options: argparse.Namespace) -> int:
    """Prints the answer; 0 where it fits, 1 where not, 2 for a wrong argument."""
    try:
        fit = will_it_fit(
            options.config,
            options.vram,
            options.context,
            options.batch,
            linears=options.linears,
            attention=options.attention,
            dtype=options.dtype,
            prefill_chunk=options.prefill_chunk,
        )
    except (ValueError, OSError) as error:
        print(f"flashint8 fit: {error}", file=sys.stderr)
        return 2
    show(fit, options.config)
    return 0 if fit else 1


def show(fit: Fit, name: str) -> None:
    """A table where rich is installed, else the same lines as plain text."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(fit)
        return
    console = Console()
    setup = fit.setup
    table = Table(title=f"{name}: {setup.linears} linears, {setup.attention} attention")
    table.add_column("what")
    table.add_column("takes", justify="right")
    rows = fit.rows()
    for index, row in enumerate(rows):
        table.add_row(*row, end_section=index >= len(rows) - 3)
    console.print(table)
    console.print(f"[{'green' if fit else 'red'}]{fit.verdict()}[/]")
    for change in fit.changes:
        console.print(f"would fit: {change}")
