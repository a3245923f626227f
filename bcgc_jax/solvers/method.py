r"""What a method is: a frozen dataclass that plans, and says what it can do and needs.

A method's numbers are leaves, traced and batched like those of a problem; what decides
a shape or a program is static. On a log it plans for the times of the steps, unless it
says another way. A new scheme is one file with a subclass, and an entry in
`schemes.names`.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from bcgc_jax._pytree import check, check_shape, check_whole, concrete, meets
from bcgc_jax.balancing.scheme import Scheme
from bcgc_jax.balancing.steps import LogRule, Outcome, Steps
from bcgc_jax.distributions.base import ONE_BY_ONE
from bcgc_jax.plans.plan import Plan, needs_of
from bcgc_jax.plans.simulation import steps_in_a_row
from bcgc_jax.problem import Problem
from bcgc_jax.solution import Solution
from bcgc_jax.traces.choice import smooth_or_atoms

# The unit of sizes: so many coordinates that whole numbers of them need no search.
_COORDINATES = 1_000_000


def problem_of_times(times: np.ndarray, forward: float) -> Problem:
    """The problem of workers that take these times for a subset, with both passes,
    `[S, N]`.

    A forward pass takes `forward` of a backward pass. All slowness is taken for that of
    workers, not of their data.
    """
    workers = times.shape[1]
    # So many samples that passes go over eight chunks.
    samples = 1e4 * workers
    cycles = 1e-4 / _COORDINATES / (1 + forward)
    return Problem(
        smooth_or_atoms(times, None, workers),
        workers,
        _COORDINATES,
        num_samples=samples,
        cycles=cycles,
        setup_cycles=forward * _COORDINATES * cycles or None,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class InARow(LogRule):
    """The steps of a plan one after the other, by workers that store so many subsets.

    All passes that it adds are counted, and a worker first ends the chunk that it has
    begun.
    """

    problem: Problem
    plan: Plan
    stored: float

    @classmethod
    def of(cls, problem: Problem, solution: Solution) -> "InARow":
        """By a solution.

        Raises ValueError for one without a plan, as of a function that gives runtimes.
        """
        plan = solution.plan
        needs = None
        if plan is not None:
            needs = needs_of(plan, solution.rounded, problem.num_workers)
        if plan is None or needs is None:
            raise ValueError(
                "only what says who does what can be replayed in a log: take a method "
                "with a plan"
            )
        return cls(problem, plan, float(np.asarray(needs.stored_subsets)))

    def replay(self, steps: Steps, which: np.ndarray | None = None) -> Outcome:
        times = steps.times()[slice(None) if which is None else which]
        with jax.enable_x64(True):
            fresh_and_chained = steps_in_a_row(
                self.problem, self.plan, np.zeros_like(times), times
            )
            assert fresh_and_chained is not None
            return Outcome(
                float(self.problem.scale) * fresh_and_chained[1], choice=(self.stored,)
            )


NUM_DRAWS = 2**17  # of the runtime of a scheme that has no formula
CHUNKS = 8  # of a subset, where nobody says how many
SETUP = "setup_cycles", "chain_cycles"


class Method(Scheme):
    """A scheme that plans for a problem; `name` is that of `Solution.method` too.

    `conditions` are what its numbers must meet, where they are given: what a person
    passes is refused otherwise, and with what is traced the solution is INVALID.
    `counts` are static whole numbers, and what they begin with. `refuses`: numbers of a
    problem that it has no use for, and a `hint` what to do. `baseline`: whether it
    counts as a scheme known before the paper; `is_partition`: whether it plans a
    partition; `on_steps`: whether its tasks can be replayed in the steps of a log;
    `fixed_workers`: whether it needs to know N before tracing; `draws`: whether its
    search draws; `lacks_deadline`: whether it is to be given one, in a sweep that of
    each cell; `seed`: of a method that is judged by draws and can be so without a key
    from outside.
    """

    conditions: ClassVar[Sequence[tuple[str, str]]] = ()
    counts: ClassVar[Sequence[tuple[str, int]]] = ()
    refuses: Sequence[str] = ()
    need = "workers that are slow, not their data"
    hint: str = 'use "optimal"'
    baseline: bool = False
    is_partition: bool = True
    on_steps: ClassVar[bool] = True
    fixed_workers: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    lacks_deadline: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, value, condition in self._numbers():
            check(name, value, condition)
            if isinstance(value, int | np.integer):  # 4 is no other program than 4.0
                object.__setattr__(self, name, float(value))
        for name, low in self.counts:
            default = self.__dataclass_fields__[name].default  # type: ignore[attr-defined]
            if getattr(self, name) is not default:
                check_whole(name, getattr(self, name), low)

    def _numbers(self) -> Iterator[tuple[str, Any, str]]:
        for name, condition in self.conditions:
            if getattr(self, name) is not None:
                yield name, getattr(self, name), condition

    def plan(self, problem: Problem, key: Array | None) -> Solution:
        """The scheme for a problem that has passed `check`, but for its provenance."""
        raise NotImplementedError

    def stored_subsets(self, choice: Sequence[float], num_workers: int) -> int:
        return int(max(choice))

    def plan_on(self, steps: Steps, which: np.ndarray) -> LogRule:
        """By the plan for the distribution of all times of these steps."""
        times = steps.times()[which]
        with jax.enable_x64(True):
            problem = problem_of_times(times, steps.forward)
            self.check(problem)
            return InARow.of(problem, self.plan(problem, jax.random.key(0)))

    def check(self, problem: Problem) -> None:
        """Raise ValueError for what it cannot do for this problem, if that is known
        before tracing.

        Shapes may say that this is a batch of methods, which only `jax.vmap` takes.
        """
        if self.fixed_workers and concrete(problem.num_workers) is None:
            raise ValueError(
                f'method="{self.name}" needs to know the number of workers, and it is '
                "traced"
            )
        for name in self.refuses:
            if getattr(problem, name) is not None:
                raise ValueError(f'method="{self.name}" knows no {name}: {self.hint}')
        for name, value, _ in self._numbers():
            check_shape(f"{name} of {type(self).__name__}", value, (), ONE_BY_ONE)

    def valid(self) -> Array:
        """Whether its numbers make sense, also where they are traced."""
        good = [
            jnp.all(meets(value, condition)) for _, value, condition in self._numbers()
        ]
        return jnp.all(jnp.asarray([True, *good]))

    def is_drawn(self, problem: Problem) -> bool:
        """Whether its runtime is a mean of draws."""
        return False

    def needs_mean(self, problem: Problem) -> bool:
        """Whether a distribution with an infinite mean makes its plan worth nothing."""
        return True


class Numbered(Method):
    """A method whose name has numbers, as "tandon:3": a `word`, and then its `counts`.

    `what` says what the first number counts. That one is None, where it may be left
    out, for the highest.
    """

    word: ClassVar[str]
    what: ClassVar[str]

    @property
    def name(self) -> str:  # type: ignore[override]
        numbers = [getattr(self, field) for field, _ in self.counts]
        return ":".join(
            [self.word, *(str(number) for number in numbers if number is not None)]
        )

    @classmethod
    def highest(cls, problem: Problem) -> int | None:
        """The largest first number that makes sense, if known before tracing."""
        workers = concrete(problem.num_workers)
        if workers is None:
            return None
        return int(workers.min()) + cls.counts[0][1] - 1

    @classmethod
    def read(cls, method: str, problem: Problem | None) -> "Method":
        """The method of this name."""
        numbers = method.split(":")[1:]
        if 1 <= len(numbers) <= len(cls.counts) and all(
            text.isdecimal() for text in numbers
        ):
            with contextlib.suppress(ValueError):
                return cls(*map(int, numbers))
        raise cls._wrong_number(method, problem)

    @classmethod
    def _wrong_number(cls, method: str, problem: Problem | None) -> ValueError:
        low = cls.counts[0][1]
        high = None
        if problem is not None:
            high = cls.highest(problem)
        until = ""
        if high is not None:
            until = f" to {high}"
        example = f'"{cls.word}:{max(low, 1)}"'
        return ValueError(
            f'method "{method}": "{cls.word}" takes {cls.what} from {low}{until}, as '
            f"in {example}"
        )

    def check(self, problem: Problem) -> None:
        super().check(problem)
        number = getattr(self, self.counts[0][0])
        high = self.highest(problem)
        if number is not None and high is not None and number > high:
            raise self._wrong_number(self.name, problem)
