"""Encoding, decoding and coded training, against the memory traffic and the gradients they need anyway."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bcgc_jax as bcgc
from bcgc_jax.coded_gradients import (
    coded_value_and_grad,
    coding_plan,
    decode_gradients,
    encode_gradients,
    plan_weights,
    split_batch,
    subset_gradients,
)
from benchmarks.timing import compare

_LAW = bcgc.ShiftedExponential(rate=1e-3, shift=50.0)
_WORKERS = 20


def _arrived(plan: bcgc.CodingPlan) -> np.ndarray:
    """Exactly as many workers as each block needs, at random."""
    rank = np.argsort(np.random.default_rng(0).random((len(plan.blocks), plan.num_workers)), axis=1)
    return rank >= np.array([block.level for block in plan.blocks])[:, None]


def traffic() -> list[dict[str, Any]]:
    """Encode and decode L = 1e7 coordinates at N = 20, against a plain copy of the same number of bytes."""
    size = 10_000_000
    problem = bcgc.Problem(_LAW, _WORKERS, size)
    params = jnp.zeros(size)
    plan = coding_plan(jax.random.key(0), params, np.asarray(bcgc.solve(problem).rounded))
    share = plan.blocks[0].share
    gradients = jax.random.normal(jax.random.key(1), (_WORKERS, size), jnp.float32)
    arrived = _arrived(plan)
    weights = jax.jit(plan_weights)(plan, arrived).weights
    rows = []

    def copy_of(num_bytes: float) -> Any:
        source = jnp.ones(int(num_bytes / 8), jnp.float32)  # read once, written once
        return functools.partial(jax.jit(lambda x: x * jnp.float32(1.5)), source)

    encode = functools.partial(jax.jit(encode_gradients), plan, {share: gradients})
    messages = encode()
    width = [8 if code.wide else 4 for code in plan.codes]
    sent = sum(_WORKERS * b.size * w for b, w in zip(plan.blocks, width, strict=True))
    extra = sent / (_WORKERS * size * 4)
    used = sum((_WORKERS - b.level) * b.size * w for b, w in zip(plan.blocks, width, strict=True))
    decode = functools.partial(jax.jit(decode_gradients), plan, weights, messages, params)
    exact = np.asarray(gradients[:, ::1000], float).mean(axis=0)
    error = np.linalg.norm(np.asarray(decode())[::1000] - exact) / np.linalg.norm(exact)
    for name, run, must in (
        ("encode", encode, gradients.nbytes + sent),
        ("decode", decode, used + params.nbytes),
    ):
        result = compare({"package": run, "peer": copy_of(must)}, repeats=3)
        rows.append(
            {
                "what": f"{name}, L=1e7, N=20, optimal plan; copy of as many bytes",
                "package": result["package"],
                "peer": result["peer"],
                "ratio": result["peer"]["best"] / result["package"]["best"],
                "accuracy": f"{must / 1e9:.2f} GB; decoded to {error:.0e}; messages {extra:.2f} x float32",
            }
        )
    return rows


def training() -> list[dict[str, Any]]:
    """A coded iteration of a model of 1e6 parameters at N = 20, against its subset gradients alone."""
    widths, samples = (64, 968, 968, 10), 2000
    keys = iter(jax.random.split(jax.random.key(0), 8))
    params = [
        {"w": jax.random.normal(next(keys), (a, b)) / np.sqrt(a), "b": jnp.zeros(b)}
        for a, b in itertools.pairwise(widths)
    ]
    size = sum(x.size for x in jax.tree.leaves(params))
    batch = (jax.random.normal(next(keys), (samples, 64)), jax.random.randint(next(keys), (samples,), 0, 10))
    solution = bcgc.solve(bcgc.Problem(_LAW, _WORKERS, size))
    plan = coding_plan(jax.random.key(0), params, np.asarray(solution.rounded))
    subsets, arrived = split_batch(batch, _WORKERS), _arrived(plan)
    optimizer = optax.sgd(0.1)
    state = optimizer.init(params)

    def loss(params: Any, batch: Any) -> jax.Array:
        x, label = batch
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["w"] + layer["b"])
        scores = jax.nn.log_softmax(x @ params[-1]["w"] + params[-1]["b"])
        return -jnp.mean(jnp.take_along_axis(scores, label[:, None], axis=1))

    @jax.jit
    def iteration(params: Any, state: Any) -> Any:
        coded = coded_value_and_grad(loss, plan)(params, subsets, arrived)
        updates, new = optimizer.update(coded.gradient, state, params)
        return optax.apply_updates(params, updates), new

    @jax.jit
    def gradients(params: Any) -> Any:
        return subset_gradients(loss, plan, params, subsets)

    result = compare(
        {"package": lambda: iteration(params, state), "peer": lambda: gradients(params)}, repeats=7
    )
    outside = 1 - result["peer"]["median"] / result["package"]["median"]
    return [
        {
            "what": f"coded iteration, {size / 1e6:.2f}e6 parameters, N=20, {samples} samples; gradients",
            "package": result["package"],
            "peer": result["peer"],
            "ratio": result["peer"]["best"] / result["package"]["best"],
            "accuracy": f"{100 * outside:.0f} % of the iteration outside of the subset gradients (medians)",
        }
    ]
