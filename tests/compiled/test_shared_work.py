"""A gradient of a program with shared work, on one device: for all versions of JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from bcgc_jax.compiled import SharedWork

SAMPLES = 32
INPUTS = np.random.default_rng(0).standard_normal((SAMPLES, 3)).astype(np.float32)
WEIGHTS = np.array([0.5, -1.0, 2.0], np.float32)


def loss(weights, rows, key):
    return jnp.sum(jnp.tanh(rows @ weights)), {"rows": jnp.int32(len(rows))}


def mesh_of_one(*axes):
    kinds = (AxisType.Auto,) * len(axes)
    return jax.make_mesh(
        (1,) * len(axes), axes, axis_types=kinds, devices=jax.devices()[:1]
    )


@pytest.mark.smoke
@pytest.mark.parametrize("axes", [("data",), ("data", "model")])
def test_a_gradient_is_the_sum_of_its_chunks(axes):
    shared = SharedWork(mesh_of_one(*axes), chunks=4, max_subsets=1)
    gradient = jax.jit(shared.value_and_grad(loss, SAMPLES, has_aux=True))
    (value, aux), slope, ok = gradient(
        WEIGHTS, INPUTS[shared.rows[0]], 0, jax.random.key(0)
    )
    outputs = np.tanh(INPUTS @ WEIGHTS.astype(float))
    # 6e-8 was measured.
    np.testing.assert_allclose(value, outputs.sum(), rtol=1e-6)
    np.testing.assert_allclose(slope, (1 - outputs**2) @ INPUTS, rtol=1e-6)
    assert bool(ok)
    assert int(aux["rows"]) == SAMPLES
    assert shared.count == {0: 4}


@pytest.mark.parametrize("rows", [SAMPLES // 2, SAMPLES + 1])
def test_too_few_or_too_many_rows_are_refused(rows):
    """XLA would move a slice that begins behind the last row, and take other rows."""
    shared = SharedWork(mesh_of_one("data"), chunks=4)
    gradient = shared.value_and_grad(lambda w, stored, key: 0.0 * w, SAMPLES)
    stored = {"inputs": np.zeros((SAMPLES, 3)), "labels": np.zeros(rows)}
    with pytest.raises(ValueError, match=f"has {rows} rows .* {SAMPLES} are needed"):
        jax.eval_shape(gradient, 1.0, stored, 0, jax.random.key(0))


def test_rows_are_known_once_a_step_has_samples():
    shared = SharedWork(mesh_of_one("data"))
    with pytest.raises(ValueError, match="call value_and_grad, or local, first"):
        shared.rows[0]
    shared.local(loss, SAMPLES, has_aux=True)
    assert sorted(shared.rows[0]) == list(range(SAMPLES))


@pytest.mark.smoke
def test_a_collective_over_workers_is_refused_with_its_line():
    shared = SharedWork(mesh_of_one("data"), chunks=4, max_subsets=1)
    gradient = shared.value_and_grad(
        lambda w, rows, key: jax.lax.psum(w, "data"), SAMPLES
    )
    with pytest.raises(
        ValueError, match=r"psum.* over 'data' at .*test_shared_work\.py:\d+"
    ):
        jax.eval_shape(gradient, 1.0, INPUTS, 0, jax.random.key(0))


def test_after_the_coordinator_has_ended_reset_goes_on():
    shared = SharedWork(mesh_of_one("data"), chunks=4, max_subsets=1)
    gradient = jax.jit(shared.value_and_grad(loss, SAMPLES, has_aux=True))
    shared.coordinator.close()
    oks = []
    for step in range(2):
        oks.append(bool(gradient(WEIGHTS, INPUTS, step, jax.random.key(0))[2]))
    assert (oks, type(shared.error)) == ([False, False], ConnectionError)
    shared.reset()
    assert bool(gradient(WEIGHTS, INPUTS, 2, jax.random.key(0))[2])
    assert shared.error is None
