"""Compute when workers that start up, compute and send deliver their blocks.

Worker w delivers block n at F_n = S + T_w κ y_n + c X_n. If sending overlaps computing,
F_n = max_{j≤n} (S + T_w κ y_j + c (X_n - X_{j-1})). S is the constant start-up time,
and c X_n the sending time. At any time, a worker has delivered its blocks up to some
level. These levels are independent, so P(τ > t) depends only on P(F_n > t) =
exp(-Λ(latest T)), and is exact (docs/how-it-works.md).

All times are in units of κ = M b / N, so that a load is a number of cycles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from bcgc_jax._pytree import pytree_dataclass, replace, static_field
from bcgc_jax.distributions import Distribution
from bcgc_jax.exact.quadrature import largest

# Limit on the size of an array, of times or samples by workers by levels. It is 16 MB
# in double precision.
AT_A_TIME = 2**21


class Tasks(NamedTuple):
    """List the tasks of each worker, in order, `[K]` each.

    Attributes:
      block: Block of the gradient that a task computes; -1 after the last task.
      data: Number of data subsets over which a task goes, or `[W, K]` for W kinds of
        workers.
      share: Fraction of the subsets' samples that a task uses.
    """

    block: ArrayLike
    data: ArrayLike
    share: ArrayLike


class Cost(NamedTuple):
    """List a worker's costs in addition to the cycles of the coordinates.

    Attributes:
      setup: Setup cost of a data subset, in coordinates, or None.
      chain: Cost per subset and passed coordinate, in coordinates, or None.
      sent: Time to send a coordinate, in cycle times. None if sending takes no time.
      num_levels: Maximum number of redundancy levels.
    """

    setup: Array | None
    chain: Array | None
    sent: Array | None
    num_levels: int


@pytree_dataclass
class Load:
    """Hold a worker's cumulative load after each task, `[K]` each, ascending.

    Attributes:
      work: y_n, in cycles of a coordinate.
      sent: c X_n / κ, in cycle times. None if sending takes no time.
      kinds: Number of kinds of workers, whose tasks are concatenated.
    """

    work: Array
    sent: Array | None = None
    kinds: int = static_field(default=1)

    @property
    def earlier(self) -> Array:
        """Whether task j is at or before task n and has work, `[n, j]`."""
        before = np.kron(np.eye(self.kinds), np.tri(self.work.size // self.kinds))
        return jnp.logical_and(before, self.work > 0)

    @property
    def began(self) -> Array:
        """Sending time before each task.

        If sending starts with task j, `sent[n] - began[j]` is the sending time up to
        task n.
        """
        assert self.sent is not None
        sent = self.sent.reshape(self.kinds, -1)
        return jnp.concatenate(
            [jnp.zeros_like(sent[:, :1]), sent[:, :-1]], axis=1
        ).ravel()


@pytree_dataclass
class Worker:
    """Model a worker by its cycle time, its start-up time in κ, and its link."""

    cycle_time: Distribution
    start_up: ArrayLike | None = None
    overlap: bool = static_field(default=False)

    @property
    def start(self) -> Array:
        """Start-up time in units of κ; 0 if there is none."""
        return jnp.asarray(0.0 if self.start_up is None else self.start_up)

    @property
    def plain(self) -> bool:
        """Whether the worker has no start-up time."""
        return self.start_up is None

    def with_fast_inverses(self) -> "Worker":
        return replace(self, cycle_time=self.cycle_time.with_fast_inverse())

    def with_knots(self) -> "Worker":
        return replace(self, cycle_time=self.cycle_time.with_knots())

    def draw(
        self, key: Array, shape: tuple[int, ...], dtype: DTypeLike
    ) -> tuple[Array, Array]:
        """Draw cycle times, and return them with the start-up times, in units of κ."""
        times = self.cycle_time.sample(jax.random.split(key)[1], shape, dtype)
        return jnp.full(shape, self.start, dtype), times


def delivered(load: Load, time: Array, overlap: bool) -> Array:
    """Compute F_n - S for cycle times, `[..., N]` or `[..., 1]`; 0 if unused."""
    used = load.work > 0
    if load.sent is None or not overlap:
        sent = 0 if load.sent is None else load.sent
        return jnp.where(used, jnp.where(used, time, 0) * load.work + sent, 0)
    computed = jnp.where(used, time[..., None], 0) * load.work
    ready = jnp.where(load.earlier, computed + (load.sent[:, None] - load.began), 0)
    return jnp.where(used, largest(ready), 0)


def latest_cycle_time(load: Load, room: Array, overlap: bool) -> Array:
    """Compute the largest cycle time with F_n - S ≤ room, `[..., N]`.

    It is negative if no cycle time is short enough.
    """
    used = load.work > 0
    if load.sent is None or not overlap:
        return (room if load.sent is None else room - load.sent) / jnp.where(
            used, load.work, 1
        )
    left = room[..., None] - (load.sent[:, None] - load.began)
    latest = jnp.where(load.earlier, left / jnp.where(used, load.work, 1), jnp.inf)
    return jnp.where(used, -largest(-latest), 0)


def late_hazard(worker: Worker, load: Load, t: Array) -> Array:
    """Compute -log P(F_n > t), `[..., N]`, for t `[..., N]` or `[..., 1]`."""
    room = t - worker.start.astype(load.work.dtype)
    latest = latest_cycle_time(load, room, worker.overlap)
    hazard = _law_hazard(worker.cycle_time, latest)
    return jnp.where(load.work > 0, hazard, jnp.inf)


def _law_hazard(law: Distribution, t: Array) -> Array:
    """Compute Λ(t). It is 0 for t ≤ 0, and inf where P(T > t) underflows."""
    possible = t > 0
    beyond = jnp.zeros((), bool)
    if not law.atomic:
        # Where P(T > t) underflows, Λ may overflow. Its derivative would be inf · 0 =
        # NaN.
        beyond = t > jax.lax.stop_gradient(law.inverse_beyond(unreached(t.dtype)))
    hazard = law.cumulative_hazard(
        jnp.where(possible & ~beyond, t, law.infimum())
    ).astype(t.dtype)
    return jnp.where(beyond, jnp.inf, jnp.where(possible, hazard, 0))


def unreached(dtype: DTypeLike) -> Array:
    """Return a hazard at which P(T > t) underflows."""
    return jnp.asarray(-1.2 * np.log(jnp.finfo(dtype).tiny), dtype)


def hazard_of(early: Array, late: Array) -> Array:
    """Compute -log P from 1 - P and P, and use the side without cancellation."""
    low = -jnp.log1p(-jnp.where(early < 0.5, early, 0))
    high = -jnp.log(jnp.where(late > 0, late, 1))
    return jnp.where(early < 0.5, low, jnp.where(late > 0, high, jnp.inf))
