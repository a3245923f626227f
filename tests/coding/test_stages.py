"""Gradients in stages against `jax.grad`: each equation at most once."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcgc_jax.coding.gradients import Block, CodingPlan, Piece
from bcgc_jax.coding.stages import backward_order, stages
from experiments.models import transformer
from tests.compilations import compilations
from tests.problems import slow

WIDTH, SAMPLES = 8, 6
RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.normal(0, shape[0] ** -0.5, shape).astype(np.float32)


LAYERS = [{"b": normal(WIDTH), "w": normal(WIDTH, WIDTH)} for _ in range(4)]
BATCH = {"x": normal(SAMPLES, WIDTH), "y": RNG.integers(0, WIDTH, SAMPLES)}
MASK = RNG.integers(0, 2, WIDTH).astype(np.float32)


def layer(params, x):
    return jnp.tanh(x @ params["w"] + params["b"])


def perceptron(params, batch, layer=layer):
    x = batch["x"]
    for weights in params:
        x = layer(weights, x)
    return jnp.mean((x - jax.nn.one_hot(batch["y"], WIDTH)) ** 2)


@jax.custom_jvp
def bent(x):
    return jnp.where(x > 0, x, 0.1 * x)


bent.defjvp(lambda x, dx: (bent(*x), jnp.where(x[0] > 0, 1.0, 0.1) * dx[0]))


@jax.custom_vjp
def halved(x):
    """Whose cotangent is halved."""
    return x


halved.defvjp(lambda x: (x, None), lambda _, ct: (ct / 2,))


def custom(params, batch):
    """A loss with its own derivatives, classes, a constant, programs used twice."""
    x = batch["x"] * bent(MASK)
    x = bent(x @ params[0]["w"]) + jax.nn.relu(x @ params[0]["w"] + params[0]["b"])
    x = jax.nn.softmax(halved(x) @ params[1]["w"]) + jax.nn.softmax(x @ params[2]["w"])
    scores = jax.nn.log_softmax(x @ params[3]["w"] + params[1]["b"])
    return -jnp.mean(scores[jnp.arange(SAMPLES), batch["y"]]) + jnp.sum(
        MASK * params[2]["b"]
    )


TRANSFORMER = transformer(1, SAMPLES, width=8, heads=2, length=5, vocabulary=11)

MODELS: dict[str, tuple[Any, Any, Any]] = {
    "perceptron": (perceptron, LAYERS, BATCH),
    "jit": (jax.jit(perceptron), LAYERS, BATCH),
    "inner jit": (functools.partial(perceptron, layer=jax.jit(layer)), LAYERS, BATCH),
    "remat": (
        functools.partial(perceptron, layer=jax.checkpoint(layer)),
        LAYERS,
        BATCH,
    ),
    "all remat": (jax.checkpoint(perceptron), LAYERS, BATCH),
    "custom derivatives": (custom, LAYERS, BATCH),
    "transformer": (TRANSFORMER.loss, TRANSFORMER.params, TRANSFORMER.batch),
    "float16": (perceptron, jax.tree.map(np.float16, LAYERS), BATCH),
}


def cut(loss, params, batch, count=3):
    """In blocks of about as many leaves; neighbours share one."""
    order = np.array(backward_order(loss, params, batch))
    ends = np.linspace(0, len(order), count + 1).astype(int)
    blocks = [order[max(a - 1, 0) : b].tolist() for a, b in itertools.pairwise(ends)]
    return blocks, stages(loss, params, batch, blocks)


def leaves_from(cut_loss, params, batch, first):
    """Of the blocks from `first` on, one after another."""
    state, leaves = cut_loss.begin(params, batch), []
    for block in range(first, len(cut_loss.results)):
        gradients, state = cut_loss.gradients(
            state, block, range(block + 1, len(cut_loss.results))
        )
        leaves.append(gradients)
    assert not state.values  # nothing is kept for nobody
    return leaves


@pytest.mark.parametrize(
    "name", [*(n for n in MODELS if n != "transformer"), *slow("transformer")]
)
def test_gradients_are_those_of_jax_wherever_a_subset_begins(name):
    loss, params, batch = MODELS[name]
    blocks, cut_loss = cut(loss, params, batch)
    want = jax.tree.leaves(jax.jit(jax.grad(loss))(params, batch))
    whole = leaves_from(cut_loss, params, batch, 0)
    for leaf, gradient in zip(
        itertools.chain(*blocks), itertools.chain(*whole), strict=True
    ):
        assert gradient.dtype == want[leaf].dtype
        scale = np.abs(want[leaf]).max() * np.finfo(gradient.dtype).eps
        # Measured: 0.4 of these units, for the transformer; for the others nothing.
        np.testing.assert_allclose(gradient, want[leaf], atol=float(8 * scale), rtol=0)
    for first in (1, 2):
        later = leaves_from(cut_loss, params, batch, first)
        jax.tree.map(np.testing.assert_array_equal, later, whole[first:])  # bit for bit


def operations(program, *args):
    return program.lower(*args).compile().cost_analysis()["flops"]


def of_programs(programs):
    return sum(
        operations(program.run, *(v.aval for v in program.takes))
        for program in programs
    )


def test_operations_are_those_of_one_gradient():
    shapes = [jax.ShapeDtypeStruct((64, 64), np.float32)] * 6
    batch = jax.ShapeDtypeStruct((32, 64), np.float32)

    def loss(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return jnp.mean(x**2)

    cut_loss = stages(loss, shapes, batch, [[5, 4], [3, 2], [1, 0]])
    whole = operations(jax.jit(jax.grad(loss)), shapes, batch)
    # Measured: 1.000 of it, forwards, backwards and in one.
    assert (
        of_programs(cut_loss.due(0, 0) + cut_loss.due(1, 1) + cut_loss.due(2, 2))
        < 1.001 * whole
    )
    assert (
        of_programs(cut_loss.due(0, 2) + cut_loss.due(3, 1) + cut_loss.due(3, 0))
        < 1.001 * whole
    )
    # Forward six layers, back past five, and two gradients: 13 products of matrices of
    # the 17.
    assert of_programs(cut_loss.due(0, 2)) / whole == pytest.approx(13 / 17, rel=0.01)
    # Nothing but a gradient.
    (gradient,) = stages(loss, shapes, batch, [range(6)]).due(0, 0)
    assert of_programs([gradient]) < 1.001 * whole


def test_programs_are_compiled_once():
    _, cut_loss = cut(*MODELS["perceptron"])
    leaves_from(cut_loss, LAYERS, BATCH, 0)
    with compilations() as compiled:
        leaves_from(cut_loss, LAYERS, BATCH, 0)
        leaves_from(cut_loss, LAYERS, BATCH, 1)
        state = cut_loss.begin(LAYERS, BATCH)
        for block, later in ((2, (0, 1)), (0, (1,)), (1, ())):
            _, state = cut_loss.gradients(state, block, later)
            # what the last block has needed is not run again for an earlier one
            assert state.done == 3
    assert compiled == []


def deep(params, x):
    return jnp.tanh(jnp.sin(x @ params["w"]) ** 3 + params["b"])


def test_what_is_to_be_computed_again_is():
    """A layer that is not to be kept is computed again from what goes into it."""
    kept, fences = [], []
    for deep_layer in (deep, jax.checkpoint(deep)):
        loss = functools.partial(perceptron, layer=deep_layer)
        first = stages(loss, LAYERS, BATCH, [[7, 6], [5, 4], [3, 2], [1, 0]]).due(0, 0)[
            0
        ]
        kept.append(
            sum(equation.outvars[0] in first.gives for equation in first.equations)
        )
        (whole,) = stages(loss, LAYERS, BATCH, [range(8)]).due(0, 0)
        plain = jax.jit(jax.grad(loss)).lower(LAYERS, BATCH)
        lowered = whole.run.lower(*(v.aval for v in whole.takes)), plain
        fences.append(
            [program.as_text().count("optimization_barrier") for program in lowered]
        )
    assert kept[1] < kept[0]
    assert fences == [[0, 0], [4, 4]]  # or the compiler might find that all is known


def test_effects_happen_once():
    seen = []

    def loss(params, batch):
        jax.debug.callback(lambda x: seen.append(float(x)), params[1]["b"][0])
        return perceptron(params, batch)

    for first in range(3):
        _, cut_loss = cut(loss, LAYERS, BATCH)
        leaves_from(cut_loss, LAYERS, BATCH, first)
        jax.effects_barrier()
        assert seen == [float(LAYERS[1]["b"][0])] * (first + 1)


def test_constants_and_leaves_that_do_not_count():
    def loss(params, batch):
        return 2 * params["scalar"] + jnp.sum(batch)

    params = {"scalar": np.float32(3), "unused": np.ones(2, np.float32)}
    cut_loss = stages(loss, params, np.ones(3, np.float32), [[0], [1]])
    (scalar,), (unused,) = leaves_from(cut_loss, params, np.ones(3, np.float32), 0)
    assert (float(scalar), unused.tolist(), scalar.dtype, unused.dtype) == (
        2,
        [0, 0],
        "float32",
        "float32",
    )


LOOP = {
    "layers": jax.tree.map(lambda *layers: np.stack(layers), *LAYERS),
    "head": normal(WIDTH),
}


def scanned(params, batch):
    # the gradients are put in place
    layers = jax.tree.map(lambda leaf: jnp.flip(leaf, 0), params["layers"])
    x, _ = jax.lax.scan(lambda x, w: (layer(w, x), None), batch["x"], layers)
    return jnp.mean((x @ params["head"] - 1) ** 2)


def test_a_loop_over_layers_is_one_stage():
    order = backward_order(scanned, LOOP, BATCH)
    assert order[0] == 0  # the head, before the loop
    cut_loss = stages(scanned, LOOP, BATCH, [[leaf] for leaf in order])
    assert ("carry", 2) not in cut_loss.programs  # the loop is the first's
    want = jax.tree.leaves(jax.jit(jax.grad(scanned))(LOOP, BATCH))
    for leaf, (gradient,) in zip(
        order, leaves_from(cut_loss, LOOP, BATCH, 0), strict=True
    ):
        np.testing.assert_allclose(gradient, want[leaf], atol=1e-6)


def test_blocks_of_a_share_of_the_samples_are_cut_apart():
    blocks = tuple(
        Block(0, (Piece(leaf, 0, 2), Piece(leaf + 1, 0, 1)), share)
        for share, leaf in [((0.0, 0.5), 0), ((0.5, 1.0), 2), ((0.0, 0.5), 4)]
    )
    plan = CodingPlan((), blocks, True)
    # Samples are whole, and a mean counts them: two of three, then one.
    assert plan.samples_of((0.0, 0.5), 3) == (slice(0, 2), 2 / 3)
