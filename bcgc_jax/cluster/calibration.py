r"""From what messages cost to what the planner asks for: cycle times, and the setup of a subset.

A worker computes block b at level n on m samples of each subset in

    T · m ((n+1) size_b + f new_b) seconds,

new_b the subsets that no task before has gone forward on; of a schedule, n = 0: a task is of one
subset. A cycle is what one coordinate of one sample takes, so T is in seconds; f, in the same
cycles, is the forward pass of a sample.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcgc_jax.cluster.rounds import Work
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import CodingPlan
from bcgc_jax.measured.traces import Trace


class Calibration(NamedTuple):
    """What measured work says of the workers.

    Attributes:
      cycle_times: seconds per cycle of each worker in each iteration, `[K, N]`.
      censored: whether the worker sent nothing, `[K, N]`: its time was longer than the one given.
      setup_cycles: f, cycles per sample and subset before the first coordinate.
      message_seconds: what a message costs however small it is; not in the cycle times.
    """

    cycle_times: np.ndarray
    censored: np.ndarray
    setup_cycles: float
    message_seconds: float


def calibrate(
    work: Sequence[Work],
    plan: CodingPlan | SharedPlan,
    num_samples: float,
    *,
    costs: Calibration | None = None,
) -> Calibration:
    """Cycle times, setup and cost of a message from `work` that was done under one `plan`.

    An iteration has M samples, `num_samples`. The costs, unless `costs` has them, are the least
    squares of the median seconds of each block and worker, none of them negative; a plan of one
    block cannot tell its setup from its coordinates: it has 0.

    A worker that sent nothing is taken to have been at its first block until the iteration ended,
    which is as long as the busiest worker computed. Leave out iterations in which one was replaced.

    Raises ValueError where there is no work, or that of another plan.

    >>> import jax
    >>> from bcgc_jax.coding.gradients import coding_plan
    >>> plan = coding_plan(jax.random.key(0), {"w": np.zeros(300)}, [200, 100])
    >>> slow = [Work(iteration=k, worker=w, block=0, seconds=2e-6 * 50 * 200) for k in (0,
    ...     1) for w in (0, 1)]
    >>> fast = [Work(iteration=k, worker=1, block=1, seconds=2e-6 * 100 * 100) for k in (0, 1)]
    >>> found = calibrate(slow + fast, plan, num_samples=100)
    >>> found.cycle_times.round(9).tolist(), round(found.setup_cycles)
    ([[2e-06, 2e-06], [2e-06, 2e-06]], 0)
    """
    plan = _with_blocks(plan)
    _, seconds = _seconds(work, plan)
    coordinates, setup = _cycles(plan, num_samples)
    done = np.isfinite(seconds)
    if costs is None:
        some = done.any(axis=0)
        typical = np.nanmedian(seconds[:, some], axis=0)
        columns = np.stack([coordinates[some], setup[some], np.ones(len(typical))], axis=1)
        if len(plan.blocks) == 1:
            columns = columns[:, :1]
        per_cycle, per_setup, message = _costs(columns, typical)
        setup_cycles = per_setup / per_cycle
    else:
        setup_cycles = costs.setup_cycles
        message = costs.message_seconds
    cycles = coordinates + setup_cycles * setup
    spent = np.sum(np.where(done, seconds - message, 0), axis=1)
    end = np.max(spent, axis=1, keepdims=True)
    sent = np.sum(np.where(done, cycles, 0), axis=1)
    silent = ~done.any(axis=1)
    times = np.where(silent, end / cycles[0], spent / np.where(silent, 1, sent))
    # A message that took less than messages do says that the cycle time is short, but not how
    # short.
    shortest = np.min(times[times > 0]) if np.any(times > 0) else 1.0
    return Calibration(np.maximum(times, shortest), silent, setup_cycles, message)


def work_trace(
    work: Sequence[Work],
    plan: CodingPlan | SharedPlan,
    num_samples: float,
    *,
    setup_cycles: float = 0.0,
) -> Trace:
    """What each worker had done by when in each iteration: the trace that `fit_start_up` takes.

    Loads are cycles, those of new subsets' forward passes, f = `setup_cycles`, included; seconds
    are those computed, block after block. So S is what an iteration costs a worker beyond that,
    whatever its blocks. Blocks after one that did not come are left out. Errors as in `calibrate`.

    >>> import jax
    >>> from bcgc_jax.coding.gradients import coding_plan
    >>> plan = coding_plan(jax.random.key(0), {"w": np.zeros(300)}, [200, 100])
    >>> work = [Work(iteration=7, worker=1, block=b, seconds=s) for b, s in ((0, 0.02), (1, 0.03))]
    >>> trace = work_trace(work, plan, num_samples=100)
    >>> trace.load.tolist(), trace.seconds.round(3).tolist()
    ([10000.0, 20000.0], [0.02, 0.05])
    """
    plan = _with_blocks(plan)
    iterations, seconds = _seconds(work, plan)
    coordinates, setup = _cycles(plan, num_samples)
    load = np.broadcast_to(np.cumsum(coordinates + setup_cycles * setup, axis=0), seconds.shape)
    spent = np.cumsum(seconds, axis=1)
    # A block without samples or coordinates is no load of its own.
    step, block, worker = np.nonzero(np.isfinite(spent) & (np.diff(load, axis=1, prepend=0) > 0))
    names = np.array([str(k) for k in iterations]), np.arange(plan.num_workers).astype(str)
    times = spent[step, block, worker]
    return Trace(*names, step, worker, times, np.zeros(times.size, bool), load[step, block, worker])


def _with_blocks(plan: CodingPlan | SharedPlan) -> CodingPlan:
    if isinstance(plan, SharedPlan):
        raise ValueError(
            'work sharing has chunks in place of blocks: measure with another plan, as "uncoded"'
        )
    return plan


def _seconds(work: Sequence[Work], plan: CodingPlan) -> tuple[list[int], np.ndarray]:
    """Iterations, and the seconds of each task in them, `[K, tasks, N]`, NaN if it did not come."""
    if not work:
        raise ValueError("no work was measured: take the `work` of a training or of gradients")
    iterations, step = np.unique([item.iteration for item in work], return_inverse=True)
    seconds = np.full((len(iterations), plan.num_tasks, plan.num_workers), np.nan)
    number = plan.numbers()
    for k, item in zip(step, work, strict=True):
        task = number.get((item.worker, item.block, item.subset))
        if task is None:
            raise ValueError(
                f"there is work of more than the {plan.num_workers} workers and {len(plan.blocks)} "
                "blocks of this plan: take that under one plan"
            )
        seconds[k, task, item.worker] = item.seconds
    return iterations.tolist(), seconds


def _cycles(plan: CodingPlan, num_samples: float) -> tuple[np.ndarray, np.ndarray]:
    """Cycles for coordinates, and samples of subsets new to the worker, `[tasks, N]` each."""
    coordinates, setup = np.zeros((2, plan.num_tasks, plan.num_workers))
    for w in range(plan.num_workers):
        passed: set[tuple[int, tuple[float, float]]] = set()
        for k, task in enumerate(plan.tasks(w)):
            block = plan.blocks[task.block]
            portion = (block.share[1] - block.share[0]) * num_samples / plan.num_workers
            subsets = {(j, block.share) for j in task.subsets}
            coordinates[k, w] = portion * len(subsets) * block.size
            setup[k, w] = portion * len(subsets - passed)
            passed |= subsets
    return coordinates, setup


def _costs(columns: np.ndarray, values: np.ndarray) -> list[float]:
    """Least squares with the first coefficient > 0 and all others ≥ 0, which are 0 if left out."""
    best = np.inf
    costs = np.zeros(3)
    # they differ by the number of coordinates
    scale = np.maximum(np.abs(columns).max(axis=0), 1e-300)
    for others in ([], [1], [2], [1, 2])[: 2 ** (columns.shape[1] - 1)]:
        chosen = [0, *others]
        matrix = (columns / scale)[:, chosen]
        solution = np.linalg.lstsq(matrix, values, rcond=None)[0]
        error = float(np.sum((matrix @ solution - values) ** 2))
        if solution[0] > 0 and solution.min() >= 0 and error < best * (1 - 1e-9):
            best = error
            costs = np.zeros(3)
            costs[chosen] = solution / scale[chosen]
    return costs.tolist()
