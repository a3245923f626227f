"""`Solution`, and how a partition becomes one: rounded, evaluated, certified."""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._extras import version_of_package
from bcgc_jax._pytree import is_traced, pytree_dataclass, replace, static_field
from bcgc_jax.citations import bibliography
from bcgc_jax.distributions import FromHazard
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.completion import AnyOf, FirstHolder, OneOfEach
from bcgc_jax.plans.loads import levels_of_bound, partition_of_units
from bcgc_jax.plans.partitions import round_partition, round_to_units
from bcgc_jax.plans.plan import Plan, Requirements, needs_of, partition_plan
from bcgc_jax.plans.runtime import Certificate, certificate
from bcgc_jax.plans.sharing import WorkSharing
from bcgc_jax.plans.stopped import Stopped
from bcgc_jax.problem import Problem, Status

# A relative gap from which on a bound says little of a plan: own choice.
LOOSE = 0.25

_FORMAT = "bcgc_jax.Solution"
_VERSION = 4
# Version 2 has neither the problem nor the package's version, 3 no lengths in a plan.
_READ = (2, 3, _VERSION)
# An expected runtime that may be off by more than this share of it is not known.
_LARGEST_ERROR = 1e-2


@pytree_dataclass
class Solution:
    """A scheme and what is known about it; every array gains the leading axes of a
    batch.

    Attributes:
      plan: what the workers do; None of what is no scheme.
      rounded: integers that sum to L, `[max_workers]`, of a partition; or None.
      expected_runtime, runtime_error: E τ̂ of the `plan`, and its absolute error; see
        `kind`.
      lower_bound: no partition of the `levels` has an expected runtime below it; see
        `kind`.
      status: integer value of a `Status`; `message` says it in words.
      num_steps: steps of an iterative method, 0 for a closed form.
      history: expected runtime at each check of an iterative method, NaN after the
        last; or None.
      method: the name it was asked by.
      kind: "exact", where `runtime_error` bounds the error of a quadrature and
        `lower_bound` is a theorem; "local", the same of the best of several local
        searches, where the expected runtime is not convex; or "confidence", of draws: a
        standard error, and a 97.5 % limit.
      levels: bool, `[max_workers]`, the levels that the bound is for: all, those that
        were allowed, or, with setup cycles, those in use.
      completion_probability: P(τ̂ ≤ deadline) of `partition`, where that was maximised.
      problem: what it answers.
      rounded_value: `rounded_runtime` of these `rounded` where it is known already;
        None with other ones.

    Derivatives: see docs/api.md. Those of `expected_runtime` and
    `completion_probability` are right where the plan is best for them, or follows from
    a formula; what has none is NaN.
    """

    plan: Plan | None
    rounded: Array | None
    expected_runtime: Array
    runtime_error: Array
    lower_bound: Array
    status: Array
    num_steps: Array
    history: Array | None = None
    method: str = static_field(default="")
    kind: str = static_field(default="exact")
    levels: Array | None = None
    completion_probability: Array | None = None
    problem: Problem | None = None
    rounded_value: Array | None = None

    @property
    def partition(self) -> Array | None:
        """Float x, `[max_workers]`; None for a scheme that is no partition."""
        if self.plan is not None and self.plan.is_partition:
            return self.plan.sizes
        return None

    @property
    def relative_gap(self) -> Array:
        """1 - lower_bound / expected_runtime, the certificate."""
        xp = jnp if is_traced(self) else np
        with np.errstate(all="ignore"):
            return 1 - xp.asarray(self.lower_bound) / xp.asarray(self.expected_runtime)

    @property
    def bound_of(self) -> str:
        """The plans that `lower_bound` is for: "levels", "groups" or "storage"; ""
        without a bound.

        "storage" stands for every exact scheme of workers that store as much.
        """
        rule = None if self.plan is None else self.plan.completion
        return "" if rule is None or not rule.exact_gradient else rule.bound_of

    @property
    def needs(self) -> Requirements | None:
        """What the scheme needs; None where that is not known."""
        if self.plan is None:
            return None
        if self.problem is None:
            return self.plan.known_needs
        return needs_of(self.plan, self.rounded, self.problem.num_workers)

    @property
    def rounded_runtime(self) -> Array:
        """E τ̂ of the `rounded` integers, evaluated when it is asked for.

        Without integers it is that of the `plan`.
        """
        if self.rounded_value is not None:
            return self.rounded_value
        if self.rounded is None or self.problem is None:
            return self.expected_runtime

        def evaluate(problem: Problem, counts: Array) -> Array:
            """Evaluate by the program that partitions are assessed with."""
            partition = partition_of_units(problem, counts)
            return assess(problem, partition, whole_numbers=False).expected_runtime

        for _ in range(jnp.ndim(self.expected_runtime)):
            evaluate = jax.vmap(evaluate)
        xp = jnp if is_traced(self) else np
        value = evaluate(self.problem, self.rounded)
        return jnp.asarray(xp.where(xp.isnan(self.expected_runtime), xp.nan, value))

    @property
    def message(self) -> Any:
        """The `status` in words; of a batch an array of them."""

        def say(code: int) -> str:
            text = Status(code).message
            if code == Status.PRECISION:
                return text + self._remedy
            return text

        said = np.vectorize(say, otypes=[object])(np.asarray(self.status))
        if said.ndim == 0:
            return said.item()
        return said

    @property
    def _remedy(self) -> str:
        """What makes an answer more precise, if there is something."""
        law = None if self.problem is None else self.problem.cycle_time
        if isinstance(law, FromHazard) and law.kinks is None:
            return ", or name the kinks of FromHazard where it has some"
        return (
            ", or enable float64" if self.expected_runtime.dtype == jnp.float32 else ""
        )

    def citation(self) -> str:
        """BibTeX of the works behind the method; empty for a scheme of one's own.

        >>> from bcgc_jax import Problem, ShiftedExponential, solve
        >>> solve(
        ...     Problem(ShiftedExponential(1.0, 2.0), 3, 2_000), "uncoded"
        ... ).citation().count("@")
        2
        """
        # A scheme that is no partition bounds nothing.
        bounded = self.partition is not None
        return bibliography(
            self.method, sampled_bound=bounded and self.kind == "confidence"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a JSON file, with `needs`, `rounded_runtime` and the package's version.

        The problem is described in words, which `load` does not read. Not in `jit`.
        """
        path = Path(path)
        plan = self.plan
        if plan is not None:
            plan = replace(plan, known_needs=self.needs)
        alone = replace(
            self, rounded_value=self.rounded_runtime, problem=None, plan=plan
        )
        document = {"format": _FORMAT, "version": _VERSION, **_written(alone)}
        document["bcgc_jax"] = version_of_package()
        if self.problem is None:
            document["problem"] = None
        else:
            document["problem"] = repr(self.problem)
        text = json.dumps(document, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Solution":
        """Read what `save` wrote, without the problem.

        Raises ValueError for a damaged file, or one of another format.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            form = document.pop("format")
            version = document.pop("version")
            if form == _FORMAT and version in _READ:
                document.pop("bcgc_jax", None)
                return _checked(_read(document | {"problem": None}, "solution"))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no whole solution that Solution.save wrote, has it been "
                f"changed by hand? {error}"
            ) from error
        raise ValueError(
            f"{path} is of the format {form!r}, version {version}, and this package "
            f"reads {_FORMAT!r}, version {_VERSION}: read it with what wrote it, or "
            "plan again"
        )

    def __repr__(self) -> str:
        value = self.expected_runtime
        if not isinstance(value, jax.Array | np.ndarray | np.generic) or is_traced(
            value
        ):
            return f"Solution({self.method})"
        if value.shape:
            return f"Solution({self.method}, a batch of {value.shape})"
        head = f"Solution({self.method}): {self.message}"
        if int(self.status) in (Status.INFEASIBLE, Status.INVALID):
            return head
        return "\n  ".join([head, *self._in_words()])

    def _in_words(self) -> Iterator[str]:
        value = float(self.expected_runtime)
        sign = "error"
        if self.kind == "confidence":
            sign = "±"
        yield f"expected runtime {value:.6g} ({sign} {float(self.runtime_error):.1g})"
        needs = self.needs
        if needs is not None and not needs.exact_gradient:
            lost = float(needs.lost)
            for_used = value / (1 - lost)
            samples = f"loses {100 * lost:.3g} % of the samples"
            yield f"{samples}: {for_used:.6g} for as many used"
        yield from self._bound_in_words()
        if self.completion_probability is not None:
            yield f"in time with probability {float(self.completion_probability):.6g}"
        if self.rounded is not None:
            used = np.flatnonzero(np.asarray(self.rounded))
            counts = _first([f"{n}: {int(self.rounded[n])}" for n in used])
            yield f"coordinates by level {counts}"

    def _bound_in_words(self) -> Iterator[str]:
        gap = float(self.relative_gap)
        if gap > LOOSE and self.bound_of == "levels" and self.method != "optimal":
            optimum = 'compare with "optimal" to see how near to the optimum it is'
            yield f"its own bound is loose: {optimum}"
        elif self.bound_of == "storage":
            less = f"takes {100 * gap:.3g} % less, with 97.5 % confidence"
            yield f"no exact scheme with as much storage {less}"
        elif gap < 0.9:  # less than a tenth of the runtime is no bound to speak of
            sure = "proven"
            if self.kind == "confidence":
                sure = "with 97.5 % confidence"
            of = ""
            if self.kind == "local":
                of = "best of several local searches; "
            above = f"at most {100 * gap / (1 - gap):.3g} % above the best"
            yield f"{of}{above}{self._of_levels}, {sure}"

    @property
    def _of_levels(self) -> str:
        """The plans that the bound is for, where it is not for all levels."""
        rule = None if self.plan is None else self.plan.completion
        if rule is None or rule.bound_of != "levels" or self.levels is None:
            return ""
        levels = np.flatnonzero(np.asarray(self.levels)).tolist()
        if len(levels) == int(np.asarray(rule.num_workers)):
            return ""
        word = "levels"
        if len(levels) == 1:
            word = "level"
        return f" plan of {word} {_first(levels)}"


