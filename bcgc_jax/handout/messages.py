"""What a worker and whoever hands out chunks tell each other: data, never code."""

from typing import Any, NamedTuple

from bcgc_jax.steps.ledger import Chunk


class Question(NamedTuple):
    """A worker is free: what is next? Tickets and sums have numbers, all different within a step.

    So no two questions of a worker in a step are the same: one that is repeated has the same
    answer.

    Attributes:
      step: its number.
      worker, life: who asks, and which of its processes.
      ticket: of the chunk that it has done, or the number of the sum that it has sent; None at
        first.
      seconds: that it computed for that, without slowness on purpose.
    """

    step: int
    worker: int
    life: int
    ticket: int | None = None
    seconds: float = 0.0


class Answer(NamedTuple):
    """What becomes of the last gradient, and what is next: a chunk, a sum to send, or the end.

    Attributes:
      keep: the sum that the last gradient is added to; None: it is dropped.
      standing: the worker's sums that are still needed; others are forgotten.
      ticket, chunk: what to compute.
      send: the sum to send.
      over: whether the step is over.
    """

    keep: int | None = None
    standing: tuple[int, ...] = ()
    ticket: int | None = None
    chunk: Chunk | None = None
    send: int | None = None
    over: bool = False


def question_of(message: Any) -> Question:
    """The question of a decoded message; ValueError where it is none."""
    if not (isinstance(message, list) and len(message) == len(Question._fields)):
        raise ValueError("it is no question")
    step, worker, life, ticket, seconds = message
    whole = all(type(one) is int for one in (step, worker, life, 0 if ticket is None else ticket))
    if not whole or type(seconds) not in (int, float):
        raise ValueError("it is no question")
    return Question(step, worker, life, ticket, float(seconds))


def answer_of(message: Any) -> Answer:
    """The answer of a decoded message, with tuples in place of lists."""
    answer = Answer(*message)
    answer = answer._replace(standing=tuple(answer.standing))
    if answer.chunk is not None:
        subset, number = answer.chunk
        answer = answer._replace(chunk=(subset, number))
    return answer
