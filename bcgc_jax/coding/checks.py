"""What parameters, samples and loss must be: refused by name, before anything is trained with them."""

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
from bcgc_jax.coding.gradients import Loss, PyTree

# What twice the same sample gives differs from the loss, or from twice the loss, by rounding only.
_ALIKE = 1e-3
_APART = (
    "keep it apart: with Flax NNX `graph, params, rest = nnx.split(model, nnx.Param, ...)`, and in the loss "
    "`nnx.merge(graph, params, rest)`; with Equinox `eqx.partition(model, eqx.is_inexact_array)`"
)


def check_params(params: PyTree) -> None:
    """ValueError for a leaf that no gradient can change: complex or whole numbers, random keys.

    >>> check_params({"w": np.ones(2), "step": np.array(3)})  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ValueError: params['step'] is int64, and only real numbers are trained: keep it apart: ...
    """
    refuse_complex("params", params)
    for path, leaf in jax.tree.leaves_with_path(params):
        dtype = leaf.dtype if hasattr(leaf, "dtype") else np.result_type(leaf)
        if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
            raise ValueError(
                f"params{keystr(path)} is a random key, and no step gets a new one: train without dropout "
                f"(with Flax NNX `model.eval()`), and {_APART}"
            )
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"params{keystr(path)} is {dtype}, and only real numbers are trained: {_APART}")


@contextlib.contextmanager
def traceable() -> Iterator[None]:
    """ValueError in place of JAX's own where a loss is not one of JAX."""
    try:
        yield
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            "JAX cannot trace the loss: it makes NumPy arrays or Python numbers of its arguments. Write it "
            f"with jax.numpy, not numpy, and with jnp.where, not if ({str(error).splitlines()[0]})"
        ) from error


def check_loss(loss: Loss, params: PyTree, batch: PyTree, mean: bool) -> None:
    """ValueError for a loss that is not traceable, no number, does not depend on some leaf of `params`, or is
    a sum over samples where `mean`, and a mean where not.

    Whether it is a sum is seen from one sample of the batch, alone and twice, where its values are known.
    """
    check_params(params)
    with traceable():
        closed = jax.make_jaxpr(loss)(params, batch)
    found = closed.out_avals
    if len(found) != 1 or found[0].shape != () or not jnp.issubdtype(found[0].dtype, jnp.floating):
        told = ", ".join(f"{each.dtype}{list(each.shape)}" for each in found)
        raise ValueError(
            f"the loss must return one real number, the mean over the samples of its batch, got {told}; what "
            "else it computes (auxiliary outputs, new states) cannot be returned"
        )
    used = _used(closed.jaxpr)
    for (path, leaf), v in zip(jax.tree.leaves_with_path(params), closed.jaxpr.invars, strict=False):
        if v not in used and np.size(leaf):
            raise ValueError(
                f"the loss does not depend on params{keystr(path)}: a running statistic, as of BatchNorm, is "
                f"no parameter, and is not updated. Take another normalization, or {_APART}"
            )
    if not is_traced((params, batch)):
        one = jax.tree.map(lambda x: np.asarray(x[:1]), batch)
        once, twice = _once_and_twice(loss, params, one)
        _check_mean(float(once), float(twice), mean)


def _used(jaxpr: Any) -> set[Any]:
    """Variables that the results of a program depend on; of a call within it all that it is given."""
    used = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    for equation in reversed(jaxpr.eqns):
        if equation.effects or used.intersection(equation.outvars):
            used.update(v for v in equation.invars if not isinstance(v, core.Literal))
    return used


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
            "the loss of one sample twice is twice as large as once: it is a sum over the samples. Return "
            'their mean, or say so by mean=False (plan_options={"mean": False} where processes train)'
        )
    if not mean and abs(twice - once) <= apart:
        raise ValueError(
            "the loss of one sample twice is as large as once: it is a mean over the samples. Leave out "
            "mean=False, or return their sum"
        )
