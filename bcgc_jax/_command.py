"""The first moments of the command `bcgc`: imported before JAX, whose imports take a second.

Nothing happens where the package is imported by anything else. (A script beside the package would not have to
ask, and would be a second package.)
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any


def begin() -> None:
    """In the command's own process: Ctrl-C ends it without a traceback, and XLA keeps its log to itself."""
    if not _is_command():
        return
    # What XLA thinks of constants, for example, is not for the screen; it is read by the imports.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def imported() -> None:
    """From here on Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    return Path(sys.argv[0]).stem == "bcgc" or sys.orig_argv[1:3] == ["-m", "bcgc_jax"]


def _leave(*_: Any) -> None:
    os.write(2, b"bcgc: interrupted\n")
    os._exit(130)


begin()
