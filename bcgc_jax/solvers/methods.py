r"""What `solve` can be asked for: methods with their options, and the short names of their defaults.

A method's numbers are leaves, traced and batched like those of a problem; what decides a shape or a program
is static. A rule that needs no search is a `Scheme`, the package's own (`schemes.SCHEMES`) or a user's.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from bcgc_jax._pytree import check, check_whole, concrete, meets, pytree_dataclass, static_field
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.schemes import SCHEMES, Scheme


class Method:
    """A way to a scheme; `name` is what the command line and `Solution.method` call it.

    `conditions` are what its numbers must meet, where they are given: what a person passes is refused
    otherwise, and with what is traced the solution is INVALID. `counts` are static whole numbers, and what
    they begin with.
    """

    conditions: ClassVar[Sequence[tuple[str, str]]] = ()
    counts: ClassVar[Sequence[tuple[str, int]]] = ()

    def __post_init__(self) -> None:
        for name, value, condition in self._numbers():
            check(name, value, condition)
            if isinstance(value, int | np.integer):  # 4 is no other program than 4.0
                object.__setattr__(self, name, float(value))
        for name, low in self.counts:
            check_whole(name, getattr(self, name), low)

    def _numbers(self) -> Iterator[tuple[str, Any, str]]:
        for name, condition in self.conditions:
            if getattr(self, name) is not None:
                yield name, getattr(self, name), condition

    @property
    def name(self) -> str:
        raise NotImplementedError

    def valid(self) -> Array:
        """Whether its numbers make sense, also where they are traced."""
        good = [jnp.all(meets(value, condition)) for _, value, condition in self._numbers()]
        return jnp.all(jnp.asarray([True, *good]))

    def check_single(self) -> None:
        """Raise ValueError where shapes say that this is a batch of methods, which only `jax.vmap` takes."""
        for name, value, _ in self._numbers():
            if np.shape(value):
                raise ValueError(
                    f"{name} of {type(self).__name__} must be one number, got shape {np.shape(value)}: a "
                    "batch goes through jax.vmap, as in jax.vmap(lambda m: solve(problem, m))(methods)"
                )


@pytree_dataclass
class Optimal(Method):
    r"""The partition of least expected runtime, to a proven relative gap of `tolerance`.

    Args:
      tolerance: of the gap; not below what the precision resolves, (64 + 8 N) eps: 3e-5 in float32 at N = 20;
        for laws of atoms and for `Rows` not below 1e-6, in float32 3e-4.
      levels: the redundancy levels that may be used, all by default; static. With setup cycles it is also
        searched which of them to use, and the bound is for those in `Solution.levels`. Where the number of
        workers is traced and lacks one of them, the solution is INFEASIBLE.
      max_steps: of Newton's method; static.

    >>> Optimal(levels=[0, 2]).levels
    (0, 2)
    """

    tolerance: ArrayLike = 1e-7
    levels: Sequence[int] | None = static_field(default=None)
    max_steps: int = static_field(default=60)

    conditions = (("tolerance", "> 0"),)
    counts = (("max_steps", 1),)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.levels is not None:
            chosen = np.unique(np.asarray(self.levels))
            if not chosen.size or not np.issubdtype(chosen.dtype, np.integer) or chosen[0] < 0:
                raise ValueError(
                    f"levels must be whole numbers from 0 on, at least one of them, got {self.levels!r}"
                )
            object.__setattr__(self, "levels", tuple(chosen.tolist()))

    @property
    def name(self) -> str:
        return "optimal"


@pytree_dataclass
class Deadline(Method):
    r"""The partition, a local optimum from several starts, that most probably ends by `deadline`.

    With `min_completion` the fastest one that does so often enough: min E τ̂(x,T) over P(τ̂(x,T) ≤ deadline) ≥
    min_completion, a local optimum; INFEASIBLE where no partition that is found does.

    Args:
      deadline: a time; in a `Sweep` None, and then that of the cell.
      tolerance: of a share of the coordinates that a last step would move.
      max_steps: from each start; static.
      min_completion: a probability; the law's mean must be finite, and it must not be one of atoms.

    >>> Deadline(8e7, min_completion=0.99).name
    'deadline'
    """

    deadline: ArrayLike | None = None
    tolerance: ArrayLike = 1e-6
    max_steps: int = static_field(default=2000)
    min_completion: ArrayLike | None = None

    conditions = (
        *(("deadline", "> 0"), ("tolerance", "> 0")),
        *(("min_completion", "> 0"), ("min_completion", "< 1")),
    )
    counts = (("max_steps", 1),)

    @property
    def name(self) -> str:
        return "deadline"


@pytree_dataclass
class Subgradient(Method):
    r"""The paper's stochastic projected subgradient method; needs a key.

    Args:
      tolerance: stops when the best value has improved by less, relatively, since the check before last; a
        negative one never stops.
      batch_size: draws a step; static, as are the next two.
      check_every: steps between exact evaluations.
      max_steps: in all.
    """

    tolerance: ArrayLike = 1e-4
    batch_size: int = static_field(default=512)
    check_every: int = static_field(default=100)
    max_steps: int = static_field(default=2000)

    conditions = (("tolerance", ""),)
    counts = (("batch_size", 1), ("check_every", 1), ("max_steps", 1))

    @property
    def name(self) -> str:
        return "subgradient"


@pytree_dataclass
class TandonPartial(Method):
    r"""Partial stragglers of Tandon et al. 2017; `alpha` is the law's `straggler_ratio` by default."""

    alpha: ArrayLike | None = None

    conditions = (("alpha", ">= 1"),)

    @property
    def name(self) -> str:
        return "tandon_partial"


