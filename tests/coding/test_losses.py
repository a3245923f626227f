"""Losses that draw and make a new state, against plain steps of the same keys."""

import jax
import numpy as np
import pytest

from bcgc_jax import coding
from tests.coding.stateful import PARAMS, SGD, STATE, key_of, loss
from tests.coding.three_workers import KEY, SCHEME

DATA = np.random.default_rng(5).normal(size=(3, 2, 3)).astype(np.float32)
TIMES = np.ones((1, 3))


def test_a_training_draws_and_keeps_a_state_as_plain_steps_do():
    stateful_loss, optimizer = coding.stateful(loss, SGD)
    start = coding.Stateful(PARAMS, STATE)
    scheme = coding.TrainingScheme(
        coding.coding_plan(KEY, start, [0, 6, 0]), SCHEME.load, SCHEME.sent
    )
    training = coding.train(
        *(KEY, stateful_loss, scheme, TIMES, start, DATA, optimizer, 3),
        evaluate=lambda stateful: stateful.state["largest"],
    )

    params = PARAMS
    state = STATE
    largest = []
    plain = jax.jit(jax.grad(loss, has_aux=True))
    for step in range(3):
        slopes_and_states = [
            plain(params, state, DATA[j], key_of(KEY, step, j, 0)) for j in range(3)
        ]
        slope, state = jax.tree.map(
            lambda *leaves: np.mean(leaves, axis=0), *slopes_and_states
        )
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)
        largest.append(state["largest"])
    # Measured: 6e-7.
    pairs = zip(
        jax.tree.leaves(training.params), jax.tree.leaves((params, state)), strict=True
    )
    for trained, expected in pairs:
        np.testing.assert_allclose(trained, expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(training.metrics, largest, rtol=2e-6, atol=2e-6)


def test_a_key_that_is_missing_and_a_state_with_other_leaves_are_refused():
    data, arrived = np.zeros((3, 2, 3), np.float32), np.ones((1, 3))
    with pytest.raises(ValueError, match="third argument is a random key"):
        coding.coded_value_and_grad(lambda p, x, key: p.sum(), SCHEME.plan)(
            PARAMS["w"], data, arrived
        )
    stateful_loss, _ = coding.stateful(
        lambda p, s, x: (p["w"].sum(), {"other": x.sum()}), SGD
    )
    with pytest.raises(
        ValueError, match=r"shapes as the old one, \{.*mean.*\}, got \{.*other"
    ):
        stateful_loss(coding.Stateful(PARAMS, STATE), DATA[0])
