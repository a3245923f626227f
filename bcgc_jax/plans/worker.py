r"""When blocks are delivered by workers that start up, compute and send, and when the
last one is.

Worker w delivers block n at F_n = S_w + T_w κ y_n + c X_n, or, where sending overlaps
computing, at max_{j≤n} (S_w + T_w κ y_j + c (X_n - X_{j-1})): S is its start-up, c X_n
the time its link takes. At any t each worker has delivered its blocks up to some level,
so their levels are independent and only P(F_n > t) = E exp(-Λ(latest T)) counts: the
crossing probability stays exact (docs/how-it-works.md).

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
from bcgc_jax.distributions.atoms import EmpiricalPairs, law_of_number, mass_of
from bcgc_jax.distributions.special_functions import double_exponential
from bcgc_jax.exact.linear_algebra import einsum
from bcgc_jax.exact.quadrature import largest, rule_error

# Intervals of the rule for the start-up; that for the time has twice as many
# (`evaluate.NUM_NODES`).
NUM_INNER = 64
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
    """Cycle time; start-up, if any, in the unit of runtimes; `unit`, κ."""

    cycle_time: Distribution
    start_up: Distribution | ArrayLike | None = None
    unit: ArrayLike = 1.0
    overlap: bool = static_field(default=False)

    @property
    def start(self) -> Distribution:
        """The distribution of the start-up."""
        return law_of_number(0.0 if self.start_up is None else self.start_up)

    @property
    def pairs(self) -> EmpiricalPairs | None:
        """The start-ups and cycle times, where they depend on each other."""
        if isinstance(self.cycle_time, EmpiricalPairs):
            return self.cycle_time
        return None

    @property
    def plain(self) -> bool:
        """Whether workers begin at once."""
        return self.start_up is None and self.pairs is None

    @property
    def constant(self) -> bool:
        """Whether every start-up takes the same time."""
        return self.start.constant and self.pairs is None

    @property
    def stepwise(self) -> bool:
        """Whether P(F_n ≤ t) is a step function of t."""
        return self.cycle_time.atomic and self.start.atomic

    def with_fast_inverses(self) -> "Worker":
        start = None
        if self.start_up is not None:
            start = self.start.with_fast_inverse()
        return replace(
            self, cycle_time=self.cycle_time.with_fast_inverse(), start_up=start
        )

    def with_knots(self) -> "Worker":
        start = None
        if self.start_up is not None:
            start = self.start.with_knots()
        return replace(self, cycle_time=self.cycle_time.with_knots(), start_up=start)

    def draw(
        self, key: Array, shape: tuple[int, ...], dtype: DTypeLike
    ) -> tuple[Array, Array]:
        """Start-ups, in units of κ, and cycle times."""
        if self.pairs is not None:
            starts, times = self.pairs.sample_pairs(key, shape, dtype)
            return (starts / self.unit).astype(dtype), times
        start_key, time_key = jax.random.split(key)
        starts = self.start.sample(start_key, shape, dtype) / self.unit
        return starts.astype(dtype), self.cycle_time.sample(time_key, shape, dtype)

    def infimum(self) -> Array:
        """Of the start-up, in units of κ."""
        # A number of no dtype of its own.
        if self.start_up is None:
            return jnp.asarray(0.0)
        return self.start.infimum() / self.unit

    def atoms(self) -> tuple[Array, Array]:
        """Of a start-up that has them: times, in units of κ, and probabilities."""
        if self.start.constant:
            times = self.infimum()[None]
            return times, jnp.ones_like(times)
        times = self.start.breaks()
        return times / self.unit, mass_of(self.start, times)


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


def late_hazard(
    worker: Worker, load: Load, t: Array, num_inner: int = NUM_INNER
) -> tuple[Array, Array]:
    """-log P(F_n > t) and P's error, `[..., N]`, for t `[..., N]` or `[..., 1]`."""
    used = load.work > 0
    dtype = load.work.dtype
    if worker.pairs is not None:
        starts, times = worker.pairs.arrays()
        ready = starts[:, None] / worker.unit + delivered(
            load, times[:, None], worker.overlap
        )
        share = jnp.mean((ready <= t[..., None, :]).astype(dtype), axis=-2)
        hazard = hazard_of(share, 1 - share)
    elif worker.start.atomic:
        starts, mass = worker.atoms()
        room = t[..., None, :] - starts[:, None].astype(dtype)
        hazards = _law_hazard(
            worker.cycle_time, latest_cycle_time(load, room, worker.overlap)
        )
        hazard = _mixture(mass.astype(dtype)[:, None], hazards)
    elif worker.cycle_time.atomic:
        times = worker.cycle_time.breaks()
        mass = mass_of(worker.cycle_time, times).astype(dtype)
        ready = delivered(load, times[:, None].astype(dtype), worker.overlap)
        hazards = _law_hazard(worker.start, (t[..., None, :] - ready) * worker.unit)
        hazard = _mixture(mass[:, None], hazards)
    else:
        hazard, error = _integrated(worker, load, t, num_inner)
        return jnp.where(used, hazard, jnp.inf), jnp.where(used, error, 0)
    return jnp.where(used, hazard, jnp.inf), jnp.zeros_like(hazard)


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


