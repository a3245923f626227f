r"""When blocks are delivered by workers that start up, compute and send, and when the
last one is.

Worker w delivers block n at F_n = S + T_w κ y_n + c X_n, or, where sending overlaps
computing, at max_{j≤n} (S + T_w κ y_j + c (X_n - X_{j-1})): S is the constant start-up,
c X_n the time the link takes. At any t each worker has delivered its blocks up to some
level, so their levels are independent and only P(F_n > t) = exp(-Λ(latest T)) counts:
the crossing probability stays exact (docs/how-it-works.md).

All times here are in units of κ = M b / N, so that a load is one of cycles.
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

# Numbers held at a time, of times or draws, workers and levels: 16 MB in double
# precision.
AT_A_TIME = 2**21


class Tasks(NamedTuple):
    """What each worker does, in this order, `[K]` each.

    Attributes:
      block: of the gradient that a task computes; beyond the last task -1.
      data, share: how many subsets of the data it goes over (`[W, K]` of unlike
        workers), and the share of their samples.
    """

    block: ArrayLike
    data: ArrayLike
    share: ArrayLike


class Cost(NamedTuple):
    """What a worker spends besides the cycles of coordinates.

    Attributes:
      setup, chain: on each subset, and there for each coordinate that is passed, in
        coordinates; or None.
      sent: for sending a coordinate, in cycle times; None without a link.
      num_levels: as many redundancy levels there may be.
    """

    setup: Array | None
    chain: Array | None
    sent: Array | None
    num_levels: int


@pytree_dataclass
class Load:
    """What a worker has done when each task is finished, `[K]` each, ascending.

    `work` is y_n, in cycles of a coordinate; `sent` c X_n / κ, in cycle times, None
    without a link. Of several `kinds` of workers, one kind's tasks after the other's.
    """

    work: Array
    sent: Array | None = None
    kinds: int = static_field(default=1)

    @property
    def earlier(self) -> Array:
        """Whether task j comes before or is task n, and has work, `[n, j]`."""
        before = np.kron(np.eye(self.kinds), np.tri(self.work.size // self.kinds))
        return jnp.logical_and(before, self.work > 0)

    @property
    def began(self) -> Array:
        """What the link has sent before each task.

        Of task n, if it begins with j, it is `sent[n] - began[j]`.
        """
        assert self.sent is not None
        sent = self.sent.reshape(self.kinds, -1)
        return jnp.concatenate(
            [jnp.zeros_like(sent[:, :1]), sent[:, :-1]], axis=1
        ).ravel()


@pytree_dataclass
class Worker:
    """A worker's cycle time and link, and its constant start-up, if any, in κ."""

    cycle_time: Distribution
    start_up: ArrayLike | None = None
    overlap: bool = static_field(default=False)

    @property
    def start(self) -> Array:
        """The start-up in units of κ; 0 without one."""
        return jnp.asarray(0.0 if self.start_up is None else self.start_up)

    @property
    def plain(self) -> bool:
        """Whether the worker begins at once."""
        return self.start_up is None

    def with_fast_inverses(self) -> "Worker":
        return replace(self, cycle_time=self.cycle_time.with_fast_inverse())

    def with_knots(self) -> "Worker":
        return replace(self, cycle_time=self.cycle_time.with_knots())

    def draw(
        self, key: Array, shape: tuple[int, ...], dtype: DTypeLike
    ) -> tuple[Array, Array]:
        """Draw start-ups, in units of κ and all alike, and cycle times."""
        times = self.cycle_time.sample(jax.random.split(key)[1], shape, dtype)
        return jnp.full(shape, self.start, dtype), times


def delivered(load: Load, time: Array, overlap: bool) -> Array:
    """F_n - S for a cycle time, `[..., N]` or `[..., 1]`; 0 for unused levels."""
    used = load.work > 0
    if load.sent is None or not overlap:
        sent = 0 if load.sent is None else load.sent
        return jnp.where(used, jnp.where(used, time, 0) * load.work + sent, 0)
    computed = jnp.where(used, time[..., None], 0) * load.work
    ready = jnp.where(load.earlier, computed + (load.sent[:, None] - load.began), 0)
    return jnp.where(used, largest(ready), 0)


def latest_cycle_time(load: Load, room: Array, overlap: bool) -> Array:
    """The largest cycle time with F_n - S ≤ room, `[..., N]`; negative for none."""
    used = load.work > 0
    if load.sent is None or not overlap:
        return (room if load.sent is None else room - load.sent) / jnp.where(
            used, load.work, 1
        )
    left = room[..., None] - (load.sent[:, None] - load.began)
    latest = jnp.where(load.earlier, left / jnp.where(used, load.work, 1), jnp.inf)
    return jnp.where(used, -largest(-latest), 0)


def late_hazard(worker: Worker, load: Load, t: Array) -> Array:
    """-log P(F_n > t), `[..., N]`, for t `[..., N]` or `[..., 1]`."""
    room = t - worker.start.astype(load.work.dtype)
    latest = latest_cycle_time(load, room, worker.overlap)
    hazard = _law_hazard(worker.cycle_time, latest)
    return jnp.where(load.work > 0, hazard, jnp.inf)


def _law_hazard(law: Distribution, t: Array) -> Array:
    """Λ, for times of which some are negative or beyond all that matters."""
    possible = t > 0
    beyond = jnp.zeros((), bool)
    if not law.atomic:
        # Where P(T > t) underflows Λ may overflow, and its slope, inf, times 0 would be
        # NaN.
        beyond = t > jax.lax.stop_gradient(law.inverse_beyond(unreached(t.dtype)))
    hazard = law.cumulative_hazard(
        jnp.where(possible & ~beyond, t, law.infimum())
    ).astype(t.dtype)
    return jnp.where(beyond, jnp.inf, jnp.where(possible, hazard, 0))


def unreached(dtype: DTypeLike) -> Array:
    """A hazard at which P(T > t) underflows."""
    return jnp.asarray(-1.2 * np.log(jnp.finfo(dtype).tiny), dtype)


def hazard_of(early: Array, late: Array) -> Array:
    """-log P from 1 - P and P, from the side where it does not cancel."""
    low = -jnp.log1p(-jnp.where(early < 0.5, early, 0))
    high = -jnp.log(jnp.where(late > 0, late, 1))
    return jnp.where(early < 0.5, low, jnp.where(late > 0, high, jnp.inf))
