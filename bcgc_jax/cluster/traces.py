"""From the work of a training on processes to a trace of its workers' times."""

from collections.abc import Sequence

import numpy as np

from bcgc_jax.cluster.rounds import Work
from bcgc_jax.coding.chunks import SharedPlan
from bcgc_jax.coding.gradients import CodingPlan
from bcgc_jax.measured.traces import Trace


def work_trace(
    work: Sequence[Work],
    plan: CodingPlan | SharedPlan,
    num_samples: float,
    *,
    setup_cycles: float = 0.0,
) -> Trace:
    """What each worker had done by when in each iteration: for `advise` and
    `fit_start_up`.

    `work` was done under one `plan`, in iterations of M samples, `num_samples`. Block b
    at level n is m ((n+1) size_b + f new_b) cycles for m samples of each subset: f is
    `setup_cycles`, new_b the subsets that no block before has gone forward on; of a
    schedule, n = 0. Loads are the cycles up to the end of a block, and seconds those
    computed by then. So S of `fit_start_up` is what an iteration costs a worker
    whatever its blocks. Blocks after one that did not come are left out.

    Raises ValueError where there is no work, or that of another plan.

    >>> import jax
    >>> from bcgc_jax.coding.gradients import coding_plan
    >>> plan = coding_plan(jax.random.key(0), {"w": np.zeros(300)}, [200, 100])
    >>> work = [
    ...     Work(iteration=7, worker=1, block=b, seconds=s)
    ...     for b, s in ((0, 0.02), (1, 0.03))
    ... ]
    >>> trace = work_trace(work, plan, num_samples=100)
    >>> trace.load.tolist(), trace.seconds.round(3).tolist()
    ([10000.0, 20000.0], [0.02, 0.05])
    """
    if isinstance(plan, SharedPlan):
        raise ValueError(
            "work sharing has chunks in place of blocks: measure with another plan, as "
            '"uncoded"'
        )
    iterations, seconds = _seconds(work, plan)
    coordinates, setup = _cycles(plan, num_samples)
    load = np.broadcast_to(
        np.cumsum(coordinates + setup_cycles * setup, axis=0), seconds.shape
    )
    spent = np.cumsum(seconds, axis=1)
    # A block without samples or coordinates is no load of its own.
    step, block, worker = np.nonzero(
        np.isfinite(spent) & (np.diff(load, axis=1, prepend=0) > 0)
    )
    names = (
        np.array([str(k) for k in iterations]),
        np.arange(plan.num_workers).astype(str),
    )
    times = spent[step, block, worker]
    return Trace(
        *names,
        step,
        worker,
        times,
        np.zeros(times.size, bool),
        load[step, block, worker],
    )


def _seconds(work: Sequence[Work], plan: CodingPlan) -> tuple[list[int], np.ndarray]:
    """Iterations, and seconds of their tasks, `[K, tasks, N]`; NaN if none came."""
    if not work:
        raise ValueError(
            "no work was measured: take the `work` of a training or of gradients"
        )
    iterations, step = np.unique([item.iteration for item in work], return_inverse=True)
    seconds = np.full((len(iterations), plan.num_tasks, plan.num_workers), np.nan)
    number = plan.numbers()
    for k, item in zip(step, work, strict=True):
        task = number.get((item.worker, item.block, item.subset))
        if task is None:
            raise ValueError(
                f"there is work of more than the {plan.num_workers} workers and "
                f"{len(plan.blocks)} blocks of this plan: take that under one plan"
            )
        seconds[k, task, item.worker] = item.seconds
    return iterations.tolist(), seconds


def _cycles(plan: CodingPlan, num_samples: float) -> tuple[np.ndarray, np.ndarray]:
    """Cycles for coordinates, and samples new to the worker, `[tasks, N]` each."""
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
