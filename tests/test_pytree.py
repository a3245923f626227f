"""Laws as pytrees, and what they say to bad input."""

import dataclasses
import math
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax._pytree import check, replace
from tests import registry

pytestmark = pytest.mark.smoke


def scaled(p, t):
    return p * t


def rated(p, t):
    return p["rate"] * t


def unscaled(p, a):
    return a / p


LAWS = [
    make(1.3)
    for name, make in registry.LAWS.items()
    if name not in ("HazardSpline", "Mixture", *registry.JOINT)
]
every_law = pytest.mark.parametrize("law", LAWS, ids=lambda law: type(law).__name__)


def fields(law) -> dict:
    return {f.name: getattr(law, f.name) for f in dataclasses.fields(law)}


@every_law
def test_a_law_is_a_frozen_tree_of_its_fields_which_only_its_maker_checks(law):
    named, structure = jax.tree_util.tree_flatten_with_path(law)
    dynamic = [f.name for f in dataclasses.fields(law) if not f.metadata.get("static")]
    leaves = [leaf for _, leaf in named]
    assert [jax.tree_util.keystr(path) for path, _ in named] == [
        f".{name}" for name in dynamic
    ]
    assert leaves == [getattr(law, name) for name in dynamic]
    twin = jax.tree.unflatten(structure, leaves)
    assert type(twin) is type(law)
    assert all(fields(twin)[name] is value for name, value in fields(law).items())
    placeholders = [object() for _ in leaves]
    assert jax.tree.leaves(jax.tree.unflatten(structure, placeholders)) == placeholders
    negative = jax.tree.map(lambda leaf: -jnp.abs(leaf) - 7, law)
    assert all((leaf < 0).all() for leaf in jax.tree.leaves(negative))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(law, dataclasses.fields(law)[0].name, 2.3)
    assert law != twin
    assert len({law, twin, law}) == 2
    copy = pickle.loads(pickle.dumps(law))
    assert len({jax.tree.structure(tree) for tree in (copy, law)}) == 1
    np.testing.assert_array_equal(jax.tree.leaves(copy)[0], leaves[0])


def test_replacing_a_field_checks_it_again():
    law = replace(bcgc.ShiftedExponential(rate=0.37, shift=2.5), shift=7.5)
    assert (law.rate, law.shift) == (0.37, 7.5)
    with pytest.raises(ValueError, match=r"^rate must be finite and > 0, got -0\.37$"):
        replace(law, rate=-0.37)


def test_functions_of_a_hazard_are_compiled_and_its_parameters_are_traced():
    laws = [
        bcgc.FromHazard(scaled, unscaled, parameters=parameters)
        for parameters in (3.3, 0.7)
    ]
    laws.append(
        bcgc.FromHazard(
            lambda p, t: p * t**2, lambda p, a: (a / p) ** 0.5, parameters=3.3
        )
    )
    structures: list[Any] = [jax.tree.structure(law) for law in laws]
    assert structures[0] == structures[1] != structures[2]


NUMBERS = {"wrong sign": -0.7, "zero": 0.0, "NaN": math.nan}
NUMBERS |= {"infinite": math.inf, "minus infinite": -math.inf}
OTHERS = {"text": "0.7", "nothing": None, "complex": 0.7 + 0.1j, "truth value": True}
ARRAYS = {
    "NaN in an array": np.array([[0.7], [math.nan]]),
    "NaN on the device": jnp.array([math.nan, 0.7]),
}
# What is no number anywhere is so for one field of each law.
WRONG: dict[str, Any] = {**NUMBERS, "one wrong entry": [0.7, -0.1], **OTHERS, **ARRAYS}
MAY_BE = {
    "wrong sign": {"location"},
    "one wrong entry": {"location"},
    "infinite": {"slow"},
}
MAY_BE["zero"] = {"shift", "low", "location", "probability"}
BAD = [
    pytest.param(law, name, value, id=f"{type(law).__name__}-{name}-{what}")
    for law in LAWS
    for name in fields(law)
    if not isinstance(law, (bcgc.Empirical, bcgc.FromHazard))
    for what, value in WRONG.items()
    if what not in (*OTHERS, *ARRAYS) or name == next(iter(fields(law)))
    if name not in MAY_BE.get(what, ())
]


