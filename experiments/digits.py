"""Provide a real task for schemes: scikit-learn's handwritten digits, two models."""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from bcgc_jax._extras import to_install
from bcgc_jax.coding.gradients import PyTree, split_batch
from bcgc_jax.coding.stages import backward_order
from bcgc_jax.coding.training import train, training_scheme
from bcgc_jax.distributions import Distribution
from bcgc_jax.problem import Problem
from bcgc_jax.solvers.methods import Method
from bcgc_jax.solvers.solve import solve

# Widths of the layers, inputs and classes included.
MODELS = {"softmax": (64, 10), "perceptron": (64, 32, 10)}
LEARNING_RATE = 0.5


class Digits(NamedTuple):
    """Images `[M, 64]` from 0 to 1, labels `[M]`, to train and to test with."""

    train: tuple[Array, Array]
    test: tuple[Array, Array]


class DigitsRun(NamedTuple):
    """One scheme's training, a row for each of S seeds and a column for each of K
    iterations.

    `expected_runtime` is the exact expectation of one iteration of the scheme; `clock`,
    `[S, K]`, the simulated time at its end; `loss` that of all training data and
    `accuracy` that of the test data after it. `fresh`, `[S, K]`: what each iteration
    would have taken if all workers had been free; None on processes.
    """

    method: str
    expected_runtime: float
    clock: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    fresh: np.ndarray | None = None

    def time_to(self, accuracy: float) -> np.ndarray:
        """When each seed first had this test accuracy, `[S]`; inf for never."""
        return np.where(self.accuracy >= accuracy, self.clock, np.inf).min(axis=1)


@functools.cache
def load_digits(num_workers: int) -> Digits:
    """The 1797 images of 8 x 8, shuffled the same way each time.

    297 are to test with, and a multiple of the workers, at most 1500, to train with.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            f"the digits come with scikit-learn: {to_install('benchmarks')}"
        ) from error
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    held_out = 297
    num_training = len(labels) - held_out
    if num_workers > num_training:
        raise ValueError(
            f"there are {num_training} images to train with, too few for "
            f"{num_workers} workers"
        )
    used = (
        order[held_out : held_out + num_training // num_workers * num_workers],
        order[:held_out],
    )
    pairs = [(np.float32(images[k] / 16), np.int32(labels[k])) for k in used]
    # The same under any setting of JAX, for they are kept.
    return Digits(*jax.device_put(pairs))


@functools.partial(jax.jit, static_argnames="model")
def initial_params(key: Array, model: str) -> PyTree:
    """Layers, `{"w": [in, out], "b": [out]}`: zeros for one alone, else normal."""
    shapes = list(itertools.pairwise(MODELS[model]))
    gain = 2.0
    if len(shapes) == 1:
        gain = 0.0
    layers = []
    for layer_key, (a, b) in zip(
        jax.random.split(key, len(shapes)), shapes, strict=True
    ):
        weights = math.sqrt(gain / a) * jax.random.normal(
            layer_key, (a, b), jnp.float32
        )
        layers.append({"w": weights, "b": jnp.zeros(b, jnp.float32)})
    return layers


@functools.cache
def _shapes(model: str) -> PyTree:
    """The shapes of the parameters, which nothing is computed for."""
    return jax.eval_shape(initial_params, jax.random.key(0), model)


def digits_order(model: str) -> tuple[int, ...]:
    """The leaves of `model` in the order of backpropagation."""
    batch = np.zeros((2, MODELS[model][0]), np.float32), np.zeros(2, np.int32)
    return backward_order(cross_entropy, _shapes(model), batch)


def _scores(params: PyTree, images: Array) -> Array:
    """Logits of the classes, `[M, 10]`."""
    for layer in params[:-1]:
        images = jax.nn.relu(images @ layer["w"] + layer["b"])
    return images @ params[-1]["w"] + params[-1]["b"]


def cross_entropy(params: PyTree, batch: tuple[Array, Array]) -> Array:
    """Mean of -log softmax of the right class."""
    images, labels = batch
    scores = _scores(params, images)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, labels))


def accuracy(params: PyTree, batch: tuple[Array, Array]) -> Array:
    """Share of the images whose largest score is that of the right class."""
    images, labels = batch
    return jnp.mean(
        (jnp.argmax(_scores(params, images), axis=1) == labels).astype(jnp.float32)
    )


def digits_problem(cycle_time: Distribution, num_workers: int, model: str) -> Problem:
    """The `Problem` of training `model` on all samples in each step."""
    coordinates = sum(leaf.size for leaf in jax.tree.leaves(_shapes(model)))
    samples = len(load_digits(num_workers).train[1])
    return Problem(cycle_time, num_workers, coordinates, samples)


def train_on_digits(
    key: Array,
    problem: Problem,
    model: str,
    method: str | Method,
    *,
    num_seeds: int = 8,
    num_steps: int = 200,
) -> DigitsRun:
    """Train `model` with one scheme of `solve`, `num_seeds` times.

    Each time with other parameters and cycle times. Gradient descent with a fixed step.
    `problem` is that of `digits_problem`. The same key gives every scheme the same
    draws.
    """
    solve_key, code_key, run_key = jax.random.split(key, 3)
    solution = solve(problem, method, key=solve_key)
    order = digits_order(model)
    scheme = training_scheme(code_key, problem, solution, _shapes(model), order=order)
    data = load_digits(scheme.plan.num_workers)
    optimizer = optax.sgd(LEARNING_RATE)
    subsets = split_batch(data.train, scheme.plan.num_workers)

    def evaluate(params: PyTree) -> tuple[Array, Array]:
        return cross_entropy(params, data.train), accuracy(params, data.test)

    def run(key: Array) -> tuple[Array, ...]:
        start_key, train_key = jax.random.split(key)
        start = initial_params(start_key, model)
        training = train(
            *(train_key, cross_entropy, scheme, problem.cycle_time),
            *(start, subsets, optimizer, num_steps),
            evaluate=evaluate,
        )
        return training.clock, *training.metrics, training.fresh

    runs = jax.jit(jax.vmap(run))(jax.random.split(run_key, num_seeds))
    course = (np.asarray(a, float) for a in runs)
    return DigitsRun(solution.method, float(solution.rounded_runtime), *course)
