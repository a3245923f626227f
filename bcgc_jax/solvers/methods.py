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

    Args:
      deadline: a time; in a `Sweep` None, and then that of the cell.
      tolerance: of a share of the coordinates that a last step would move.
      max_steps: from each start; static.
    """

    deadline: ArrayLike | None = None
    tolerance: ArrayLike = 1e-6
    max_steps: int = static_field(default=2000)

    conditions = (("deadline", "> 0"), ("tolerance", "> 0"))
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


Methods = str | Method | Scheme | Sequence[str | Method | Scheme]

PROPOSED = ("optimal", "subgradient", "time", "frequency")
BASELINES = ("uncoded", "single_block", "tandon_partial", "ferdinand_full", "ferdinand_half")
LIMIT = "limit"
_SEARCHED: dict[str, type[Method]] = {
    "optimal": Optimal,
    "deadline": Deadline,
    "subgradient": Subgradient,
    "tandon_partial": TandonPartial,
}
# Methods that take a number, as in "tandon:3": a level, a number of layers.
_NUMBERED: dict[str, type[Method]] = {"tandon": Tandon, "ferdinand": Ferdinand}
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
    name, colon, text = method.partition(":")
    if name in _NUMBERED:
        low, high = _range(name, problem)
        if not text.isdecimal() or int(text) < low:
            raise ValueError(_wrong_number(method, low, high))
        return _NUMBERED[name](int(text))  # type: ignore[call-arg]
    if not colon and method in _SEARCHED:
        return _SEARCHED[method]()
    if not colon and (method in mine or method in SCHEMES):
        return mine.get(method) or SCHEMES[method]
    near = difflib.get_close_matches(method, (*_NAMES, *mine), n=1)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    raise ValueError(f'unknown method "{method}"{hint}; known: {", ".join([METHODS, *mine])}')


def each_method(methods: "Methods") -> "Iterable[str | Method | Scheme]":
    """One method, or what is none and `method_of` refuses, as a row of one."""
    return (methods,) if isinstance(methods, str) or not isinstance(methods, Iterable) else methods


def owners_of(option: str) -> list[str]:
    """The classes of the methods that have this option."""
    kinds = dict.fromkeys([*_SEARCHED.values(), *_NUMBERED.values()])
    return [kind.__name__ for kind in kinds if option in kind.__dataclass_fields__]  # type: ignore[attr-defined]


def _range(name: str, problem: Problem | None) -> tuple[int, int | None]:
    """The numbers that "tandon" or "ferdinand" may have, as far as it is known before tracing."""
    low = 0 if name == "tandon" else 1
    if problem is None:
        return low, None
    limit = concrete(problem.num_workers if name == "tandon" else problem.num_coordinates)
    return low, None if limit is None else int(limit.min()) - (1 - low)


def _wrong_number(method: str, low: int, high: int | None) -> str:
    name = method.partition(":")[0]
    what = "a redundancy level" if name == "tandon" else "a number of layers"
    until = "" if high is None else f" to {high}"
    return f'method "{method}": "{name}" takes {what} from {low}{until}, as in "{name}:{max(low, 1)}"'


def is_baseline(method: "Method | Scheme") -> bool:
    """Whether a method counts as a scheme known before the paper."""
    return (
        method.baseline
        if isinstance(method, Scheme)
        else isinstance(method, Tandon | Ferdinand | TandonPartial)
    )


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
        case Optimal(levels=levels) if levels is not None:
            workers = concrete(problem.num_workers)
            top = (problem.max_workers if workers is None else int(workers.min())) - 1
            if levels[-1] > top:
                raise ValueError(f"levels must be whole numbers from 0 to {top}, got {list(levels)}")
        case Deadline() if problem.has_setup:
            raise ValueError("the completion probability is optimised without setup_cycles and chain_cycles")
    if problem.delivers and isinstance(method, Scheme) and method.gives == "runtime":
        raise ValueError(
            f'method="{name}" makes runtimes of cycle times alone: it knows no start_up and no send_time'
        )
    if problem.has_setup and name in ("subgradient", "tandon_partial", LIMIT):
        raise ValueError(f'method="{name}" knows no setup_cycles and no chain_cycles: use "optimal"')
    if problem.unit_costs is not None and name.startswith("ferdinand"):
        raise ValueError(f'method="{name}" has layers of equal coordinates: it knows no unit_costs')
