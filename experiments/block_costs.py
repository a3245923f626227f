r"""Model the time that a worker needs for each block, and plan with the fitted costs.

Let n be a level in use, p the previous level in use, x_n the number of coordinates at
level n, and X_n the number of coordinates up to it. For the first level in use, p = -1
and X_p = 0. Block n takes, per sample,

    b (n+1) x_n + f (n-p) + h ((n+1) X_n - (p+1) X_p),

because cotangents continue where the previous block left them. The sum over the levels
up to n is b Σ_{i≤n} (i+1) x_i + (n+1) (f + h X_n), which is the cost of
`Problem(setup_cycles=f, chain_cycles=h)`.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import nnls

import bcgc_jax as bcgc
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.plans.worker import Load
from experiments.block_times import Operations

# How many of the costs each model pays, of those in `Costs`.
MODELS = {"h = f = 0": 1, "f": 2, "f, h": 3}


class Costs(NamedTuple):
    """b and h, time a coordinate and sample, and f, time a sample."""

    coordinate: float
    setup: float = 0.0
    chain: float = 0.0


def counts(partition: ArrayLike, sizes: ArrayLike) -> np.ndarray:
    """Count work at each level for a sample, `[..., N, 3]`: own coordinates, forward
    passes, chain.

    `partition` is of units, `[..., N]`, and `sizes` are their coordinates, `[U]`.

    >>> counts([2, 0, 1], [5, 3, 4]).tolist()
    [[8.0, 1.0, 8.0], [0.0, 0.0, 0.0], [12.0, 2.0, 28.0]]
    """
    x = np.asarray(partition, int)
    sizes = np.asarray(sizes, float)
    up_to = np.cumsum(x, axis=-1)
    end = np.append(0.0, np.cumsum(sizes))[up_to]
    begin = np.append(0.0, np.cumsum(sizes))[up_to - x]
    subsets = np.arange(1, x.shape[-1] + 1)
    held = np.maximum.accumulate(np.where(x > 0, subsets, 0), axis=-1)
    before = np.concatenate([np.zeros_like(held[..., :1]), held[..., :-1]], axis=-1)
    columns = [
        subsets * (end - begin),
        subsets - before,
        subsets * end - before * begin,
    ]
    return np.where(x > 0, columns, 0.0).transpose(*range(1, x.ndim + 1), 0)


def _paid(model: str, partition: ArrayLike, sizes: ArrayLike) -> np.ndarray:
    return counts(partition, sizes)[..., : MODELS[model]]


def fit(model: str, partitions: ArrayLike, sizes: ArrayLike, times: ArrayLike) -> Costs:
    """Fit costs ≥ 0 to a sample's `times`, `[K, N]`, 0 at unused levels."""
    paid = _paid(model, partitions, sizes)
    return Costs(
        *nonnegative(paid.reshape(-1, paid.shape[-1]), np.ravel(times)).tolist()
    )


def predict(
    model: str, costs: Costs, partition: ArrayLike, sizes: ArrayLike
) -> np.ndarray:
    """Time of a sample at each level, `[..., N]`."""
    return _paid(model, partition, sizes) @ np.array(costs[: MODELS[model]])


def nonnegative(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """argmin ‖matrix c - values‖₂ over c ≥ 0."""
    scale = np.abs(matrix).max(axis=0)
    return nnls(matrix / scale, values)[0] / scale


def kept_operations(operations: Operations, partition: Sequence[int]) -> np.ndarray:
    """Count the fewest operations at each level, `[N]`: a worker that keeps its
    cotangents.

    A cotangent stays at the last unit that was differentiated, and goes on from there.
    """
    kept = np.zeros(len(partition))
    units = 0
    before = 0
    reached = 0.0
    for n in np.flatnonzero(partition).tolist():
        last = units + partition[n] - 1
        whole = operations.gradients[units : last + 1].sum() + operations.reach[last]
        kept[n] = (
            (n + 1) * whole - before * reached + (n + 1 - before) * operations.forward
        )
        units = last + 1
        before = n + 1
        reached = operations.reach[last]
    return kept


def all_partitions(units: int, workers: int) -> np.ndarray:
    """Every way to put units at levels, `[K, N]`.

    >>> all_partitions(2, 2).tolist()
    [[0, 2], [1, 1], [2, 0]]
    """
    places = units + workers - 1
    bars = np.array(list(combinations(range(places), workers - 1)), int)
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, places)))
    return np.diff(edges, axis=1) - 1


def expected_runtimes(
    law: bcgc.distributions.Distribution,
    model: str,
    costs: Costs,
    partitions: ArrayLike,
    sizes: ArrayLike,
) -> np.ndarray:
    """E max_n T_(N-n) y_n of a sample for `partitions`, `[K, N]`, exact."""
    ends = np.cumsum(predict(model, costs, partitions, sizes), axis=-1)
    scale = ends.max() or 1.0  # all costs were 0
    return scale * np.asarray(_expected_max(law, jnp.asarray(ends / scale)))


@jax.jit
def _expected_max(law: bcgc.distributions.Distribution, ends: jax.Array) -> jax.Array:
    iteration = iteration_of(bcgc.Problem(law, ends.shape[-1], 1))
    return jax.lax.map(
        lambda work: iteration.expected_completion(Load(work)).value,
        ends,
        batch_size=256,
    )