@pytree_dataclass
class Tandon(Method):
    """Gradient coding of Tandon et al. 2017: all coordinates at one redundancy `level`.

    INFEASIBLE where the number of workers is traced and has no such level.
    """

    level: int = static_field()

    counts = (("level", 0),)

    @property
    def name(self) -> str:
        return f"tandon:{self.level}"


@pytree_dataclass
class Ferdinand(Method):
    """Hierarchical coded computation of Ferdinand & Draper 2018 with `num_layers` layers."""

    num_layers: int = static_field()

    counts = (("num_layers", 1),)

    @property
    def name(self) -> str:
        return f"ferdinand:{self.num_layers}"


class Scheduled(Method):
    """A scheme without a code, in which every finished subset or chunk counts."""


@pytree_dataclass
class Cyclic(Scheduled):
    """Workers store `stored` subsets each and go through them one by one, around the circle.

    Amiri & Gündüz, Computation scheduling for distributed machine learning with straggling workers, 2019.
    """

    stored: int = static_field()

    counts = (("stored", 1),)

    @property
    def name(self) -> str:
        return f"cyclic:{self.stored}"


@pytree_dataclass
class Alternating(Scheduled):
    """As `Cyclic`, in `num_blocks` equal blocks, every second subset backwards: two meet within a subset."""

    stored: int = static_field()
    num_blocks: int = static_field(default=10)

    counts = (("stored", 1), ("num_blocks", 1))

    @property
    def name(self) -> str:
        return f"alternating:{self.stored}:{self.num_blocks}"


@pytree_dataclass
class Backup(Scheduled):
    """The fastest N - `spare` workers, uncoded: not the gradient of all data, but of a random part of it.

    Chen et al., Revisiting distributed synchronous SGD, 2016.
    """

    spare: int = static_field()

    counts = (("spare", 0),)

    @property
    def name(self) -> str:
        return f"backup:{self.spare}"


@pytree_dataclass
class Sharing(Scheduled):
    """The master hands chunks, `chunks` a worker, to whoever is free, and at the end second copies.

    Each is asked for in `round_trip`, in the unit of runtimes. Every worker can read all data.
    """

    chunks: int = static_field()
    round_trip: ArrayLike = 0.0

    conditions = (("round_trip", ">= 0"),)
    counts = (("chunks", 1),)

    @property
    def name(self) -> str:
        return f"sharing:{self.chunks}"


