"""A worker that is several processes: one asks, all compute the same chunks."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from bcgc_jax.handout.chunk import Chunk


class Share(Protocol):
    """What a group needs of the share of its first process."""

    @property
    def num_workers(self) -> int: ...

    @property
    def num_chunks(self) -> int: ...

    @property
    def held(self) -> tuple[Chunk, ...]: ...

    @property
    def own(self) -> tuple[Chunk, ...]: ...

    def step(
        self,
        step: int,
        loads: Iterable[float] | None = None,
        present: Iterable[int] | None = None,
    ) -> Iterator[Chunk]:
        """The chunks of the worker, one by one."""


class GroupShare:
    """A share that all processes of a worker have; made by `Share.for_group`, and by
    `follow`.

    Args:
      broadcast: gives all of the group the value that its first process passes; the
        others pass None. It carries what can be pickled.
      share: of the first process; None in the others.

    Attributes:
      num_workers, num_chunks, held, own: as those of `Share`.
    """

    def __init__(
        self, broadcast: Callable[[Any], Any], share: Share | None = None
    ) -> None:
        self._broadcast = broadcast
        self._share = share
        seat = None
        if share is not None:
            seat = share.num_workers, share.num_chunks, share.held, share.own
        self.num_workers, self.num_chunks, self.held, self.own = broadcast(seat)

    def step(
        self,
        step: int,
        loads: Iterable[float] | None = None,
        present: Iterable[int] | None = None,
    ) -> Iterator[Chunk]:
        """The chunks of the worker, the same in all of its group; all raise what the
        first raises.

        A chunk is done when the first process asks for the next one: its collectives
        have ended.
        """
        chunks = None
        if self._share is not None:
            chunks = self._share.step(step, loads, present)
        while (chunk := self._next(chunks)) is not None:
            yield chunk

    def _next(self, chunks: Iterator[Chunk] | None) -> Chunk | None:
        """The next chunk in the whole group."""
        following: Any = None
        try:
            if chunks is not None:
                following = next(chunks, None)
        except Exception as error:
            following = error
        following = self._broadcast(following)
        if isinstance(following, Exception):
            raise following
        if following is None:
            return None
        return Chunk(*following)


def follow(broadcast: Callable[[Any], Any]) -> GroupShare:
    """The share of a group in a process that is not its first one."""
    return GroupShare(broadcast)
