"""The end that is called: a thread listens, and passes on what workers ask."""

import contextlib
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from bcgc_jax.balancing.dispatch.line import (
    GREETING,
    MOST,
    NONCE,
    Frames,
    framed,
    greeted,
    probe,
)

# Seconds within which whoever calls has to show that it has the key.
_GREETED_IN = 5.0
# Seconds until another line is taken, where one could not be: others wait as long.
_AGAIN = 0.01
# Seconds after which it is looked anyway: neither a selector nor a lock takes a year.
LONGEST = 3600.0

Reply = Callable[[Any], None]


class Answers(Protocol):
    """Who answers. All are called one after another, never two at once."""

    def asked(self, message: Any, reply: Reply) -> None:
        """A message has come. It may be replied to at once or later, within one of
        these calls.

        Raises ValueError where it is nonsense: the line is closed then.
        """

    def left(self, reply: Reply) -> None:
        """The line of whoever was replied to by this has ended."""

    def look(self) -> float:
        """Do what time has brought; return seconds until the next look, or inf."""


class Server:
    """Listens at `address` to whoever has the `key`; port 0 is a free one.

    Raises OSError where it cannot.

    >>> import math
    >>> from bcgc_jax.balancing.dispatch.line import TcpLine
    >>> class Echo:
    ...     def asked(self, message, reply):
    ...         reply(message)
    ...
    ...     def left(self, reply):
    ...         pass
    ...
    ...     def look(self):
    ...         return math.inf
    >>> server = Server(Echo(), "127.0.0.1", 0, b"key")
    >>> line = TcpLine(server.address, b"key")
    >>> line.ask(["anybody there?"])
    ['anybody there?']
    >>> line.close(), server.close()
    (None, None)
    """

    def __init__(self, answers: Answers, host: str, port: int, key: bytes) -> None:
        self.answers = answers
        self.key = key
        self.lines: set[_Called] = set()
        # Lines without a greeting, and until when they may be; the first one first.
        self.ungreeted: dict[_Called, float] = {}
        self.selector = selectors.DefaultSelector()
        self._due = 0.0
        self._is_closed = False
        self._listening = _listening(host, port)
        self.address: tuple[str, int] = self._listening.getsockname()[:2]
        self._woken, self._waker = socket.socketpair()
        for end, then in ((self._listening, self._accept), (self._woken, self._wake)):
            end.setblocking(False)
            self.selector.register(end, selectors.EVENT_READ, then)
        self._thread = threading.Thread(
            target=self._run, name="hands out chunks", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Nobody is listened to from now on."""
        self._is_closed = True
        # It may have ended already, and the end of its line with it.
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")
        self._thread.join()

    def _run(self) -> None:
        """All that has come is heard before a look: so many are answered at once."""
        try:
            while not self._is_closed:
                for key, _ in self.selector.select(self._wait()):
                    key.data()
                self._due = time.monotonic() + self.answers.look()
        finally:
            for line in self.lines:
                line.close()
            for end in (self._listening, self._woken, self._waker):
                end.close()
            self.selector.close()

    def _wait(self) -> float:
        now = time.monotonic()
        while self.ungreeted and min(self.ungreeted.values()) <= now:
            next(iter(self.ungreeted)).end()
        return max(0.0, min(self._due, now + LONGEST, *self.ungreeted.values()) - now)

    def _accept(self) -> None:
        try:
            called, _ = self._listening.accept()
            _Called(self, called)
        except OSError:
            # The caller is gone, or too many files are open: a selector would call
            # this again at once.
            time.sleep(_AGAIN)

    def _wake(self) -> None:
        self._woken.recv(MOST)


def _listening(host: str, port: int) -> socket.socket:
    """IPv4 where the host has that too."""
    addresses = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)
    families = {family for family, *_ in addresses}
    family = socket.AF_INET
    if socket.AF_INET not in families:
        family = addresses[0][0]
    return socket.create_server((host, port), family=family)


class _Called:
    """A line that somebody has called on."""

    def __init__(self, server: Server, called: socket.socket) -> None:
        self._server = server
        self._socket = called
        self._nonce = secrets.token_bytes(NONCE)
        # As far as it is here; None once it has been answered.
        self._greeting: bytes | None = b""
        self._frames = Frames()
        self._unsent = b""
        called.setblocking(False)
        called.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        probe(called)
        server.lines.add(self)
        server.ungreeted[self] = time.monotonic() + _GREETED_IN
        server.selector.register(called, selectors.EVENT_READ, self._ready)
        self._send(self._nonce)

    def reply(self, message: Any) -> None:
        self._send(framed(message))

    def end(self) -> None:
        self._server.selector.unregister(self._socket)
        self._server.lines.discard(self)
        self._server.ungreeted.pop(self, None)
        self.close()
        self._server.answers.left(self.reply)

    def cut(self) -> None:
        """It ends as if the other end had gone."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()

    def _ready(self) -> None:
        """Something has come, or what was not sent can be."""
        if self not in self._server.lines:  # it has ended since
            return
        if self._unsent:
            self._send(b"")
        try:
            data = self._socket.recv(MOST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            if not data:
                raise ValueError("the other end is gone")
            if self._greeting is not None:
                data = self._greet(data)
            for message in self._frames.feed(data):
                self._server.answers.asked(message, self.reply)
        except (ValueError, RecursionError):  # nonsense harms nobody else
            self.end()

    def _greet(self, data: bytes) -> bytes:
        """What came after the greeting."""
        assert self._greeting is not None
        self._greeting += data
        if len(self._greeting) < GREETING:
            return b""
        greeting = self._greeting[:GREETING]
        remainder = self._greeting[GREETING:]
        self._send(greeted(self._server.key, self._nonce, greeting))
        self._greeting = None
        del self._server.ungreeted[self]
        return remainder

    def _send(self, data: bytes) -> None:
        """Send what can be sent now, the rest when the other end takes it."""
        waited = bool(self._unsent)
        data = self._unsent + data
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:  # it is gone, as is read next
            sent = len(data)
        self._unsent = data[sent:]
        if len(self._unsent) > MOST:  # it asks, and hears nothing
            self.cut()
        if waited != bool(self._unsent) and self in self._server.lines:
            writes = 0
            if self._unsent:
                writes = selectors.EVENT_WRITE
            self._server.selector.modify(
                self._socket, selectors.EVENT_READ | writes, self._ready
            )