@pytest.mark.parametrize(("law", "name", "value"), BAD)
def test_bad_field_is_named(law, name, value):
    with pytest.raises(ValueError, match=rf"^{name} must be ") as caught:
        type(law)(**{**fields(law), name: value})
    assert "got" in str(caught.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: bcgc.Uniform(1.7, 1.7), "low must be below high, got 1.7 and 1.7"),
        (lambda: bcgc.Uniform(np.array([1.0, 4.0]), 3.1), "low must be below high"),
        (
            lambda: bcgc.TwoSpeed(5.7, 5.7, 0.27),
            "fast must be below slow, got 5.7 and 5.7",
        ),
        (
            lambda: bcgc.TwoSpeed(1.3, 5.7, 1.01),
            "probability must be finite and <= 1, got 1.01",
        ),
        (
            lambda: bcgc.Empirical([]),
            "`times` is empty. An empirical distribution needs at least one",
        ),
        (lambda: bcgc.Empirical([0.7, 0.0]), "times must be finite and > 0, got 0.0"),
        (lambda: bcgc.Empirical(["fast", "slow"]), "times must be a number, got"),  # type: ignore[list-item]
    ],
)
def test_bad_law_says_what_is_wrong(build, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


def test_check_may_allow_infinity_but_no_nan():
    check("depth", math.inf, "> 0", finite=False)
    for value in (math.nan, -math.inf):
        with pytest.raises(ValueError, match=f"^depth must be > 0, got {value}$"):
            check("depth", value, "> 0", finite=False)


PROBLEM = (
    "Problem(cycle_time=Uniform(low=1.0, high=2.0), num_workers=3, num_coordinates=300"
)
TIMES = np.linspace(0.5, 2.0, 4_000)
REPRESENTED: list[tuple[Any, str]] = [
    (
        bcgc.ShiftedExponential(np.float32(1), jnp.array(50.0)),
        "ShiftedExponential(rate=1.0, shift=50.0)",
    ),
    (bcgc.TwoSpeed(1, np.inf, 0.5), "TwoSpeed(fast=1.0, slow=inf, probability=0.5)"),
    (
        bcgc.Empirical(TIMES.astype(np.float32)),
        "Empirical(times=float32[4000] from 0.5 to 2)",
    ),
    (
        bcgc.Heterogeneous([bcgc.Uniform(1.0, 2.0)] * 3 + [bcgc.Pareto(1.0, 3.0)]),
        "Heterogeneous(distributions=[3 × Uniform(low=1.0, high=2.0), "
        "Pareto(scale=1.0, shape=3.0)])",
    ),
    (
        bcgc.FromHazard(rated, lambda p, a: a / p["rate"], {"rate": 3.0}),
        "FromHazard(hazard=rated, inverse_hazard=<lambda>, parameters={'rate': 3.0})",
    ),
    (
        bcgc.Problem(bcgc.Uniform(1.0, 2.0), 3, 300, max_workers=8, setup_cycles=1.5),
        f"{PROBLEM}, max_workers=8, setup_cycles=1.5)",
    ),
    (bcgc.Optimal(levels=[2, 0]), "Optimal(levels=[0, 2])"),
    (
        bcgc.Optimal(levels=range(9)),
        "Optimal(levels=[0, 1, 2, 3, 4, 5, 6, 7, … 1 more])",
    ),
    (
        bcgc.Scheme("mine", scaled, gives="levels"),
        "Scheme(name='mine', function=scaled, gives='levels', label='mine')",
    ),
]


@pytest.mark.parametrize(
    ("tree", "text"), REPRESENTED, ids=lambda value: str(value)[:30]
)
def test_a_tree_is_shown_by_what_is_not_by_default_and_long_arrays_by_their_range(
    tree, text
):
    assert repr(tree) == text


def test_what_is_traced_or_a_batch_is_shown_by_its_shape():
    assert (
        repr(jax.eval_shape(bcgc.Empirical, TIMES.astype(np.float32)))
        == "Empirical(times=float32[4000])"
    )
    shapes = jax.eval_shape(lambda rate: bcgc.ShiftedExponential(rate), np.float32(1.0))
    assert repr(shapes) == "ShiftedExponential(rate=float32[], shift=float32[])"
    batch = jax.vmap(bcgc.ShiftedExponential)(np.array([1.0, 2.0], np.float32))
    assert repr(batch) == "ShiftedExponential(rate=[1.0, 2.0], shift=[0.0, 0.0])"


def test_whole_numbers_of_another_kind_are_no_other_program():
    laws = [
        bcgc.Gamma(*numbers)
        for numbers in ((2, 1, 3), (2.0, 1.0, 3.0), (np.int64(2), 1.0, 3))
    ]
    sizes = (4, 90), (4.0, 9e1), (np.int64(4), np.int32(90))
    assert (
        len(
            {str(jax.tree.leaves(bcgc.Problem(laws[0], *numbers))) for numbers in sizes}
        )
        == 1
    )
    for alike in (laws, [bcgc.TandonPartial(alpha) for alpha in (4, 4.0)]):
        assert len({str(jax.tree.map(jnp.result_type, tree)) for tree in alike}) == 1
