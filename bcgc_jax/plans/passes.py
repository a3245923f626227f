"""Model passes, which a worker completes even if the step ends before.

When a step ends, a worker completes the pass that it has begun: one block over one data
subset. It is late for the next step by its *overrun*. A worker that completes a pass
exactly at the end of the step has already begun the next one. A worker is free if it
has finished all its tasks, or is still starting up. A worker with infinite cycle time
never answers, and also counts as free.

A worker's step consists of runs of equally long passes. Let C_r be the cycles of worker
w up to the end of run r, and c X_r the sending time until then. The run ends at S_w +
T_w C_r + c X_r.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from bcgc_jax._pytree import is_traced, pytree_dataclass, replace, static_field
from bcgc_jax.plans.worker import Cost, Tasks

# The unit that worker processes do not interrupt if there are few samples. Possible
# units are microbatches, subsets and blocks.
UNIT = "subset"
# An additional chunk costs as much as 20 to 60 samples, by `experiments.chunk_costs`,
# for dense and small convolutional networks. It shortens the half pass that is lost on
# average when a step ends. The total is smallest at about 256 samples per chunk. More
# than 8 chunks save little.
_SAMPLES_OF_A_CHUNK = 256
_MOST_CHUNKS = 8


@pytree_dataclass
class Passes:
    """Describe runs of equally long passes, `[R, N]`, or `[R, 1]` if i.i.d.

    Attributes:
      end: Cycles up to the end of each run.
      length: Cycles per pass of a run. 0 if the run cannot be interrupted, such as
        sending a message.
      sent: Sending time up to the end of each run, `[R]`, in cycle times. None if
        sending takes no time.
      runs: Number of runs per task.
      overlap: Whether the link sends while the worker computes. Then sending does not
        delay the next step.
    """

    end: Any
    length: Any
    sent: Any = None
    runs: int = static_field(default=1)
    overlap: bool = static_field(default=False)

    def of(self, unit: str) -> "Passes":
        """Return the same work with passes over another `unit`.

        "chunk:C" is 1/C of a subset, and "block" is a task with its message.

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
        """Compute when each task is delivered, `[..., K, N]`.

        `begin` is when each worker begins, and `times` its cycle time, `[..., N]` each.

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
        """Compute how long each worker is busy after the `end` of a step, `[..., N]`.

        Args:
          late: Overrun of each worker from the step before, `[..., N]`.
          starts: Start-up times, `[..., N]`.
          times: Cycle times, `[..., N]`.
          end: End of the step, `[...]`.

        All times have one unit. Arrays may be from NumPy or JAX.

        >>> passes = Passes(np.ones((1, 1)), np.ones((1, 1)))
        >>> passes.overrun(
        ...     np.array([0.5, 0.0, 0.0]), 0.0, np.array([3.0, 4.0, 2.0]), np.array(2.0)
        ... ).tolist()
        [1.5, 2.0, 0.0]
        """
        xp = jnp if is_traced((self, late, starts, times)) else np
        begin = late + starts
        time = times[..., None, :]
        # A worker with infinite cycle time has still finished tasks without cycles.
        done = begin[..., None, :] + xp.where(self.end > 0, time, 0) * self.end
        if self.sent is not None and not self.overlap:
            done = done + self.sent[:, None]
        before = xp.concatenate([begin[..., None, :], done[..., :-1, :]], axis=-2)
        pass_time = xp.where(self.length > 0, time, 0) * self.length
        # Times that differ only by rounding count as equal.
        eps = max(np.finfo(a.dtype).eps for a in (self.end, done))
        now = (end * (1 + 64 * eps))[..., None]
        ended = (now[..., None] - before) / xp.where(pass_time > 0, pass_time, 1)
        begun = xp.maximum(xp.floor(ended) + 1, 1)
        until = xp.minimum(before + pass_time * begun, done)
        until = xp.where(pass_time > 0, until, done)
        free = xp.min(xp.where(done > now[..., None], until, np.inf), axis=-2)
        free = xp.where(begin > now, late, free)
        # `free` is inf if the worker has finished all tasks, never answers, or the step
        # never ends.
        return xp.where(xp.isfinite(free), xp.maximum(free - end[..., None], 0), 0)


def in_a_row(
    last: Callable[[np.ndarray, np.ndarray], np.ndarray],
    passes: Passes,
    starts: np.ndarray,
    times: np.ndarray,
) -> np.ndarray:
    """Compute τ of consecutive steps, `[S, ...]`, from times, `[S, ..., N]`.

    All workers are free at the beginning of the first step. `last` computes τ from when
    workers begin, and their cycle times. NumPy simulates a few thousand steps without
    compilation.

    In this example, both of two workers compute both halves of the work. When a step
    ends, they begin the second half, and are busy for as long again.

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
    """Return the number of passes over a subset; 0 if a whole task is one pass.

    >>> parts_of("subset"), parts_of("chunk:8"), parts_of("block")
    (1, 8, 0)
    """
    name, _, count = unit.partition(":")
    if not count and name in ("subset", "block"):
        return int(name == "subset")
    if name == "chunk" and count.isdecimal() and int(count):
        return int(count)
    raise ValueError(
        'unit must be "subset", "block" or "chunk:C" with C microbatches per subset, '
        f'got "{unit}". A worker does not interrupt such a unit.'
    )


def chunks_that_pay(num_samples: float) -> int:
    """Choose the number of chunks for a subset with `num_samples` samples.

    >>> [chunks_that_pay(samples) for samples in (2.5, 1000, 1e6)]
    [1, 3, 8]
    """
    return int(max(min(num_samples // _SAMPLES_OF_A_CHUNK, _MOST_CHUNKS), 1))


def passes_in_order(sizes: Any, tasks: Tasks, cost: Cost, overlap: bool) -> Passes:
    """Return the passes of tasks whose data include the earlier tasks' data.

    Each task is one block. Subsets that the worker has already used come first. A pass
    over a new subset begins with the setup, and goes through the blocks before the
    task's block.
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
        known_pass = (
            task_size + chain * size
        )  # over a subset that the worker has already used
        new_pass = known_pass + (setup + chain * (upto - size))
        ends = [xp.maximum(end - (met - before) * new_pass, begun), end]
        lengths = [xp.broadcast_to(known_pass, end.shape), new_pass + 0 * end]
    sent = None
    if cost.sent is not None:
        send = xp.asarray(cost.sent) * size
        after = xp.cumsum(send)
        held = [after] * len(ends)
        if not overlap:  # sending is one run after the passes
            held = [*[after - send] * len(ends), after]
            ends = [*ends, end]
            lengths = [*lengths, 0 * end]
        sent = xp.stack(held, axis=-1).ravel()
    runs = len(ends)

    def rows(values: list[Any]) -> Any:
        """Reshape to `[R, W]`, with the runs of a task next to each other."""
        return xp.stack(values, axis=-1).reshape(-1, runs * size.shape[-1]).T

    return Passes(rows(ends), rows(lengths), sent, runs=runs, overlap=overlap)
