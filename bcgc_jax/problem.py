"""The question, `Problem`, and the outcome of an answer, `Status`."""

import enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._limits import MOST_WORKERS
from bcgc_jax._pytree import (
    Numbers,
    check,
    check_shape,
    concrete,
    is_traced,
    meets,
    pytree_dataclass,
    replace,
    represent,
    static_field,
    working_dtype,
)
from bcgc_jax.distributions import Distribution, JointDistribution
from bcgc_jax.distributions.base import ONE_BY_ONE

# What the numbers of a problem must meet.
CONDITIONS = {
    "num_workers": ">= 1",
    "num_coordinates": ">= 1",
    "num_samples": "> 0",
    "cycles": "> 0",
    "setup_cycles": ">= 0",
    "chain_cycles": ">= 0",
    "send_time": ">= 0",
    "unit_costs": "> 0",
}

_COUNTS = ("num_workers", "num_coordinates")
_NUMBERS = ("num_samples", "cycles", "setup_cycles", "send_time", "chain_cycles")


class _Largest(int):
    """The default of `max_workers`: the largest number; it grows with `replace`."""


@pytree_dataclass
class Problem:
    r"""minimise E τ̂(x,T) = (M b / N) E max_n T_(N-n) y_n over x ≥ 0, Σ x = L (eq. 6 of
    the paper).

    Args:
      cycle_time: the distribution of T, the time of one CPU cycle of a worker; or of
        all N times of an iteration: `EmpiricalRows` or `Heterogeneous`.
      num_workers: N. May be batched or traced under a static `max_workers`.
      num_coordinates: L, the length of the gradient.
      num_samples: M, over all workers.
      cycles: b, CPU cycles for one coordinate and one sample.
      max_workers: the static length of every partition; by default the largest
        `num_workers`.
      setup_cycles: f, CPU cycles for one sample of a subset before its first coordinate
        (a forward pass). The levels in use are then ready at y_n + (n+1) f / b; None,
        the paper, is no setup.
      unit_costs: `[num_coordinates]`, for units of unequal cost in a fixed order
        (layers; footnotes 2-4): a unit takes `cycles` times its cost. A partition then
        shares out their sum.
      start_up: S, in the unit of runtimes, the time to a worker's first cycle: a
        number.
      send_time: c, the time a worker's link takes for one coordinate (or unit of cost).
        With it worker w delivers level n at F_n = S_w + T_w M b y_n / N + c Σ_{i≤n}
        x_i.
      overlap: static; the link sends while the worker goes on computing, and
        F_n = max_{j≤n} (S_w + T_w M b y_j / N + c Σ_{j≤i≤n} x_i).
      chain_cycles: h, CPU cycles for one coordinate and sample that a cotangent is
        carried past: as setup, but for Σ_{i≤n} x_i coordinates, (n+1) (f + h Σ_{i≤n}
        x_i) / b in all.

    With these τ̂ = max_n of the (N-n)-th of the F_n.

    Raises ValueError for numbers that make no sense and are known before tracing.

    >>> from bcgc_jax.distributions import ShiftedExponential
    >>> problem = Problem(
    ...     ShiftedExponential(rate=1e-3, shift=50.0),
    ...     num_workers=4,
    ...     num_coordinates=100,
    ... )
    >>> problem.max_workers
    4
    """

    cycle_time: Distribution | JointDistribution
    num_workers: ArrayLike
    num_coordinates: ArrayLike
    num_samples: ArrayLike = 1.0
    cycles: ArrayLike = 1.0
    max_workers: int = static_field(default=0)
    setup_cycles: ArrayLike | None = None
    unit_costs: Numbers | None = None
    start_up: ArrayLike | None = None
    send_time: ArrayLike | None = None
    overlap: bool = static_field(default=False)
    chain_cycles: ArrayLike | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cycle_time, Distribution | JointDistribution):
            raise ValueError(
                "cycle_time must be a distribution such as ShiftedExponential, or "
                f"Heterogeneous([…]) of one for each worker, got {self.cycle_time!r}"
            )
        for name, condition in CONDITIONS.items():
            if getattr(self, name) is not None:
                check(name, getattr(self, name), condition)
        self._check_start_up()
        for name in _COUNTS:
            count = concrete(getattr(self, name))
            if count is not None and np.any(count != np.floor(count)):
                raise ValueError(f"{name} must be a whole number, got {count}")
        self._convert(_COUNTS, float, int)
        self._convert((*_NUMBERS, "start_up"), int, float)
        if self.unit_costs is not None and not isinstance(self.unit_costs, jax.Array):
            # A list would be many leaves.
            costs = jnp.asarray(self.unit_costs, working_dtype(self))
            object.__setattr__(self, "unit_costs", costs)
        self._check_coordinates(concrete(self.num_coordinates))
        self._check_workers(concrete(self.num_workers))

    def __repr__(self) -> str:
        workers = concrete(self.num_workers)
        padded = workers is None or workers.max() != self.max_workers
        return represent(self, leave_out=[] if padded else ["max_workers"])

    def _convert(self, names: tuple[str, ...], source: type, kind: type) -> None:
        """Make numbers of one kind, so that 50 and 50.0 are one program."""
        for name in names:
            value = getattr(self, name)
            if isinstance(value, source | np.integer):
                object.__setattr__(self, name, kind(value))

    def _check_start_up(self) -> None:
        start = self.start_up
        if isinstance(start, Distribution | JointDistribution):
            raise ValueError(
                f"start_up must be a number, got {start!r}. Distributions of start-up "
                "times were removed after version 0.4. Pass a typical start-up time, "
                "for example the mean"
            )
        if start is not None:
            check("start_up", start, ">= 0")
        if not isinstance(self.overlap, bool | np.bool_):
            raise ValueError(
                "overlap must be True or False, known before tracing, got "
                f"{self.overlap!r}"
            )

    def _check_coordinates(self, count: np.ndarray | None) -> None:
        shape = None
        if self.unit_costs is not None:
            shape = np.shape(self.unit_costs)
        if shape == () or (shape and count is not None and np.any(count != shape[-1])):
            expected = f"one entry for each of the {self.num_coordinates} coordinates"
            raise ValueError(f"unit_costs must have {expected}, got shape {shape}")
        if count is not None and np.any(count > jnp.iinfo(jnp.result_type(int)).max):
            advice = (
                "needs 64 bits: call jax.config.update('jax_enable_x64', True) first"
            )
            raise ValueError(f"num_coordinates of {count.max():.6g} {advice}")

    def _check_workers(self, workers: np.ndarray | None) -> None:
        by_default = not self.max_workers or isinstance(self.max_workers, _Largest)
        if by_default and workers is not None:
            object.__setattr__(
                self, "max_workers", _Largest(max(self.max_workers, workers.max()))
            )
        elif not self.max_workers:
            raise ValueError(
                "num_workers is traced: give the static max_workers that bounds it"
            )
        elif workers is not None and workers.max() > self.max_workers:
            raise ValueError(
                f"num_workers {workers.max()} exceeds max_workers {self.max_workers}"
            )
        if self.max_workers > MOST_WORKERS:
            raise ValueError(
                f"{self.max_workers:.6g} workers are more than {MOST_WORKERS:,}: "
                "exact answers take arrays of N² numbers"
            )
        sizes = {self.max_workers}
        if workers is not None:
            sizes.update(workers.flat)
        width = self.cycle_time.width()
        if width is not None and sizes != {width}:
            raise ValueError(
                f"cycle_time is that of {width} workers, but num_workers is "
                f"{self.num_workers} and max_workers {self.max_workers}: workers that "
                "are not alike are neither left out nor padded"
            )

    def check_single(self) -> None:
        """Raise ValueError for a batch of problems, which only `jax.vmap` takes."""
        if all(getattr(leaf, "ndim", 0) == 0 for leaf in jax.tree.leaves(self)):
            return
        for name in (*_COUNTS, *_NUMBERS, "unit_costs", "start_up", "cycle_time"):
            value = getattr(self, name)
            if isinstance(value, Distribution | JointDistribution):
                value.check_single()
            elif value is not None:
                check_shape(
                    name, value, (None,) if name == "unit_costs" else (), ONE_BY_ONE
                )

    @property
    def valid(self) -> Array:
        """Whether the numbers make a problem; traced ones are unchecked before."""
        workers = jnp.asarray(self.num_workers)
        coordinates = jnp.asarray(self.num_coordinates)
        valid = self.cycle_time.valid()
        valid &= (workers <= self.max_workers) & (workers == jnp.floor(workers))
        if (width := self.cycle_time.width()) is not None:
            valid &= workers == width
        for name, condition in CONDITIONS.items():
            value = getattr(self, name)
            if value is not None:
                valid &= jnp.all(meets(value, condition))
        if self.start_up is not None:
            valid &= jnp.all(meets(self.start_up, ">= 0"))
        valid &= jnp.all(self._cycle >= jnp.finfo(self.dtype).tiny)
        return valid & jnp.all(coordinates == jnp.floor(coordinates))

    @property
    def plain(self) -> bool:
        """Whether a delivery takes cycles alone: neither start-up nor link."""
        return self.start_up is None and self.send_time is None

    @property
    def start_up_or_zero(self) -> Array:
        """The start-up time, in the unit of runtimes; 0 without one."""
        start = 0.0 if self.start_up is None else self.start_up
        return jnp.asarray(start, self.dtype)

    @property
    def without_delivery(self) -> "Problem":
        """The same problem with workers that start at once and send in no time."""
        return replace(self, start_up=None, send_time=None, overlap=False)

    @property
    def has_setup(self) -> bool:
        """Whether each level in use costs cycles of its own."""
        return self.setup_cycles is not None or self.chain_cycles is not None

    @property
    def bare(self) -> bool:
        """Whether an iteration takes coordinates' cycles alone, as in the paper."""
        return self.plain and not self.has_setup

    @property
    def dtype(self) -> Any:
        """float32 or float64, by the leaves and the caller's configuration of jax."""
        return working_dtype(self)

    @property
    def scale(self) -> Array:
        """M b / N, the time per cycle of a coordinate's load, eq. (5).

        NaN where traced numbers make no problem.
        """
        if is_traced(self):
            return jnp.where(self.valid, self._cycle, jnp.nan)
        return self._cycle

    @property
    def _cycle(self) -> Array:
        return (
            jnp.asarray(self.num_samples, self.dtype) * self.cycles / self.num_workers
        )

    @property
    def total(self) -> Array:
        """What a partition sums to: L, or the sum of the units' costs."""
        if self.unit_costs is not None:
            return jnp.sum(jnp.asarray(self.unit_costs, self.dtype))
        return jnp.asarray(self.num_coordinates, self.dtype)

    @property
    def setup_load(self) -> Array:
        """f / b: the setup of one subset, in coordinates."""
        return self._in_coordinates(self.setup_cycles)

    @property
    def chain_load(self) -> Array:
        """h / b: cost in coordinates to carry a subset's cotangent past one of them."""
        return self._in_coordinates(self.chain_cycles)

    @property
    def pass_load(self) -> Array:
        """L (1 + h/b) + f/b: forward and backward pass of a sample, in coordinates."""
        return self.total * (1 + self.chain_load) + self.setup_load

    def _in_coordinates(self, cycles: ArrayLike | None) -> Array:
        if cycles is None:
            return jnp.zeros((), self.dtype)
        return jnp.asarray(cycles, self.dtype) / self.cycles

    @property
    def send_load(self) -> Array:
        """c, in the unit of runtimes."""
        return jnp.asarray(0 if self.send_time is None else self.send_time, self.dtype)

    @property
    def exists(self) -> Array:
        """True for the levels n < N, False for padding, `[max_workers]`."""
        return np.arange(self.max_workers) < self.num_workers  # type: ignore[return-value]


class Status(enum.IntEnum):
    """The outcome of a solution; `Solution.status` is its integer, for batches."""

    CONVERGED = 0
    STEP_LIMIT = 1
    INFINITE = 2
    INFEASIBLE = 3
    INVALID = 4
    PRECISION = 5

    @property
    def message(self) -> str:
        return _MESSAGES[self]


_MESSAGES = {
    Status.CONVERGED: "converged",
    Status.STEP_LIMIT: "not converged: take what was found, or raise max_steps where "
    "there is one",
    Status.INFINITE: "the expected runtime is infinite, the tail too heavy: plan for a "
    "deadline",
    Status.INFEASIBLE: "the scheme does not exist for this number of workers and "
    "coordinates",
    Status.INVALID: "the numbers make no problem (negative, NaN, …), or are beyond the "
    "precision",
    Status.PRECISION: "precision and the finest rule of integration do not resolve the "
    "tolerance, or not even the runtime to 1 %: accept the reported relative_gap and "
    "runtime_error",
}
