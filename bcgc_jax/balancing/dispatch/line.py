"""A line between two programs: frames of JSON, after a greeting that shows that both
have the key.

Whoever has called says first what the other end's random number and its own one are
with the key (HMAC of SHA-256); the other answers in kind. The key itself is never sent.
"""

import hashlib
import hmac
import json
import secrets
import socket
import struct
from collections.abc import Iterator
from typing import Any

# Bytes of a message at most.
MOST = 2**16
# Bytes of a random number.
NONCE = 32
GREETING = NONCE + hashlib.sha256().digest_size
_LENGTH = struct.Struct("!I")
_JSON = json.JSONEncoder(separators=(",", ":"))
# Seconds until a line on which nothing comes is probed, between probes, and how many
# are not answered; and milliseconds that what was sent may remain without an
# acknowledgement, which the kernel of a stopped process still sends. So a machine that
# has vanished is noticed after 20 s, and a network may fail for almost as long.
_PROBES = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 20_000,
}


def framed(message: Any) -> bytes:
    """A message with its length before it.

    >>> Frames().feed(framed([1, None]) + framed([2])[:3])
    [[1, None]]
    """
    data = _JSON.encode(message).encode()
    return _LENGTH.pack(len(data)) + data


class Frames:
    """Bytes as they come, and the messages that are whole."""

    def __init__(self) -> None:
        self._unread = b""

    def feed(self, data: bytes) -> list[Any]:
        """Raises ValueError where a message is too long, or no JSON."""
        self._unread += data
        return list(self._whole())

    def _whole(self) -> Iterator[Any]:
        while len(self._unread) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._unread)
            if length > MOST:
                raise ValueError(f"a message of {length} bytes, for {MOST} at most")
            end = _LENGTH.size + length
            if len(self._unread) < end:
                return
            text = self._unread[_LENGTH.size : end].decode()
            self._unread = self._unread[end:]
            yield json.loads(text)


def proof(key: bytes, side: bytes, nonce: bytes, other_nonce: bytes) -> bytes:
    """The proof that a side has the key: an HMAC of both nonces, its own first."""
    return hmac.digest(key, side + nonce + other_nonce, "sha256")


def greeted(key: bytes, nonce: bytes, greeting: bytes) -> bytes:
    """The answer to a caller's greeting; ValueError if it has another key."""
    other_nonce = greeting[:NONCE]
    digest = greeting[NONCE:]
    if not hmac.compare_digest(digest, proof(key, b"calls", other_nonce, nonce)):
        raise ValueError("it has another key")
    return proof(key, b"answers", nonce, other_nonce)


def probe(line: socket.socket) -> None:
    """Let a line end 20 seconds after the machine at its other end has vanished."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES.items():
        # Systems without these names have defaults of their own, often two hours.
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class TcpLine:
    """The end that calls: it asks, and waits for the answer.

    Args:
      address: host and port.
      key: that both ends have.

    Raises ConnectionError where nobody answers there, or another program does.
    """

    def __init__(
        self, address: tuple[str, int], key: bytes, timeout: float = 10.0
    ) -> None:
        self._place = f"{address[0]}:{address[1]}"
        self._socket = socket.create_connection(address, timeout=timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        probe(self._socket)
        self._file = self._socket.makefile("rb")
        try:
            self._greet(key)
        except TimeoutError:
            self.close()
            raise ConnectionError(
                f"{self._place} does not answer: another program?"
            ) from None
        except BaseException:
            self.close()
            raise
        self._socket.settimeout(None)

    def _greet(self, key: bytes) -> None:
        other_nonce = self._read(NONCE)
        nonce = secrets.token_bytes(NONCE)
        self._socket.sendall(nonce + proof(key, b"calls", nonce, other_nonce))
        digest = self._read(hashlib.sha256().digest_size)
        if not hmac.compare_digest(digest, proof(key, b"answers", other_nonce, nonce)):
            raise ConnectionError("another program listens there")

    def ask(self, message: Any) -> Any:
        """The answer, when it comes; ConnectionError if the other end is gone."""
        try:
            self.send(message)
            return self.receive()
        except OSError as error:
            self.close()
            if isinstance(error, ConnectionError):
                raise
            # Its machine has vanished, or the way to it.
            raise ConnectionError(
                f"the other end of the line, {self._place}, does not answer: {error}"
            ) from error
        except BaseException:
            self.close()  # else the next question gets the answer to this one
            raise

    def send(self, message: Any) -> None:
        if self._file.closed:
            raise ConnectionError("this end of the line is closed")
        self._socket.sendall(framed(message))

    def receive(self) -> Any:
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return json.loads(self._read(length).decode())

    def fileno(self) -> int:
        """To wait for several lines."""
        return self._socket.fileno()

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _read(self, count: int) -> bytes:
        data = self._file.read(count)
        if len(data) < count:
            raise ConnectionError(
                f"the other end of the line, {self._place}, is gone, or refuses the key"
            )
        return data
