"""The coded gradient is `jax.grad` of the full loss, whatever has arrived."""

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bcgc_jax as bcgc
from bcgc_jax.coding import coded_value_and_grad, coding_plan, split_batch
from bcgc_jax.coding.gradients import Block, Piece
from tests.coding.network import (
    KEY,
    make_batch,
    make_params,
    masks,
    network,
    relative_difference,
)
from tests.compilations import compilations
from tests.scripts import ROOT, python


def drawn(seed, samples):
    rng = np.random.default_rng(seed)
    return rng, make_params(rng), make_batch(rng, samples)


# 7·5 + 5 + 5·3 + 3 = 58 coordinates on 6 workers; some levels empty, blocks across
# leaves.
PARTITION = np.array([11, 0, 22, 4, 0, 21])

exact_gradient = jax.jit(jax.grad(network))


def decoded(plan, params, batch, arrived, loss=network):
    """The coded gradient where so many messages arrived."""
    subsets = split_batch(batch, plan.num_workers)
    return coded_value_and_grad(loss, plan)(params, subsets, arrived)


@pytest.mark.smoke
def test_the_coded_gradient_is_that_of_the_full_loss(precision):
    rng, params, batch = drawn(0, 24)
    plan = coding_plan(KEY, params, PARTITION)
    value, exact = jax.jit(jax.value_and_grad(network))(params, batch)
    for extra in (0, 0, 0, 2, 6):
        result = decoded(plan, params, batch, masks(plan, rng, extra))
        assert np.all(result.decodable)
        tolerance = {"float32": 1e-6, "float64": 1e-13}[precision.name]
        # Worst measured 1.2e-7 and 4e-16.
        assert relative_difference(result.gradient, exact) < tolerance
        assert float(result.value) == pytest.approx(float(value), rel=1e-5)
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), result.gradient)
        assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), params)


def test_one_message_too_few_gives_no_gradient_in_place_of_a_wrong_one():
    rng, params, batch = drawn(1, 24)
    plan = coding_plan(KEY, params, PARTITION, construction="random_cyclic")
    plan = jax.tree.map(np.asarray, plan)  # in NumPy it keeps float64
    arrived = masks(plan, rng)
    # Nobody who holds the first subset: one message fewer than always suffices.
    arrived[1] = np.asarray(plan.codes[1].encoding)[:, 0] == 0
    assert arrived[1].sum() == 6 - plan.blocks[1].level - 1
    result = decoded(plan, params, batch, arrived)
    assert result.decodable.tolist() == [True, False, True, True]
    nan = jax.tree.map(np.isnan, result.gradient)
    assert sum(np.sum(leaf) for leaf in jax.tree.leaves(nan)) == PARTITION[2]
    gradients = result.gradient, exact_gradient(params, batch)
    assert (
        relative_difference(
            *(jax.tree.map(lambda x, gone: x[~gone], tree, nan) for tree in gradients)
        )
        < 1e-6
    )


def test_whole_layers_are_units_in_the_order_of_backpropagation():
    rng, params, batch = drawn(2, 12)
    order = bcgc.coding.backward_order(network, params, batch)
    names = [
        jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)
    ]
    ordered = [names[i] for i in order]
    assert [name.split("'")[1] for name in ordered] == [
        "out",
        "out",
        "hidden",
        "hidden",
    ]
    leaves = jax.tree.leaves(params)
    sizes = [leaves[leaf].size for leaf in order]
    assert bcgc.coding.unit_sizes(params, "leaves", order).tolist() == sizes
    assert bcgc.coding.unit_sizes(params, "layers", order).tolist() == [18, 40]
    plan = coding_plan(
        KEY, params, jnp.array([0, 1, 1, 0]), units="layers", order=order
    )
    # No unit is cut, and the first block is the first in the order.
    pieces = [piece for block in plan.blocks for piece in block.pieces]
    for piece in pieces:
        assert (piece.start, piece.stop) == (0, leaves[piece.leaf].size)
    assert [piece.leaf for piece in pieces] == list(order)
    result = decoded(plan, params, batch, masks(plan, rng))
    assert relative_difference(result.gradient, exact_gradient(params, batch)) < 1e-6


def test_the_backward_order_is_seen_through_jit_and_shared_or_unused_leaves():
    params = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3)), "unused": jnp.ones(2)}
    inner = jax.jit(lambda p, x: jnp.sum(jnp.tanh(jnp.tanh(x @ p["b"]) @ p["a"]) ** 2))
    order = bcgc.coding.backward_order(inner, params, jnp.ones((4, 3)))
    # b comes first in the net, so its gradient comes last
    assert [o for o in order if o != 2] == [0, 1]
    # Slopes that are constants come all at the same time: from the end.
    order = bcgc.coding.backward_order(
        lambda p, x: p[0] + p[1] + p[2], [1.0, 2.0, 3.0], jnp.ones(2)
    )
    assert order == (2, 1, 0)