def _first(items: Sequence[object], most_items: int = 6) -> str:
    texts = [str(item) for item in items[:most_items]]
    if len(items) > most_items:
        texts.append("…")
    return ", ".join(texts)


def assess(
    problem: Problem,
    partition: Array,
    status: Array | None = None,
    num_steps: ArrayLike = 0,
    *,
    whole_numbers: bool = True,
) -> Solution:
    """The `Solution` that a partition is: rounded, evaluated exactly, certified.

    Without a status it has converged, or is none where it is NaN.
    """
    if status is None:
        xp = jnp if is_traced(partition) else np
        nothing = xp.any(xp.isnan(xp.asarray(partition)))
        status = xp.where(nothing, int(Status.INFEASIBLE), int(Status.CONVERGED))
    # The same shapes and dtypes whatever is known: compiled once for all methods.
    x = jnp.asarray(partition, problem.dtype)
    levels = np.ones(problem.max_workers, bool)
    solution = assess_shares(problem, x, _integer(status), _integer(num_steps), levels)
    return with_whole_numbers(problem, solution) if whole_numbers else solution


def _integer(value: ArrayLike) -> Any:
    xp = jnp if isinstance(value, Array) else np
    return xp.asarray(value, int)


def with_whole_numbers(problem: Problem, solution: Solution) -> Solution:
    assert solution.partition is not None
    return replace(solution, rounded=whole_numbers(problem, solution.partition))


