r"""Schemes: rules that need no search, the package's own and a user's.

A scheme is a function from a problem to a partition or to the levels of the coordinates, or, where it is no
partition, a function from sorted cycle times to a runtime.
"""

import dataclasses
import functools
import os
import runpy
import textwrap
import traceback
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import concrete, is_traced, show
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.iterations import iteration_of
from bcgc_jax.problem import Problem, Status
from bcgc_jax.solution import Solution, assess, solution_of_value
from bcgc_jax.solvers import baselines, closed_form
from bcgc_jax.solvers.method import Method, refuse_setup

# Draws of the runtime of a scheme that is no partition, and how many of them at a time.
NUM_DRAWS, _BATCH = 2**17, 2**12
_LONGEST = 240  # characters of an error that are told


class SchemeError(Exception):
    """The function of a scheme that came from a file has failed: where and why, in one line."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Scheme(Method):
    r"""A rule of one's own, for `solve`, `Sweep`, the command line and the figures.

    Args:
      name: letters, digits and underscores.
      function: of JAX arrays; it is traced, and under a sweep `problem.num_workers` is too, below the static
        `problem.max_workers`. By `gives`:
        "partition": problem to x, `[max_workers]`, Σ x = `problem.total`, 0 for n ≥ N;
        "levels": (problem, l) to the redundancy levels of the coordinates (or units) l, an array of some of
        0…L-1;
        "runtime": (problem, T) to the runtime of one iteration, `[...]`, for cycle times T sorted slowest
        first, `[..., max_workers]` (beyond N they repeat the law's infimum). Its expectation is that of 2^17
        draws (`key` of `solve`), `Solution.runtime_error` their standard error;
        "expectation": (problem, key) to the expected runtime and its error.
        NaN says that the scheme does not exist for this problem.
      gives: which of the four.
      label: for figures; `name` by default.
      baseline: whether "against the best baseline" may mean this scheme.

    Static under `jit`, by identity: make one and use it again. Raises ValueError for a name that cannot be
    typed or that is a method of the package.

    >>> def two_blocks(problem):  # half of the coordinates uncoded, half with one straggler to spare
    ...     level = jnp.arange(problem.max_workers)
    ...     return jnp.where(level < 2, problem.total / jnp.minimum(problem.num_workers, 2), 0)
    >>> from bcgc_jax import ShiftedExponential, solve
    >>> problem = Problem(ShiftedExponential(1e-3, 50.0), num_workers=3, num_coordinates=100)
    >>> solve(problem, Scheme("two_blocks", two_blocks)).rounded.tolist()
    [50, 50, 0]
    """

    name: str
    function: Callable[..., Any]
    gives: str = "partition"
    label: str = ""
    baseline: bool = False

    _taken: ClassVar[tuple[str, ...]] = (
        *("optimal", "deadline", "subgradient", "time", "frequency", "uncoded", "single_block", "tandon"),
        *("tandon_partial", "ferdinand", "ferdinand_full", "ferdinand_half", "limit"),
        *("cyclic", "alternating", "multi_message", "backup", "sharing", "nested"),
    )

    def __post_init__(self) -> None:
        if self.gives not in _READINGS:
            raise ValueError(f'gives must be one of {", ".join(_READINGS)}, got "{self.gives}"')
        taken = self.name in self._taken
        if not self.name.isidentifier() or taken:
            why = "is a method of the package" if taken else "must be letters, digits and underscores"
            raise ValueError(f'the name of a scheme, "{self.name}", {why}: choose another')
        object.__setattr__(self, "label", self.label or self.name)

    def __repr__(self) -> str:
        baseline = ", baseline=True" if self.baseline else ""
        return f"Scheme({self.name!r}, {show(self.function)}, gives={self.gives!r}{baseline})"

    @property
    def is_partition(self) -> bool:  # type: ignore[override]
        return self.gives in ("partition", "levels")

    def is_drawn(self, problem: Problem) -> bool:
        return self.gives == "runtime"

    def digest(self) -> str:
        return self.gives

    def check(self, problem: Problem) -> None:
        if self.gives == "runtime" and not problem.plain:
            raise ValueError(
                f'method="{self.name}" makes runtimes of cycle times alone: it knows no start_up and no '
                "send_time"
            )

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        if not self.is_partition:
            return _expected(problem, key, scheme=self)
        partition, status = baselines.partition_of(self.read, problem)
        _refuse_partition(problem, self.name, partition, status)
        return assess(problem, partition, status)

    def read(self, problem: Problem, key: Array | None = None) -> Any:
        """x, `[max_workers]`, or the expected runtime and its error; NaN where the scheme does not exist."""
        return _READINGS[self.gives](self, problem, key)


@functools.partial(jax.jit, static_argnames="scheme")
def _expected(problem: Problem, key: Array | None, *, scheme: Scheme) -> Solution:
    return solution_of_value(problem, scheme.read(problem, key))


def _refuse_partition(problem: Problem, name: str, partition: Array, status: Array) -> None:
    """ValueError where an added scheme gave something else than a partition, or NaN for none."""
    x, total = concrete(partition), concrete(problem.total)
    if x is None or total is None or np.isnan(x).any() or int(status) == Status.CONVERGED:
        return
    raise ValueError(
        f'scheme "{name}" gave no partition of {total:g} over {problem.num_workers} levels: entries from '
        f"{x.min():g} to {x.max():g}, sum {x.sum():g}; it must give what is at each level, NaN if it is none"
    )


def _reading_partition(scheme: Scheme, problem: Problem, _: Array | None) -> Array:
    x = jnp.asarray(scheme.function(problem), problem.dtype)
    if x.shape != (problem.max_workers,):
        raise ValueError(
            f'scheme "{scheme.name}" must give a partition of shape ({problem.max_workers},), one entry for '
            f"each redundancy level of max_workers, got {x.shape}"
        )
    return x


def _reading_levels(scheme: Scheme, problem: Problem, _: Array | None) -> Array:
    # A piece at a time, so that L may be traced. Their order is no matter: ascending is best (Lemma 1).
    def add(i: Array, x: Array) -> Array:
        unit = i * _BATCH + jnp.arange(_BATCH)
        levels = jnp.asarray(scheme.function(problem, unit))
        if levels.shape != unit.shape:
            raise ValueError(f'scheme "{scheme.name}" must give one level a coordinate, got {levels.shape}')
        cost = jnp.ones(_BATCH, int)
        if problem.unit_costs is not None:
            cost = jnp.asarray(problem.unit_costs, x.dtype).at[unit].get(mode="clip")
        whole = jnp.where((levels >= 0) & (levels == jnp.floor(levels)), levels, x.size).astype(int)
        return x.at[whole].add(jnp.where(unit < problem.num_coordinates, cost, 0), mode="drop")

    counts = jnp.zeros(problem.max_workers, int if problem.unit_costs is None else problem.dtype)
    pieces = (jnp.asarray(problem.num_coordinates, int) + _BATCH - 1) // _BATCH
    return jax.lax.fori_loop(0, pieces, add, counts).astype(problem.dtype)


def _reading_runtime(scheme: Scheme, problem: Problem, key: Array | None) -> Expectation:
    assert key is not None

    def batch(key: Array) -> Array:
        times = iteration_of(problem).sorted_draws(key, _BATCH, problem.dtype)
        draws = jnp.asarray(scheme.function(problem, times), problem.dtype)
        if draws.shape != (_BATCH,):
            raise ValueError(
                f'scheme "{scheme.name}" must turn cycle times [..., N] into runtimes [...]: of times '
                f"{times.shape} it made {draws.shape}"
            )
        return jnp.stack([jnp.mean(draws), jnp.var(draws)])

    mean, variance = jax.lax.map(batch, jax.random.split(key, NUM_DRAWS // _BATCH)).T
    spread = jnp.mean(variance) + jnp.var(mean)
    return Expectation(jnp.mean(mean), jnp.sqrt(spread / NUM_DRAWS))


_READINGS: dict[str, Callable[..., Any]] = {
    "partition": _reading_partition,
    "levels": _reading_levels,
    "runtime": _reading_runtime,
    "expectation": lambda scheme, problem, key: scheme.function(problem, key),
}


def _ferdinand(problem: Problem, share: ArrayLike) -> Array:
    layers = jnp.maximum(jnp.floor(problem.total * share), 1)
    return baselines.ferdinand_partition(problem, layers)


def _limit(problem: Problem, key: Array | None) -> Expectation:
    value = baselines.runtime_limit(problem)
    return Expectation(value, jnp.zeros_like(value))


LIMIT = "limit"


@jax.tree_util.register_static
class BuiltIn(Scheme):
    """One of the package's own."""

    _taken = ()

    def check(self, problem: Problem) -> None:
        if self.name == LIMIT:
            refuse_setup(problem, self.name, ': use "optimal"')
        if self.name.startswith("ferdinand"):
            baselines.refuse_unit_costs(problem, self.name)

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        if not self.is_partition or is_traced(problem):
            return super().plan(problem, key)
        return assess(problem, *_by_number(problem, RULES.index(self)))


_BUILT_IN = (
    BuiltIn("time", closed_form.time_partition, label="x^(t)"),
    BuiltIn("frequency", closed_form.frequency_partition, label="x^(f)"),
    BuiltIn("uncoded", lambda p: baselines.single_level_partition(p, 0), baseline=True),
    BuiltIn("single_block", baselines.single_block_partition, label="single block", baseline=True),
    BuiltIn("ferdinand_full", lambda p: _ferdinand(p, 1.0), label="Ferdinand–Draper, r = L", baseline=True),
    BuiltIn("ferdinand_half", lambda p: _ferdinand(p, 0.5), label="Ferdinand–Draper, r = L/2", baseline=True),
    BuiltIn(LIMIT, _limit, gives="expectation", label="limit of any scheme"),
)
RULES = tuple(scheme for scheme in _BUILT_IN if scheme.is_partition)


@jax.jit
def _by_number(problem: Problem, number: int) -> tuple[Array, Array]:
    """The partition of one of `RULES`: one program, for a table shows all of them.

    Ferdinand and Draper's two, the last, differ in a number alone.
    """
    *others, _, _ = RULES
    share = jnp.where(jnp.asarray(number) == len(others), 1.0, 0.5)
    rules = [*(rule.function for rule in others), lambda problem: _ferdinand(problem, share)]
    found = [lambda p, rule=rule: baselines.partition_of(rule, p) for rule in rules]
    return jax.lax.switch(number, found, problem)


def partition_by_name(problem: Problem, name: str) -> Array:
    """Of a rule of the package's own."""
    return _by_number(problem, [rule.name for rule in RULES].index(name))[0]


SCHEMES: Mapping[str, Scheme] = MappingProxyType({scheme.name: scheme for scheme in _BUILT_IN})


def load_schemes(path: str | os.PathLike[str]) -> list[Scheme]:
    """The list `SCHEMES` of a Python file; ValueError, in one line, where there is none.

    A function of them that fails raises `SchemeError`, with its line in the file, whoever traces it.
    """
    try:
        open(path, "rb").close()
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        found = runpy.run_path(str(path)).get("SCHEMES")
    except (Exception, SystemExit) as error:
        raise ValueError(_where(error, path)) from error
    schemes = list(found) if isinstance(found, list | tuple) else []
    if not schemes or not all(isinstance(scheme, Scheme) for scheme in schemes):
        raise ValueError(f"{path} defines no list SCHEMES = [bcgc_jax.Scheme(name, function), ...]")
    names = [scheme.name for scheme in schemes]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: two schemes have one name: {', '.join(names)}")
    return [_telling_where(scheme, path) for scheme in schemes]


def _telling_where(scheme: Scheme, path: str | os.PathLike[str]) -> Scheme:
    """The same scheme; what its function raises is a `SchemeError`."""
    function = scheme.function

    @functools.wraps(function)
    def told(*args: Any) -> Any:
        try:
            found = function(*args)
            if found is None:
                raise TypeError("it returns nothing")
            return Expectation(*found) if scheme.gives == "expectation" else jnp.asarray(found)
        except Exception as error:
            raise SchemeError(f'scheme "{scheme.name}": {_where(error, path)}') from error

    return dataclasses.replace(scheme, function=told)


def _where(error: BaseException, path: str | os.PathLike[str]) -> str:
    """The last line of the file `path` on the way to an error, and the beginning of what it says."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    place = f"{path}, line {lines[-1]}" if lines else str(path)
    text = textwrap.shorten(str(error), _LONGEST, placeholder=" …")
    return f"{place}: {type(error).__name__}: {text}".rstrip(": ")
