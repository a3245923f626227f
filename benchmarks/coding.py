"""Measure codes and coded training, next to memory traffic and plain gradients."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bcgc_jax as bcgc
from bcgc_jax.coding.gradients import (
    coded_value_and_grad,
    coding_plan,
    decode_gradients,
    encode_gradients,
    split_batch,
    subset_gradients,
)
from benchmarks.planning import LAW
from benchmarks.timing import compare, result_row
from experiments.models import perceptron

_WORKERS = 20


def _arrived(plan: bcgc.coding.CodingPlan) -> np.ndarray:
    """Exactly as many workers as each block needs, at random."""
    rank = np.argsort(
        np.random.default_rng(0).random((len(plan.blocks), plan.num_workers)), axis=1
    )
    return rank >= np.array([block.level for block in plan.blocks])[:, None]


def traffic() -> list[dict[str, Any]]:
    """Encode and decode L = 1e7 coordinates, N = 20, against a copy of the bytes."""
    size = 10_000_000
    problem = bcgc.Problem(LAW, _WORKERS, size)
    params = jnp.zeros(size)
    plan = coding_plan(
        jax.random.key(0), params, np.asarray(bcgc.solve(problem).rounded)
    )
    share = plan.blocks[0].share
    gradients = jax.random.normal(jax.random.key(1), (_WORKERS, size), jnp.float32)
    arrived = _arrived(plan)
    with jax.enable_x64(True):
        encodings = jnp.stack([code.encoding for code in plan.codes])
    weights = jax.jit(jax.vmap(bcgc.coding.decoding_weights))(
        encodings, arrived
    ).weights
    rows = []

    def copy_of(num_bytes: float) -> Any:
        source = jnp.ones(int(num_bytes / 8), jnp.float32)  # read once, written once
        return functools.partial(jax.jit(lambda x: x * jnp.float32(1.5)), source)

    encode = functools.partial(jax.jit(encode_gradients), plan, {share: gradients})
    messages = encode()
    width = [8 if code.wide else 4 for code in plan.codes]
    sent = sum(_WORKERS * b.size * w for b, w in zip(plan.blocks, width, strict=True))
    extra = sent / (_WORKERS * size * 4)
    used = sum(
        (_WORKERS - b.level) * b.size * w
        for b, w in zip(plan.blocks, width, strict=True)
    )
    decode = functools.partial(
        jax.jit(decode_gradients), plan, weights, messages, params
    )
    exact = np.asarray(gradients[:, ::1000], float).mean(axis=0)
    error = float(
        np.linalg.norm(np.asarray(decode())[::1000] - exact) / np.linalg.norm(exact)
    )
    cases = (
        ("encode", encode, gradients.nbytes + sent),
        ("decode", decode, used + params.nbytes),
    )
    for name, run, must in cases:
        results = compare({"package": run, "peer": copy_of(must)}, 3)
        what = f"{name}, L=1e7, N=20, optimal plan"
        against = "copy of as many bytes"
        accuracy = (
            f"{must / 1e9:.2f} GB; decoded to {error:.0e}; messages {extra:.2f} x "
            "float32"
        )
        row = result_row(
            *("traffic", what, results, accuracy, {"error": error}),
            against=against,
            dtype="float32",
        )
        rows.append(row)
    return rows


def training() -> list[dict[str, Any]]:
    """A coded iteration of 1e6 parameters, N = 20, against its subset gradients."""
    samples = 2000
    model = perceptron((64, 968, 968, 10), samples)
    params = model.params
    loss = model.loss
    size = sum(x.size for x in jax.tree.leaves(params))
    solution = bcgc.solve(bcgc.Problem(LAW, _WORKERS, size))
    plan = coding_plan(jax.random.key(0), params, np.asarray(solution.rounded))
    subsets = split_batch(model.batch, _WORKERS)
    arrived = _arrived(plan)
    optimizer = optax.sgd(0.1)
    state = optimizer.init(params)

    @jax.jit
    def iteration(params: Any, state: Any) -> Any:
        coded = coded_value_and_grad(loss, plan)(params, subsets, arrived)
        updates, new = optimizer.update(coded.gradient, state, params)
        return optax.apply_updates(params, updates), new

    @jax.jit
    def gradients(params: Any) -> Any:
        return subset_gradients(loss, plan, params, subsets)

    # Must be the same gradient, to the rounding of float32.
    decoded = jax.jit(coded_value_and_grad(loss, plan))(
        params, subsets, arrived
    ).gradient
    exact = jax.jit(jax.grad(loss))(params, model.batch)
    pairs = zip(jax.tree.leaves(decoded), jax.tree.leaves(exact), strict=True)
    off, norm = np.sum(
        [(float(jnp.sum((a - b) ** 2)), float(jnp.sum(b**2))) for a, b in pairs], axis=0
    )
    error = math.sqrt(off / norm)
    results = compare(
        {
            "package": lambda: iteration(params, state),
            "peer": lambda: gradients(params),
        },
        7,
    )
    outside = (
        1 - results["peer"].seconds["median"] / results["package"].seconds["median"]
    )
    accuracy = (
        f"{samples} samples; {100 * outside:.0f} % of the iteration outside of the "
        f"subset gradients (medians); gradient decoded to {error:.0e}"
    )
    what = f"coded iteration, {size / 1e6:.2f}e6 parameters, N=20"
    against = "the subset gradients alone"
    return [
        result_row(
            "training",
            what,
            results,
            accuracy,
            {"error": error},
            against=against,
            dtype="float32",
        )
    ]
