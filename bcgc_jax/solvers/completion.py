r"""The partition that meets a deadline most probably: maximise P(τ̂(x,T) ≤ t).

Not a convex problem, so it is solved from several starts at once: spectral projected gradients (Birgin,
Martínez & Raydan 2000) on the log-odds of being late. One value costs O(N²), so thousands of steps are cheap.
For laws of atoms P is a step function of x: there the atoms (of rows, the runtimes) are spread by a factor
e^±h, h → 0, and the answers are judged by the true P.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.deliveries import Load
from bcgc_jax.partitions import project_partition
from bcgc_jax.problem import Problem, Status
from bcgc_jax.runtime import load_of
from bcgc_jax.solvers.closed_form import partition_for_times
from bcgc_jax.solvers.spectral import spectral_projected_gradient

# Of 600 problems (five families, N = 3 … 24, deadlines of 0.45 to 3 expected runtimes) these reach the best
# of eleven starts in 98 %, at worst 4e-4 below; with x^(t), x^(f) and the optimum in place of the first five,
# two seconds more to compile, it is 98 % and 3e-3.
_DEVIATIONS = (-1.5, -1.0, 0.0, 1.0, 2.0)
STARTS = (*(f"typical times {sigma:+g} σ" for sigma in _DEVIATIONS), "harmonic", "single level")

# Empty levels have the slope that they have at this share: at 0 that of heavy tails, or its own, is infinite.
# Of 84 problems (Pareto, shapes 0.4 to 2.2, N = 3, 5, 8) one ends at the step limit, none more than 2e-6
# below the best found; with 1e-8 it is five and 1e-4, without it 39 and 2e-3.
_BESIDE = 1e-4
# h of the spread atoms, one stage after the other.
_SPREADS = (0.1, 0.03, 0.01, 0.003)


class CompletionResult(NamedTuple):
    """Best partition, its probability, the start that led to it, and the probability from each start.

    `partition` is `[max_workers]`, `probabilities` `[len(STARTS)]`.
    """

    partition: Array
    probability: Array
    start: Array
    probabilities: Array
    status: Array
    num_steps: Array


@functools.partial(jax.jit, static_argnames="max_steps")
def completion_partition(
    problem: Problem, deadline: ArrayLike, *, tolerance: ArrayLike = 1e-6, max_steps: int = 2000
) -> CompletionResult:
    r"""argmax P(τ̂(x,T) ≤ deadline) over partitions, a local one from each of `STARTS`, and the best of them.

    A start counts as converged once a projected gradient step of the log-odds moves no share by more than
    `tolerance`. `max_steps` is static.

    >>> from bcgc_jax.laws import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(0.1, 1.0), num_workers=3, num_coordinates=100)
    >>> result = completion_partition(problem, 600.0)
    >>> bool(result.probability >= result.probabilities.max()), int(result.status)
    (True, 0)
    """
    iteration, workers, total = problem.iteration, problem.num_workers, problem.total
    t = jnp.asarray(deadline, problem.dtype) / problem.scale

    def load(share: Array) -> Load:
        return load_of(problem, share * total)

    def late(share: Array) -> Array:
        return iteration.exceedance(load(share), t)

    def log_odds_of(load: Load, spread: Array) -> Array:
        q = iteration.smoothed_exceedance(load, t, spread)
        # 1 - q is rounded where completion is improbable, but then it is the larger that counts.
        return jnp.log(jnp.maximum(q, _tiny(q))) - jnp.log(jnp.maximum(1 - q, _tiny(q)))

    def log_odds(share: Array, spread: Array) -> Array:
        """With the slope beside loads of 0, where no level is in use."""
        still, at = jax.lax.stop_gradient, load(share)
        least = _BESIDE * total * jnp.cumsum(jnp.arange(1, share.size + 1, dtype=share.dtype))
        used = jax.tree.map(lambda y: jnp.where(y > 0, y, still(y)), at)
        unused = jax.tree.map(lambda y: jnp.where(y > 0, still(y), least + y - still(y)), at)
        beside = log_odds_of(unused, spread)
        return log_odds_of(used, spread) + beside - still(beside)

    def project(share: Array) -> Array:
        return project_partition(share, 1.0, workers)

    def stages(share: Array) -> tuple[Array, Array, Array, Array]:
        def stage(share: Array, spread: Array) -> tuple[Array, tuple[Array, Array, Array]]:
            found = spectral_projected_gradient(
                lambda x: log_odds(x, spread), project, share, tolerance=tolerance, max_steps=max_steps
            )
            return found.point, (found.value, found.residual, found.num_steps)

        spreads = jnp.asarray(_SPREADS if iteration.stepped else (0.0,), problem.dtype)
        share, (values, residuals, steps) = jax.lax.scan(stage, share, spreads)
        return share, values[-1], residuals[-1], jnp.sum(steps)

    found = jax.vmap(stages)(_starts(problem, _left_for_work(problem, deadline)))
    shares, log_odds_late, residuals, steps = found
    # With atoms, what was minimised is spread.
    on_time = 1 - jax.lax.map(late, shares) if iteration.stepped else jax.nn.sigmoid(-log_odds_late)
    probabilities = jnp.clip(on_time, 0, 1)
    best = jnp.argmax(probabilities)
    status = jnp.where(residuals[best] <= tolerance, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    return CompletionResult(
        shares[best] * total, probabilities[best], best, probabilities, status, jnp.max(steps)
    )


def _left_for_work(problem: Problem, deadline: ArrayLike) -> Array:
    """The deadline without start-up and link, per cycle of all coordinates' load."""
    t = jnp.asarray(deadline, problem.dtype)
    start = problem.iteration.typical_start_up().astype(t.dtype)
    t = jnp.maximum(t - start - problem.send_load * problem.total, 1e-3 * t)
    return t / (problem.scale * problem.total)


def _starts(problem: Problem, t: Array) -> Array:
    """Shares to begin with, `[len(STARTS), max_workers]`."""
    iteration, level = problem.iteration, np.arange(problem.max_workers)
    times = iteration.typical_times(_DEVIATIONS)
    planned = jax.vmap(partition_for_times, (None, 0))(problem, times) / problem.total
    harmonic = jnp.where(problem.exists, jnp.asarray(1 / (level + 1.0), problem.dtype), 0)
    # The best single level too: with workers that never answer P is flat until a level is empty.
    late = jnp.where(problem.exists, iteration.order_survival(t / (level + 1.0)), jnp.inf)
    single = level == jnp.argmin(late)
    harmonic = harmonic / jnp.sum(harmonic)
    # No level is ever finished at times that are infinite.
    planned = jnp.where(jnp.isfinite(planned), planned, harmonic)
    others = jnp.stack([harmonic, single])
    return jnp.concatenate([planned, others]).astype(problem.dtype)


def _tiny(q: Array) -> float:
    return float(jnp.finfo(q.dtype).tiny)
