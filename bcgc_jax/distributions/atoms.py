"""Distributions of finitely many times: one time, two times, or measured times."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._derivatives import without_derivative
from bcgc_jax._pytree import pytree_dataclass, working_dtype
from bcgc_jax.distributions.base import Atomic, Distribution, as_floats, excess_above


@pytree_dataclass
class Deterministic(Distribution):
    r"""A deterministic cycle time: P(T = value) = 1.

    Without stragglers, redundancy does not save time.

    Args:
      value: The time.

    Raises:
      ValueError: If `value` ≤ 0.

    >>> law = Deterministic(2.0)
    >>> float(law.mean()), law.cdf(jnp.array([1.9, 2.0])).tolist()
    (2.0, [0.0, 1.0])
    """

    value: ArrayLike

    conditions = (("value", "> 0"),)
    begin = "value"

    def cumulative_hazard(self, t):
        return jnp.where(jnp.less(t, self.value), 0, jnp.inf)

    def inverse_cumulative_hazard(self, a):
        return jnp.broadcast_arrays(jnp.asarray(self.value), a)[0]

    def mean(self):
        return jnp.asarray(self.value)

    def pieces(self):
        return Atomic(jnp.asarray(self.value)[None])


@pytree_dataclass
class TwoSpeed(Distribution):
    r"""A distribution of two times: P(T = slow) = probability, and T = fast otherwise.

    Args:
      fast: The shorter time.
      slow: The longer time. It may be infinite, for stragglers that never finish. Then
        the mean is infinite.
      probability: Probability of `slow`.

    Raises:
      ValueError: If 0 < `fast` < `slow` or 0 ≤ `probability` ≤ 1 does not hold.

    >>> float(TwoSpeed(fast=1.0, slow=5.0, probability=0.25).mean())
    2.0
    """

    fast: ArrayLike
    slow: ArrayLike
    probability: ArrayLike

    conditions = (
        ("fast", "> 0"),
        ("slow", "> 0 or inf"),
        ("probability", ">= 0, <= 1"),
    )
    below = ("fast", "slow")
    begin = "fast"  # a valid lower bound, even if `probability` is 1

    def cumulative_hazard(self, t):
        possible, probability = excess_above(self.probability, 0.0)
        between = jnp.where(possible, -jnp.log(probability), jnp.inf)
        before_slow = jnp.where(jnp.less(t, self.slow), between, jnp.inf)
        return jnp.where(jnp.less(t, self.fast), 0, before_slow)

    def inverse_cumulative_hazard(self, a):
        # A margin of a few ulp keeps Λ⁻¹(Λ(fast)) = fast in spite of two roundings.
        left = jnp.exp(-jnp.asarray(a))
        margin = 1 - 8 * jnp.finfo(left.dtype).eps
        return jnp.where(
            left >= jnp.multiply(self.probability, margin), self.fast, self.slow
        )

    def mean(self):
        possible = (jnp.asarray(self.probability) > 0) | jnp.isfinite(self.slow)
        slow = jnp.where(possible, self.slow, self.fast)  # 0 · inf would be NaN
        return (1 - jnp.asarray(self.probability)) * self.fast + self.probability * slow

    def pieces(self):
        return Atomic(jnp.stack(jnp.broadcast_arrays(self.fast, self.slow)))

    def with_fast_inverse(self):
        return _DrawnTwoSpeed(self.fast, self.slow, self.probability)


@pytree_dataclass
class _DrawnTwoSpeed(TwoSpeed):
    """A `TwoSpeed` for sampling, whose samples have NaN derivatives in `probability`.

    A sample jumps when the probability changes, so only a mean has a derivative.
    """

    def inverse_cumulative_hazard(self, a):
        time = TwoSpeed(
            self.fast, self.slow, self.probability
        ).inverse_cumulative_hazard(a)
        return time + without_derivative(jnp.zeros_like(time), self.probability)


class _Measured(Distribution):
    """K times with probability 1/K each; a subclass returns them in ascending order."""

    def ascending(self) -> Array:
        raise NotImplementedError

    def cumulative_hazard(self, t):
        times = self.ascending()
        t = jnp.asarray(t)
        method = "scan"
        if t.size > 64:
            method = "sort"
        count = jnp.searchsorted(times, t, side="right", method=method)
        # Counts are integers, from which JAX would compute in float32. In the lower
        # half, log1p keeps the digits of the first times.
        count = count.astype(working_dtype(times))
        left = times.size - count
        lower = -jnp.log1p(-jnp.minimum(count / times.size, 0.5))
        upper = -jnp.log(jnp.maximum(left, 1) / times.size)
        hazard = jnp.where(count < left, lower, upper)
        return jnp.where(left > 0, hazard, jnp.inf)

    def inverse_cumulative_hazard(self, a):
        times = self.ascending()
        # A margin of a few ulp keeps Λ⁻¹(Λ(tᵢ)) = tᵢ in spite of two roundings.
        share = -jnp.expm1(-jnp.asarray(a)) * times.size
        rank = jnp.ceil(share * (1 - 8 * jnp.finfo(share.dtype).eps)) - 1
        return times[jnp.clip(rank, 0, times.size - 1).astype(int)]

    def mean(self):
        return jnp.mean(self.ascending())

    def infimum(self):
        return self.ascending()[0]

    def summary(self):
        return {
            "distribution": "empirical",
            "measured_times": self.ascending().size,
            "mean": self.mean(),
        }

    def pieces(self):
        return Atomic(self.ascending())


@pytree_dataclass
class Empirical(_Measured):
    r"""The empirical distribution of measured cycle times, each with probability 1/K.

    Args:
      times: Measured times, any shape. They are stored sorted, `[K]`.

    Raises:
      ValueError: If there are no times, or if a time is not finite and positive.

    >>> law = Empirical([3.0, 1.0, 2.0, 2.0])
    >>> float(law.mean()), float(law.cdf(2.0))
    (2.0, 0.75)
    """

    times: ArrayLike | Sequence[float]

    conditions = (("times", "> 0"),)
    ranks = (("times", 1),)

    def __post_init__(self) -> None:
        if np.size(self.times) == 0:
            raise ValueError(
                "`times` is empty. An empirical distribution needs at least one "
                "measured time."
            )
        super().__post_init__()
        (times,) = as_floats(self.times)
        object.__setattr__(self, "times", jnp.sort(jnp.ravel(times)))

    def ascending(self):
        return jnp.asarray(self.times)


def mass_of(law: Distribution, atoms: Array) -> Array:
    return jnp.diff(law.cdf(atoms), prepend=0.0)
