"""What a function does, told apart in whatever holds the difference."""

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import vmap
from jax.numpy import where

import bcgc_jax as bcgc
from bcgc_jax.solvers.identity import describe


def _first(problem: Any, weights: Any) -> Any:
    return weights


def _closed(value: Any) -> Any:
    return lambda p: value


class Weighted:
    def __init__(self, weights: np.ndarray) -> None:
        self.weights = weights

    def __call__(self, problem: Any) -> Any:
        return self.weights

    def method(self, problem: Any) -> Any:
        return self.weights


@dataclasses.dataclass
class Held:
    weights: np.ndarray


HOLDERS: dict[str, Callable[[np.ndarray], Any]] = {
    "a closure": _closed,
    "a default": lambda w: lambda p, w=w: w,
    "an array of JAX": lambda w: _closed(jnp.asarray(w, jnp.float32)),
    "a list": lambda w: _closed(w.tolist()),
    "a set": lambda w: _closed(frozenset(w.tolist())),
    "a dictionary": lambda w: _closed({"a": {"b": w}}),
    "an array of objects": lambda w: _closed(w.astype(object)),
    "a function within": lambda w: lambda p: (lambda: _first(p, w))(),
    "a partial function": lambda w: functools.partial(_first, weights=w),
    "an object that is called": Weighted,
    "a method": lambda w: Weighted(w).method,
    "an object": lambda w: _closed(Held(w)),
    "a law": lambda w: _closed(bcgc.Empirical(1 + w)),
    "another scheme": lambda w: _closed(bcgc.Scheme("inner", lambda p: w)),
    "a compiled function": lambda w: jax.jit(lambda p: w),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_one_entry_of_an_array_tells_functions_apart_whatever_holds_it(name):
    weights = np.linspace(0.0, 1.0, 2_000)
    other = weights.copy()
    other[1_000] += 1e-4
    holder = HOLDERS[name]
    assert describe(holder(weights)) == describe(holder(weights.copy())) != describe(holder(other))


def test_keys_and_the_names_that_inner_functions_use_count_too(monkeypatch):
    def of_key(seed):
        return describe(_closed(jax.random.key(seed)))

    assert of_key(0) == of_key(0) != of_key(1)

    def inner(problem):
        return [LEVEL for _ in range(3)] + [(lambda: LEVEL)()]

    first = describe(inner)
    monkeypatch.setitem(globals(), "LEVEL", 1)
    assert describe(inner) != first


LEVEL = 0


def test_what_is_installed_is_known_by_its_name():
    for function in (lambda p: where(p, 1, 0), lambda p: vmap(_first)(p, p), lambda p: bcgc.solve(p)):
        assert len(describe(function)) < 2_000
    assert "_where.<locals>" not in describe(lambda p: where(p, 1, 0))


def test_another_process_describes_it_alike():
    """With another hash of strings, in whose order a set is."""
    code = (
        "from bcgc_jax.solvers.identity import describe\n"
        "names = {'one', 'two', 'three', 'four'}\n"
        "print(describe(lambda p, extra=object(): (names, extra)))"
    )
    texts = set()
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": str(Path(bcgc.__file__).parent.parent),
        }
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        texts.add(run.stdout)
    assert len(texts) == 1
