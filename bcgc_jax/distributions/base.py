r"""Base classes of the distributions of cycle times.

A distribution is a pytree that computes its cumulative hazard Λ(t) = -log P(T > t) and
the inverse Λ⁻¹. If A is an Exp(1) variable, then T = Λ⁻¹(A). The cdf is -expm1(-Λ),
which is accurate in both tails, and in float32. `jit`, `vmap` and `grad` apply to the
parameters, which may be traced or batched.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check, check_key, concrete, meets, working_dtype


class Smooth(NamedTuple):
    """Λ is smooth above the infimum.

    Attributes:
      certain: Whether Λ is known to be smooth. If False, this is only assumed, because
        no kinks were given.
    """

    certain: bool = True


class Kinked(NamedTuple):
    """Λ is smooth except at the infimum and at some times.

    Attributes:
      times: The times of the kinks, ascending, `[K]`.
      ends: Whether the last time is the supremum.
      jumps: Whether the density jumps between the infimum and the supremum.
    """

    times: Array
    ends: bool
    jumps: bool = False


class Atomic(NamedTuple):
    """T takes only finitely many values.

    Attributes:
      times: The values, ascending, possibly repeated, `[K]`.
    """

    times: Array


Pieces = Smooth | Kinked | Atomic

_ELEMENTWISE = {"cumulative_hazard", "inverse_cumulative_hazard", "log_density"}
# Methods that a subclass may inherit, all methods that are compiled, and their static
# arguments.
_DERIVED = {"cdf", "survival", "log_density", "infimum", "sample"}
_COMPILED = (
    _ELEMENTWISE | _DERIVED | {"mean", "with_fast_inverse", "expected_order_statistics"}
)
_STATIC = {"expected_order_statistics": ("max_workers",), "sample": ("shape", "dtype")}

ONE_BY_ONE = "use jax.vmap for a batch, for example jax.vmap(solve)(problems)"


def _in_working_dtype(
    method: Callable[[Any, Array], Array],
) -> Callable[[Any, ArrayLike], Array]:
    @functools.wraps(method)
    def elementwise(law: Any, value: ArrayLike) -> Array:
        dtype = working_dtype(law, value)
        return jnp.asarray(method(law, jnp.asarray(value, dtype)), dtype)

    return elementwise


class AnyDistribution:
    """Base class of the distributions of one worker's time and of all N times.

    Concrete parameters that violate a condition raise ValueError. With traced
    parameters that violate one, every runtime is NaN.

    Attributes:
      conditions: Names of parameters, and the conditions that they must meet.
      below: Names of two parameters, of which the first must be below the second.
      ranks: Names and ranks of the parameters that are arrays.
    """

    conditions: ClassVar[Sequence[tuple[str, str]]] = ()
    below: ClassVar[tuple[str, str] | None] = None
    ranks: ClassVar[Sequence[tuple[str, int]]] = ()

    def __post_init__(self) -> None:
        for name, value, condition, finite in self._conditions():
            check(name, value, condition, finite=finite)
            if isinstance(value, int | np.integer):  # 1 and 1.0 share a program
                object.__setattr__(self, name, float(value))
        if self.below is None:
            return
        low, high = (concrete(getattr(self, name)) for name in self.below)
        if low is not None and high is not None and np.any(low >= high):
            raise ValueError(
                f"{' must be below '.join(self.below)}, got {low} and {high}"
            )

    def _conditions(self) -> Iterator[tuple[str, Any, str, bool]]:
        for name, text in self.conditions:
            for condition in text.split(", "):
                finite = condition.removesuffix(" or inf")
                yield name, getattr(self, name), finite, finite == condition

    def valid(self) -> Array:
        """Check whether the parameters are valid, which also works if traced."""
        valid = jnp.asarray(True)
        for _, value, condition, finite in self._conditions():
            valid &= jnp.all(meets(value, condition, finite))
        if self.below is not None:
            low, high = (getattr(self, name) for name in self.below)
            valid &= jnp.all(jnp.less(low, high))
        return valid

    def check_single(self) -> None:
        """Raise ValueError if parameters have the shape of a batch."""
        ranks = dict(self.ranks)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            leaves = jax.tree.leaves(getattr(self, field.name))
            rank = ranks.get(field.name, 0)
            if all(np.ndim(leaf) == rank for leaf in leaves):
                continue
            if field.name not in ranks and self._is_one():
                continue
            what = "one number"
            if rank:
                what = f"an array of rank {rank}"
            shapes = ", ".join(str(np.shape(leaf)) for leaf in leaves)
            raise ValueError(
                f"{field.name} of {type(self).__name__} must be {what}, got shape "
                f"{shapes}: {ONE_BY_ONE}"
            )

    def _is_one(self) -> bool:
        """Check whether the mean and the infimum of the distribution are scalars."""
        try:
            shapes = jax.eval_shape(lambda law: (law.mean(), law.infimum()), self)
        except (TypeError, ValueError):
            return False
        return all(value.shape == () for value in shapes)

    def width(self) -> int | None:
        """Return N for a joint distribution of N times, otherwise None."""
        return None

    def mean(self) -> Array:
        """Compute E T of a worker drawn at random; inf if the mean is infinite."""
        raise NotImplementedError

    def infimum(self) -> Array:
        """Compute ess inf T over all workers."""
        raise NotImplementedError

    def pooled(self) -> "Distribution":
        """Return the distribution of the time of a worker drawn at random."""
        raise NotImplementedError

    def members(self) -> Sequence["Distribution"]:
        """Return the distribution of each worker; empty if they are not separate."""
        return ()

    def of_workers(self, members: Sequence[int]) -> "AnyDistribution":
        """Return the distribution of only these workers, if others are lost."""
        return self

    def summary(self) -> dict[str, Any]:
        """Return the parameters, or the number and mean of measured times."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


