"""Digits: the data, the two models, and the course of training on them."""

import csv
from typing import Any

import jax
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.coding import digits
from tests.problems import known

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
    assert float(jax.jit(digits.cross_entropy)(params, (x, y))) == pytest.approx(expected)
    assert float(jax.jit(digits.accuracy)(params, (x, y))) == pytest.approx(
        (z.argmax(axis=1) == y).mean()
    )
    assert digits.digits_order("perceptron")[-1] in (0, 1)  # the first layer's gradient comes last


@pytest.mark.slow
def test_schemes_take_the_same_steps_in_the_order_of_their_runtimes(x64):  # as the command
    problem = digits.digits_problem(LAW, 5, "perceptron", units="layers")
    options: Any = {"units": "layers", "num_seeds": 3, "num_steps": 40}
    given = jax.random.key(1), problem, "perceptron"
    runs = [digits.train_on_digits(*given, method, **options) for method in ("time", "uncoded")]
    np.testing.assert_allclose(runs[0].loss, runs[1].loss, rtol=1e-4)
    # The same draws: if all are free at its start, a step of the better plan is faster in each
    # seed.
    fresh = [known(run_.fresh).sum(axis=1) for run_ in runs]
    assert np.all(fresh[0] < fresh[1])
    # uncoded nobody has more to do
    np.testing.assert_allclose(runs[1].clock[:, -1], fresh[1], rtol=1e-12)
    assert np.all(runs[0].clock[:, -1] > 1.01 * fresh[0])
    for run_ in runs:
        assert known(run_.fresh).mean() == pytest.approx(run_.expected_runtime, rel=0.25)
        assert np.all(run_.accuracy[:, -1] > 0.8)
        step = np.searchsorted(run_.clock[0], run_.time_to(0.8)[0])
        assert run_.accuracy[0, step] >= 0.8
        assert np.all(run_.accuracy[0, :step] < 0.8)
    assert np.all(np.isinf(runs[0].time_to(1.01)))


def _made(key, problem, model, method, *, num_seeds, num_steps, **_):
    """A training by hand: seed s reaches the target in step 10 + s."""
    seed, step = np.indices((num_seeds, num_steps))
    runtime = {"time": 6.0, "uncoded": 8.0}[method.name]
    return digits.DigitsRun(
        method.name, runtime, (step + 1) * runtime, 1 / (step + 1.0), step / (9 + seed)
    )


@pytest.mark.parametrize("trained", [pytest.param(True, marks=pytest.mark.slow), False])
def test_train_prints_a_table_and_writes_the_curves(command, tmp_path, monkeypatch, trained):
    if not trained:
        monkeypatch.setattr("bcgc_jax.cli.train.train_on_digits", _made)
    path = tmp_path / "curves.csv"
    asked = [
        "--workers",
        "5",
        "--cycle-time",
        "shifted-exponential:rate=1e-3,shift=50",
        "--steps",
        "40",
    ]
    asked += ["--model", "perceptron", "--units", "layers", "--seeds", "3", "--curves", str(path)]
    status, out, err = command("train", *asked, "--method", "time", "--method", "uncoded")
    assert status == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[2].startswith("time")
    assert "less time to the target than the uncoded scheme" in out
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 2 * 3 * 40
    assert float(rows[39]["loss"]) < float(rows[0]["loss"])
    if not trained:  # steps of 6 or 8, of which it takes 9, 10 and 11 to 0.9
        assert lines[2].split()[1:] == ["6", "6", "60", "60", "66", "0.0250", "3.9263"]
        assert "25.0 % less time" in out
