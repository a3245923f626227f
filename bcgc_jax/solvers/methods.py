"""The methods that `solve` can be asked for, by name."""

import difflib
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from bcgc_jax.balancing.remedies import Limit
from bcgc_jax.balancing.scheme_names import ALONE, METHODS, NUMBERED, REPLACED, about
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.baselines import CLOSED_FORMS
from bcgc_jax.solvers.method import Method

Methods = str | Method | Sequence[str | Method]

LIMIT = Limit.name
NAMES = frozenset([*ALONE, *NUMBERED])


def method_of(method: str | Method, *, problem: Problem | None = None) -> Method:
    """The object that a short name stands for.

    Raises ValueError for a name that is none, with the nearest that is one; what is
    possible for a `problem` is then said too.

    >>> method_of("tandon:3").level, method_of("optimal").tolerance
    (3, 1e-07)
    """
    if isinstance(method, Method):
        return method
    if not isinstance(method, str):
        raise TypeError(
            "a method is a name, an object such as Optimal() or a Scheme, got "
            f"{method!r}"
        )
    if method in CLOSED_FORMS:
        return CLOSED_FORMS[method]
    word = method.partition(":")[0]
    if method in ALONE:
        return kind_of(word)()
    if word in NUMBERED:
        return kind_of(word).read(method, problem)
    if word in REPLACED:
        raise ValueError(
            f'there is no method "{word}" any more: take "sharing:D" in its place'
        )
    near = difflib.get_close_matches(method, ALONE, n=1)
    hint = ""
    if near:
        hint = f' (did you mean "{near[0]}"?)'
    raise ValueError(f'unknown method "{method}"{hint}; known: {METHODS}')


def kind_of(word: str) -> Any:
    """The class of methods whose names begin so, of those that are no closed forms."""
    file, _, name = about(word).solver.partition(".")
    return getattr(import_module(f"bcgc_jax.solvers.{file}"), name)


def code_of(name: str) -> Method:
    """The method of this name, which is planned on measured steps; ValueError for
    another one.

    >>> import numpy as np
    >>> from bcgc_jax.balancing.steps import Steps
    >>> times = np.random.default_rng(0).exponential(1.0, (40, 4)) + 0.1
    >>> steps = Steps(
    ...     times, np.ones((40, 4, 1)), np.zeros((40, 4, 0)), np.zeros((40, 4))
    ... )
    >>> first = np.arange(40) < 20
    >>> replayed = code_of("cyclic:2").plan_on(steps, first).replay(steps, ~first)
    >>> bool(replayed.seconds.mean() < steps.last()[~first].mean()), replayed.choice
    (True, (2.0,))
    """
    method = method_of(name)
    if not method.on_steps:
        raise ValueError(
            f'"{name}" is not planned on measured steps: take nested, nested:2 or '
            "optimal"
        )
    return method


def each_method(methods: Methods) -> Iterable[str | Method]:
    """The methods; one alone is a row of one."""
    if isinstance(methods, Iterable) and not isinstance(methods, str):
        return methods
    return (methods,)


def is_limit(method: str) -> bool:
    """Whether a name is no scheme, but what no scheme beats."""
    return method.partition(":")[0] == LIMIT