class Distribution(AnyDistribution):
    """Base class of the distributions of one worker's cycle time.

    A subclass is a `pytree_dataclass` with `cumulative_hazard`,
    `inverse_cumulative_hazard`, `mean`, and either `infimum` or `begin`. Its methods
    are compiled once per shape, and get times and hazards in `working_dtype`. Times
    have the unit of the parameters. `FromHazard` needs only functions, no subclass.

    Attributes:
      begin: Name of the parameter that is the infimum.
      rounding: Rounding error of Λ beyond a few ulp, in units of eps.
      constant: Whether the object is a number in place of a distribution.
      light_tail: Whether P(T > t) falls faster than any power of t.
    """

    begin: ClassVar[str]
    rounding: ClassVar[float] = 0.0
    constant: ClassVar[bool] = False
    light_tail: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _COMPILED:
            method = getattr(cls, name)
            inherited = name in _DERIVED and method is getattr(Distribution, name)
            if name not in cls.__dict__ and not inherited:
                continue
            if name in _ELEMENTWISE:
                method = _in_working_dtype(method)
            setattr(cls, name, jax.jit(method, static_argnames=_STATIC.get(name, ())))

    def cumulative_hazard(self, t: ArrayLike) -> Array:
        """Compute Λ(t) = -log P(T > t), elementwise.

        Λ is 0 below the support, and inf above it.
        """
        raise NotImplementedError

    def inverse_cumulative_hazard(self, a: ArrayLike) -> Array:
        """Compute Λ⁻¹(a) = inf{t : Λ(t) ≥ a} for a ≥ 0, elementwise.

        The value at a = 0 is the infimum of T.
        """
        raise NotImplementedError

    def infimum(self) -> Array:
        return jnp.asarray(getattr(self, self.begin))

    def inverse_beyond(self, a: Array) -> Array:
        """Compute Λ⁻¹(a) for hazards above all kinks."""
        return self.inverse_cumulative_hazard(a)

    def has_mean(self, level: ArrayLike, num_workers: ArrayLike) -> Array:
        """Check whether E T_(N-level) is finite, even if E T is not."""
        return jnp.isfinite(self.mean())

    def pieces(self) -> Pieces:
        """Return where Λ is smooth, which quadrature rules need to know."""
        return Smooth()

    @property
    def smooth(self) -> bool:
        return isinstance(self.pieces(), Smooth)

    @property
    def maybe_kinked(self) -> bool:
        """Whether Λ may have kinks that were not given."""
        pieces = self.pieces()
        return isinstance(pieces, Smooth) and not pieces.certain

    @property
    def atomic(self) -> bool:
        return isinstance(self.pieces(), Atomic)

    @property
    def has_end(self) -> bool:
        """Whether the last of `breaks` is the supremum."""
        pieces = self.pieces()
        return self.atomic or (isinstance(pieces, Kinked) and pieces.ends)

    @property
    def jumps(self) -> bool:
        """Whether the density jumps between the infimum and the supremum."""
        pieces = self.pieces()
        return isinstance(pieces, Kinked) and pieces.jumps

    def breaks(self) -> Array:
        """Return the atoms or kinks, ascending, `[K]`."""
        pieces = self.pieces()
        if isinstance(pieces, Smooth):
            return jnp.zeros(0)
        return pieces.times

    def expected_order_statistics(
        self, num_workers: ArrayLike, max_workers: int
    ) -> Array | None:
        """Compute E T_(N-n), slowest first, `[max_workers]`; None without a formula."""
        return None

    def pooled(self) -> "Distribution":
        return self

    def cdf(self, t: ArrayLike) -> Array:
        """Compute P(T ≤ t), with relative accuracy in the left tail."""
        return -jnp.expm1(-self.cumulative_hazard(t))

    def survival(self, t: ArrayLike) -> Array:
        """Compute P(T > t), with relative accuracy in the right tail."""
        return jnp.exp(-self.cumulative_hazard(t))

    def log_density(self, t: ArrayLike) -> Array:
        """Compute the log of the density of T, elementwise, for T without atoms.

        The result is -inf where the density is 0.
        """
        t = jnp.asarray(t)
        hazard, rate = jax.jvp(self.cumulative_hazard, (t,), (jnp.ones_like(t),))
        possible = jnp.isfinite(hazard) & (rate > 0)
        return jnp.where(
            possible, jnp.log(jnp.where(possible, rate, 1)) - hazard, -jnp.inf
        )

    def with_fast_inverse(self) -> "Distribution":
        """Return the distribution with a table for Λ⁻¹, if Λ⁻¹ itself is slow."""
        return self

    def with_knots(self) -> "Distribution":
        """Return the distribution with all its knots visible to quadrature rules."""
        return self

    def sample(
        self, key: Array, shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Array:
        """Draw independent cycle times.

        Args:
          key: PRNG key.
          shape: Shape of the result. Defaults to a scalar.
          dtype: Dtype of the result. Defaults to `working_dtype`.
        """
        check_key(key)
        if dtype is None:
            dtype = working_dtype(self)
        a = jax.random.exponential(key, shape, dtype)
        return self.with_fast_inverse().inverse_cumulative_hazard(a).astype(dtype)


def as_floats(*values: Any) -> list[Array]:
    """Convert arguments to arrays in their common `working_dtype`."""
    arrays = [
        value if isinstance(value, jax.Array) else np.asarray(value) for value in values
    ]
    return [jnp.asarray(array, working_dtype(*arrays)) for array in arrays]


def excess_above(t: ArrayLike, start: ArrayLike) -> tuple[Array, Array]:
    """Return whether t > start, and the excess t - start, which is 1 elsewhere.

    The excess is always positive, so its powers, quotients and log have finite
    derivatives. A NaN derivative in the unused branch of a `where` would make the
    gradient NaN.
    """
    excess = jnp.subtract(t, start)
    inside = excess > 0
    return inside, jnp.where(inside, excess, 1)


def inverse_ranks(
    num_workers: ArrayLike, max_workers: int, dtype: Any
) -> tuple[Array, Array]:
    """Return 1/(n+1) and the rank N - n from the fastest; both are 0 for n ≥ N."""
    j = jnp.arange(1, max_workers + 1, dtype=dtype)
    exists = j <= num_workers
    return jnp.where(exists, 1 / j, 0), jnp.where(exists, num_workers - j + 1, 0)
