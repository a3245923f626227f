r"""How far the runtime under a smooth law is from that of the measured times that it stands for.

The exact sum over K atoms and N levels takes K N evaluations of a crossing probability. In time this is a
staircase of K N small steps, and a rule of a few hundred nodes is off by little: by how much, four
quarters of its nodes tell. How far K times leave the runtime open is told by its influence function,

    f(F + ε (δ_τ - F)) ≈ f(F) + ε ψ(τ),   ψ(τ) = -∫ Σ_n ∂P/∂b_n (1{τ ≤ t/y_n} - F(t/y_n)) dt,

which one rule gives for all τ; times of one step count together, for they depend on each other.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax.crossing import crossing_slopes
from bcgc_jax.laws import Empirical, Law
from bcgc_jax.plans.marks import marks, rule, threshold_hazard

# Nodes of the rule, in entries of nodes · N².
_ENTRIES, _FEWEST, _MOST = 2**28, 256, 2048
# Nodes at a time.
_BATCH = 64


class StandIn(NamedTuple):
    """Runtimes under the law and under the times, the rule's error for these, and their standard error."""

    smooth: float
    measured: float
    rule_error: float
    standard_error: float

    @property
    def difference(self) -> float:
        """At most, relative to the measured one."""
        return (abs(self.smooth - self.measured) + self.rule_error) / self.measured

    @property
    def uncertainty(self) -> float:
        """What the times leave open, relatively."""
        return self.standard_error / self.measured


def stand_in(law: Law, times: np.ndarray, steps: np.ndarray, load: Array, num_workers: int) -> StandIn:
    r"""E max_n load_n T_(N-n) under a smooth `law` and under the `times` of these `steps`, both `[K]`.

    >>> from bcgc_jax.measured.curve import hazard_curve
    >>> times = np.random.default_rng(0).gamma(3.0, 2.0, 2000)
    >>> found = stand_in(hazard_curve(times), times, np.arange(2000) // 8, jnp.arange(1.0, 9.0), 8)
    >>> found.difference < found.uncertainty < 0.02
    True
    """
    count = int(np.clip(_ENTRIES // load.size**2, _FEWEST, _MOST)) // _BATCH * _BATCH
    start, node, weight, hazard = _rule(law, load, num_workers, count)
    late, slope = _late(hazard, num_workers)
    thresholds = np.asarray(node)[:, None] / np.asarray(load)
    measured, _ = _late(Empirical(times).cumulative_hazard(thresholds), num_workers)
    weight, start = np.asarray(weight), float(start)
    value = start + weight @ np.asarray(measured)
    quarters = [start + 4 * weight[i::4] @ np.asarray(measured)[i::4] for i in range(4)]
    # ∂P/∂b = ∂P/∂Λ / (1 - b).
    change = -weight[:, None] * np.asarray(slope) * np.exp(np.minimum(np.asarray(hazard), 600))
    change = np.where(np.isfinite(change) & (change > 0) & (np.asarray(load) > 0), change, 0).ravel()
    order = np.argsort(thresholds, axis=None)
    after = np.append(np.cumsum(change[order][::-1])[::-1], 0)
    influence = -after[np.searchsorted(thresholds.ravel()[order], times)]
    influence -= influence.mean()
    of_steps = np.bincount(steps, influence)
    error = np.sqrt(of_steps @ of_steps) / times.size
    return StandIn(
        float(start + weight @ np.asarray(late)),
        float(value),
        float(np.max(np.abs(np.array(quarters) - value))) / 2,
        float(error),
    )


@jax.jit
def _late(hazard: Array, num_workers: ArrayLike) -> tuple[Array, Array]:
    batches = hazard.reshape(-1, _BATCH, hazard.shape[-1])
    late, slope = jax.lax.map(lambda h: crossing_slopes(h, num_workers), batches)
    return late.ravel(), slope.reshape(hazard.shape)


@functools.partial(jax.jit, static_argnums=3)
def _rule(law: Law, load: Array, num_workers: ArrayLike, num_nodes: int) -> tuple[Array, Array, Array, Array]:
    """Start, times, weights and hazards of the law's rule."""
    known = marks(law, load, num_workers)
    start, _, size, nodes = rule(law, known, load, num_nodes)
    node, weight = nodes(jnp.arange(size), 1)
    hazard, _ = threshold_hazard(law, load, node, known.largest)
    return start, node, weight, hazard
