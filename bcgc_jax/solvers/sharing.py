r"""`Sharing`: work sharing, which assigns the chunks of a step to idle workers.

No formula for the expected runtime is known, so it is a Monte Carlo estimate. The
storage bound of the same samples is a control variate. Its mean is known more
accurately, from many more samples, which are cheap. This mean minus two standard errors
is the lower bound for every exact scheme with the same storage per worker.
`bcgc_jax.solvers.limit` has its assumptions.
"""

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import (
    at_hand,
    check_whole,
    concrete,
    is_traced,
    pytree_dataclass,
    replace,
    static_field,
)
from bcgc_jax.balancing import remedies as replayed
from bcgc_jax.exact.quadrature import Expectation
from bcgc_jax.plans.draws import over_drawn
from bcgc_jax.plans.loads import problem_tasks
from bcgc_jax.plans.plan import Plan
from bcgc_jax.plans.sharing import WorkSharing, sharing_plan
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution, solution_of_value
from bcgc_jax.solvers.limit import (
    FEWEST_DRAWS,
    bound_of_draws,
    drawn_workers,
    mean_bound,
    number_of_draws,
    runtime_limit,
)
from bcgc_jax.solvers.method import CHUNKS, Method

_SUBSETS = 2
# Largest number of chunks that "best" may choose.
_MOST_CHUNKS = 64
# Largest ratio of runtimes at which "best" accepts twice as many chunks.
_CLEARLY = 0.99
# Largest number of workers. With more workers, each sample takes seconds.
_MOST_WORKERS = 2048
# Number of Monte Carlo samples. `number_of_draws` reduces it for many workers.
_DRAWS = 2**12


@pytree_dataclass
class Sharing(Method):
    """Balance the load dynamically: idle workers request chunks (microbatches).

    Of the chunks that it stores, an idle worker gets the chunk that other workers would
    reach last (`bcgc_jax.plans.shared_step`). The runtime τ is the time at which every
    worker has finished its last chunk. `Solution.lower_bound` holds for every exact
    scheme with the same storage (`bound_of` is "storage"). It is the mean of the
    storage bound minus two standard errors. For heterogeneous workers and
    `EmpiricalRows`, it is the bound for all data, because the stragglers may be known
    when the data are placed.

    Args:
      max_subsets: Storage per worker D, in data subsets: its own subset, and chunks of
        others. Defaults to 2. None means all data.
      chunks: Number of chunks C per subset. Defaults to 8. None means a power of two up
        to 64, whose runtime is within about 1 % of the shortest.
      equal_chunks: Whether all chunks have the same size. By default, the last chunk of
        a subset is split into 1/2, 1/4 and 1/4, because small chunks balance the end of
        a step.
      whole_subsets: Whether workers store complete subsets instead of chunks of several
        subsets, for data loaders that need this. Defaults to False.
      round_trip: Latency of the request before each chunk, in the unit of the runtime.
        Defaults to 0.
      seed: Seed of the samples, if `solve` gets no key. Defaults to 0.

    All arguments except `round_trip` must be static.

    Raises:
      ValueError: If an argument is out of range. `solve` raises it if the number of
        workers is traced, or smaller than `max_subsets`.

    >>> from bcgc_jax import ShiftedExponential, solve
    >>> problem = Problem(
    ...     ShiftedExponential(1e-3, 50.0), num_workers=6, num_coordinates=2_000
    ... )
    >>> shared, uncoded = solve(problem, Sharing(2)), solve(problem, "uncoded")
    >>> bool(shared.expected_runtime < 0.5 * uncoded.expected_runtime)
    True
    """

    max_subsets: int | None = static_field(default=_SUBSETS)
    chunks: int | None = static_field(default=CHUNKS)
    equal_chunks: bool = static_field(default=False)
    whole_subsets: bool = static_field(default=False)
    round_trip: ArrayLike = 0.0
    seed: int = static_field(default=0)

    word: ClassVar[str] = replayed.Sharing.word
    conditions = (("round_trip", ">= 0"),)
    is_partition = on_steps = False
    fixed_workers = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_subsets", "chunks"):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)

    @property
    def name(self) -> str:  # type: ignore[override]
        stored = "all"
        if self.max_subsets is not None:
            stored = str(self.max_subsets)
        chunks = {CHUNKS: "", None: ":best"}.get(self.chunks, f":{self.chunks}")
        equal = ""
        if self.equal_chunks:
            equal = ", equal chunks"
        whole = ""
        if self.whole_subsets:
            whole = ", whole subsets"
        return f"{self.word}:{stored}{chunks}{equal}{whole}"

    @classmethod
    def read(cls, method: str, problem: Problem | None) -> Method:
        """Parse a name such as "sharing", "sharing:3", "sharing:all:16"."""
        fields = (("max_subsets", "all"), ("chunks", "best"))
        texts = method.split(":")[1:]
        wrong = ValueError(
            f'method "{method}" does not have the form "sharing:SUBSETS:CHUNKS". '
            'SUBSETS is the number of subsets that a worker stores, or "all". CHUNKS '
            'is the number of chunks per subset, or "best". For example, use '
            '"sharing:2" or "sharing:2:16".'
        )
        if len(texts) > len(fields):
            raise wrong
        numbers = dict[str, int | None]()
        for (field, word), text in zip(fields, texts, strict=False):
            if text != word and not (text.isdecimal() and int(text) > 0):
                raise wrong
            if text == word:
                numbers[field] = None
            else:
                numbers[field] = int(text)
        return replace(cls(), **numbers)

    def check(self, problem: Problem) -> None:
        super().check(problem)
        if problem.max_workers > _MOST_WORKERS:
            raise ValueError(
                f'method="{self.name}" allows at most {_MOST_WORKERS:,} workers, got '
                f"{problem.max_workers:,}"
            )
        workers = concrete(problem.num_workers)
        max_subsets = self.max_subsets or 0
        if workers is not None and max_subsets > workers.min():
            raise ValueError(
                f'method="{self.name}": a worker cannot store {max_subsets} subsets, '
                f"because there are {workers.min()} (one per worker). The number of "
                f'chunks comes second, for example "{self.word}:2:{max_subsets}".'
            )

    def is_drawn(self, problem: Problem) -> bool:
        return True

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        assert key is not None
        workers = int(concrete(problem.num_workers))  # type: ignore[arg-type]
        drawn = drawn_workers(key, problem)
        if workers > 1:
            mean_of_bound = mean_bound(
                problem, drawn, min(self.max_subsets or workers, workers)
            )
        else:
            # With one worker, the bound has a formula.
            value = runtime_limit(problem)
            mean_of_bound = Expectation(value, jnp.zeros_like(value))
        chunks = self.chunks or self._best_chunks(problem, drawn)
        return _judged(
            problem, _rule(problem, replace(self, chunks=chunks)), drawn, mean_of_bound
        )

    def _best_chunks(self, problem: Problem, drawn: tuple[Any, Any]) -> int:
        """Double the number of chunks while this is clearly faster on equal samples."""
        if is_traced((problem, self.round_trip)):
            raise ValueError(
                f'method="{self.name}" cannot choose the number of chunks for traced '
                "values. Give it as a number."
            )
        first_draws = tuple(a[:FEWEST_DRAWS] for a in drawn)
        chunks = 1
        least = np.inf
        while chunks <= _MOST_CHUNKS:
            rule = _rule(problem, replace(self, chunks=chunks))
            mean = float(np.mean(_runtimes(problem, rule, first_draws)))
            if not mean < _CLEARLY * least:
                break
            chunks = 2 * chunks
            least = mean
        return chunks // 2


