r"""A distribution of a worker's cycle time T: a pytree that knows its cumulative
hazard.

Λ(t) = -log P(T > t) and its inverse are the primitives. With A an Exp(1) variable, T =
Λ⁻¹(A); the cdf is -expm1(-Λ), which keeps its digits in both tails and in float32.
Leaves may be batched or traced: `jit`, `vmap` and `grad` go through the parameters.
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

    `certain`: whether that is known, or only supposed because nobody named a kink.
    """

    certain: bool = True


class Kinked(NamedTuple):
    """Λ is smooth but at the infimum and at `times`, `[K]`.

    `ends`: whether the last of them is the supremum. `jumps`: whether the density jumps
    at a time at which the distribution neither begins nor ends.
    """

    times: Array
    ends: bool
    jumps: bool = False


class Atomic(NamedTuple):
    """T takes the values `times`, `[K]`, ascending, perhaps repeated, and no other."""

    times: Array


Pieces = Smooth | Kinked | Atomic

_ELEMENTWISE = {"cumulative_hazard", "inverse_cumulative_hazard", "log_density"}
# Methods that a subclass may inherit, all that are compiled, and their static
# arguments.
_DERIVED = {"cdf", "survival", "log_density", "infimum", "sample"}
_COMPILED = (
    _ELEMENTWISE | _DERIVED | {"mean", "with_fast_inverse", "expected_order_statistics"}
)
_STATIC = {"expected_order_statistics": ("max_workers",), "sample": ("shape", "dtype")}

ONE_BY_ONE = "a batch goes through jax.vmap, as in jax.vmap(solve)(problems)"


def _in_working_dtype(
    method: Callable[[Any, Array], Array],
) -> Callable[[Any, ArrayLike], Array]:
    @functools.wraps(method)
    def elementwise(law: Any, value: ArrayLike) -> Array:
        dtype = working_dtype(law, value)
        return jnp.asarray(method(law, jnp.asarray(value, dtype)), dtype)

    return elementwise


