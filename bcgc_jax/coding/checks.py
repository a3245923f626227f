"""Checks of parameters, samples and loss before any training."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core
from jax.tree_util import keystr

from bcgc_jax._pytree import is_traced
from bcgc_jax.coding.codes import refuse_complex
from bcgc_jax.coding.losses import Loss, PyTree, keys_of, takes_key

# What twice the same sample gives differs from the loss, or from twice the loss, by
# rounding only.
_ALIKE = 1e-3
_APART = (
    "keep it apart: with Flax NNX `graph, params, rest = nnx.split(model, nnx.Param, "
    "...)`, and in the loss `nnx.merge(graph, params, rest)`; with Equinox "
    "`eqx.partition(model, eqx.is_inexact_array)`"
)

_STATE = (
    "For new states and metrics take `loss, optimizer = bcgc_jax.coding.stateful(loss, "
    "optimizer)`, whose loss returns (value, new state) of (params, state, batch)"
)


def check_params(params: PyTree) -> None:
    """Raise ValueError for a leaf that no gradient can change: no real numbers, random
    keys.

    >>> check_params(
    ...     {"w": np.ones(2), "step": np.array(3)}
    ... )  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ValueError: params['step'] is int64, and only real numbers are trained: ...
    """
    refuse_complex("params", params)
    for path, leaf in jax.tree.leaves_with_path(params):
        if hasattr(leaf, "dtype"):
            dtype = leaf.dtype
        else:
            dtype = np.result_type(leaf)
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"params{keystr(path)} is a random key, and no step gets a new one. A "
                "loss of three arguments, loss(params, batch, key), is given a new key "
                f"each time; {_APART}"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"params{keystr(path)} is {dtype}, and only real numbers are trained: "
                f"{_APART}"
            )


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """Raise ValueError in place of JAX's own errors where a loss is not one of JAX."""
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            "JAX cannot trace the loss: it makes NumPy arrays or Python numbers of its "
            "arguments. Write it with jax.numpy, not numpy, and with jnp.where, not if "
            f"({str(error).splitlines()[0]})"
        ) from error


def check_loss(loss: Loss, params: PyTree, batch: PyTree, mean: bool) -> None:
    """Raise ValueError for a loss that cannot be trained with.

    That is one that is not traceable or no number, gives some leaf of `params` no
    gradient, is a sum over samples where `mean`, or a mean where not.

    Whether it is a sum is seen from one sample of the batch, alone and twice, where its
    values are known and it does not draw.
    """
    check_params(params)
    arguments = params, batch, *keys_of(loss, jax.random.key(0))(0, 0)
    with traceable():
        values = jax.tree.leaves(_shapes(loss, *arguments))
    if (
        len(values) != 1
        or values[0].shape
        or not jnp.issubdtype(values[0].dtype, jnp.floating)
    ):
        shapes = ", ".join(f"{value.dtype}{list(value.shape)}" for value in values)
        raise ValueError(
            "the loss must return one real number, the mean over the samples of its "
            f"batch, got {shapes}. {_STATE}"
        )
    idle = _without_gradient(loss, *arguments)
    if idle:
        names = ", ".join(f"params{keystr(path)}" for path in idle)
        raise ValueError(
            f"the loss gives {names} no gradient: a running statistic, as of "
            "BatchNorm, or what is frozen is no parameter, and no step updates it. "
            f"{_STATE}; take another normalization; or {_APART}"
        )
    if not takes_key(loss) and not is_traced((params, batch)):
        sample = jax.tree.map(lambda x: np.asarray(x[:1]), batch)
        once, twice = _once_and_twice(loss, params, sample)
        _check_mean(float(once), float(twice), mean)


def _shapes(loss: Loss, *arguments: PyTree) -> PyTree:
    try:
        return jax.eval_shape(loss, *arguments)
    except TypeError as error:
        if isinstance(error, jax.errors.JAXTypeError) or not takes_key(loss):
            raise
        raise ValueError(
            "the loss has three arguments, so its third one is a random key, and with "
            f"that it fails: {error}. Samples are one argument: loss(params, batch), "
            "with x, y = batch"
        ) from error


def _without_gradient(loss: Loss, *arguments: PyTree) -> list[Any]:
    """The paths of parameters whose gradient is a constant 0, whatever the samples."""
    closed = jax.make_jaxpr(jax.grad(loss))(*arguments)
    zeros = set[Any]()
    for equation in closed.jaxpr.eqns:
        if equation.primitive.name == "broadcast_in_dim" and _is_zero(
            equation.invars[0]
        ):
            zeros.update(equation.outvars)
    pairs = zip(
        jax.tree.leaves_with_path(arguments[0]), closed.jaxpr.outvars, strict=True
    )
    return [
        path
        for (path, leaf), v in pairs
        if np.size(leaf) and (_is_zero(v) or v in zeros)
    ]


def _is_zero(atom: Any) -> bool:
    return isinstance(atom, core.Literal) and not np.any(atom.val)


@functools.partial(jax.jit, static_argnums=0)
def _once_and_twice(loss: Loss, params: PyTree, sample: PyTree) -> tuple[Array, Array]:
    """The loss of a sample, and of the same sample twice."""
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), sample)
    return loss(params, sample), loss(params, twice)


def _check_mean(once: float, twice: float, mean: bool) -> None:
    apart = _ALIKE * abs(once)
    if not apart > 0:  # nothing can be said; of NaN neither
        return
    if mean and abs(twice - 2 * once) <= apart:
        raise ValueError(
            "the loss of one sample twice is twice as large as once: it is a sum over "
            "the samples. Return their mean, or say so by mean=False "
            '(plan_options={"mean": False} where processes train)'
        )
    if not mean and abs(twice - once) <= apart:
        raise ValueError(
            "the loss of one sample twice is as large as once: it is a mean over the "
            "samples. Leave out mean=False, or return their sum"
        )
