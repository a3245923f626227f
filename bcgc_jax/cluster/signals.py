"""Ctrl-C, SIGTERM and SIGHUP while processes run: the one place that handles them."""

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_NUMBERS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_came: int | None = None
_listeners = 0


def _answers() -> dict[int, Any]:
    """The answers that can be set here, but for signals that the process ignores."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    answers = {number: signal.getsignal(number) for number in _NUMBERS}
    return {
        n: answer
        for n, answer in answers.items()
        if answer not in (None, signal.SIG_IGN)
    }


@contextlib.contextmanager
def _answered(answers: Mapping[int, Any]) -> Iterator[None]:
    before = {
        number: signal.signal(number, answer) for number, answer in answers.items()
    }
    try:
        yield
    finally:
        for number, answer in before.items():
            signal.signal(number, answer)


def _hear(number: int, frame: Any) -> None:
    global _came
    _came = number
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Each ends what goes on, contexts in order; answers of the caller's own stay."""
    global _came
    _came = None
    usual = (signal.SIG_DFL, signal.default_int_handler)
    with _answered(
        {n: _hear if answer in usual else answer for n, answer in _answers().items()}
    ):
        yield


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """A signal in here ends this, even if a collector swallows what it raises."""
    global _came, _listeners
    if not _listeners:
        _came = None
    _listeners += 1
    try:
        yield
        check()
    finally:
        _listeners -= 1


def check() -> None:
    """What every wait does now and then: raise again what was swallowed."""
    if _listeners and _came is not None:
        _hear(_came, None)


def set_status(error: SystemExit) -> None:
    """A call of Ray's that a signal interrupts passes on a status of its own."""
    if _came is not None and _came != signal.SIGINT:
        error.code = 128 + _came


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Signals are heard at the end of this: starting and ending processes cannot be
    undone halfway.

    Also those that somebody else answers in here, as Ray does while it starts: its
    error may be swallowed.
    """
    answers = _answers()
    if not answers:
        yield
        return
    receiver, sender = socket.socketpair()
    with receiver, sender:
        receiver.setblocking(False)
        sender.setblocking(False)
        before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        numbers = b""
        try:
            with _answered(dict.fromkeys(answers, lambda number, frame: None)):
                yield
        finally:
            signal.set_wakeup_fd(before)
            with contextlib.suppress(BlockingIOError):
                numbers = receiver.recv(4096)
            heard = [number for number in numbers if number in answers]
            if heard:
                signal.raise_signal(heard[0])
