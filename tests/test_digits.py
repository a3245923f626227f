"""Digits: the data, the two models, and the course of training on them."""

import functools

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from experiments import digits
from tests.problems import not_none

LAW = bcgc.ShiftedExponential(1e-3, 50.0)


def test_the_data_is_split_in_equal_subsets_and_none_is_lost_twice():
    data = digits.load_digits(20)
    assert (len(data.train[1]), len(data.test[1])) == (1500, 297)
    assert len(digits.load_digits(32).train[1]) == 1472
    pixels = np.concatenate([data.train[0], data.test[0]])
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert len(np.unique(pixels, axis=0)) > 1790
    with pytest.raises(ValueError, match="too few for 2000 workers"):
        digits.load_digits(2000)


def test_the_models_and_their_loss_are_what_numpy_makes_of_them():
    params = digits.initial_params(jax.random.key(0), "perceptron")
    with jax.enable_x64(True):
        wide = jax.eval_shape(
            lambda key: digits.initial_params(key, "perceptron"), jax.random.key(0)
        )
    assert {leaf.dtype for leaf in jax.tree.leaves(wide)} == {np.dtype("float32")}
    x, y = (np.asarray(a)[:50] for a in digits.load_digits(4).train)
    w = [{k: np.asarray(v, float) for k, v in layer.items()} for layer in params]
    z = np.maximum(x @ w[0]["w"] + w[0]["b"], 0) @ w[1]["w"] + w[1]["b"]
    share = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    expected = -np.log(share[np.arange(50), y]).mean()
    assert float(jax.jit(digits.cross_entropy)(params, (x, y))) == pytest.approx(
        expected
    )
    assert float(jax.jit(digits.accuracy)(params, (x, y))) == pytest.approx(
        (z.argmax(axis=1) == y).mean()
    )
    # The first layer's gradient comes last.
    assert digits.digits_order("perceptron")[-1] in (0, 1)


@pytest.mark.slow
def test_schemes_take_the_same_steps_in_the_order_of_their_runtimes(
    x64,
):  # as the study
    key, problem = jax.random.key(1), digits.digits_problem(LAW, 5, "perceptron")
    train = functools.partial(digits.train_on_digits, key, problem, "perceptron")
    runs = [train(method, num_seeds=3, num_steps=40) for method in ("time", "uncoded")]
    np.testing.assert_allclose(runs[0].loss, runs[1].loss, rtol=1e-4)
    # The same draws: if all are free at its start, a step of the better plan is faster
    # in each seed.
    fresh = [not_none(run_.fresh).sum(axis=1) for run_ in runs]
    assert np.all(fresh[0] < fresh[1])
    # uncoded nobody has more to do
    np.testing.assert_allclose(runs[1].clock[:, -1], fresh[1], rtol=1e-12)
    assert np.all(runs[0].clock[:, -1] > 1.01 * fresh[0])
    for run_ in runs:
        assert not_none(run_.fresh).mean() == pytest.approx(
            run_.expected_runtime, rel=0.25
        )
        assert np.all(run_.accuracy[:, -1] > 0.8)
        step = np.searchsorted(run_.clock[0], run_.time_to(0.8)[0])
        assert run_.accuracy[0, step] >= 0.8
        assert np.all(run_.accuracy[0, :step] < 0.8)
    assert np.all(np.isinf(runs[0].time_to(1.01)))