def _mixture(mass: Array, hazard: Array) -> Array:
    """-log Σ_q mass_q e^{-hazard_q} along the last but one axis."""
    if hazard.shape[-2] == 1:
        return hazard[..., 0, :]
    early = jnp.sum(mass * -jnp.expm1(-hazard), axis=-2)
    # The least hazard is taken out: a tail underflows otherwise.
    least = jax.lax.stop_gradient(jnp.min(hazard, axis=-2, keepdims=True))
    least = jnp.where(jnp.isfinite(least), least, 0)
    late = jnp.sum(mass * jnp.exp(least - hazard), axis=-2)
    return hazard_of(early, late, least[..., 0, :])


def hazard_of(early: Array, late: Array, shift: ArrayLike = 0.0) -> Array:
    """-log P from 1 - P and P e^shift, from the side where it does not cancel."""
    low = -jnp.log1p(-jnp.where(early < 0.5, early, 0))
    high = shift - jnp.log(jnp.where(late > 0, late, 1))
    return jnp.where(early < 0.5, low, jnp.where(late > 0, high, jnp.inf))


def _integrated(
    worker: Worker, load: Load, t: Array, num_inner: int
) -> tuple[Array, Array]:
    r"""P(F_n > t) = e^{-a*} + ∫_0^{a*} e^{-a} e^{-Λ(latest T after S(a))} da, both
    without atoms.

    a is the hazard of the start-up, a* that of the latest one with which the block is
    delivered by t. Double exponential nodes, for S(a) at 0 and Λ at a* may be powers.
    They follow a*: the slope of a power at a*, of which no rule sees all, then never
    enters.
    """
    law = worker.cycle_time
    start = worker.start
    dtype = load.work.dtype
    # Beyond this hazard, and before its inverse, a start-up has no probability to speak
    # of.
    longest = 18.0
    if dtype == jnp.float64:
        longest = 40.0

    def hazard_left(cycle_time: Array) -> Array:
        """The hazard of the latest start-up that delivers by t at this cycle time."""
        return _law_hazard(
            start, (t - delivered(load, cycle_time, worker.overlap)) * worker.unit
        )

    highest = hazard_left(law.infimum().astype(dtype)[None])
    lowest = jnp.zeros_like(highest)
    if law.has_end:
        lowest = hazard_left(law.breaks()[-1:].astype(dtype))
    tail = jnp.exp(-highest)
    highest = jnp.minimum(highest, longest)
    lowest = jnp.minimum(lowest, highest)
    share, weight = double_exponential(num_inner, dtype)
    size = (highest - lowest)[..., None, :]
    a = lowest[..., None, :] + size * share[:, None]
    room = t[..., None, :] - (start.inverse_cumulative_hazard(a) / worker.unit).astype(
        dtype
    )
    hazard = _law_hazard(law, latest_cycle_time(load, room, worker.overlap))
    density = jnp.exp(-a) * size
    late = einsum("rq,...qn->...rn", weight, density * jnp.exp(-hazard))
    early = einsum("q,...qn->...n", weight[0], density * -jnp.expm1(-hazard))
    fine, coarse, coarsest = jnp.moveaxis(late, -2, 0) + tail
    # What different times are off by cancels: true errors are below 1e-3 of this bound.
    error = rule_error(
        fine, coarse, coarsest, safety=3.0, cap=16.0 if worker.overlap else 1.0
    )
    error = jax.lax.stop_gradient(jnp.minimum(error, fine))
    return hazard_of(early - jnp.expm1(-lowest), fine), error
