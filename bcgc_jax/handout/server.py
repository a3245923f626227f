"""The end that is called: a thread that listens, and passes what workers ask to whoever answers."""

import asyncio
import contextlib
import math
import secrets
import threading
from collections.abc import Callable
from typing import Any, Protocol

from bcgc_jax.handout.line import GREETING, NONCE, Frames, framed, greeted, probe

# Seconds within which whoever calls has to show that it has the key.
_GREETED_IN = 5.0

Reply = Callable[[Any], None]


class Answers(Protocol):
    """Who answers. Both are called in the server's thread."""

    def asked(self, message: Any, reply: Reply) -> None:
        """A message has come. It may be replied to at once or later, in this thread.

        Raises ValueError where it is nonsense: the line is closed then.
        """

    def left(self, reply: Reply) -> None:
        """The line of whoever was replied to by this has ended."""

    def look(self) -> float:
        """Do what time has brought; return seconds until the next look, infinity for never."""


class Server:
    """Listens at `address`, by default a free port of this machine alone, to whoever has the `key`.

    >>> from bcgc_jax.handout.line import Line
    >>> class Echo:
    ...     def asked(self, message, reply):
    ...         reply(message)
    ...
    ...     def left(self, reply):
    ...         pass
    ...
    ...     def look(self):
    ...         return math.inf
    >>> server = Server(Echo())
    >>> line = Line(server.address, server.key)
    >>> line.ask(["anybody there?"])
    ['anybody there?']
    >>> line.close(), server.close()
    (None, None)
    """

    def __init__(
        self, answers: Answers, host: str = "127.0.0.1", port: int = 0, key: bytes | None = None
    ) -> None:
        self.answers = answers
        self.key = secrets.token_bytes(32) if key is None else key
        self._loop = asyncio.new_event_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._looks = False  # soon
        self._lines: set[_Called] = set()
        run = self._loop.run_forever
        self._thread = threading.Thread(target=run, name="hands out chunks", daemon=True)
        self._thread.start()
        listen = self._loop.create_server(lambda: _Called(self), host, port)
        listening = asyncio.run_coroutine_threadsafe(listen, self._loop)
        try:
            self._listening = listening.result()
        except OSError:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            raise
        self.address: tuple[str, int] = self._listening.sockets[0].getsockname()[:2]

    def touch(self, first: Callable[[], None] | None = None) -> None:
        """From any thread: have a look, and do something in the server's thread before."""
        # closed by another thread: nobody waits for an answer
        with contextlib.suppress(RuntimeError):
            if first is not None:
                self._loop.call_soon_threadsafe(first)
            self._loop.call_soon_threadsafe(self.look)

    def close(self) -> None:
        """Nobody is listened to from now on."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._end)
            self._thread.join()
            self._loop.close()

    def look_soon(self) -> None:
        """In the server's thread, when all is heard that has come: so many are answered at once."""
        if not self._looks:
            self._looks = True
            self._loop.call_soon(self.look)

    def look(self) -> None:
        """Look now, in the server's thread, and set a timer for the next look."""
        self._looks = False
        after = self.answers.look()
        if after == math.inf:
            return
        if self._timer is not None:
            # A timer that is too early stays: that is cheaper than a new one each time.
            if self._loop.time() < self._timer.when() <= self._loop.time() + after:
                return
            self._timer.cancel()
        self._timer = self._loop.call_later(after, self.look)

    def _end(self) -> None:
        self._listening.close()
        for line in list(self._lines):
            line.abort()
        self._loop.call_soon(self._loop.stop)


class _Called(asyncio.Protocol):
    """A line that somebody has called on."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._nonce = secrets.token_bytes(NONCE)
        self._greeting: bytes | None = b""  # as far as it is here; None once it has been answered
        self._frames = Frames()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        probe(transport.get_extra_info("socket"))
        self._server._lines.add(self)
        self._timer = asyncio.get_running_loop().call_later(_GREETED_IN, self.end)
        transport.write(self._nonce)

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._server._lines.discard(self)
        self._server.answers.left(self._reply)
        self._server.look_soon()

    def data_received(self, data: bytes) -> None:
        try:
            if self._greeting is not None:
                data = self._greet(data)
            for message in self._frames.feed(data):
                self._server.answers.asked(message, self._reply)
        except (ValueError, RecursionError):  # nonsense harms nobody else
            self.end()
            return
        self._server.look_soon()

    def end(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        """At once, also where the other end does not take what was written."""
        self._transport.abort()

    def _greet(self, data: bytes) -> bytes:
        """What came after the greeting."""
        assert self._greeting is not None
        self._greeting += data
        if len(self._greeting) < GREETING:
            return b""
        greeting = self._greeting[:GREETING]
        rest = self._greeting[GREETING:]
        self._transport.write(greeted(self._server.key, self._nonce, greeting))
        self._greeting = None
        self._timer.cancel()
        return rest

    def _reply(self, message: Any) -> None:
        self._transport.write(framed(message))
