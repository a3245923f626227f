r"""`Sharing`: a step's chunks are handed out to free workers, which store more than
their own data.

Its runtime is a mean of draws: no formula is known. The storage bound of the same draws
is a control variate: its own mean is known better, from many more draws, which cost
little. That mean, less two standard errors, is the lower bound: no exact scheme of any
kind whose workers store as much has a shorter expected runtime. What this assumes
stands in `bcgc_jax.solvers.limit`.
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
# The most chunks, where their number is chosen.
_MOST_CHUNKS = 64
# More chunks have to take so much less time.
_CLEARLY = 0.99
# The most workers: with more each draw takes seconds.
_MOST_WORKERS = 2048
# Draws of the runtime; many workers have fewer, see `number_of_draws`.
_DRAWS = 2**12


@pytree_dataclass
class Sharing(Method):
    """Work sharing: chunks (microbatches) are handed out to free workers, most left
    first.

    τ = the time at which every worker has ended its last chunk; see
    `bcgc_jax.plans.shared_step`.

    Args:
      max_subsets: D, how much each worker stores, in subsets: its own, and chunks of
        others; None: all data.
      chunks: C, of each subset; None: a power of two up to 64, within about 1 % of the
        fastest.
      equal_chunks: whether all chunks are of one size. By default the last one of a
        subset is cut again, in 1/2, 1/4, 1/4: small chunks level out the end of a step.
      whole_subsets: for data loaders that can serve nothing less: workers store whole
        subsets, not chunks of many.
      round_trip: the time of a question and its answer, before each chunk, in the unit
        of runtimes.
      seed: of the draws, where `solve` is given no key.

    `Solution.lower_bound` is for every exact scheme with as much storage (`bound_of` is
    "storage"): the mean of the storage bound less two standard errors. Where workers
    are not alike, or whole rows, it is that of all data: one may know who is slow
    before one places the data.

    Raises ValueError for a number of workers that is traced, and for more subsets than
    workers.

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
        """The method of "sharing", "sharing:3", "sharing:all:16", "sharing:2:best"."""
        fields = (("max_subsets", "all"), ("chunks", "best"))
        texts = method.split(":")[1:]
        wrong = ValueError(
            f'method "{method}": "sharing" takes the number of subsets that a worker '
            'stores, or "all", and that of chunks in a subset, or "best", as in '
            '"sharing:2" and "sharing:2:16"'
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
                f'method="{self.name}" is judged by draws of at most {_MOST_WORKERS:,} '
                f"workers, and {problem.max_workers:,} are too many"
            )
        workers = concrete(problem.num_workers)
        max_subsets = self.max_subsets or 0
        if workers is not None and max_subsets > workers.min():
            raise ValueError(
                f'method="{self.name}": there are as many subsets as workers, '
                f"{workers.min()}; no worker can store {max_subsets}; the number of "
                f'chunks comes second, as in "{self.word}:2:{max_subsets}"'
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
            # The bound is the time of the only worker, and needs no draws.
            value = runtime_limit(problem)
            mean_of_bound = Expectation(value, jnp.zeros_like(value))
        chunks = self.chunks or self._best_chunks(problem, drawn)
        return _judged(
            problem, _rule(problem, replace(self, chunks=chunks)), drawn, mean_of_bound
        )

    def _best_chunks(self, problem: Problem, drawn: tuple[Any, Any]) -> int:
        """Double the number of chunks while that is clearly faster on equal draws."""
        if is_traced((problem, self.round_trip)):
            raise ValueError(
                f'method="{self.name}" cannot choose the number of chunks from what is '
                "traced"
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
    """The solution by draws, with the storage bound as a control variate.

    `mean_of_bound` comes from more draws.
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
        # The mean is the same for any share, but for noise.
        share = jax.lax.stop_gradient(share)
    mean = xp.mean(tau) + share * (bound - xp.mean(beside))
    error = xp.hypot(xp.std(tau - share * beside) / draws**0.5, share * bound_error)
    lower = xp.clip(bound - 2 * bound_error, 0, mean)
    value, error, lower = (jnp.asarray(a, problem.dtype) for a in (mean, error, lower))
    solution = solution_of_value(problem, Expectation(value, error), drawn=True)
    return replace(solution, lower_bound=lower, plan=sharing_plan(problem.total, rule))


def _runtimes(problem: Problem, rule: WorkSharing, drawn: tuple[Any, Any]) -> Any:
    """The runtime of each draw, `[K]`; of NumPy where it is known.

    Where NumPy can compute it, no program is compiled for a number of workers or of
    chunks. Where a problem has room for more workers one program serves all numbers.
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
    # Draws of workers that do not exist take as long.
    problem = replace(problem, max_workers=drawn[1].shape[1])
    load, rule, scale = problem_tasks(problem, plan)
    overlap = bool(problem.overlap)
    last = functools.partial(rule.runtimes, load, overlap)
    return scale * over_drawn(drawn, last, rule.width(load, overlap))