def whole_numbers(problem: Problem, partition: Array) -> Array:
    """Coordinates, or units, at each level."""
    if problem.unit_costs is None:
        return round_partition(partition, problem.num_coordinates)
    return round_to_units(partition, jnp.asarray(problem.unit_costs, problem.dtype))


@jax.jit
def assess_shares(
    problem: Problem,
    partition: Array,
    status: ArrayLike,
    num_steps: ArrayLike,
    levels: ArrayLike,
) -> Solution:
    """Make the solution without its whole numbers."""
    partition = jnp.where(jnp.asarray(status) != int(Status.INFEASIBLE), partition, 0)
    certified = certificate(problem, partition, levels)
    return solution_of(problem, partition, status, num_steps, levels, certified)


def solution_of(
    problem: Problem,
    partition: Array,
    status: ArrayLike,
    num_steps: ArrayLike,
    levels: ArrayLike,
    certified: Certificate,
) -> Solution:
    """What is known of a partition, and the status that it has by its value."""
    status = jnp.asarray(status, int)
    num_steps = jnp.asarray(num_steps, int)
    feasible = status != int(Status.INFEASIBLE)
    value, error, lower, _ = certified
    value = jnp.where(
        feasible & problem.valid & ~out_of_range(problem, value), value, jnp.nan
    )
    status = _unless_unknown(status, value, error)
    # A search that did not end says so, whatever its answer's mean.
    status = jnp.where(
        jnp.isinf(value) & (status == int(Status.CONVERGED)),
        int(Status.INFINITE),
        status,
    )
    status = jnp.where(
        jnp.isnan(value) & feasible | ~problem.valid, int(Status.INVALID), status
    )
    used = levels_of_bound(problem, partition) & jnp.asarray(levels)
    plan = partition_plan(partition, problem.num_workers)
    return Solution(
        plan=plan,
        rounded=None,
        expected_runtime=value,
        runtime_error=error,
        lower_bound=lower,
        status=status,
        num_steps=num_steps,
        levels=used,
    )


def _unless_unknown(status: Array, value: Array, error: Array) -> Array:
    """A status that is not CONVERGED where the error of the integral is too large."""
    unknown = jnp.isfinite(value) & ~(error <= _LARGEST_ERROR * value)
    return jnp.where(
        unknown & (status == int(Status.CONVERGED)), int(Status.PRECISION), status
    )


