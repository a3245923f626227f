"""The methods that `solve` can be asked for, by name."""

import difflib
from collections.abc import Iterable, Sequence

from bcgc_jax.problem import Problem
from bcgc_jax.schemes.names import ALONE, METHODS, REPLACED
from bcgc_jax.solvers.baselines import CLOSED_FORMS, Backup, Ferdinand, Tandon, TandonPartial
from bcgc_jax.solvers.cyclic import Cyclic
from bcgc_jax.solvers.deadline import Deadline
from bcgc_jax.solvers.drop import Drop
from bcgc_jax.solvers.limit import Limit
from bcgc_jax.solvers.method import Method, Numbered
from bcgc_jax.solvers.nested import Nested
from bcgc_jax.solvers.optimum import Optimal
from bcgc_jax.solvers.sharing import Sharing
from bcgc_jax.solvers.subgradient import Subgradient

Methods = str | Method | Sequence[str | Method]

LIMIT = Limit.word
_SEARCHED = (Optimal(), Subgradient(), Deadline(), Nested(), TandonPartial(), Backup(), Drop())
_NAMED: dict[str, Method] = {method.name: method for method in (*_SEARCHED, *CLOSED_FORMS)}
_NUMBERED: dict[str, type[Numbered | Sharing | Limit]] = {
    kind.word: kind for kind in (Tandon, Ferdinand, Cyclic, Backup, Drop, Sharing, Nested, Limit)
}
NAMES = frozenset([*_NAMED, *_NUMBERED])


def method_of(method: str | Method, *, problem: Problem | None = None) -> Method:
    """The object that a short name stands for.

    Raises ValueError for a name that is none, with the nearest that is one; what is possible for a
    `problem` is then said too.

    >>> method_of("tandon:3").level, method_of("optimal").tolerance
    (3, 1e-07)
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(
            f"a method is a name, an object such as Optimal() or a Scheme, got {method!r}"
        )
    if method in _NAMED:
        return _NAMED[method]
    word = method.partition(":")[0]
    if word in _NUMBERED:
        return _NUMBERED[word].read(method, problem)
    if word in REPLACED:
        raise ValueError(f'there is no method "{word}" any more: take "sharing:D" in its place')
    near = difflib.get_close_matches(method, ALONE, n=1)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    raise ValueError(f'unknown method "{method}"{hint}; known: {METHODS}')


def code_of(name: str) -> Method:
    """The method of this name, which is planned on measured steps; ValueError for another one.

    >>> import numpy as np
    >>> from bcgc_jax.steps.steps import Steps
    >>> times = np.random.default_rng(0).exponential(1.0, (40, 4)) + 0.1
    >>> steps = Steps(times, np.ones((40, 4, 1)), np.zeros((40, 4, 0)), np.zeros((40, 4)))
    >>> first = np.arange(40) < 20
    >>> replayed = code_of("cyclic:2").plan_on(steps, first).replay(steps, ~first)
    >>> bool(replayed.seconds.mean() < steps.last()[~first].mean()), replayed.choice
    (True, (2.0,))
    """
    method = method_of(name)
    if not method.on_steps:
        raise ValueError(
            f'"{name}" is not planned on measured steps: take nested, nested:2 or optimal'
        )
    return method


def each_method(methods: Methods) -> Iterable[str | Method]:
    """The methods; a single one, or what is none and `method_of` refuses, as a row of one."""
    if isinstance(methods, Iterable) and not isinstance(methods, str):
        return methods
    return (methods,)


def is_limit(method: str) -> bool:
    """Whether a name is no scheme, but what no scheme beats."""
    return method.partition(":")[0] == LIMIT