def test_blocks_are_cut_as_the_levels_of_the_coordinates_say():
    params = [np.ones((2, 3)), np.ones(4), np.ones(())]
    counts = np.array([2, 0, 6, 3])
    plan, levels = coding_plan(KEY, params, counts, order=(1, 0, 2)), {}
    for block in plan.blocks:
        for piece in block.pieces:
            for i in range(piece.start, piece.stop):
                levels[piece.leaf, i] = block.level
    row = [
        levels[leaf, i] for leaf, size in ((1, 4), (0, 6), (2, 1)) for i in range(size)
    ]
    assert row == bcgc.levels_from_partition(counts).tolist()
    assert plan.blocks[0] == Block(0, (Piece(1, 0, 2),))
    # Without an order the last leaf comes first.
    pieces = (Piece(2, 0, 1), Piece(1, 0, 1))
    assert coding_plan(KEY, params, counts).blocks[0] == Block(0, pieces)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
import bcgc_jax as bcgc
from bcgc_jax.coding.gradients import (
    coded_value_and_grad, coding_plan, split_batch, subset_gradients
)
from tests.coding.network import (
    KEY, make_batch, make_params, masks, network, relative_difference
)
rng = np.random.default_rng(0)
params, batch = make_params(rng), make_batch(rng, 32)
plan = coding_plan(KEY, params, np.array([11, 0, 22, 4, 0, 0, 6, 15]))
subsets = bcgc.coding.shard_subsets(split_batch(batch, 8))
assert len(jax.tree.leaves(subsets)[0].sharding.device_set) == 4
compute = jax.jit(lambda p, s: subset_gradients(network, plan, p, s))
_, gradients = compute(params, subsets)
spread = gradients[0.0, 1.0]["hidden"]["w"]
assert len(spread.sharding.device_set) == 4
assert spread.addressable_shards[0].data.shape[0] == 2
found = jax.jit(coded_value_and_grad(network, plan))(params, subsets, masks(plan, rng))
assert bool(found.decodable.all())
print(relative_difference(found.gradient, jax.grad(network)(params, batch)))
"""


@pytest.mark.slow
def test_the_subsets_may_be_spread_over_devices():
    flags = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    run = python(SHARDED, env=os.environ | flags, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 1e-6  # measured 1.5e-7


def test_second_calls_compile_nothing():
    def calls(seed):
        rng = np.random.default_rng(seed)
        params = jax.tree.map(np.float32, make_params(rng))
        batch = make_batch(rng, 24)
        subsets = split_batch(batch, 6)
        bcgc.coding.shard_subsets(subsets)
        order = bcgc.coding.backward_order(network, params, batch)
        plan = coding_plan(jax.random.key(seed), params, PARTITION, order=order)
        bcgc.coding.unit_sizes(params, "layers", order)
        coded_value_and_grad(network, plan)(params, subsets, masks(plan, rng))

    calls(0)
    with compilations() as compiled:
        calls(1)
    assert compiled == []
    with compilations() as compiled:  # plans are made on the host
        coding_plan(
            jax.random.key(2),
            {"w": np.ones(9)},
            [4, 3, 1, 1],
            construction="random_cyclic",
        )
    assert compiled == []


def test_bad_plans_are_refused_in_words():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    plan = functools.partial(coding_plan, KEY, params)
    gradient_of = coded_value_and_grad(lambda p, b: jnp.sum(p["w"]), plan([4, 5]))
    refused: dict[str, Any] = {
        "has 8 units, but the parameters have 9 coordinates": lambda: plan([4, 4]),
        "known integers": lambda: plan([4.5, 4.5]),  # type: ignore[list-item]
        "name each of the 2 leaves once": lambda: plan([4, 5], order=(0, 0)),
        "unknown units": lambda: bcgc.coding.unit_sizes(params, "rows"),
        "7 samples cannot be split into 2": lambda: split_batch(jnp.ones((7, 2)), 2),
        "along the first axis": lambda: split_batch(
            (jnp.ones((8, 2)), jnp.ones(())), 2
        ),
        "are not 2 subsets": lambda: gradient_of(
            params, jnp.ones((3, 4)), np.ones((2, 2))
        ),
    }
    for words, call in refused.items():
        with pytest.raises(ValueError, match=words):
            call()


def test_leaves_of_any_shape_and_dtype_keep_theirs():
    params: dict[str, Any] = {
        "scalar": jnp.asarray(0.7),
        "half": jnp.ones(3, jnp.bfloat16),
    }
    params |= {"none": jnp.ones((0, 2)), "w": np.ones(2)}

    def loss(p, x):
        half = jnp.sum(p["half"].astype(jnp.float32))
        return (
            jnp.mean(x) * p["scalar"] ** 2
            + half * p["scalar"]
            + jnp.mean(x @ p["w"]) ** 2
        )

    batch = jnp.arange(8.0).reshape(4, 2)
    plan = coding_plan(KEY, params, [2, 4])
    result = decoded(plan, params, batch, np.ones((2, 2)), loss)
    # The last term is no mean over samples: the mean of the subsets' losses is what is
    # differentiated.
    parts = [
        jax.jit(jax.grad(loss))(params, part) for part in np.split(np.asarray(batch), 2)
    ]
    exact = jax.tree.map(
        lambda a, b: (a.astype(jnp.float32) + b.astype(jnp.float32)) / 2, *parts
    )
    for a, b, p in zip(
        *map(jax.tree.leaves, (result.gradient, exact, params)), strict=True
    ):
        assert (a.shape, a.dtype) == (np.shape(p), jnp.result_type(p))
        rtol = 1e-2 if a.dtype == jnp.bfloat16 else 1e-6
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=rtol)
