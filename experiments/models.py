"""Provide models for studies in float32: perceptron, convolutional net, transformer.

Each loss is a mean over samples. Parameters and samples are random, because the studies
measure only times.
"""

import functools
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


class Model(NamedTuple):
    """A `loss` of (params, batch), and a `batch` whose first axis is samples."""

    title: str
    loss: Callable[[PyTree, PyTree], jax.Array]
    params: PyTree
    batch: PyTree


def perceptron(widths: Sequence[int], samples: int, seed: int = 0) -> Model:
    """Layers from width to width, tanh between, and the mean square error."""
    draw = np.random.default_rng(seed)
    params = [
        {"w": _normal(draw, (a, b)), "b": np.zeros(b, np.float32)}
        for a, b in pairwise(widths)
    ]
    batch = tuple(
        _normal(draw, (samples, width), 1.0) for width in (widths[0], widths[-1])
    )
    return Model(f"perceptron of {len(params)} layers", _square_error, params, batch)


def convolutional(
    samples: int, seed: int = 0, *, channels: Sequence[int] = (8, 16), classes: int = 10
) -> Model:
    """Make two convolutions, 3 × 3, strides 2, and a head, on noisy 8 × 8 images."""
    draw = np.random.default_rng(seed)
    sizes = (1, *channels)
    params = {
        "convolutions": [
            {
                "w": _normal(draw, (3, 3, a, b), (9 * a) ** -0.5),
                "b": np.zeros(b, np.float32),
            }
            for a, b in pairwise(sizes)
        ],
        "head": {
            "w": _normal(draw, (4 * channels[-1], classes)),
            "b": np.zeros(classes, np.float32),
        },
    }
    kinds = _normal(draw, (classes, 8, 8, 1), 1.0)
    label = draw.integers(0, classes, samples, np.int32)
    images = kinds[label] + _normal(draw, (samples, 8, 8, 1), 1.0)
    return Model("convolutional net", _cross_entropy_of_images, params, (images, label))


def transformer(
    layers: int,
    samples: int,
    seed: int = 0,
    *,
    width: int,
    heads: int,
    length: int,
    vocabulary: int,
    chain: bool = False,
) -> Model:
    """Make embeddings, `layers` of causal attention and perceptron, and a head for next
    tokens.

    With `chain` there is something to learn: tokens are those of a Markov chain, else
    any.

    Units of `unit_sizes(params, "layers", order)` are the head, then of each layer, the
    last first, the perceptron and the attention, then the embeddings: 2 `layers` + 2.
    """
    draw = np.random.default_rng(seed)
    scale = np.ones(width, np.float32)
    normal = functools.partial(_normal, draw)
    places = {
        "tokens": normal((vocabulary, width), 1.0),
        "places": normal((length, width), 1.0),
    }

    def layer() -> PyTree:
        # A head's width is read from the shape.
        qkv = normal((width, 3 * width)).reshape(width, 3, heads, -1)
        attention = {"norm": scale, "qkv": qkv, "out": normal((width, width))}
        mlp = {
            "norm": scale,
            "up": normal((width, 4 * width)),
            "down": normal((4 * width, width)),
        }
        return {"attention": attention, "mlp": mlp}

    params = {
        "embedding": places,
        "layers": [layer() for _ in range(layers)],
        "head": {"norm": scale, "w": normal((width, vocabulary))},
    }
    tokens = draw.integers(0, vocabulary, (samples, length + 1), np.int32)
    if chain:
        follows = draw.integers(0, vocabulary, (vocabulary, 2), np.int32)
        for k in range(length):
            tokens[:, k + 1] = follows[tokens[:, k], draw.integers(0, 2, samples)]
    return Model(
        f"transformer of {layers} layer{'s' * (layers != 1)}",
        _next_token,
        params,
        tokens,
    )


def _normal(
    draw: np.random.Generator, shape: tuple[int, ...], scale: float | None = None
) -> np.ndarray:
    """Draw normal numbers; weights keep the size of what they take."""
    if scale is None:
        scale = shape[0] ** -0.5
    return np.float32(scale) * draw.standard_normal(shape, np.float32)


def _square_error(params: PyTree, batch: PyTree) -> jax.Array:
    x, y = batch
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return jnp.mean((x @ params[-1]["w"] + params[-1]["b"] - y) ** 2)


def _cross_entropy_of_images(params: PyTree, batch: PyTree) -> jax.Array:
    x, label = batch
    for layer in params["convolutions"]:
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, layer["w"], (2, 2), "SAME", dimension_numbers=layout
        )
        x = jax.nn.relu(x + layer["b"])
    scores = x.reshape(len(x), -1) @ params["head"]["w"] + params["head"]["b"]
    return -jnp.mean(
        jnp.take_along_axis(jax.nn.log_softmax(scores), label[:, None], axis=1)
    )


def _next_token(params: PyTree, tokens: jax.Array) -> jax.Array:
    before = tokens[:, :-1]
    after = tokens[:, 1:]
    x = params["embedding"]["tokens"][before] + params["embedding"]["places"]
    for layer in params["layers"]:
        x = x + _attention(layer["attention"], x)
        x = x + _mlp(layer["mlp"], x)
    scores = _normed(x, params["head"]["norm"]) @ params["head"]["w"]
    log_likelihoods = jnp.take_along_axis(
        jax.nn.log_softmax(scores), after[..., None], axis=-1
    )
    return -jnp.mean(log_likelihoods)


def _normed(x: jax.Array, scale: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def _attention(params: PyTree, x: jax.Array) -> jax.Array:
    q, k, v = jnp.einsum("mtd,dchw->cmhtw", _normed(x, params["norm"]), params["qkv"])
    scores = jnp.einsum("mhtw,mhsw->mhts", q, k) * q.shape[-1] ** -0.5
    past = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(past, scores, -jnp.inf))
    return jnp.einsum("mhts,mhsw->mthw", weights, v).reshape(x.shape) @ params["out"]


def _mlp(params: PyTree, x: jax.Array) -> jax.Array:
    return jax.nn.gelu(_normed(x, params["norm"]) @ params["up"]) @ params["down"]
