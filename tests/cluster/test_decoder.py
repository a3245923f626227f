"""The master's arithmetic without any worker, against NumPy's sums."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.cluster.decoder import Decoder
from bcgc_jax.coding.gradients import CodingPlan, assemble_gradient, coding_plan
from bcgc_jax.coding.scheduled import schedule_plan
from bcgc_jax.plans.schedules import Group, schedule_of
from tests.compilations import compilations

N = 4
SHAPES = {"a": (3, 5), "b": (7,)}


def made(seed: int) -> tuple[CodingPlan, dict[str, np.ndarray]]:
    params = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    plan = coding_plan(jax.random.key(seed), params, np.array([6, 9, 7, 0]))
    return jax.tree.map(np.asarray, plan), params


def sent(plan: CodingPlan, gradients: np.ndarray) -> list[np.ndarray]:
    """Everyone's messages of each block, from the gradients of the subsets in the order of the blocks."""
    parts = np.split(gradients, np.cumsum([block.size for block in plan.blocks])[:-1], axis=1)
    return [
        (np.asarray(code.encoding) @ part).astype(np.float64 if code.wide else np.float32)
        for code, part in zip(plan.codes, parts, strict=True)
    ]


def assert_alike(gradient: Any, params: Any) -> None:
    shapes = [{name: (leaf.shape, leaf.dtype) for name, leaf in tree.items()} for tree in (gradient, params)]
    assert shapes[0] == shapes[1]


@pytest.mark.smoke
def test_the_mean_gradient_comes_back_from_as_many_messages_as_are_needed(x64: None) -> None:
    rng = np.random.default_rng(0)
    plan, params = made(1)
    decoder = Decoder(plan, params)
    assert decoder.needed.tolist() == [4, 3, 2]
    gradients = rng.normal(size=(N, 22)).astype(np.float32)
    parts = []
    for block, values in enumerate(sent(plan, gradients)):
        arrived = rng.permutation(N)[: decoder.needed[block]]
        messages = {int(worker): values[worker] for worker in arrived}
        with compilations() as compiled:
            found = decoder.part(block, messages)
        assert compiled == []
        assert found is not None
        parts.append(found)
        if block == 0:  # not all that hold a subset which others do not
            assert decoder.part(block, {w: m for w, m in messages.items() if w}) is None
    gradient = assemble_gradient(plan.blocks, parts, params)
    # The last leaf comes first.
    want = gradients.mean(axis=0)
    assert_alike(gradient, params)
    np.testing.assert_allclose(gradient["b"], want[:7], atol=1e-6)
    np.testing.assert_allclose(gradient["a"].ravel(), want[7:], atol=1e-6)


def test_plans_of_the_same_blocks_share_their_programs() -> None:
    Decoder(*made(3))
    with compilations() as compiled:
        Decoder(*made(2))
    assert compiled == []


def test_sums_over_all_subsets_are_divided_into_the_parameters_own_dtypes() -> None:
    params: dict[str, Any] = {"a": jnp.zeros((3, 5), jnp.bfloat16), "b": np.zeros(7, np.float32)}
    plan = schedule_plan(schedule_of([Group(1, 1), Group(N, 1)], [10, 12]), params, N)
    decoder, rng = Decoder(plan, params), np.random.default_rng(0)
    total = rng.normal(size=22).astype(np.float32)
    with compilations() as compiled:
        parts = [decoder.sum(b, np.ones(1), [some]) for b, some in enumerate(np.split(total, [10]))]
        gradient = assemble_gradient(plan.blocks, parts, params)
    assert compiled == []
    assert_alike(gradient, params)
    np.testing.assert_array_equal(gradient["b"], total[:7] / 4)
    # Half a unit in the last of bfloat16's eight bits: measured 3e-3 of 4e-3.
    np.testing.assert_allclose(np.asarray(gradient["a"], float).ravel(), total[7:] / 4, rtol=2.0**-8)
