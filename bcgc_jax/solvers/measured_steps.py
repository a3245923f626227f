"""Methods that are planned on some measured steps and replayed in others."""

import jax
import numpy as np

from bcgc_jax.measured.choice import smooth_or_atoms
from bcgc_jax.plans.simulation import steps_in_a_row
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.baselines import Backup
from bcgc_jax.solvers.deadline import Deadline
from bcgc_jax.solvers.drop import Drop
from bcgc_jax.solvers.limit import Limit
from bcgc_jax.solvers.methods import method_of
from bcgc_jax.solvers.placement import place_workers
from bcgc_jax.solvers.sharing import Sharing
from bcgc_jax.solvers.solve import solve

# So many that whole numbers of them need no search.
_COORDINATES = 1_000_000


def replayed(
    method: str, planned: np.ndarray, judged: np.ndarray, forward: float = 0.0
) -> tuple[np.ndarray, int]:
    """Seconds of the judged steps, `[S]`, in a row, and how many subsets a worker stores.

    The plan is for the distribution of all planned times. All passes that it adds are counted, and
    a worker first ends the chunk that it has begun. All slowness is taken for that of workers, not
    of their data.

    Args:
      method: of an exact code that is planned; ValueError for another one.
      planned, judged: `[R, N]` and `[S, N]`, what workers take for a subset, with both passes.
      forward: what a forward pass takes of a backward pass.

    >>> times = np.random.default_rng(0).exponential(1.0, (40, 4)) + 0.1
    >>> seconds, stored = replayed("cyclic:2", times[:20], times[20:])
    >>> bool(seconds.mean() < times[20:].max(axis=1).mean()), stored
    (True, 2)
    """
    if isinstance(method_of(method), Sharing | Limit | Backup | Drop | Deadline):
        raise ValueError(
            f'"{method}" is not planned on measured steps: take nested, nested:2 or optimal'
        )
    workers = planned.shape[1]
    # So many samples that passes go over eight chunks.
    samples = 1e4 * workers
    cycles = 1e-4 / _COORDINATES / (1 + forward)
    problem = Problem(
        smooth_or_atoms(planned, None, workers),
        workers,
        _COORDINATES,
        num_samples=samples,
        cycles=cycles,
        setup_cycles=forward * _COORDINATES * cycles or None,
    )
    solution = solve(problem, method, key=jax.random.key(0))
    plan = solution.plan
    needs = solution.needs
    assert plan is not None
    assert needs is not None
    if plan.completion is not None and plan.completion.groups:
        plan = place_workers(problem, plan, planned)
    steps = steps_in_a_row(problem, plan, np.zeros_like(judged), judged)
    assert steps is not None
    _, in_a_row = steps
    return float(problem.scale) * in_a_row, int(np.asarray(needs.stored_subsets))