@pytree_dataclass
class Credit(Scheduled):
    """The schedule of least expected runtime that is found, with `max_subsets` stored (all by default).

    Sizes of blocks, their depth and the order of tasks; a local search from cyclic, alternating and block by
    block schedules, so never worse than these by more than its standard error. Needs a key.
    """

    max_subsets: int | None = static_field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_subsets is not None:
            check_whole("max_subsets", self.max_subsets, 1)

    @property
    def name(self) -> str:
        return "credit" if self.max_subsets is None else f"credit:{self.max_subsets}"


Methods = str | Method | Scheme | Sequence[str | Method | Scheme]

PROPOSED = ("optimal", "subgradient", "time", "frequency")
BASELINES = ("uncoded", "single_block", "tandon_partial", "ferdinand_full", "ferdinand_half")
LIMIT = "limit"
_SEARCHED: dict[str, type[Method]] = {
    "optimal": Optimal,
    "deadline": Deadline,
    "subgradient": Subgradient,
    "tandon_partial": TandonPartial,
    "credit": Credit,
}
# Methods that take a number, as in "tandon:3", what that is, and its least value.
_NUMBERED: dict[str, tuple[type[Method], str, int]] = {
    "tandon": (Tandon, "a redundancy level", 0),
    "ferdinand": (Ferdinand, "a number of layers", 1),
    "cyclic": (Cyclic, "a number of stored subsets", 1),
    "alternating": (Alternating, "a number of stored subsets", 1),
    "backup": (Backup, "a number of spare workers", 0),
    "sharing": (Sharing, "a number of chunks a worker", 1),
    "credit": (Credit, "a number of stored subsets", 1),
}
_NAMES = (*PROPOSED, "deadline", *BASELINES, LIMIT)
METHODS = ", ".join([*_NAMES, *(f"{name}:NUMBER" for name in _NUMBERED)])


def method_of(
    method: "str | Method | Scheme", own: Sequence[Scheme] = (), *, problem: Problem | None = None
) -> "Method | Scheme":
    """The object that a short name stands for, among the package's methods and schemes of one's `own`.

    Raises ValueError for a name that is none, with the nearest that is one; what is possible for a `problem`
    is then said too.

    >>> method_of("tandon:3").level, method_of("optimal").tolerance
    (3, 1e-07)
    """
    if isinstance(method, Method | Scheme):
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"a method is a name such as 'optimal', an object such as Optimal() or a Scheme, got {method!r}"
        )
    mine = {scheme.name: scheme for scheme in own}
    name, colon, _ = method.partition(":")
    if name in _NUMBERED and (colon or name not in _SEARCHED):
        return _numbered(method, problem)
    if not colon and method in _SEARCHED:
        return _SEARCHED[method]()
    if not colon and (method in mine or method in SCHEMES):
        return mine.get(method) or SCHEMES[method]
    near = difflib.get_close_matches(method, (*_NAMES, *mine), n=1)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    raise ValueError(f'unknown method "{method}"{hint}; known: {", ".join([METHODS, *mine])}')


def _numbered(method: str, problem: Problem | None) -> Method:
    """Of a name and a number; of alternating schedules there may be a second one."""
    name, *numbers = method.split(":")
    low, high = _range(name, problem)
    most = 2 if name == "alternating" else 1
    good = 1 <= len(numbers) <= most and all(text.isdecimal() for text in numbers)
    if not good or int(numbers[0]) < low or int(numbers[-1]) < min(low, 1):
        raise ValueError(_wrong_number(method, low, high))
    return _NUMBERED[name][0](*map(int, numbers))


def each_method(methods: "Methods") -> "Iterable[str | Method | Scheme]":
    """One method, or what is none and `method_of` refuses, as a row of one."""
    return (methods,) if isinstance(methods, str) or not isinstance(methods, Iterable) else methods


