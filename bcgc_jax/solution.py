"""Define `Solution`, and turn a partition into one: round, evaluate and certify it."""

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

# Above this relative gap, `repr` does not print the gap but advises a comparison with
# "optimal". The value is our choice.
LOOSE = 0.25

_FORMAT = "bcgc_jax.Solution"
_VERSION = 4
# Files of version 2 contain neither the problem nor the package's version. Plans of
# version 3 contain no lengths.
_READ = (2, 3, _VERSION)
# If the relative error of an expected runtime is larger, the status is PRECISION.
_LARGEST_ERROR = 1e-2


@pytree_dataclass
class Solution:
    """Hold a plan, its expected runtime, and a lower bound for comparison.

    In a batch, every array has the batch axes in front.

    Attributes:
      plan: What each worker computes and sends. None if the method is only a bound.
      rounded: The partition in integers that sum to L, `[max_workers]`. None if the
        scheme is not a partition.
      expected_runtime: Expected runtime of `plan`, E τ̂.
      runtime_error: Absolute error of `expected_runtime`; see `kind`.
      lower_bound: No partition that uses only `levels` has a shorter expected runtime;
        see `kind`.
      status: Integer value of a `Status`. `message` describes it in words.
      num_steps: Number of iterations of an iterative method; 0 for a closed form.
      history: Expected runtime at each check of an iterative method, padded with NaN.
        None for other methods.
      method: Name of the method, as passed to `solve`.
      kind: How to read the values:

        - "exact": `runtime_error` bounds the quadrature error, and `lower_bound` is
          proven.
        - "local": the expected runtime is not convex, and the plan is the best of
          several local searches. `runtime_error` and `lower_bound` are as for "exact".
        - "confidence": Monte Carlo. `runtime_error` is a standard error, and
          `lower_bound` a 97.5 % confidence limit.
      levels: Boolean mask of the levels to which `lower_bound` applies,
        `[max_workers]`: all levels, the allowed ones, or, with setup cycles, the ones
        in use.
      completion_probability: P(τ̂ ≤ deadline), if the method maximised it.
      problem: The problem that was solved. None after `load`.
      rounded_value: Cached value of `rounded_runtime`, if it is known.

    `expected_runtime` and `completion_probability` are differentiable if the plan
    optimises them or follows from a formula. Every other derivative is NaN; see
    docs/api.md.
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
        """Real partition x, `[max_workers]`. None if the scheme is not a partition."""
        if self.plan is not None and self.plan.is_partition:
            return self.plan.sizes
        return None

    @property
    def relative_gap(self) -> Array:
        """Certified optimality gap, 1 - lower_bound / expected_runtime."""
        xp = jnp if is_traced(self) else np
        with np.errstate(all="ignore"):
            return 1 - xp.asarray(self.lower_bound) / xp.asarray(self.expected_runtime)

    @property
    def bound_of(self) -> str:
        """Plans to which `lower_bound` applies: "levels", "groups" or "storage".

        "storage" means every exact scheme with the same storage per worker. The name is
        "" if the solution has no bound.
        """
        rule = None if self.plan is None else self.plan.completion
        return "" if rule is None or not rule.exact_gradient else rule.bound_of

    @property
    def needs(self) -> Requirements | None:
        """Requirements of the scheme. None if they are not known."""
        if self.plan is None:
            return None
        if self.problem is None:
            return self.plan.known_needs
        return needs_of(self.plan, self.rounded, self.problem.num_workers)

    @property
    def rounded_runtime(self) -> Array:
        """Expected runtime E τ̂ of the `rounded` integers, computed on access.

        If there are no integers, it is the expected runtime of the `plan`.
        """
        if self.rounded_value is not None:
            return self.rounded_value
        if self.rounded is None or self.problem is None:
            return self.expected_runtime

        def evaluate(problem: Problem, counts: Array) -> Array:
            """Evaluate with the program that also assesses partitions."""
            partition = partition_of_units(problem, counts)
            return assess(problem, partition, whole_numbers=False).expected_runtime

        for _ in range(jnp.ndim(self.expected_runtime)):
            evaluate = jax.vmap(evaluate)
        xp = jnp if is_traced(self) else np
        value = evaluate(self.problem, self.rounded)
        return jnp.asarray(xp.where(xp.isnan(self.expected_runtime), xp.nan, value))

    @property
    def message(self) -> Any:
        """Description of the `status`. For a batch, it is an array of descriptions."""

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
        """Advice on how to get a more precise result, or ""."""
        law = None if self.problem is None else self.problem.cycle_time
        if isinstance(law, FromHazard) and law.kinks is None:
            return ", or pass the kinks of FromHazard if it has any"
        return (
            ", or enable float64" if self.expected_runtime.dtype == jnp.float32 else ""
        )

    def citation(self) -> str:
        """Return the BibTeX entries of the works behind the method.

        The result is empty for your own scheme.

        >>> from bcgc_jax import Problem, ShiftedExponential, solve
        >>> solve(
        ...     Problem(ShiftedExponential(1.0, 2.0), 3, 2_000), "uncoded"
        ... ).citation().count("@")
        2
        """
        # Only a partition has a lower bound.
        bounded = self.partition is not None
        return bibliography(
            self.method, sampled_bound=bounded and self.kind == "confidence"
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the solution to a JSON file, and return its path.

        The file also contains `needs`, `rounded_runtime` and the package's version. It
        describes the problem only in words, which `load` ignores. Do not call `save`
        within `jit`.
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
        """Read a solution that `save` wrote. Its `problem` is None.

        Raises:
          ValueError: If the file is damaged or has another format.
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
                f"{path} is not a valid file of Solution.save. Check whether it was "
                f"edited by hand. The error is: {error}"
            ) from error
        raise ValueError(
            f"{path} has format {form!r}, version {version}, but this package reads "
            f"format {_FORMAT!r}, versions {_READ[0]} to {_VERSION}. Load it with the "
            "package version that wrote it, or plan again."
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
        elif gap < 0.9:  # a bound below a tenth of the runtime says too little
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
        """Name the levels to which the bound applies; "" if it applies to all."""
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
    """Round a partition, evaluate it exactly and certify it.

    `status` defaults to CONVERGED, or to INFEASIBLE if the partition contains NaN.
    """
    if status is None:
        xp = jnp if is_traced(partition) else np
        nothing = xp.any(xp.isnan(xp.asarray(partition)))
        status = xp.where(nothing, int(Status.INFEASIBLE), int(Status.CONVERGED))
    # With equal shapes and dtypes, all methods share one compiled program.
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
    """Round a partition to integer coordinates, or units, at each level."""
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
    """Make the `Solution` of a partition without rounding it."""
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
    """Make a `Solution` from a partition and its certificate, and update its status."""
    status = jnp.asarray(status, int)
    num_steps = jnp.asarray(num_steps, int)
    feasible = status != int(Status.INFEASIBLE)
    value, error, lower, _ = certified
    value = jnp.where(
        feasible & problem.valid & ~out_of_range(problem, value), value, jnp.nan
    )
    status = _unless_unknown(status, value, error)
    # A search that did not end keeps its status, even if its expected runtime is
    # infinite.
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
    """Replace CONVERGED by PRECISION if the quadrature error is too large."""
    unknown = jnp.isfinite(value) & ~(error <= _LARGEST_ERROR * value)
    return jnp.where(
        unknown & (status == int(Status.CONVERGED)), int(Status.PRECISION), status
    )


@functools.partial(jax.jit, static_argnames="drawn")
def solution_of_value(
    problem: Problem, runtime: Expectation, drawn: bool = False
) -> Solution:
    """Make the `Solution` of a scheme without a partition from its runtime.

    A runtime of NaN means that the scheme does not exist. The error of `runtime` is a
    quadrature error, or a standard error if `drawn`.
    """
    value, error = runtime
    status = jnp.where(jnp.isfinite(value), int(Status.CONVERGED), int(Status.INFINITE))
    if not drawn:
        status = _unless_unknown(status, value, error)
    status = jnp.where(jnp.isnan(value), int(Status.INFEASIBLE), status)
    unknown = out_of_range(problem, value)
    value = jnp.where(unknown, jnp.nan, value)
    status = jnp.where(problem.valid & ~unknown, status, int(Status.INVALID))
    # Without a partition, there is no subgradient. The only bound on the best partition
    # is then 0.
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
    """Whether a runtime is 0, or is infinite although the mean time is finite."""
    too_large = jnp.isinf(value) & jnp.isfinite(problem.cycle_time.mean())
    return too_large | (value < jnp.finfo(value.dtype).tiny)


# The classes in a solution's file, by field name or by name of the recovery condition.
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
    """Convert a solution or a part for JSON: arrays with dtype, rules with name."""
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
    """Read the value of the field `name` that `_written` wrote."""
    if isinstance(value, list):
        return tuple(map(_read, value))
    if not isinstance(value, dict):
        return value
    if "dtype" not in value:
        kind = _PARTS[value.pop("rule", name)]
        # Older files also contain the data subset of each task, which follows from its
        # number.
        if kind is FirstHolder:
            value = {
                name: part
                for name, part in value.items()
                if name not in ("turn", "stored")
            }
        return kind(**{name: _read(part, name) for name, part in value.items()})
    array = np.array(value["values"], value["dtype"])
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must contain numbers, got {array.dtype}")
    if array.dtype.kind in "iu" and np.any(array != array.astype(jnp.result_type(int))):
        raise ValueError(
            f"{name} needs 64-bit integers. Call "
            "jax.config.update('jax_enable_x64', True) first."
        )
    return jnp.asarray(array)


def _checked(solution: Solution) -> Solution:
    """Return the solution. Raise ValueError if fields or their shapes are wrong."""
    if not isinstance(solution.method, str) or solution.kind not in KINDS:
        raise ValueError(
            f"method must be text and kind one of {', '.join(KINDS)}, got "
            f"{solution.method!r} and {solution.kind!r}"
        )
    plan = solution.plan
    if (
        plan is not None
        and isinstance(plan.completion, FirstHolder)
        and plan.sizes.shape[-1] != 1
    ):
        raise ValueError(
            f"the method {solution.method} was removed. Plan again, for example with "
            '"sharing:D", which is faster.'
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
