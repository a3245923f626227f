"""Define a planning problem, `Problem`, and the outcome of solving it, `Status`."""

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

# The condition that each number of a problem must meet.
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
    """Default of `max_workers`: the largest `num_workers`, which `replace` updates."""


@pytree_dataclass
class Problem:
    """Describe a gradient computation on N workers and its costs.

    A partition x puts x_n of the L coordinates at redundancy level n = 0, …, N - 1. Let
    T_(1) ≤ … ≤ T_(N) be the sorted cycle times of the workers. `solve` minimises the
    expected runtime of a step (eq. 6 of the paper) over x ≥ 0 with Σ x = L:

        E τ̂(x, T) = (M b / N) E max_n T_(N-n) y_n,   y_n = Σ_{i≤n} (i + 1) x_i.

    The paper counts only the cycles of the coordinates. With the optional costs below,
    worker w delivers level n at time

        F_n = S + T_w (M / N) (b y_n + (n + 1) (f + h X_n)) + c X_n,

    where X_n = Σ_{i≤n} x_i. The runtime is the maximum over n of the (N - n)-th
    smallest F_n.

    Args:
      cycle_time: Distribution of T, the time in which a worker computes one CPU cycle.
        Pass `EmpiricalRows` or `Heterogeneous` to give the joint distribution of all N
        workers.
      num_workers: Number of workers, N. It may be traced or batched if `max_workers` is
        given.
      num_coordinates: Length of the gradient, L, or the number of units if `unit_costs`
        is given.
      num_samples: Number of samples in a step, M, over all workers. Defaults to 1.
      cycles: CPU cycles per coordinate and sample, b. Defaults to 1.
      max_workers: Static length of every partition. Defaults to the largest
        `num_workers`.
      setup_cycles: CPU cycles per sample before the first coordinate of a data subset
        (the forward pass), f. Only levels in use pay for it. Defaults to no forward
        pass, as in the paper.
      unit_costs: Costs of units of unequal size, such as layers, in the order in which
        they are computed (footnotes 2 to 4), `[num_coordinates]`. A unit takes `cycles`
        times its cost, and a partition sums to the total cost instead of L.
      start_up: Constant time before a worker's first cycle, S, in the unit of the
        runtime. Defaults to 0.
      send_time: Time in which a worker's link sends one coordinate, or one unit of
        cost, c. Defaults to 0.
      overlap: Whether the link sends while the worker computes. If it does, and without
        f and h, F_n = max_{j≤n} (S + T_w M b y_j / N + c Σ_{j≤i≤n} x_i). Must be
        static.
      chain_cycles: CPU cycles per sample and coordinate to propagate the cotangent past
        a coordinate in the backward pass, h. Defaults to 0.

    Raises:
      ValueError: If a number that is known before tracing is out of range.

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
                f"cycle_time must be a distribution, got {self.cycle_time!r}. Pass, "
                "for example, ShiftedExponential, or Heterogeneous with one "
                "distribution per worker."
            )
        for name, condition in CONDITIONS.items():
            if getattr(self, name) is not None:
                check(name, getattr(self, name), condition)
        self._check_start_up()
        for name in _COUNTS:
            count = concrete(getattr(self, name))
            if count is not None and np.any(count != np.floor(count)):
                raise ValueError(f"{name} must be an integer, got {count}")
        self._convert(_COUNTS, float, int)
        self._convert((*_NUMBERS, "start_up"), int, float)
        if self.unit_costs is not None and not isinstance(self.unit_costs, jax.Array):
            # In a pytree, each entry of a list would be a leaf.
            costs = jnp.asarray(self.unit_costs, working_dtype(self))
            object.__setattr__(self, "unit_costs", costs)
        self._check_coordinates(concrete(self.num_coordinates))
        self._check_workers(concrete(self.num_workers))

    def __repr__(self) -> str:
        workers = concrete(self.num_workers)
        padded = workers is None or workers.max() != self.max_workers
        return represent(self, leave_out=[] if padded else ["max_workers"])

    def _convert(self, names: tuple[str, ...], source: type, kind: type) -> None:
        """Convert numbers to `kind`, so that 50 and 50.0 share a program."""
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
                "for example the mean."
            )
        if start is not None:
            check("start_up", start, ">= 0")
        if not isinstance(self.overlap, bool | np.bool_):
            raise ValueError(
                "overlap must be True or False and known before tracing, got "
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
            raise ValueError(
                f"num_coordinates {count.max():.6g} needs 64-bit integers. Call "
                "jax.config.update('jax_enable_x64', True) first."
            )

    def _check_workers(self, workers: np.ndarray | None) -> None:
        by_default = not self.max_workers or isinstance(self.max_workers, _Largest)
        if by_default and workers is not None:
            object.__setattr__(
                self, "max_workers", _Largest(max(self.max_workers, workers.max()))
            )
        elif not self.max_workers:
            raise ValueError(
                "num_workers is traced, so shapes are unknown. Pass a static "
                "max_workers that bounds it."
            )
        elif workers is not None and workers.max() > self.max_workers:
            raise ValueError(
                f"num_workers {workers.max()} exceeds max_workers {self.max_workers}. "
                "Increase max_workers."
            )
        if self.max_workers > MOST_WORKERS:
            raise ValueError(
                f"{self.max_workers:.6g} workers are more than the limit of "
                f"{MOST_WORKERS:,}. Exact results need arrays of N² numbers."
            )
        sizes = {self.max_workers}
        if workers is not None:
            sizes.update(workers.flat)
        width = self.cycle_time.width()
        if width is not None and sizes != {width}:
            raise ValueError(
                f"cycle_time is the distribution of {width} workers, but num_workers "
                f"is {self.num_workers} and max_workers is {self.max_workers}. "
                f"Heterogeneous workers cannot be padded, so both must be {width}."
            )

    def check_single(self) -> None:
        """Raise ValueError for a batch of problems, which only `jax.vmap` accepts."""
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
        """Whether all numbers are in range. Traced numbers are checked only here."""
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
        """Whether workers have neither start-up nor sending time."""
        return self.start_up is None and self.send_time is None

    @property
    def start_up_or_zero(self) -> Array:
        """Start-up time S in the unit of the runtime; 0 if there is none."""
        start = 0.0 if self.start_up is None else self.start_up
        return jnp.asarray(start, self.dtype)

    @property
    def without_delivery(self) -> "Problem":
        """The same problem without start-up and sending times."""
        return replace(self, start_up=None, send_time=None, overlap=False)

    @property
    def has_setup(self) -> bool:
        """Whether each level in use costs additional cycles."""
        return self.setup_cycles is not None or self.chain_cycles is not None

    @property
    def bare(self) -> bool:
        """Whether a step takes only the cycles of the coordinates, as in the paper."""
        return self.plain and not self.has_setup

    @property
    def dtype(self) -> Any:
        """float32 or float64, determined by the leaves and by JAX's configuration."""
        return working_dtype(self)

    @property
    def scale(self) -> Array:
        """κ = M b / N, the runtime per cycle of a coordinate's load (eq. 5).

        It is NaN if traced numbers are out of range.
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
        """Sum of a partition: L, or the total cost of the units."""
        if self.unit_costs is not None:
            return jnp.sum(jnp.asarray(self.unit_costs, self.dtype))
        return jnp.asarray(self.num_coordinates, self.dtype)

    @property
    def setup_load(self) -> Array:
        """f / b: setup of one data subset, in coordinates."""
        return self._in_coordinates(self.setup_cycles)

    @property
    def chain_load(self) -> Array:
        """h / b: cost per subset and passed coordinate, in coordinates."""
        return self._in_coordinates(self.chain_cycles)

    @property
    def pass_load(self) -> Array:
        """L (1 + h / b) + f / b: both passes of one sample, in coordinates."""
        return self.total * (1 + self.chain_load) + self.setup_load

    def _in_coordinates(self, cycles: ArrayLike | None) -> Array:
        if cycles is None:
            return jnp.zeros((), self.dtype)
        return jnp.asarray(cycles, self.dtype) / self.cycles

    @property
    def send_load(self) -> Array:
        """c, in the unit of the runtime."""
        return jnp.asarray(0 if self.send_time is None else self.send_time, self.dtype)

    @property
    def exists(self) -> Array:
        """Mask of the levels n < N, `[max_workers]`. It is False for padding."""
        return np.arange(self.max_workers) < self.num_workers  # type: ignore[return-value]


class Status(enum.IntEnum):
    """List the outcomes of a solution. `Solution.status` holds the integer value."""

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
    Status.STEP_LIMIT: "the search did not converge; accept the best plan found, or "
    "increase max_steps if the method has this option",
    Status.INFINITE: "the expected runtime is infinite because the tail of the "
    "distribution is too heavy; plan for a deadline instead",
    Status.INFEASIBLE: "the scheme does not exist for this number of workers and "
    "coordinates",
    Status.INVALID: "the problem has invalid numbers (for example negative or NaN), or "
    "numbers beyond the precision",
    Status.PRECISION: "the precision and the finest quadrature rule cannot reach the "
    "tolerance, or not even an error of 1 % in the runtime; accept the reported "
    "relative_gap and runtime_error",
}