def owners_of(option: str) -> list[str]:
    """The classes of the methods that have this option."""
    kinds = dict.fromkeys([*_SEARCHED.values(), *(kind for kind, *_ in _NUMBERED.values())])
    return [kind.__name__ for kind in kinds if option in kind.__dataclass_fields__]  # type: ignore[attr-defined]


def _range(name: str, problem: Problem | None) -> tuple[int, int | None]:
    """The numbers that a name may have, as far as it is known before tracing."""
    low = _NUMBERED[name][2]
    if problem is None or name == "sharing":
        return low, None
    limit = concrete(problem.num_coordinates if name == "ferdinand" else problem.num_workers)
    return low, None if limit is None else int(limit.min()) - (1 - low)


def _wrong_number(method: str, low: int, high: int | None) -> str:
    name = method.partition(":")[0]
    what = _NUMBERED[name][1]
    until = "" if high is None else f" to {high}"
    return f'method "{method}": "{name}" takes {what} from {low}{until}, as in "{name}:{max(low, 1)}"'


def is_baseline(method: "Method | Scheme") -> bool:
    """Whether a method counts as a scheme known before the paper."""
    return (
        method.baseline
        if isinstance(method, Scheme)
        else isinstance(method, Scheduled | Tandon | Ferdinand | TandonPartial)
        and not isinstance(method, Credit)
    )


def _check_schedule(problem: Problem, method: Scheduled) -> None:
    name, colon, number = method.name.partition(":")
    if colon:
        low, high = _range(name, problem)
        first = int(number.partition(":")[0])
        if first < low or (high is not None and first > high):
            raise ValueError(_wrong_number(method.name, low, high))
    if problem.send_time is not None and not isinstance(method, Backup):
        raise ValueError(f'method="{method.name}" knows no send_time: who sends what is decided as they go')
    if problem.unit_costs is not None and isinstance(method, Alternating | Credit):
        raise ValueError(f'method="{method.name}" cuts between coordinates: it knows no unit_costs')
    if problem.has_setup and isinstance(method, Sharing):
        raise ValueError(f'method="{method.name}" knows no setup_cycles and no chain_cycles')


def check_method(problem: Problem, method: "Method | Scheme") -> None:
    """ValueError for what a method cannot do for this problem, as far as that is known before tracing."""
    name = method.name
    if isinstance(method, Method):
        method.check_single()
    match method:
        case Tandon(level=number) | Ferdinand(num_layers=number):
            low, high = _range(name.partition(":")[0], problem)
            if number < low or (high is not None and number > high):
                raise ValueError(_wrong_number(name, low, high))
        case Scheduled():
            _check_schedule(problem, method)
        case Optimal(levels=levels) if levels is not None:
            workers = concrete(problem.num_workers)
            top = (problem.max_workers if workers is None else int(workers.min())) - 1
            if levels[-1] > top:
                raise ValueError(f"levels must be whole numbers from 0 to {top}, got {list(levels)}")
        case Deadline() if problem.has_setup:
            raise ValueError("the completion probability is optimised without setup_cycles and chain_cycles")
        case Deadline(min_completion=least) if least is not None and problem.iteration.stepped:
            raise ValueError(
                "min_completion needs a law without atoms: of a trace its smooth law "
                "(bcgc_jax.measured.smooth_empirical; in a shell --trace-law smooth)"
            )
    if not problem.plain and isinstance(method, Scheme) and method.gives == "runtime":
        raise ValueError(
            f'method="{name}" makes runtimes of cycle times alone: it knows no start_up and no send_time'
        )
    if problem.has_setup and name in ("subgradient", "tandon_partial", LIMIT):
        raise ValueError(f'method="{name}" knows no setup_cycles and no chain_cycles: use "optimal"')
    if problem.unit_costs is not None and name.startswith("ferdinand"):
        raise ValueError(f'method="{name}" has layers of equal coordinates: it knows no unit_costs')