@functools.partial(jax.jit, static_argnames="drawn")
def solution_of_value(
    problem: Problem, runtime: Expectation, drawn: bool = False
) -> Solution:
    """Make the `Solution` of a scheme that is no partition from its runtime; NaN is no
    such scheme.

    The error is that of an integral, or of a mean that is `drawn`.
    """
    value, error = runtime
    status = jnp.where(jnp.isfinite(value), int(Status.CONVERGED), int(Status.INFINITE))
    if not drawn:
        status = _unless_unknown(status, value, error)
    status = jnp.where(jnp.isnan(value), int(Status.INFEASIBLE), status)
    unknown = out_of_range(problem, value)
    value = jnp.where(unknown, jnp.nan, value)
    status = jnp.where(problem.valid & ~unknown, status, int(Status.INVALID))
    # No partition, so no subgradient: 0 is all that this scheme tells about the best
    # partition.
    return Solution(
        plan=None,
        rounded=None,
        expected_runtime=value,
        runtime_error=error,
        lower_bound=jnp.zeros_like(value),
        status=status,
        num_steps=jnp.asarray(0),
    )


def out_of_range(problem: Problem, value: Array) -> Array:
    """Whether a runtime is 0 (none is), or infinite though the mean time is finite."""
    too_large = jnp.isinf(value) & jnp.isfinite(problem.cycle_time.mean())
    return too_large | (value < jnp.finfo(value.dtype).tiny)


# What a file of a solution consists of, by the field or the rule that it stands in.
_PARTS: dict[str, Any] = {
    "solution": Solution,
    "plan": Plan,
    "known_needs": Requirements,
}
_PARTS |= {
    rule.__name__: rule
    for rule in (AnyOf, FirstHolder, OneOfEach, Stopped, WorkSharing)
}
KINDS = ("exact", "local", "confidence")
_NEEDED = ("expected_runtime", "runtime_error", "lower_bound", "status", "num_steps")


def _written(value: Any) -> Any:
    """A solution or a part, for a file: arrays with dtype, a rule with its name."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, tuple) and not isinstance(value, Requirements):
        return list(map(_written, value))
    if type(value) in _PARTS.values():
        if isinstance(value, Requirements):
            fields = value._asdict()
        else:
            fields = vars(value)
        name = type(value).__name__
        rule = {}
        if name in _PARTS:
            rule = {"rule": name}
        return rule | {name: _written(part) for name, part in fields.items()}
    array = np.asarray(value)
    return {"dtype": array.dtype.name, "values": array.tolist()}


def _read(value: Any, name: str = "") -> Any:
    """What `_written` wrote in a field of this name."""
    if isinstance(value, list):
        return tuple(map(_read, value))
    if not isinstance(value, dict):
        return value
    if "dtype" not in value:
        kind = _PARTS[value.pop("rule", name)]
        # older files say which subset each task is of, which follows from its number
        if kind is FirstHolder:
            value = {
                name: part
                for name, part in value.items()
                if name not in ("turn", "stored")
            }
        return kind(**{name: _read(part, name) for name, part in value.items()})
    array = np.array(value["values"], value["dtype"])
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers, got {array.dtype}")
    if array.dtype.kind in "iu" and np.any(array != array.astype(jnp.result_type(int))):
        raise ValueError(
            f"{name} needs 64 bits: call jax.config.update('jax_enable_x64', True) "
            "first"
        )
    return jnp.asarray(array)


def _checked(solution: Solution) -> Solution:
    """Return the solution; ValueError for what `repr` and training do not expect."""
    if not isinstance(solution.method, str) or solution.kind not in KINDS:
        raise ValueError(f"no method and kind: {solution.method!r}, {solution.kind!r}")
    plan = solution.plan
    if (
        plan is not None
        and isinstance(plan.completion, FirstHolder)
        and plan.sizes.shape[-1] != 1
    ):
        raise ValueError(
            f'{solution.method} is a method no more: plan again, "sharing:D" is faster'
        )
    batch = solution.status.shape
    levels = () if solution.partition is None else solution.partition.shape[-1:]
    shapes = dict.fromkeys((*_NEEDED, "completion_probability", "rounded_value"), batch)
    shapes |= dict.fromkeys(("rounded", "levels"), batch + levels)
    for name, shape in shapes.items():
        value = getattr(solution, name)
        missing = value is None and name in _NEEDED
        if missing or (value is not None and value.shape != shape):
            raise ValueError(f"{name} must have shape {shape}, got {np.shape(value)}")
    for code in np.asarray(solution.status).ravel():
        Status(int(code))
    return solution
