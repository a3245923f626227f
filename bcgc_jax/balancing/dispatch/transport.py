"""What carries questions to a coordinator and answers back: TCP, or this process's
memory.

A transport carries data, whatever JSON has. To add one, write a class with `listen` and
`connect`.
"""

import collections
import math
import queue
import threading
import time
from typing import Any, NamedTuple, Protocol

from bcgc_jax.balancing.dispatch.line import TcpLine
from bcgc_jax.balancing.dispatch.server import LONGEST, Answers, Reply, Server


class Line(Protocol):
    """A worker's end."""

    def ask(self, message: Any) -> Any:
        """The answer, when it comes; ConnectionError if the other end is gone."""

    def send(self, message: Any) -> None:
        """Say what has no answer, and do not wait; ConnectionError as for `ask`."""

    def close(self) -> None:
        """Leave."""


class Listening(Protocol):
    """A coordinator's end: it passes each question on, and when a line has ended.

    Attributes:
      address: host and port, for `connect`.
    """

    address: tuple[str, int]

    def close(self) -> None:
        """Nobody is listened to from now on; whoever waits has a ConnectionError."""


class Transport(Protocol):
    """How workers reach a coordinator."""

    def listen(self, answers: Answers) -> Listening:
        """Pass on what is asked; call `answers.look` after it, and when due."""

    def connect(self, address: tuple[str, int]) -> Line:
        """ConnectionRefusedError if nobody listens yet; OSError if none will."""


class Tcp(NamedTuple):
    """Over a network, to whoever has the key: at this host, at any free port if 0."""

    host: str = "127.0.0.1"
    port: int = 0
    key: bytes = b""

    def listen(self, answers: Answers) -> Server:
        return Server(answers, self.host, self.port, self.key)

    def connect(self, address: tuple[str, int]) -> TcpLine:
        return TcpLine(address, self.key)


class Memory:
    """Within a process: workers are its threads or devices, and may ask from any
    thread.

    Whoever asks looks what is next, so most answers are there at once, without another
    thread.

    >>> from bcgc_jax.balancing.dispatch import join, serve
    >>> memory = Memory()
    >>> with serve(1, 1, chunks=3, transport=memory) as coordinator:
    ...     with join(coordinator.address, 0, transport=memory) as share:
    ...         [chunk.number for chunk in share.step(0)]
    [0, 1, 2]
    """

    def __init__(self) -> None:
        self._listening: _Within | None = None

    def listen(self, answers: Answers) -> "_Within":
        if self._listening is not None and not self._listening.is_closed:
            raise OSError(
                "a coordinator listens in this memory already: take another Memory()"
            )
        self._listening = _Within(answers)
        return self._listening

    def connect(self, address: tuple[str, int]) -> "_MemoryLine":
        if self._listening is None or self._listening.is_closed:
            raise ConnectionRefusedError("no coordinator listens in this memory")
        return _MemoryLine(self._listening)


class _Within:
    """Questions are answered in the threads that ask; another looks when due."""

    address = ("memory", 0)

    def __init__(self, answers: Answers) -> None:
        self.is_closed = False
        self._answers = answers
        self._turn = threading.Condition()
        self._lines: set[Reply] = set()
        # What has no answer. A garbage collection may send it in the middle of any
        # call, so it is heard later.
        self._sent: collections.deque[tuple[Any, Reply]] = collections.deque()
        self._due = math.inf
        self._wakes = math.inf  # when the other thread does
        threading.Thread(
            target=self._watch, name="hands out chunks", daemon=True
        ).start()

    def close(self) -> None:
        with self._turn:
            self.is_closed = True
            self._turn.notify()
            for reply in self._lines:
                reply(None)
            self._lines.clear()

    def ask(self, message: Any, reply: Reply) -> None:
        """ConnectionError where that is nonsense."""
        with self._turn:
            if reply not in self._lines:
                raise ConnectionError(
                    "the coordinator has ended, or this line is closed"
                )
            self._hear_sent()
            try:
                self._answers.asked(message, reply)
            except ValueError as error:
                raise ConnectionError(
                    f"the coordinator refuses the line: {error}"
                ) from error
            self._look()

    def send(self, message: Any, reply: Reply) -> None:
        self._sent.append((message, reply))
        with self._turn:
            self._turn.notify()

    def enter(self, reply: Reply) -> None:
        with self._turn:
            self._lines.add(reply)

    def leave(self, reply: Reply) -> None:
        with self._turn:
            if reply in self._lines:
                self._lines.discard(reply)
                self._answers.left(reply)
                self._look()
                reply(None)

    def _hear_sent(self) -> None:
        while self._sent:
            message, reply = self._sent.popleft()
            if reply in self._lines:
                self._answers.asked(message, reply)

    def _look(self) -> None:
        self._due = time.monotonic() + self._answers.look()
        if self._due < self._wakes:
            self._turn.notify()

    def _watch(self) -> None:
        with self._turn:
            while not self.is_closed:
                now = time.monotonic()
                if self._sent or self._due <= now:
                    self._hear_sent()
                    self._look()
                else:
                    self._wakes = min(self._due, now + LONGEST)
                    self._turn.wait(self._wakes - now)


class _MemoryLine:
    def __init__(self, listening: _Within) -> None:
        self._listening = listening
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reply = self._answers.put
        listening.enter(self._reply)

    def ask(self, message: Any) -> Any:
        try:
            self._listening.ask(message, self._reply)
            answer = self._answers.get()
            if answer is None:
                raise ConnectionError(
                    "the coordinator has ended, or this line was closed"
                )
        except BaseException:
            self.close()  # else the next question gets the answer to this one
            raise
        return answer

    def send(self, message: Any) -> None:
        self._listening.send(message, self._reply)

    def close(self) -> None:
        self._listening.leave(self._reply)
