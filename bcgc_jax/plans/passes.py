r"""What a worker ends before its next step begins: nobody can interrupt a computation.

A worker that hears of a step's end ends the pass that it has begun, over a subset of
the data for one block, and is late for the next step by its *overrun*. Who is done with
a pass just as the step ends has begun the next one. A worker that has done all its
tasks is free; so is one that still starts up, and one that would never end its pass,
which does not answer but computes nothing.

A worker's step is runs of equally long passes. Run r of worker w, of cycles C_r at its
end, is there at S_w + T_w C_r + c X_r, with c X_r what the link has sent by then.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from bcgc_jax._pytree import is_traced, pytree_dataclass, replace, static_field
from bcgc_jax.plans.worker import Cost, Tasks

# What the engine on processes does not interrupt, where samples are few: of
# microbatches, subsets and blocks.
UNIT = "subset"
# A further chunk costs as much as 20 to 60 samples, by `experiments.chunk_costs`, of
# dense networks and small convolutional ones. It saves a part of half a pass, which is
# lost when a step ends: in all least at some 256 samples a chunk. From 8 chunks on that
# part is small.
_SAMPLES_OF_A_CHUNK = 256
_MOST_CHUNKS = 8


@pytree_dataclass
class Passes:
    """Runs of equally long passes, in order, `[R, N]` each, or `[R, 1]` of workers that
    are alike.

    Attributes:
      end: cycles at the end of each run.
      length: cycles of a pass in it; 0 of what is one piece, such as sending a message.
      sent: what the link has sent at the end of each run, `[R]`, in cycle times; None
        without a link.
      runs: of each task.
      overlap: whether the link sends while the worker computes on. Then it keeps nobody
        from the next step.
    """

    end: Any
    length: Any
    sent: Any = None
    runs: int = static_field(default=1)
    overlap: bool = static_field(default=False)

    def of(self, unit: str) -> "Passes":
        """The same with passes over a `unit`.

        "chunk:C" is 1/C of a subset, "block" a task with its message.

        >>> tasks = Passes(np.array([[2.0], [8.0]]), np.array([[2.0], [3.0]]))
        >>> (
        ...     tasks.of("block").length.ravel().tolist(),
        ...     tasks.of("chunk:2").length.ravel().tolist(),
        ... )
        ([0.0, 0.0], [1.0, 1.5])
        """
        parts = parts_of(unit)
        if parts:
            return replace(self, length=self.length / parts)
        last = slice(self.runs - 1, None, self.runs)
        sent = None
        if self.sent is not None:
            sent = self.sent[last]
        return Passes(self.end[last], 0 * self.end[last], sent, overlap=self.overlap)

    def finish(self, begin: np.ndarray, times: np.ndarray) -> np.ndarray:
        """When each task is delivered, `[..., K, N]`, by who begins and works so,
        `[..., N]`.

        >>> passes = Passes(
        ...     np.array([[1.0], [3.0]]),
        ...     np.zeros((2, 1)),
        ...     np.array([2.0, 4.0]),
        ...     overlap=True,
        ... )
        >>> passes.finish(np.zeros(2), np.array([1.0, 3.0])).tolist()
        [[3.0, 5.0], [5.0, 11.0]]
        """
        tasks = self.of("block")
        done = times[..., None, :] * tasks.end
        if tasks.sent is None:
            return begin[..., None, :] + done
        sent = tasks.sent[:, None]
        if self.overlap:
            done = np.maximum.accumulate(
                done - np.concatenate([0 * sent[:1], sent[:-1]]), axis=-2
            )
        return begin[..., None, :] + done + sent

    def overrun(self, late: Any, starts: Any, times: Any, end: Any) -> Any:
        """How long each worker is busy after the `end` of a step, `[...]`, which it
        began `late`.

        `late`, start-ups and cycle times are `[..., N]`, in one unit. NumPy or JAX.

        >>> passes = Passes(np.ones((1, 1)), np.ones((1, 1)))
        >>> passes.overrun(
        ...     np.array([0.5, 0.0, 0.0]), 0.0, np.array([3.0, 4.0, 2.0]), np.array(2.0)
        ... ).tolist()
        [1.5, 2.0, 0.0]
        """
        xp = jnp if is_traced((self, late, starts, times)) else np
        begin = late + starts
        time = times[..., None, :]
        # Who never answers, of time inf, has done what takes no cycles.
        done = begin[..., None, :] + xp.where(self.end > 0, time, 0) * self.end
        if self.sent is not None and not self.overlap:
            done = done + self.sent[:, None]
        before = xp.concatenate([begin[..., None, :], done[..., :-1, :]], axis=-2)
        pass_time = xp.where(self.length > 0, time, 0) * self.length
        # Times that are equal but for rounding are one.
        eps = max(np.finfo(a.dtype).eps for a in (self.end, done))
        now = (end * (1 + 64 * eps))[..., None]
        ended = (now[..., None] - before) / xp.where(pass_time > 0, pass_time, 1)
        begun = xp.maximum(xp.floor(ended) + 1, 1)
        until = xp.minimum(before + pass_time * begun, done)
        until = xp.where(pass_time > 0, until, done)
        free = xp.min(xp.where(done > now[..., None], until, np.inf), axis=-2)
        free = xp.where(begin > now, late, free)
        # Inf: of who has done all, of who never answers, and of a step that never ends.
        return xp.where(xp.isfinite(free), xp.maximum(free - end[..., None], 0), 0)


def in_a_row(
    last: Callable[[np.ndarray, np.ndarray], np.ndarray],
    passes: Passes,
    starts: np.ndarray,
    times: np.ndarray,
) -> np.ndarray:
    """τ of steps in a row, the first fresh, `[S, ...]`, from starts and times,
    `[S, ..., N]`.

    `last` is τ of workers that begin and work so. In NumPy: a few thousand steps
    without compiling anything.

    Two workers who do both halves of the work begin the second one as the step ends,
    and are busy with it for as long again.

    >>> both = Passes(np.array([[1.0], [2.0]]), np.array([[1.0], [1.0]]))
    >>> in_a_row(
    ...     lambda begin, times: (begin + times).max(-1),
    ...     both,
    ...     np.zeros((4, 2)),
    ...     np.ones((4, 2)),
    ... )
    array([1., 2., 2., 2.])
    """
    late = np.zeros(times.shape[1:])
    ends = []
    for start, time in zip(starts, times, strict=True):
        end = last(late + start, time)
        late = passes.overrun(late, start, time, end)
        ends.append(end)
    return np.array(ends)


def parts_of(unit: str) -> int:
    """How many passes go over a subset; 0 where a whole task is one.

    >>> parts_of("subset"), parts_of("chunk:8"), parts_of("block")
    (1, 8, 0)
    """
    name, _, count = unit.partition(":")
    if not count and name in ("subset", "block"):
        return int(name == "subset")
    if name == "chunk" and count.isdecimal() and int(count):
        return int(count)
    raise ValueError(
        'unit must be "subset", "block" or "chunk:C" for C microbatches of a subset, '
        f'got "{unit}": it is what a worker does in one piece'
    )


def chunks_that_pay(num_samples: float) -> int:
    """Over how many chunks a pass of a subset of so many samples goes.

    >>> [chunks_that_pay(samples) for samples in (2.5, 1000, 1e6)]
    [1, 3, 8]
    """
    return int(max(min(num_samples // _SAMPLES_OF_A_CHUNK, _MOST_CHUNKS), 1))


def passes_in_order(sizes: Any, tasks: Tasks, cost: Cost, overlap: bool) -> Passes:
    """Of tasks, each of a block of its own, whose data are all of the one before,
    `[R, W]`.

    The subsets that the worker knows come first. A pass over a new one begins with the
    setup, and goes through the blocks before it.
    """
    xp = jnp if is_traced((sizes, tasks, cost)) else np
    data, share = (xp.asarray(a) for a in (tasks.data, tasks.share))
    size = xp.asarray(sizes)[xp.asarray(tasks.block)]
    task_size = size * share
    end = xp.cumsum(data * task_size, axis=-1)
    if cost.setup is None or cost.chain is None:
        ends = [end]
        lengths = [xp.broadcast_to(task_size, end.shape)]
    else:
        running = xp.maximum.accumulate if xp is np else jnp.maximum.accumulate
        met = running(xp.where(size > 0, data, 0), axis=-1)
        before = xp.concatenate([0 * met[..., :1], met[..., :-1]], axis=-1)
        upto = xp.cumsum(size)
        setup = xp.asarray(cost.setup)
        chain = xp.asarray(cost.chain)
        end = end + met * (setup + chain * upto)
        begun = xp.concatenate([0 * end[..., :1], end[..., :-1]], axis=-1)
        known_pass = task_size + chain * size  # over a subset that the worker knows
        new_pass = known_pass + (setup + chain * (upto - size))
        ends = [xp.maximum(end - (met - before) * new_pass, begun), end]
        lengths = [xp.broadcast_to(known_pass, end.shape), new_pass + 0 * end]
    sent = None
    if cost.sent is not None:
        send = xp.asarray(cost.sent) * size
        after = xp.cumsum(send)
        held = [after] * len(ends)
        if not overlap:  # a message is one piece, after the passes
            held = [*[after - send] * len(ends), after]
            ends = [*ends, end]
            lengths = [*lengths, 0 * end]
        sent = xp.stack(held, axis=-1).ravel()
    runs = len(ends)

    def rows(values: list[Any]) -> Any:
        """`[R, W]`, the runs of a task beside each other."""
        return xp.stack(values, axis=-1).reshape(-1, runs * size.shape[-1]).T

    return Passes(rows(ends), rows(lengths), sent, runs=runs, overlap=overlap)
