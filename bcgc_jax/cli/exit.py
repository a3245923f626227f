"""How a command ends: by Ctrl-C, a closed pipe, a full disk, an unwritable file."""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, TypeVar

T = TypeVar("T")


def take_any_sign() -> None:
    """Print signs that the terminal's encoding lacks as ?: no error after the work."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a stream of somebody's own, or none
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def check_file(
    option: str, path: str | os.PathLike[str] | None, suffixes: Sequence[str] = ()
) -> None:
    """Raise ValueError, before any work is lost, for a file that cannot be written.

    A file with none of the `suffixes` is refused too.
    """
    if path is None:
        return
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{option} must end in {' or '.join(suffixes)}, got {path}")
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        raise ValueError(
            f"{option}: cannot write {path}: name a file in a folder that is there"
        )
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{option}: cannot write {path}: permission denied")


def finish(command: str, status: int) -> NoReturn:
    """Exit with `status` once all is written; with 2 and a line where it cannot be."""
    if trouble := flush():
        say(f"{command}: cannot write the answer: {trouble}")
    sys.exit(2 if trouble else status)


def flush() -> str:
    """Write what was printed, and return what hindered it, or "".

    A reader who has enough is no hindrance.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # What is left goes nowhere: Python would try once more at its end, and
        # complain.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return ""
        return error.strerror or str(error)
    return ""


def interrupted(command: str, hint: str = "") -> NoReturn:
    """Say that the command was interrupted, and exit at once.

    Threads that compile do not stop, and jaxlib may crash as it is torn down.
    """
    say(": ".join(filter(None, [command, "interrupted", hint])))
    with suppress(ValueError):
        flush()
    os._exit(130)


def say(line: str) -> None:
    """A line on stderr, if anybody hears it."""
    with suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def interruptible(work: Callable[[], T]) -> T:
    """Do `work` in a thread, so that Ctrl-C is heard: compiling holds signals back."""
    import jax

    x64 = bool(jax.config.jax_enable_x64)  # type: ignore[attr-defined]

    def run() -> T:
        with jax.enable_x64(x64):  # a setting of each thread
            return work()

    return ThreadPoolExecutor(1).submit(run).result()
