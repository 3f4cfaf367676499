"""A progress bar for work that takes long, where rich is installed and somebody is watching."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LONG = 512 * 2**20  # bytes; less is done before a bar would be read


@contextmanager
def progress_bar(
    text: str, total_bytes: int, wanted: bool | None
) -> Iterator[Callable[[int, str], None]]:
    """Yields ``advance(nbytes, name)``: so much is done, and this layer comes next.

    Args:
        text: what is being done.
        total_bytes: of the whole work.
        wanted: True always (ImportError without rich), False never, None where rich is installed,
            stderr is a terminal and there are more than 512 MiB to do.
    """
    if wanted is None:
        wanted = total_bytes > _LONG and sys.stderr.isatty() and _has_rich()
    if not wanted:
        yield lambda nbytes, name: None
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )
    except ImportError:
        raise ImportError("progress=True needs rich: pip install rich") from None
    columns = (
        TextColumn(text),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}"),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=console.is_terminal) as progress:
        task = progress.add_task(text, total=total_bytes, name="")
        yield lambda nbytes, name: progress.update(task, advance=nbytes, name=name)


def _has_rich() -> bool:
    from importlib.util import find_spec

    return find_spec("rich") is not None
