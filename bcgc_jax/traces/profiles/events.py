"""Read the events of a Chrome trace (JSON, also gzipped) in constant memory."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

_DECODE = json.JSONDecoder(strict=False).raw_decode
_BETWEEN = re.compile(r"[\s,]*")
_FIRST = re.compile(r'"traceEvents"\s*:\s*\[|^\s*\[')
# Number of characters that are read at once. More are only held if an event is longer.
_WINDOW = 1 << 20
# Maximum number of characters before the first event.
_HEAD = 1 << 24
_CUT_OFF = (
    "is truncated. Copy it again. Events are sorted by thread, not by time, so no step "
    "is complete."
)


class Event(NamedTuple):
    """A span of time (phase "X"), or metadata (phase "M").

    Attributes:
      phase: Phase in the file.
      name: Name in the file.
      category: Category in the file.
      begin: Begin in seconds.
      end: End in seconds.
      process: Number or name of the process.
      arguments: Arguments in the file.
    """

    phase: str
    name: str
    category: str
    begin: float
    end: float
    process: Any
    arguments: dict[str, Any]


class Events:
    """Iterate over the spans and the metadata of a file.

    Attributes:
      path: Path of the file.
      head: Entry "distributedInfo" of the file, if it is before the events. Empty
        before the iteration.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.head: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Event]:
        """Yield the events of the file.

        Raises:
          ValueError: If the file has no events, has invalid events, or is truncated.
        """
        with open(self.path, "rb") as file:
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            content: Any = file
            if packed:
                content = gzip.GzipFile(fileobj=file)
            text = _Text(io.TextIOWrapper(content, "utf-8", errors="replace"))
            try:
                self._read_head(text)
                for event in _decoded(text):
                    if read := _read(event, self.path):
                        yield read
            except (EOFError, zlib.error, gzip.BadGzipFile):
                raise ValueError(f"{self.path} {_CUT_OFF}") from None
            except RecursionError:
                raise ValueError(
                    f"{self.path} has an event that is nested too deeply, so no "
                    "profiler has written it. Remove the file."
                ) from None

    def _read_head(self, text: "_Text") -> None:
        while not (first := _FIRST.search(text.buffer)):
            if len(text.buffer) > _HEAD or not text.refill():
                raise ValueError(f"{self.path} has no entry `traceEvents`")
        before = text.buffer[: first.end()]
        if named := re.search(r'"distributedInfo"\s*:\s*', before):
            said = _DECODE(before, named.end())[0]
            self.head["distributedInfo"] = said if isinstance(said, dict) else {}
        text.at = first.end()


def _read(event: Any, path: str) -> Event | None:
    """Return a span or metadata, or None for other events, such as arrows."""
    # This function must be fast, because files have about a million events.
    try:
        phase = event.get("ph")
        if phase != "M" and (phase != "X" or "dur" not in event):
            return None
        begin = 1e-6 * float(event.get("ts", 0.0))
        end = begin + 1e-6 * float(event.get("dur", 0.0))
        arguments = event.get("args", {})
        if not isinstance(arguments, dict):
            raise TypeError
        name, category = str(event["name"]), str(event.get("cat", ""))
        return Event(phase, name, category, begin, end, event.get("pid"), arguments)
    except (AttributeError, KeyError, TypeError, ValueError):
        odd = json.dumps(event)[:80]
        raise ValueError(
            f"{path} has an event that no profiler writes: {odd}. Remove the file."
        ) from None


class _Text:
    """A window on a text. The unused characters of `buffer` begin at index `at`."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self.file = file
        self.buffer = ""
        self.at = 0

    def refill(self) -> bool:
        new = self.file.read(_WINDOW)
        self.buffer = self.buffer[self.at :] + new
        self.at = 0
        return bool(new)


def _decoded(text: _Text) -> Iterator[dict[str, Any]]:
    while True:
        between = _BETWEEN.match(text.buffer, text.at)
        assert between is not None
        text.at = between.end()
        if text.buffer.startswith("]", text.at):
            return
        try:
            event, text.at = _DECODE(text.buffer, text.at)
        except ValueError:  # The window may end within the event.
            if not text.refill():
                raise EOFError from None
        else:
            yield event
