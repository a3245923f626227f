r"""When N workers in nested groups have done all blocks: of each group of g_k neighbours one does block k.

Fractional repetition with sizes g_1 | g_2 | … | N: the workers of a group have the same subsets, so a block
is complete when the fastest of each group has done it, which no order statistic of all N says. Blocks are
done in ascending order of the sizes, and with S_k(t) = P(T > latest for block k),

    C_j(k) = P(all groups within one of size g_j have done blocks 1…j, and no worker in it block k),  k > j,
    C_0(k) = S_k,   C_j(k) = C_{j-1}(k)^c - C_{j-1}(j)^c,   c = g_j / g_{j-1},  g_0 = 1:

in all the groups within nobody has done block k, but not block j by nobody at all. The chance of the
opposite of C_j(∞) is a sum of positive terms, F_j = 1 - (1 - F_{j-1})^c + C_{j-1}(j)^c, and P(τ > t) =
1 - (1 - F)^{N/g} for the last: exact for any independent times, O(K²) for K sizes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax.cover import times_at
from bcgc_jax.deliveries import Load, Worker, first_times, largest, late_hazard
from bcgc_jax.expectation import NUM_NODES, with_rounding
from bcgc_jax.last_delivery import fast_inverses, kinks_of, late_hazards, nodes_of, onsets_of, over_steps
from bcgc_jax.quadrature import Expectation, Quadrature, follow, integrate

# Start-ups are constant: one at each of the times.
_INNER = 1
# Expected numbers of groups that are late, which mark where all are done: low, typical, high.
_LATE = 8.0, 0.7, 0.02


def late_in_groups(late: Array, sizes: tuple[int, ...], num_workers: int) -> Array:
    """P(some group has not done its block), `[...]`, from S_k = P(one worker has not), `[..., K]`, ascending.

    `sizes`, each a divisor of the next and the last of `num_workers`, are static.
    """
    failed, inside = jnp.zeros_like(late[..., 0]), 1
    nobody = late
    for size in sizes:
        count = size // inside
        none = nobody[..., 0] ** count
        failed = _any_of(failed, count) + none
        nobody = nobody[..., 1:] ** count - none[..., None]
        inside = size
    return _any_of(failed, num_workers // inside)


def _any_of(chance: Array, count: int) -> Array:
    """1 - (1 - p)^count, as p Σ_{i<count} (1 - p)^i, whose terms are positive and slopes finite."""
    rest = jnp.maximum(1 - chance, 0)
    return chance * jnp.sum(rest[..., None] ** np.arange(count), axis=-1)


def expected_in_groups(
    worker: Worker, load: Load, sizes: tuple[int, ...], num_workers: int, num_nodes: int = NUM_NODES
) -> Expectation:
    """E of when all groups have done their blocks, in units of κ, for a `load` of `[K]` each, ascending.

    Differentiable in the load; start-ups must be constant. Exact for laws of atoms.
    """

    def late_of(hazard: Array) -> Array:
        return late_in_groups(jnp.exp(-hazard), sizes, num_workers)

    if worker.stepwise:
        return with_rounding(load.work, over_steps(worker, load, late_of))
    worker = fast_inverses(worker)
    nodes = _quadrature(worker, load, sizes, num_workers, num_nodes)
    hazard, _ = late_hazards(worker, load, nodes.times, _INNER)
    return with_rounding(load.work, integrate(nodes, late_of(hazard)), worker.cycle_time.rounding)


def _quadrature(
    worker: Worker, load: Load, sizes: tuple[int, ...], num_workers: int, num_nodes: int
) -> Quadrature:
    """Nodes for P(τ > t) ≤ Σ_k N / g_k e^{-g_k Λ_k} ≤ K N e^{-h}, h = min_k (g_k Λ_k + log g_k)."""
    dtype = load.work.dtype
    still, still_load = jax.lax.stop_gradient((worker, load))
    of_group = np.asarray(sizes, dtype)
    log_workers = jnp.asarray(np.log(num_workers), dtype)
    choices = jnp.stack([jnp.zeros_like(log_workers), log_workers])

    def all_late(t: Array) -> Array:
        hazard = late_hazard(still, still_load, t[:, None], _INNER)[0]
        return jnp.min(of_group * hazard + np.log(of_group), axis=-1, keepdims=True)

    last = jax.tree.map(lambda a: a[-1:], still_load)
    start = largest(first_times(worker, load))
    known = jax.lax.stop_gradient(start)
    wanted = jnp.maximum(log_workers - np.log(_LATE).astype(dtype), 0.02)
    peaks = jnp.concatenate([known[None], times_at(still, last, all_late, known, wanted)])
    found = nodes_of(peaks, kinks_of(still, still_load), all_late, choices, num_nodes)
    return follow(found, onsets_of(worker, load, start))