def _rule(problem: Problem, method: Sharing) -> WorkSharing:
    assert method.chunks is not None
    workers = int(concrete(problem.num_workers))  # type: ignore[arg-type]
    return WorkSharing(
        num_workers=workers,
        max_subsets=min(method.max_subsets or workers, workers),
        chunks=method.chunks,
        equal_chunks=method.equal_chunks,
        whole_subsets=method.whole_subsets,
        round_trip=jnp.asarray(method.round_trip, problem.dtype) / problem.scale,
    )


def _judged(
    problem: Problem,
    rule: WorkSharing,
    drawn: tuple[Any, Any],
    mean_of_bound: Expectation,
) -> Solution:
    """Evaluate a rule on samples, with the storage bound as a control variate.

    `mean_of_bound` is the mean of the bound over a larger number of samples.
    """
    draws = number_of_draws(_DRAWS, rule.num_workers)
    first = tuple(a[:draws] for a in drawn)
    tau = _runtimes(problem, rule, first)
    beside = bound_of_draws(problem, first, rule.max_subsets)
    bound: Any = mean_of_bound.value
    bound_error: Any = mean_of_bound.error
    xp: Any = jnp
    if isinstance(tau, np.ndarray):
        xp = np
        bound, bound_error = map(np.asarray, mean_of_bound)
    off = beside - xp.mean(beside)
    share = xp.mean(off * tau) / xp.maximum(xp.mean(off**2), np.finfo(tau.dtype).tiny)
    if xp is jnp:
        # Any factor gives an unbiased mean, so its derivative is not needed.
        share = jax.lax.stop_gradient(share)
    mean = xp.mean(tau) + share * (bound - xp.mean(beside))
    error = xp.hypot(xp.std(tau - share * beside) / draws**0.5, share * bound_error)
    lower = xp.clip(bound - 2 * bound_error, 0, mean)
    value, error, lower = (jnp.asarray(a, problem.dtype) for a in (mean, error, lower))
    solution = solution_of_value(problem, Expectation(value, error), drawn=True)
    return replace(solution, lower_bound=lower, plan=sharing_plan(problem.total, rule))


def _runtimes(problem: Problem, rule: WorkSharing, drawn: tuple[Any, Any]) -> Any:
    """Compute the runtime of each sample, `[K]`, in NumPy if nothing is traced.

    NumPy compiles nothing for new numbers of workers or chunks. If the problem is
    padded to more workers, one program serves all numbers of workers.
    """
    if not at_hand((problem, rule, drawn)):
        return _compiled_runtimes(problem, sharing_plan(problem.total, rule), drawn)
    if problem.send_time is not None:
        return np.asarray(
            _compiled_runtimes(problem, sharing_plan(problem.total, rule), drawn)
        )
    starts, times = drawn
    times = times * times.dtype.type(problem.pass_load)
    if rule.max_subsets < rule.num_workers < problem.max_workers:
        ends = rule.in_shared_program(times, starts, problem.max_workers)
    else:
        ends = rule.in_lockstep(times, starts)
    return float(problem.scale) * ends


@jax.jit
def _compiled_runtimes(
    problem: Problem, plan: Plan, drawn: tuple[Array, Array]
) -> Array:
    # Samples of padded workers would take as long as samples of real ones.
    problem = replace(problem, max_workers=drawn[1].shape[1])
    load, rule, scale = problem_tasks(problem, plan)
    overlap = bool(problem.overlap)
    last = functools.partial(rule.runtimes, load, overlap)
    return scale * over_drawn(drawn, last, rule.width(load, overlap))
