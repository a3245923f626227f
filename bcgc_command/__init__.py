"""The script `bcgc`: no part of `bcgc_jax`, whose imports take a second that may be interrupted too."""

import os
import signal
from typing import Any


def main() -> None:
    """Run `bcgc`."""
    # XLA's own log, such as what it thinks of constants, is not for the screen; it is read by the imports.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heard:
        signal.signal(signal.SIGINT, _leave)
    from bcgc_jax.cli import main as run

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(*_: Any) -> None:
    os.write(2, b"bcgc: interrupted\n")
    os._exit(130)
