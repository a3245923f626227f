"""What a scheme is, and what it needs of a log to be possible there."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from bcgc_jax.balancing.asking import Asking

if TYPE_CHECKING:
    import numpy as np

    from bcgc_jax.balancing.steps import LogRule, Steps


class Costs(NamedTuple):
    """What work sharing costs beside the passes.

    Attributes:
      asking: of a question for each chunk.
      of_chunk: seconds of a chunk, in its recorded seconds, that do not depend on its
        size: each of the pieces into which the last chunk is cut takes them anew.
    """

    asking: Asking = Asking()
    of_chunk: float = 0.0


FREE = Costs()


class Resources(NamedTuple):
    """What the workers of a log can do.

    Attributes:
      num_workers: N.
      stored_subsets: the most that a worker stores; None for all.
      know_lengths: whether the lengths of chunks are predicted before the step.
      costs: of work sharing.
      lock_step: whether chunk k of all workers is computed together: then all have as
        many.
      know_speeds: whether the log has seconds, and not lengths alone.
      hosts: that of each worker, by number, where any host is as likely to be slow as
        another; else None.
    """

    num_workers: int
    stored_subsets: int | None = None
    know_lengths: bool = False
    costs: Costs = FREE
    lock_step: bool = False
    know_speeds: bool = True
    hosts: tuple[int, ...] | None = None

    @property
    def most_subsets(self) -> int:
        """The most subsets that a worker stores."""
        if self.stored_subsets is None:
            return self.num_workers
        return min(self.stored_subsets, self.num_workers)

    @property
    def store_all(self) -> bool:
        return self.most_subsets == self.num_workers


class Scheme:
    """A way to spread a step's work, which plans on a log; those of `solvers` plan for
    a law too.

    Attributes:
      name: what `bcgc_jax.advise` and `bcgc_jax.solve` call it.
      advice: what to do, in words.
      need: what it needs, in words, whatever is planned.
      learns: whether it is planned on some steps and judged in others.
      by_chunk: whether it matters how a worker's seconds fall on its chunks.
      advisable: whether workers as they are get the gradient of all samples by it.
      asks: whether workers ask within a step.
      by_length: whether lengths of chunks must be known before the step.
      by_speed: whether it supposes that workers keep their speed.
      stores_all: whether any worker may be given any data, so that each stores all.
      equal_chunks: whether all chunks of a subset are of one size, where chunks are
        handed out.
      in_lock_step: whether each worker keeps its number of chunks, so that nobody waits
        for ever where they are computed together.
      of_lengths: whether lengths alone say what it saves, of workers of one speed.
    """

    name: str
    advice: str = ""
    need: ClassVar[str] = ""
    learns: ClassVar[bool] = True
    by_chunk: ClassVar[bool] = False
    advisable: ClassVar[bool] = False
    asks: ClassVar[bool] = False
    by_length: bool = False
    by_speed: ClassVar[bool] = False
    stores_all: ClassVar[bool] = False
    equal_chunks: bool = False
    in_lock_step: ClassVar[bool] = False
    of_lengths: ClassVar[bool] = False

    @classmethod
    def rows(cls, resources: Resources) -> "Iterable[Scheme]":
        """The schemes of this kind, the cheapest first; see `possible`."""
        return (cls(),)

    def possible(self, resources: Resources) -> bool:
        """Whether its workers end, store enough, and the log says when."""
        ends = self.in_lock_step or not resources.lock_step
        stored = resources.store_all or not self.stores_all
        lengths = resources.know_lengths or not self.by_length
        speeds = resources.know_speeds or self.of_lengths
        return ends and stored and lengths and speeds

    @property
    def instead(self) -> "Scheme | None":
        """What replaces it, under the same name, where that takes less time."""
        return None

    def needs(self, choice: Sequence[float]) -> str:
        """What it needs, in words, by plans with these numbers."""
        return self.need

    def stored_subsets(self, choice: Sequence[float], num_workers: int) -> int:
        """How many subsets a worker stores by plans with these numbers."""
        if self.stores_all:
            return num_workers
        return 1

    def plan_on(self, steps: "Steps", which: "np.ndarray") -> "LogRule":
        """The rule planned on the steps of `which` alone, `[S]` bool."""
        raise NotImplementedError(f'"{self.name}" plans on no log')

    def without_each(self, steps: "Steps", which: "np.ndarray") -> "Sequence[LogRule]":
        """The rules that are planned without each of the steps of `which` in turn.

        Empty where one step more or less hardly changes the plan.
        """
        return ()


def in_words(choice: Sequence[float]) -> str:
    """What was planned, such as "3 or 1".

    >>> in_words((3, 1)), in_words((2.0, 2.0))
    ('3 or 1', '2')
    """
    return " or ".join(f"{number:.3g}" for number in dict.fromkeys(choice))


def count_of(choice: Sequence[float], noun: str) -> str:
    """How many were planned, such as "1 or 3 workers".

    >>> count_of((1, 3), "worker"), count_of((1, 1), "worker")
    ('1 or 3 workers', '1 worker')
    """
    number = in_words(choice)
    return f"{number} {noun}{'' if number.endswith(' 1') or number == '1' else 's'}"
