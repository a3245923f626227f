"""A small network trained on processes, and the plain gradients it is held against."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bcgc_jax as bcgc
from bcgc_jax.cluster import Run, train_on_cluster
from bcgc_jax.coding.codes import decoding_weights

N = 4
SHAPES = {"a": (6, 8), "b": (8,), "c": (8,)}
COUNT = 6 * 8 + 8 + 8
LAW = bcgc.ShiftedExponential(1.0, 0.3)
PROBLEM = bcgc.Problem(LAW, N, COUNT, 18)
SGD = optax.sgd(0.1)
ADAM = optax.adam(3e-2)


def loss(params, batch):
    """Two layers, mean over the samples."""
    return jnp.mean(
        (jnp.tanh(batch["x"] @ params["a"] + params["b"]) @ params["c"] - batch["y"])
        ** 2
    )


def case(samples=18):
    rng = np.random.default_rng(3)
    params = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    x = rng.normal(size=(samples, 6)).astype(np.float32)
    return params, {"x": x, "y": np.sin(3 * x[:, 0]).astype(np.float32)}


def raveled(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def assert_exact(gradient, params, data):
    """To float32: measured 3e-7 of the largest entry."""
    want = raveled(jax.grad(loss)(params, data))
    np.testing.assert_allclose(raveled(gradient), want, atol=2e-6 * np.abs(want).max())


def exact(cluster, params, data, *pace):
    """What the cluster finds, once its gradient is the uncoded one."""
    result = cluster.gradient(params, *pace)
    assert_exact(result.gradient, params, data)
    return result


def assert_descended(trained_params, params, data, optimizer, steps, atol=3e-6):
    """As by plain gradient descent. Measured: 2e-7 after 12 steps of Adam."""
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(jax.grad(loss)(params, data), state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(raveled(trained_params), raveled(params), atol=atol)


def trained(cluster, plans, params, data, steps, optimizer=SGD, atol=3e-6, **options):
    """A training, once it has ended where plain gradient descent does."""
    arguments = plans, Run(cluster, **options), params, data, optimizer, steps
    training = train_on_cluster(
        jax.random.key(5), loss, *arguments, evaluate=lambda params: params
    )
    assert_descended(training.params, params, data, optimizer, steps, atol)
    last = jax.tree.map(lambda steps: steps[-1], training.metrics)
    jax.tree.map(np.testing.assert_array_equal, last, training.params)
    return training


def kill(worker, step):
    """Ends a worker's process before this step of a training."""

    def end(now, running):
        if now == step:
            os.kill(running.pids[worker], signal.SIGKILL)

    return end


def decoded(plan, messages, params):
    """The raveled gradient by NumPy, from everyone's messages `[worker][block]`."""
    leaves = [np.zeros(np.size(leaf)) for leaf in jax.tree.leaves(params)]
    everyone = np.ones(len(messages), bool)
    for b, (code, block) in enumerate(zip(plan.codes, plan.blocks, strict=True)):
        with jax.enable_x64(True):
            weights = np.asarray(decoding_weights(code.encoding, everyone).weights)
        total = weights @ np.stack([sent[b].values for sent in messages]) * plan.scaling
        for leaf, start, stop in block.pieces:
            leaves[leaf][start:stop] += total[: stop - start]
            total = total[stop - start :]
    return np.concatenate(leaves)
