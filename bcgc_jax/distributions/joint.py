r"""Joint distributions of the N cycle times of a step, for workers that are not i.i.d.

`EmpiricalRows` is a sample of measured or simulated steps. An expectation under it is a
mean over rows, and therefore exact. `Heterogeneous` has one distribution for each of N
independent workers. Its expectations have no short formula, so solvers use Monte Carlo
samples (`solvers.sample_average`).
"""

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check_key, pytree_dataclass, working_dtype
from bcgc_jax.distributions.atoms import Empirical
from bcgc_jax.distributions.base import AnyDistribution, Distribution, as_floats
from bcgc_jax.distributions.order import slowest_first

NO_EXACT_ANSWER = (
    "for heterogeneous workers, expectations cannot be computed exactly. Use solve or "
    "simulate_runtime with a key, or pass samples as the distribution: "
    "EmpiricalRows(distribution.draw_rows(key, 10_000))."
)


class JointDistribution(AnyDistribution):
    """Base class of the joint distributions of all N cycle times of a step.

    A subclass is a `pytree_dataclass` with `width`, `_sample`, `pooled`, `of_workers`,
    `mean` and `infimum`.
    """

    def width(self) -> int:
        raise NotImplementedError

    @functools.partial(jax.jit, static_argnames="num_draws")
    def draw_rows(self, key: Array, num_draws: int) -> Array:
        """Draw the times of `num_draws` steps, slowest first, `[num_draws, N]`."""
        return slowest_first(self.sample(key, (num_draws, self.width())))

    @functools.partial(jax.jit, static_argnames=("shape", "dtype"))
    def sample(
        self, key: Array, shape: tuple[int, ...] = (), dtype: Any = None
    ) -> Array:
        """Draw cycle times.

        Args:
          key: PRNG key.
          shape: Shape of the result. The last axis must be the N workers.
          dtype: Dtype of the result. Defaults to `working_dtype`.

        Raises:
          ValueError: If `shape` does not end with N.
        """
        check_key(key)
        if shape[-1:] != (self.width(),):
            raise ValueError(
                f"the last axis of a sample must be the {self.width()} workers, got "
                f"shape {shape}"
            )
        if dtype is None:
            dtype = working_dtype(self)
        return self._sample(key, shape, dtype).astype(dtype)

    def _sample(self, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        raise NotImplementedError


@pytree_dataclass
class EmpiricalRows(JointDistribution):
    r"""The empirical joint distribution of S steps, each with probability 1/S.

    The dependence between the workers of a step is kept. The identity of the workers is
    not kept, because each row is stored sorted, slowest first.

    Args:
      times: Cycle times of N workers in S steps, `[S, N]`.

    Raises:
      ValueError: If `times` has another rank, is empty, or has a time that is not
        finite and positive.

    >>> law = EmpiricalRows([[1.0, 3.0], [5.0, 2.0]])
    >>> law.times.tolist(), float(law.mean())
    ([[3.0, 1.0], [5.0, 2.0]], 2.75)
    """

    times: ArrayLike | Sequence[Sequence[float]]

    conditions = (("times", "> 0"),)
    ranks = (("times", 2),)

    def __post_init__(self) -> None:
        shape = np.shape(self.times)
        if len(shape) < 2 or 0 in shape:
            raise ValueError(
                f"`times` must have one row per step and one column per worker, got "
                f"shape {shape}"
            )
        super().__post_init__()
        (times,) = as_floats(self.times)
        object.__setattr__(self, "times", slowest_first(times))

    def width(self):
        return np.shape(self.times)[-1]

    def _sample(self, key, shape, dtype):
        """Draw complete rows, slowest first."""
        times = jnp.asarray(self.times)
        return times[jax.random.randint(key, shape[:-1], 0, len(times))]

    def of_workers(self, members):
        warnings.warn(
            "`EmpiricalRows` does not identify workers, so the remaining workers are "
            "planned as if their times were independent",
            stacklevel=2,
        )
        return self.pooled()

    def pooled(self):
        return Empirical(jnp.asarray(self.times))

    def mean(self):
        return jnp.mean(jnp.asarray(self.times))

    def infimum(self):
        return jnp.min(jnp.asarray(self.times))

    def summary(self):
        steps, workers = np.shape(self.times)
        return {
            "distribution": "rows",
            "steps": steps,
            "workers": workers,
            "mean": self.mean(),
        }


@pytree_dataclass
class Heterogeneous(JointDistribution):
    r"""Independent workers, each with its own distribution.

    Workers whose distributions have the same class are sampled together, so N of them
    compile as fast as one.

    Args:
      distributions: The distributions of the N workers.

    Raises:
      ValueError: If an entry is not a `Distribution` of a single worker.

    >>> from bcgc_jax.distributions import Pareto, Uniform
    >>> law = Heterogeneous(
    ...     [Uniform(1.0, 2.0), Uniform(4.0, 5.0), Pareto(scale=8.0, shape=20.0)]
    ... )
    >>> jnp.floor(law.draw_rows(jax.random.key(0), 2)).tolist()
    [[8.0, 4.0, 1.0], [8.0, 4.0, 1.0]]
    """

    distributions: Sequence[Distribution]

    def __post_init__(self) -> None:
        object.__setattr__(self, "distributions", tuple(self.distributions))
        alone = [isinstance(law, Distribution) for law in self.distributions]
        if not alone or not all(alone):
            raise ValueError(
                "`distributions` must have a distribution for each worker, got "
                f"{self.distributions!r}"
            )

    def valid(self):
        return jnp.all(jnp.stack([law.valid() for law in self.distributions]))

    def check_single(self):
        for law in self.distributions:
            law.check_single()

    def width(self):
        return len(self.distributions)

    def pooled(self):
        raise ValueError(NO_EXACT_ANSWER)

    def of_workers(self, members):
        return Heterogeneous([self.distributions[worker] for worker in members])

    def members(self):
        return self.distributions

    def _sample(self, key, shape, dtype):
        """Draw independent cycle times, with one worker per entry of the last axis."""
        a = jax.random.exponential(key, shape, dtype)
        # A draw may be exactly 0. The value in its place is below all positive draws.
        a = jnp.maximum(a, jnp.finfo(a.dtype).eps / 4)
        groups: dict[Any, list[int]] = {}
        for worker, law in enumerate(self.distributions):
            leaves, structure = jax.tree.flatten(law)
            groups.setdefault((structure, *map(jnp.shape, leaves)), []).append(worker)

        def draw(law: Distribution, a: Array) -> Array:
            return law.with_fast_inverse().inverse_cumulative_hazard(a)

        for workers in map(np.array, groups.values()):
            laws = jax.tree.map(_stacked, *(self.distributions[i] for i in workers))
            times = jax.vmap(draw, (0, -1), -1)(laws, a[..., workers])
            a = a.at[..., workers].set(times.astype(a.dtype))
        return a

    def mean(self):
        return jnp.mean(
            jnp.stack([jnp.asarray(law.mean()) for law in self.distributions])
        )

    def infimum(self):
        return jnp.min(
            jnp.stack([jnp.asarray(law.infimum()) for law in self.distributions])
        )


def _stacked(*leaves: Any) -> Array:
    return jnp.stack(leaves)
