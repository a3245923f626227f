"""Training refuses by name what cannot be trained, before it begins."""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bcgc_jax import coding
from bcgc_jax.coding.losses import check_loss
from tests.coding.three_workers import KEY, LAW, SCHEME, SUBSETS

W, SGD = np.ones(3, np.float32), optax.sgd(0.1)
DATA = SUBSETS + np.arange(3, dtype=np.float32)


def mean(params, batch):
    return jnp.mean((batch @ params["w"] - 1) ** 2)


def total(params, batch):
    return jnp.sum((batch @ params["w"] - 1) ** 2)


def normalized(params, batch):
    """As BatchNorm in training: by the batch's statistics, beside those of its past."""
    norm, x = params["norm"], batch @ params["w"]
    new = 0.9 * norm["mean"] + 0.1 * x.mean()
    return jnp.mean((norm["scale"] * (x - x.mean()) - 1) ** 2 + 0 * x), new


# The loss, its parameters, and what is said.
REFUSED: dict[str, tuple[Any, Any, str]] = {
    "running statistics": (
        lambda params, batch: normalized(params, batch)[0],
        {"w": W, "norm": {"mean": np.zeros(1, np.float32), "scale": W[:1]}},
        r"no gradient in params\['norm'\]\['mean'\].* a running statistic.*stateful.*"
        r"nnx.split\(model",
    ),
    "frozen statistics": (
        lambda params, batch: jnp.mean(
            (batch @ params["w"] - jax.lax.stop_gradient(params["mean"])) ** 2
        ),
        {"w": W, "mean": W[0]},
        r"no gradient in params\['mean'\].*remove it from `params`",
    ),
    "new states": (
        normalized,
        {"w": W, "norm": {"mean": W[:1], "scale": W[:1]}},
        r"must return one real number.* got float32\[\], float32\[1\]. For states and.*"
        r"coding.stateful\(loss",
    ),
    "samples in two arguments": (
        lambda params, x, y: jnp.mean((x @ params["w"] - y) ** 2),
        {"w": W},
        "its third argument is a random key, and with this key it fails.*x, y = batch",
    ),
    "a counter": (
        mean,
        {"w": W, "count": np.array(3)},
        r"^params\['count'\] is int64, but only real.*nnx.Param",
    ),
    "a key": (
        mean,
        {"w": W, "key": KEY},
        r"^params\['key'\] is a random key, which training cannot change.*"
        r"loss\(params, batch, key\) to get a new key",
    ),
    "NumPy": (
        lambda params, batch: np.tanh(batch @ params["w"]).mean(),
        {"w": W},
        "JAX cannot trace the loss.*jnp",
    ),
    "a condition": (
        lambda p, b: p["w"].sum() if p["w"][0] > 0 else 0.0,
        {"w": W},
        "`jnp.where` instead of `if`",
    ),
    "a vector": (
        lambda params, batch: batch @ params["w"],
        {"w": W},
        r"one real number.* got float32\[\d\]",
    ),
    "a sum": (total, {"w": W}, "is a sum over the samples.*mean=False"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_is_refused_by_name(what):
    loss, params, words = REFUSED[what]
    with pytest.raises(ValueError, match=words):
        coding.train(KEY, loss, SCHEME, LAW, params, DATA, SGD, 1)


def test_a_number_of_steps_is_none_or_more():
    with pytest.raises(
        ValueError, match=r"num_steps must be an integer >= 0 .* got -3"
    ):
        coding.train(KEY, mean, SCHEME, LAW, {"w": W}, DATA, SGD, -3)


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_times_that_are_none_are_refused(bad):
    rows, arguments = np.where(np.eye(3) == 1, bad, 1.0), ({"w": W}, DATA, SGD, 1)
    with pytest.raises(ValueError, match=rf"cycle_times must be >= 0, got {bad}"):
        coding.train(KEY, mean, SCHEME, rows, *arguments)
    with pytest.raises(ValueError, match=rf"start_ups must be >= 0, got {bad}"):
        coding.train(KEY, mean, SCHEME, LAW, *arguments, start_ups=rows)


@pytest.mark.parametrize(("growth", "is_mean"), [(6e-4, True), (1.5e-3, False)])
def test_a_mean_is_told_from_other_losses_to_the_rounding_of_16_bits(growth, is_mean):
    """That is 5e-4."""

    def grows(params, batch):
        return jnp.sum(params) * (1 + growth * (len(batch) == 2))

    refused: Any = contextlib.nullcontext()
    if is_mean:
        refused = pytest.raises(ValueError, match="is a mean over the samples")
    with refused:
        check_loss(grows, W, DATA[0], mean=False)


def test_a_mean_where_the_plan_has_sums_is_refused_and_a_sum_is_not():
    plan = coding.coding_plan(KEY, {"w": W}, [0, 3, 0], mean=False)
    scheme = coding.TrainingScheme(plan, SCHEME.load, SCHEME.sent)
    with pytest.raises(ValueError, match="is a mean over the samples"):
        coding.train(KEY, mean, scheme, LAW, {"w": W}, DATA, SGD, 1)
    training = coding.train(KEY, total, scheme, LAW, {"w": W}, DATA, SGD, 1)
    # Of all six samples, x = (0, 1, 2): 6 (Σ x - 1)², a sum of whole numbers.
    assert float(np.asarray(training.loss)[0]) == 6 * (3 - 1) ** 2
