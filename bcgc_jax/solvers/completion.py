r"""The partition that meets a deadline most probably: maximise P(τ̂(x,T) ≤ t).

Not a convex problem, so it is solved from several starts at once: spectral projected gradients (Birgin,
Martínez & Raydan 2000) on the log-odds of being late. One value costs O(N²), so thousands of steps are cheap.
For laws of atoms P is a step function of x: there the atoms (of rows, the runtimes) are spread by a factor
e^±h, h → 0, and the answers are judged by the true P.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.crossing import crossing_probability
from bcgc_jax.expectation import exceedance
from bcgc_jax.order_statistics import all_rows, max_finish_time
from bcgc_jax.partitions import cumulative_load, project_partition
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solvers.baselines import atoms_of
from bcgc_jax.solvers.closed_form import frequency_partition, time_partition
from bcgc_jax.solvers.optimal import optimal_partition

STARTS = ("time", "frequency", "optimal", "harmonic", "full replication", "single level")
# Values remembered by the line search, which may rise for a while; its slope; bounds of the step size.
_MEMORY, _SUFFICIENT, _SHORTEST, _LONGEST = 10, 1e-4, 1e-8, 1e4

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


def completion_partition(
    problem: Problem, deadline: ArrayLike, *, tolerance: float = 1e-6, max_steps: int = 2000
) -> CompletionResult:
    r"""argmax P(τ̂(x,T) ≤ deadline) over partitions, a local one from each of `STARTS`, and the best of them.

    A start counts as converged once a projected gradient step of the log-odds moves no share by more than
    `tolerance`. `max_steps` is static.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(ShiftedExponential(0.1, 1.0), num_workers=4, num_coordinates=100)
    >>> result = completion_partition(problem, 600.0)
    >>> bool(result.probability >= result.probabilities.max()), int(result.status)
    (True, 0)
    """
    law, workers, total = problem.cycle_time, problem.num_workers, problem.total
    level = jnp.arange(problem.max_workers)
    harmonic = jnp.where(problem.exists, 1 / (level + 1.0), 0)
    starts = jnp.stack(
        [
            time_partition(problem) / total,
            frequency_partition(problem) / total,
            optimal_partition(problem, tolerance=1e-4).partition / total,
            harmonic / jnp.sum(harmonic),
            jnp.where(level == jnp.asarray(workers) - 1, 1.0, 0.0),
        ]
    ).astype(problem.dtype)
    t = jnp.asarray(deadline, problem.dtype) / (problem.scale * total)
    tiny = jnp.finfo(problem.dtype).tiny

    def late(share: Array) -> Array:
        return exceedance(law, cumulative_load(share), workers, t)

    def late_smoothly(share: Array, spread: Array) -> Array:
        if not law.atomic():
            return late(share)
        load = cumulative_load(share)
        rows = all_rows(law, workers, load.size)
        if rows is not None:
            log_finish = jnp.log(max_finish_time(load, rows.astype(load.dtype)))
            return jnp.mean(jax.nn.sigmoid((log_finish - jnp.log(t)) / spread))
        atoms, mass = atoms_of(law)
        log_threshold = jnp.log(t) - jnp.log(jnp.where(load > 0, load, 1))
        slow = mass * jax.nn.sigmoid((jnp.log(atoms) - log_threshold[:, None]) / spread)
        survival = jnp.where(load > 0, jnp.maximum(jnp.sum(slow, axis=1), tiny), tiny)
        return crossing_probability(-jnp.log(survival), workers)

    def log_odds(share: Array, spread: Array) -> Array:
        q = late_smoothly(share, spread)
        # 1 - q is rounded where completion is improbable, but then it is the larger that counts.
        return jnp.log(jnp.maximum(q, tiny)) - jnp.log(jnp.maximum(1 - q, tiny))

    # The best single level too: with workers that never answer P is flat until a level is empty.
    singles = jnp.where(problem.exists[:, None], jnp.eye(level.size, dtype=problem.dtype), starts[-1])
    starts = jnp.concatenate([starts, singles[jnp.argmin(jax.vmap(late)(singles))][None]])

    def project(share: Array) -> Array:
        return project_partition(share, 1.0, workers)

    def ascend(share: Array, spread: Array) -> tuple[Array, tuple[Array, Array]]:
        expand = jax.value_and_grad(log_odds)

        def residual(share: Array, slope: Array) -> Array:
            return jnp.max(jnp.abs(project(share - slope) - share))

        def step(carry):
            i, share, value, slope, length, memory = carry
            direction = project(share - length * slope) - share
            descent = jnp.sum(slope * direction)
            ceiling = jnp.max(memory)

            def too_long(trial):
                scale, new_value = trial
                return (new_value > ceiling + _SUFFICIENT * scale * descent) & (scale > 1e-10)

            def shorten(trial):
                scale = trial[0] / 2
                return scale, log_odds(share + scale * direction, spread)

            first = (jnp.ones_like(value), log_odds(share + direction, spread))
            scale, _ = jax.lax.while_loop(too_long, shorten, first)
            new = share + scale * direction
            new_value, new_slope = expand(new, spread)
            moved, change = new - share, new_slope - slope
            curvature = jnp.sum(moved * change)
            spectral = jnp.sum(moved**2) / jnp.where(curvature > 0, curvature, 1)
            length = jnp.where(curvature > 0, jnp.clip(spectral, _SHORTEST, _LONGEST), _LONGEST)
            return i + 1, new, new_value, new_slope, length, memory.at[i % _MEMORY].set(new_value)

        def go_on(carry):
            i, share, _, slope, _, _ = carry
            return (i < max_steps) & (residual(share, slope) > tolerance)

        value, slope = expand(share, spread)
        length = jnp.minimum(1 / jnp.maximum(jnp.max(jnp.abs(slope)), tiny), _LONGEST)
        memory = jnp.full(_MEMORY, value)
        last = jax.lax.while_loop(go_on, step, (jnp.asarray(0), share, value, slope, length, memory))
        return last[1], (residual(last[1], last[3]), last[0])

    spreads = jnp.asarray(_SPREADS if law.atomic() else (0.0,), problem.dtype)

    def stages(share: Array) -> tuple[Array, Array, Array]:
        share, (residuals, steps) = jax.lax.scan(ascend, share, spreads)
        return share, residuals[-1], jnp.sum(steps)

    shares, residuals, steps = jax.vmap(stages)(starts)
    probabilities = jnp.clip(1 - jax.vmap(late)(shares), 0, 1)
    best = jnp.argmax(probabilities)
    status = jnp.where(residuals[best] <= tolerance, int(Status.CONVERGED), int(Status.STEP_LIMIT))
    return CompletionResult(
        shares[best] * total, probabilities[best], best, probabilities, status, jnp.max(steps)
    )
