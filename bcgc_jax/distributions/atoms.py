"""Distributions of finitely many times: one, two, or measured, also with start-ups."""

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
    r"""T = value, always: workers that are never slow, for which nothing is coded.

    `value` is a time. Raises ValueError for value ≤ 0.

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
    r"""T = slow with the given `probability`, else fast.

    `fast` and `slow` are times; slow may be infinite, the full straggler, and then the
    mean is infinite. Raises ValueError unless 0 < fast < slow and 0 ≤ probability ≤ 1.

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
    begin = "fast"  # with probability 1 it is never seen, but stays a valid lower bound

    def cumulative_hazard(self, t):
        possible, probability = excess_above(self.probability, 0.0)
        between = jnp.where(possible, -jnp.log(probability), jnp.inf)
        before_slow = jnp.where(jnp.less(t, self.slow), between, jnp.inf)
        return jnp.where(jnp.less(t, self.fast), 0, before_slow)

    def inverse_cumulative_hazard(self, a):
        # With a margin of a few ulp, so that Λ⁻¹(Λ(fast)) = fast survives the two
        # roundings.
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
    """For draws: a draw jumps as the probability passes it; only a mean has a slope."""

    def inverse_cumulative_hazard(self, a):
        time = TwoSpeed(
            self.fast, self.slow, self.probability
        ).inverse_cumulative_hazard(a)
        return time + without_derivative(jnp.zeros_like(time), self.probability)


class _Measured(Distribution):
    """Each of K times with probability 1/K; a subclass has them in ascending order."""

    def ascending(self) -> Array:
        raise NotImplementedError

    def cumulative_hazard(self, t):
        times = self.ascending()
        t = jnp.asarray(t)
        method = "scan"
        if t.size > 64:
            method = "sort"
        count = jnp.searchsorted(times, t, side="right", method=method)
        # Counts alone would give float32. log1p in the lower half, or the first times
        # lose their digits.
        count = count.astype(working_dtype(times))
        left = times.size - count
        lower = -jnp.log1p(-jnp.minimum(count / times.size, 0.5))
        upper = -jnp.log(jnp.maximum(left, 1) / times.size)
        hazard = jnp.where(count < left, lower, upper)
        return jnp.where(left > 0, hazard, jnp.inf)

    def inverse_cumulative_hazard(self, a):
        times = self.ascending()
        # Rounded up with a margin of a few ulp, so that Λ⁻¹(Λ(tᵢ)) = tᵢ survives the
        # two roundings.
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
    r"""Measured cycle times: each of the `times`, `[K]`, with probability 1/K.

    Built from any array of times, sorted on the way in. Raises ValueError when there is
    none or one that is not finite and positive.

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
                "times is empty: an empirical distribution needs at least one measured "
                "time"
            )
        super().__post_init__()
        (times,) = as_floats(self.times)
        object.__setattr__(self, "times", jnp.sort(jnp.ravel(times)))

    def ascending(self):
        return jnp.asarray(self.times)


def mass_of(law: Distribution, atoms: Array) -> Array:
    return jnp.diff(law.cdf(atoms), prepend=0.0)
