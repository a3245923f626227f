"""Progress on the screen of a person who waits; files and pipes get none."""

from rich.console import Console
from rich.progress import Progress, ProgressColumn


def progress(*columns: ProgressColumn) -> Progress:
    """A bar on stderr that leaves nothing behind; nothing at all where that is no terminal."""
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