class AnyDistribution:
    """What a distribution of one worker's time and one of all N times together have in
    common.

    `conditions` are what the parameters must meet, `below` two of them in order: what a
    person passes is refused otherwise, and with what is traced every runtime is NaN.
    `ranks` are those of arrays.
    """

    conditions: ClassVar[Sequence[tuple[str, str]]] = ()
    below: ClassVar[tuple[str, str] | None] = None
    ranks: ClassVar[Sequence[tuple[str, int]]] = ()

    def __post_init__(self) -> None:
        for name, value, condition, finite in self._conditions():
            check(name, value, condition, finite=finite)
            if isinstance(value, int | np.integer):  # 1 is no other program than 1.0
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
        """Whether the parameters are possible: traced ones were never checked."""
        valid = jnp.asarray(True)
        for _, value, condition, finite in self._conditions():
            valid &= jnp.all(meets(value, condition, finite))
        if self.below is not None:
            low, high = (getattr(self, name) for name in self.below)
            valid &= jnp.all(jnp.less(low, high))
        return valid

    def check_single(self) -> None:
        """Raise ValueError for shapes of a batch, which only `jax.vmap` takes."""
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
        """Whether parameters with shapes of their own give one mean and infimum."""
        try:
            shapes = jax.eval_shape(lambda law: (law.mean(), law.infimum()), self)
        except (TypeError, ValueError):
            return False
        return all(value.shape == () for value in shapes)

    def width(self) -> int | None:
        """N, of a distribution of N times together; None for one of any number."""
        return None

    def mean(self) -> Array:
        """E T, of a worker drawn at random; inf where it diverges."""
        raise NotImplementedError

    def infimum(self) -> Array:
        """ess inf T, of all workers."""
        raise NotImplementedError

    def pooled(self) -> "Distribution":
        """The distribution of one worker's time, or of all workers' times together."""
        raise NotImplementedError

    def members(self) -> Sequence["Distribution"]:
        """Those of the workers, where each has its own."""
        return ()

    def of_workers(self, members: Sequence[int]) -> "AnyDistribution":
        """The distribution of these workers alone, where some are lost."""
        return self

    def summary(self) -> dict[str, Any]:
        """What readers look for: parameters; of measured times number and mean."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]


class Distribution(AnyDistribution):
    """The distribution of a worker's cycle time; times carry the unit of its
    parameters.

    A subclass is a `pytree_dataclass` with `cumulative_hazard`,
    `inverse_cumulative_hazard`, `mean` and `infimum`, or its parameter's name `begin`;
    `FromHazard` makes one of two functions. The methods of a subclass are compiled as a
    whole, once for each shape; times and hazards come to them in `working_dtype`.
    """

    begin: ClassVar[str]
    rounding: ClassVar[float] = 0.0  # of Λ beyond a few ulp, in units of eps
    constant: ClassVar[bool] = False  # a number in a distribution's place
    light_tail: ClassVar[bool] = False  # P(T > t) falls faster than any power of t

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
        """Λ(t) = -log P(T > t), elementwise: 0 below the support, inf above it."""
        raise NotImplementedError

    def inverse_cumulative_hazard(self, a: ArrayLike) -> Array:
        """Λ⁻¹(a) = inf{t : Λ(t) ≥ a}, elementwise, for a ≥ 0; the infimum at 0."""
        raise NotImplementedError

    def infimum(self) -> Array:
        return jnp.asarray(getattr(self, self.begin))

    def inverse_beyond(self, a: Array) -> Array:
        """Λ⁻¹(a) of hazards above all kinks."""
        return self.inverse_cumulative_hazard(a)

    def has_mean(self, level: ArrayLike, num_workers: ArrayLike) -> Array:
        """Whether E T_(N-level) is finite, where `mean` alone does not say it."""
        return jnp.isfinite(self.mean())

    def pieces(self) -> Pieces:
        """Between which times Λ is smooth: what the rules of integration go by."""
        return Smooth()

    @property
    def smooth(self) -> bool:
        return isinstance(self.pieces(), Smooth)

    @property
    def maybe_kinked(self) -> bool:
        """Whether Λ may have kinks that nobody named."""
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
        """The atoms or kinks, `[K]`, ascending."""
        pieces = self.pieces()
        if isinstance(pieces, Smooth):
            return jnp.zeros(0)
        return pieces.times

    def expected_order_statistics(
        self, num_workers: ArrayLike, max_workers: int
    ) -> Array | None:
        """E T_(N-n), slowest first, `[max_workers]`, or None: no closed form."""
        return None

    def pooled(self) -> "Distribution":
        return self

    def cdf(self, t: ArrayLike) -> Array:
        """P(T ≤ t), with relative accuracy in the left tail."""
        return -jnp.expm1(-self.cumulative_hazard(t))

    def survival(self, t: ArrayLike) -> Array:
        """P(T > t), with relative accuracy in the right tail."""
        return jnp.exp(-self.cumulative_hazard(t))

    def log_density(self, t: ArrayLike) -> Array:
        """log of the density of T, elementwise, or -inf. Not for atoms."""
        t = jnp.asarray(t)
        hazard, rate = jax.jvp(self.cumulative_hazard, (t,), (jnp.ones_like(t),))
        possible = jnp.isfinite(hazard) & (rate > 0)
        return jnp.where(
            possible, jnp.log(jnp.where(possible, rate, 1)) - hazard, -jnp.inf
        )

    def with_fast_inverse(self) -> "Distribution":
        """The same, with a table in place of an Λ⁻¹ that is slow to compile and run."""
        return self

    def with_knots(self) -> "Distribution":
        """The same, which hides no knots from rules of integration."""
        return self

    def sample(
        self, key: Array, shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Array:
        """Independent cycle times of a `shape`, by default in the `working_dtype`."""
        check_key(key)
        if dtype is None:
            dtype = working_dtype(self)
        a = jax.random.exponential(key, shape, dtype)
        return self.with_fast_inverse().inverse_cumulative_hazard(a).astype(dtype)


def as_floats(*values: Any) -> list[Array]:
    """What a person passes as arrays, all in their `working_dtype`."""
    arrays = [
        value if isinstance(value, jax.Array) else np.asarray(value) for value in values
    ]
    return [jnp.asarray(array, working_dtype(*arrays)) for array in arrays]


def excess_above(t: ArrayLike, start: ArrayLike) -> tuple[Array, Array]:
    """(t > start, t - start or 1): the second is safe to raise, divide and take the log
    of.

    A NaN slope in the branch of an outer `where` that is not taken would still poison
    the gradient.
    """
    excess = jnp.subtract(t, start)
    inside = excess > 0
    return inside, jnp.where(inside, excess, 1)


def inverse_ranks(
    num_workers: ArrayLike, max_workers: int, dtype: Any
) -> tuple[Array, Array]:
    """1/j for j = n+1, and the rank N - n from the fastest; both 0 for n ≥ N."""
    j = jnp.arange(1, max_workers + 1, dtype=dtype)
    exists = j <= num_workers
    return jnp.where(exists, 1 / j, 0), jnp.where(exists, num_workers - j + 1, 0)
